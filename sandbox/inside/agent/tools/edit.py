"""The editor tool (`text_editor_20250728`): view, create, str_replace, insert; not a wall: bash can do what it refuses.

Writing is confined to the workspace and the temporary directory so that a wrong path is told at once. Bytes that an
edit does not touch stay as they are: line ends, a byte-order mark, a missing last newline, the file's mode.
"""

import os
import stat
from pathlib import Path
from typing import Any

from sandbox.inside.agent.tools.call import MalformedCall, ToolResult, number_argument, text_argument

FILE_BYTES_MAX = 2 << 20
VIEW_CHARS_MAX = 24_000
ENTRIES_MAX = 400
_AROUND_LINES = 4
EDIT_NAME = "str_replace_based_edit_tool"


class _Refused(Exception):
    """The edit cannot be made; the message is the answer."""


class Edit:
    """Shows and changes text files."""

    name = EDIT_NAME
    definition: dict[str, Any] = {"type": "text_editor_20250728", "name": EDIT_NAME}  # noqa: RUF012 - a constant of the wire

    def __init__(self, workspace: Path, writable: tuple[Path, ...]) -> None:
        """Prepare an editor; relative paths begin at `workspace`, changes stay below it or one of `writable`."""
        self._workspace = workspace
        self._roots = tuple(Path(os.path.realpath(root)) for root in (workspace, *writable))

    def run(self, arguments: dict[str, Any], timeout_s: float, traceparent: str = "") -> ToolResult:
        """Run one command; each reads and writes at most `FILE_BYTES_MAX`, so `timeout_s` needs no watch, and no process is started."""
        del timeout_s, traceparent
        command = text_argument(arguments, "command")
        commands = {"view": self._view, "create": self._create, "str_replace": self._replace, "insert": self._insert}
        if command not in commands:
            raise MalformedCall(f"`command` is one of {', '.join(commands)}, not {command!r}")
        raw = text_argument(arguments, "path")
        if not raw or "\0" in raw:
            raise MalformedCall("`path` is empty or holds a NUL")
        path = self._workspace / raw  # an absolute `raw` replaces the workspace
        try:
            return ToolResult(commands[command](path, arguments))
        except _Refused as error:
            return ToolResult(str(error), is_error=True)
        except OSError as error:
            return ToolResult(f"{path}: {error.strerror or error}", is_error=True)

    def _view(self, path: Path, arguments: dict[str, Any]) -> str:
        if path.is_dir():
            return _listing(path)
        lines = _read(path).split("\n")
        first, last = _view_range(arguments.get("view_range"), len(lines))
        return _numbered(lines, first, last)

    def _create(self, path: Path, arguments: dict[str, Any]) -> str:
        text = text_argument(arguments, "file_text")
        self._check_writable(path)
        existed = path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, text)
        return f"{'replaced' if existed else 'created'} {path}"

    def _replace(self, path: Path, arguments: dict[str, Any]) -> str:
        old, new = text_argument(arguments, "old_str"), text_argument(arguments, "new_str", "")
        if not old:
            raise MalformedCall("`old_str` is empty; use insert or create")
        self._check_writable(path)
        text = _read(path)
        if "\r\n" in text and "\r" not in old:  # a model writes plain newlines, whatever it was shown
            old, new = old.replace("\n", "\r\n"), new.replace("\n", "\r\n")
        count = text.count(old)
        if count != 1:
            raise _Refused(_no_single_match(path, text, old, count))
        at = text.index(old)
        _write(path, text[:at] + new + text[at + len(old) :])
        first = text.count("\n", 0, at) + 1
        return _edited(path, first, first + new.count("\n"))

    def _insert(self, path: Path, arguments: dict[str, Any]) -> str:
        after = number_argument(arguments, "insert_line")
        text_in = text_argument(arguments, "insert_text")
        self._check_writable(path)
        text = _read(path)
        lines = _split_keeping_ends(text)
        if not 0 <= after <= len(lines):
            raise _Refused(f"`insert_line` is 0 to {len(lines)} in {path}, not {after}")
        end = "\r\n" if "\r\n" in text else "\n"
        added = text_in.replace("\r\n", "\n").replace("\n", end)
        if after < len(lines) and not added.endswith(end):
            added += end
        if after and not lines[after - 1].endswith("\n"):
            added = end + added
        _write(path, "".join(lines[:after]) + added + "".join(lines[after:]))
        return _edited(path, after + 1, after + added.count("\n"))

    def _check_writable(self, path: Path) -> None:
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(root) for root in self._roots):
            raise _Refused(f"{path} is outside {' and '.join(map(str, self._roots))}; nothing else can be changed")
        if real.is_relative_to(self._roots[0] / ".git"):
            raise _Refused(f"{path} is in the private .git, which is thrown away")


