"""Lets a Python of the repository import the product and keeps what it read there; not what is read (`sealed/signatures`).

The product runs in the process that answers, so an answer counts only with a signature whose key that process got and forgot, and it
is read when the process is dead. What is written to `/out` is written here.
"""

import hashlib
import hmac
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pydantic import ValidationError

from sandbox.contract.job import Check
from sandbox.contract.signatures import REPORT_BYTES_MAX, Reading, SignatureReport
from sandbox.inside import sealed
from sandbox.inside.checks.sealing import behind_the_wall
from sandbox.inside.paths import Paths
from sandbox.inside.process import Ended, run_process

_SIGNATURE_CHARS = 64
_ROOTS = ("src", "lib", "python")
"""Directories that are no package but hold them."""
_START = """
import json, os, sys
from importlib import machinery as _machinery
class _Source(_machinery.SourceFileLoader):
    def path_stats(self, path):
        raise OSError("what was compiled before is not believed")
def _hook(workspace):
    find = _machinery.FileFinder.path_hook(
        (_machinery.ExtensionFileLoader, _machinery.EXTENSION_SUFFIXES), (_Source, _machinery.SOURCE_SUFFIXES)
    )
    def hook(path):
        if path != workspace and not path.startswith(workspace + "/"):
            raise ImportError(path)
        return find(path)
    return hook
def _begin(question, answer):
    import builtins
    with open(question, closefd=True, encoding="utf-8") as file:
        asked = json.load(file)
        os.ftruncate(question, 0)
    sys.path_hooks.insert(0, _hook(asked.pop("workspace")))
    space = {"__builtins__": dict(vars(builtins)), "__name__": "signatures"}
    exec(compile(asked.pop("source"), "<signatures>", "exec"), space)
    return space["begin"](asked, answer)
_names, _failures = _begin(int(sys.argv[1]), int(sys.argv[2]))
del _begin, sys.argv[1:]
for _name in _names:
    try:
        __import__(_name)
    except BaseException as _error:
        _failures.append([_name, type(_error).__name__ + ": " + str(_error)])
sys.audit("andon.signatures.end")
"""
_END_LINE = _START.count("\n")

Say = Callable[[bytes], None]


class Imported(NamedTuple):
    """How a check that imports ended."""

    ended: Ended
    report: bytes | None
    """None: some process gave no answer; its output says why."""


class Place(NamedTuple):
    """Where the import system finds a module."""

    root: str
    """Relative to the workspace; empty: the workspace itself."""
    name: str


class _Look(NamedTuple):
    """What every process of one check is started with."""

    argv: tuple[str, ...]
    paths: Paths
    environment: Mapping[str, str]
    deadline: float
    sink: Say


def import_and_read(check: Check, paths: Paths, environment: Mapping[str, str], timeout_s: float, sink: Say) -> Imported:
    """Import a check's modules, the locked ones alone and then with the others, and return what they declare.

    Args:
        check: One with `to_import`.
        paths: Of the sandbox.
        environment: Of the processes.
        timeout_s: For both together.
        sink: Takes what the product prints, and why there is no answer.

    Raises:
        CommandNotStarted: There is no such Python.
    """
    if check.to_import is None:
        raise ValueError(f"check {check.name} has nothing to import")
    python = _python(check.argv, environment)
    argv = behind_the_wall(check, paths, python, (*python, "-I", "-B", "-c", _START))
    look = _Look(argv, paths, environment, time.monotonic() + timeout_s, sink)
    ended, alone = _read(look, check.to_import.locked, ())
    with_others = None
    if alone is not None and check.to_import.others:
        ended, with_others = _read(look, check.to_import.locked, check.to_import.others)
    if alone is None or (check.to_import.others and with_others is None):
        return Imported(ended, None)
    return Imported(ended, SignatureReport(alone=alone, with_others=with_others).model_dump_json(exclude_defaults=True).encode())


