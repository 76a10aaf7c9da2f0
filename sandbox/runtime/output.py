"""A container's output as it is kept: the frames of an attached stream, the first and the last of it; not where it goes."""

import asyncio
from typing import cast

from sandbox.runtime.container_spec import LAST_WORDS_BYTES_MAX, LastWords, Stream

_HEADER_BYTES = 8
_STREAMS: dict[int, Stream] = {1: "stdout", 2: "stderr"}
_BURST_BYTES = 1 << 20
_REST_S = 0.01


class HeadAndTail:
    """Keeps the first and the last half of what it is fed, and counts the rest."""

    def __init__(self, bytes_max: int) -> None:
        """Keep at most `bytes_max` bytes (at least 2), the line about what was dropped not counted."""
        self._half = bytes_max // 2
        self._head = bytearray()
        self._tail = bytearray()
        self.dropped = 0

    def feed(self, data: bytes) -> None:
        """Add `data`."""
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        # Cut in large steps: moving the tail for every write would be quadratic.
        if len(self._tail) > 2 * self._half:
            self._cut()

    def value(self) -> bytes:
        """Return what is kept, with one line where something was dropped."""
        self._cut()
        if not self.dropped:
            return bytes(self._head + self._tail)
        marker = f"\n[andon: {self.dropped} bytes of output dropped here]\n".encode()
        return bytes(self._head + marker + self._tail)

    def _cut(self) -> None:
        surplus = len(self._tail) - self._half
        if surplus > 0:
            del self._tail[:surplus]
            self.dropped += surplus


class AttachedOutput(asyncio.Protocol):
    """Reads the engine's attach stream (8 bytes of header, then a frame) into a `HeadAndTail`, and the last of each stream by itself."""

    def __init__(self, bytes_max: int, preread: bytes = b"") -> None:
        self.kept = HeadAndTail(bytes_max)
        self.ended = asyncio.Event()
        self._last: dict[Stream, bytearray] = {}
        self._header = bytearray()
        self._stream: Stream = "stdout"
        self._frame_left = 0
        self._burst = 0
        self._transport: asyncio.ReadTransport | None = None
        self._resume: asyncio.TimerHandle | None = None
        self._parse(preread)

    @property
    def last_words(self) -> LastWords:
        """Return the last of each stream that said anything."""
        return {stream: bytes(last[-LAST_WORDS_BYTES_MAX:]) for stream, last in self._last.items()}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start reading."""
        self._transport = cast(asyncio.ReadTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Take what came, and rest after each MiB: a flood must not hold the event loop that keeps leases."""
        self._parse(data)
        self._burst += len(data)
        if self._burst >= _BURST_BYTES and self._transport is not None and not self._transport.is_closing():
            self._burst = 0
            self._transport.pause_reading()
            self._resume = asyncio.get_running_loop().call_later(_REST_S, self._transport.resume_reading)

    def eof_received(self) -> None:
        """Let the transport close."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (the engine's end or ours: both are the end)
        """Say that no more will come."""
        if self._resume is not None:
            self._resume.cancel()
        self.ended.set()

    def close(self) -> None:
        """Stop reading."""
        if self._transport is not None:
            self._transport.close()
        self.ended.set()

    def _parse(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if self._frame_left == 0:
                wanted = _HEADER_BYTES - len(self._header)
                self._header += view[:wanted]
                view = view[wanted:]
                if len(self._header) == _HEADER_BYTES:
                    self._stream = _STREAMS.get(self._header[0], "stdout")
                    self._frame_left = int.from_bytes(self._header[4:], "big")
                    self._header.clear()
                continue
            frame = view[: self._frame_left]
            self.kept.feed(bytes(frame))
            self._hear(bytes(frame[-LAST_WORDS_BYTES_MAX:]))
            self._frame_left -= len(frame)
            view = view[len(frame) :]

    def _hear(self, data: bytes) -> None:
        last = self._last.setdefault(self._stream, bytearray())
        last += data
        if len(last) > 2 * LAST_WORDS_BYTES_MAX:  # in large steps, as above
            del last[:-LAST_WORDS_BYTES_MAX]
