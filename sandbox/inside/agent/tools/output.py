"""Makes a command's bytes fit for a conversation: decoded, cleaned, cut once with the whole kept in a file. Not the command."""

import re
from collections import deque
from pathlib import Path

HEAD_CHARS = 6_000
TAIL_CHARS = 6_000
KEPT_BYTES_MAX = 4 << 20
_TAIL_BYTES = 64 << 10

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Capture:
    """Collects output in bounded memory: the first `KEPT_BYTES_MAX` bytes, then only the newest ones."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self.bytes_total = 0

    def take(self, chunk: bytes) -> None:
        """Add a chunk."""
        self.bytes_total += len(chunk)
        room = KEPT_BYTES_MAX - len(self._head)
        self._head += chunk[:room]
        rest = chunk[room:]
        if rest:
            self._tail.append(rest)
            self._tail_bytes += len(rest)
        while self._tail_bytes - len(self._tail[0]) >= _TAIL_BYTES if self._tail else False:
            self._tail_bytes -= len(self._tail.popleft())

    def text(self) -> str:
        """Return what was kept as clean text, with a line where bytes were lost."""
        head = clean(bytes(self._head))
        if not self._tail:
            return head
        lost = self.bytes_total - len(self._head) - self._tail_bytes
        return f"{head}\n[... {lost} bytes not kept ...]\n{clean(b''.join(self._tail))}"


def clean(data: bytes) -> str:
    """Return bytes as text without terminal escapes, overwritten progress lines and control characters."""
    text = _ESCAPES.sub("", data.decode("utf-8", errors="replace"))
    # By line and not by an expression over all: a search for "anything up to a return" is quadratic in a long line.
    lines = [line.removesuffix("\r").rsplit("\r", 1)[-1] for line in text.split("\n")]
    return _CONTROLS.sub("", "\n".join(lines))


def shortened(text: str, full_text_file: Path) -> str:
    """Return `text`, or its head and tail with the whole saved in `full_text_file`, whose path is named."""
    if len(text) <= HEAD_CHARS + TAIL_CHARS:
        return text
    left_out = len(text) - HEAD_CHARS - TAIL_CHARS
    where = f"whole output in {full_text_file}"
    try:
        full_text_file.parent.mkdir(parents=True, exist_ok=True)
        full_text_file.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        where = f"the whole output could not be saved: {error.strerror}"
    return f"{text[:HEAD_CHARS]}\n[... {left_out} characters left out; {where} ...]\n{text[-TAIL_CHARS:]}"