def _read(path: Path) -> str:
    """Return a regular file's text with its line ends as they are."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # O_NONBLOCK: a FIFO must not hang us
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _Refused(f"{path} is no regular file")
        if status.st_size > FILE_BYTES_MAX:
            raise _Refused(f"{path} has {status.st_size} bytes; the editor takes {FILE_BYTES_MAX}, use bash")
        data = file.read(FILE_BYTES_MAX + 1)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Refused(f"{path} is not UTF-8 text; use bash") from error
    if "\0" in text:
        raise _Refused(f"{path} holds NUL bytes: not a text; use bash")
    return text


def _write(path: Path, text: str) -> None:
    data = text.encode("utf-8", errors="replace")
    if len(data) > FILE_BYTES_MAX:
        raise _Refused(f"{len(data)} bytes for {path}; the editor takes {FILE_BYTES_MAX}, use bash")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _Refused(f"{path} is no regular file")
        file.write(data)


def _split_keeping_ends(text: str) -> list[str]:
    """Split at newlines only: `splitlines` also splits at U+2028 and its like, which no line number counts."""
    parts = text.split("\n")
    lines = [part + "\n" for part in parts[:-1]]
    return [*lines, parts[-1]] if parts[-1] else lines


def _view_range(value: object, lines: int) -> tuple[int, int]:
    if value is None:
        return 1, lines
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(number, int) for number in value):
        raise MalformedCall("`view_range` is [first line, last line], -1 for the end")
    first, last = value[0], lines if value[1] == -1 else min(value[1], lines)
    if not 1 <= first <= lines or last < first:
        raise _Refused(f"`view_range` {value} is not within 1 to {lines}")
    return first, last


def _numbered(lines: list[str], first: int, last: int) -> str:
    shown: list[str] = []
    room = VIEW_CHARS_MAX
    for number in range(first, last + 1):
        line = f"{number:6}\t{lines[number - 1]}"
        if len(line) > room and shown:
            return "\n".join([*shown, f"[... cut here; go on with view_range [{number}, {last}] ...]"])
        shown.append(line if len(line) <= VIEW_CHARS_MAX else line[:VIEW_CHARS_MAX] + " [... line cut]")
        room -= len(line)
    return "\n".join(shown)


def _edited(path: Path, first: int, last: int) -> str:
    lines = _read(path).split("\n")
    return f"{path} now reads:\n" + _numbered(lines, max(1, first - _AROUND_LINES), min(len(lines), last + _AROUND_LINES))


def _no_single_match(path: Path, text: str, old: str, count: int) -> str:
    if count == 0:
        return f"`old_str` is not in {path}; it must match exactly, spaces and all"
    at = [number for number, line in enumerate(text.split("\n"), 1) if old.split("\n", 1)[0].rstrip("\r") in line][:10]
    return f"`old_str` is {count} times in {path} (near lines {', '.join(map(str, at))}); add lines around it until it is there once"


def _listing(path: Path) -> str:
    """Return what is in a directory, two levels deep, without hidden entries."""
    names: list[str] = []
    for entry in _entries(path):
        names.append(entry.name + ("/" if entry.is_dir(follow_symlinks=False) else ""))
        if entry.is_dir(follow_symlinks=False):
            names += [
                f"{entry.name}/{child.name}" + ("/" if child.is_dir(follow_symlinks=False) else "") for child in _entries(Path(entry.path))
            ]
    cut = [f"[... {len(names) - ENTRIES_MAX} more ...]"] if len(names) > ENTRIES_MAX else []
    return "\n".join([f"{path}:", *names[:ENTRIES_MAX], *cut])


def _entries(path: Path) -> list[os.DirEntry[str]]:
    with os.scandir(path) as found:
        return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
