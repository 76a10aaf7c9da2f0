"""Server-sent events cut out of a byte stream; not what they say of tokens (`meter`)."""

import re
from dataclasses import dataclass

EVENT_BYTES_MAX = 8 << 20
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_END_BYTES_MAX = 4


@dataclass(frozen=True)
class Event:
    """One event: its name, its data, and the bytes it came as, blank line included."""

    raw: bytes
    name: str
    data: bytes


class EventSplitter:
    """Cuts chunks, however they are cut by the network, into whole events."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that `chunk` completes.

        Raises:
            ValueError: An event is larger than 8 MiB.
        """
        searched = max(0, len(self._rest) - _END_BYTES_MAX + 1)
        self._rest += chunk
        events = []
        start = 0
        while end := _END.search(self._rest, max(start, searched)):
            events.append(_parsed(bytes(self._rest[start : end.end()])))
            start = end.end()
        del self._rest[:start]
        if len(self._rest) > EVENT_BYTES_MAX:
            raise ValueError(f"an event of more than {EVENT_BYTES_MAX} bytes")
        return events


def _parsed(raw: bytes) -> Event:
    if raw.startswith(b"event: content_block_delta\n"):  # nearly every event, and nobody reads it here
        return Event(raw, "content_block_delta", b"")
    name = ""
    data = []
    for line in raw.splitlines():
        field, _, value = line.partition(b":")
        if field == b"event":
            name = value.strip().decode("ascii", "replace")
        elif field == b"data":
            data.append(value.removeprefix(b" "))
    return Event(raw, name, b"\n".join(data))