def keep(report: bytes, target: Path, sink: Say) -> str | None:
    """Write a report where nothing is, not through a link, and return its digest; None if something is there that cannot be removed."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        sink(f"signatures: the report cannot be written: {error}\n".encode())
        return None
    with os.fdopen(file, "wb") as stream:
        stream.write(report)
    return hashlib.sha256(report).hexdigest()


def place_of(path: str, workspace: Path) -> Place:
    """Return the name a module is imported by, and the directory that has to be on the path for it.

    Directories with an `__init__.py` are packages; without any, the path from the workspace, `src`, `lib` or `python` is the name.
    """
    *directories, stem = PurePosixPath(path).with_suffix("").parts
    top = len(directories)
    while top and Path(workspace, *directories[:top], "__init__.py").is_file():
        top -= 1
    if top == len(directories) and all(each.isidentifier() for each in directories):
        top = 1 if directories and directories[0] in _ROOTS else 0
    dotted = directories[top:] if stem == "__init__" and directories[top:] else [*directories[top:], stem]
    return Place("/".join(directories[:top]), ".".join(dotted))


def _read(look: _Look, locked: Sequence[str], others: Sequence[str]) -> tuple[Ended, Reading | None]:
    """Let one process import and answer; None if its answer does not count."""
    key = secrets.token_bytes(32)
    workspace = Path(os.path.realpath(look.paths.workspace))
    places = {path: place_of(path, workspace) for path in (*locked, *others)}
    asked = {
        "source": Path(sealed.__file__).with_name("signatures.py").read_text("utf-8"),
        "key": key.hex(),
        "path": _search_path(places, workspace),
        "names": [place.name for place in places.values()],
        "locked": [[path, str(workspace / path), places[path].name] for path in locked],
        "end": _END_LINE,
        "workspace": str(workspace),
    }
    with _file_in_memory("question", json.dumps(asked).encode()) as question, _file_in_memory("answer", b"") as answer:
        argv = (*look.argv, str(question), str(answer))
        left_s = max(0.0, look.deadline - time.monotonic())
        ended = run_process(
            argv, cwd=look.paths.workspace, env=look.environment, timeout_s=left_s, sink=look.sink, pass_fds=(question, answer)
        )
        data = os.pread(answer, REPORT_BYTES_MAX + _SIGNATURE_CHARS + 1, 0)
    by_name = {place.name: path for path, place in places.items()}
    return ended, _judged(data, key, ended, by_name, look.sink)


def _judged(data: bytes, key: bytes, ended: Ended, by_name: Mapping[str, str], sink: Say) -> Reading | None:
    reading, why = _believed(data, key, ended)
    if reading is None:
        sink(f"signatures: {why}\n".encode())
        return None
    return _by_path(reading, by_name)


def _believed(data: bytes, key: bytes, ended: Ended) -> tuple[Reading | None, str]:
    """Return what a process answered, or why it does not count."""
    signature, told = data[:_SIGNATURE_CHARS], data[_SIGNATURE_CHARS:]
    if ended.exit_code is None:
        return None, "the import did not end in time"
    if not data:
        return None, f"the process ended with exit code {ended.exit_code} and without an answer: something that is imported ends it"
    if len(told) > REPORT_BYTES_MAX:
        return None, f"the modules declare more than {REPORT_BYTES_MAX >> 20} MiB"
    if not hmac.compare_digest(signature, hashlib.blake2b(told, key=key, digest_size=32).hexdigest().encode()):
        return None, "something else than our reader wrote the answer"
    try:
        return Reading.model_validate_json(told), ""
    except ValidationError as error:
        return None, f"the answer cannot be read: {error.error_count()} errors"


def _by_path(reading: Reading, by_name: Mapping[str, str]) -> Reading:
    """Return a reading whose failures are told by path; those of locked modules are their problem."""
    failed = {by_name[name]: why[:1_000] for name, why in reading.failed.items() if name in by_name}
    modules = {
        path: module.model_copy(update={"problem": f"{module.problem}: {failed[path]}"}) if module.problem and path in failed else module
        for path, module in reading.modules.items()
    }
    return Reading(modules=modules, failed={path: why for path, why in failed.items() if path not in modules})


def _search_path(places: Mapping[str, Place], workspace: Path) -> list[str]:
    """Return the directories modules are looked for in: roots, and where scripts find their neighbours."""
    roots = [str(workspace / place.root) for place in places.values()]
    beside = [str((workspace / path).parent) for path in places if not (workspace / path).with_name("__init__.py").is_file()]
    return list(dict.fromkeys([*roots, *beside]))


def _python(argv: tuple[str, ...], environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return a command for Python; a bare `python` is the one `pytest` belongs to, so that both see the same packages."""
    if argv != ("python",):
        return argv
    search = environment.get("PATH")
    beside = shutil.which("pytest", path=search)
    candidates = [Path(beside).with_name("python")] if beside else []
    candidates += [Path(found) for name in ("python", "python3") if (found := shutil.which(name, path=search))]
    return (str(next((each for each in candidates if os.access(each, os.X_OK)), "python")),)


@contextmanager
def _file_in_memory(name: str, content: bytes) -> Iterator[int]:
    file = os.memfd_create(name)
    try:
        os.write(file, content)
        os.lseek(file, 0, os.SEEK_SET)
        yield file
    finally:
        os.close(file)
