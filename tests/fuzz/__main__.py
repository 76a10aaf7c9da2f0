"""`make fuzz`: ten minutes over all targets, two at a time, each in a process of its own; ends with 1 if one was broken.

ANDON_FUZZ_SEED=… takes the same course again, ANDON_FUZZ_S=… another time in all; `python -m tests.fuzz NAME…` some targets only, `--keep`
adds inputs that reached new lines to the corpus. What broke a target is always added: fix it, and leave the input where it is.
"""

import argparse
import hashlib
import json
import logging
import os
import resource
import secrets
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.everything import TARGETS
from tests.fuzz.search import Find, Search
from tests.fuzz.target import CORPUS, HANG_CPU_S, Target

TOTAL_S = 600
AT_ONCE = 2
MEMORY_BYTES_MAX = 2 << 30
"""Address space of one process: an input that takes more breaks its target."""
GRACE_S = 30.0 + 5 * HANG_CPU_S
KEPT_FILES_MAX, KEPT_FILE_BYTES_MAX = 40, 4_096


@dataclass(frozen=True)
class Verdict:
    """What one process says of its target."""

    name: str
    inputs: int = 0
    lines: int = 0
    problem: str = ""


def main(arguments: list[str]) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("names", nargs="*", choices=[[], *TARGETS], metavar="NAME", help=", ".join(TARGETS))
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    number = int(os.environ.get("ANDON_FUZZ_SEED") or secrets.randbelow(1_000_000))
    total_s = float(os.environ.get("ANDON_FUZZ_S") or TOTAL_S)
    if options.child:
        return _child(TARGETS[options.names[0]], number, options.until, Path(options.child), keep=options.keep)
    names = options.names or list(TARGETS)
    each_s = total_s * AT_ONCE / len(names)
    print(f"{len(names)} targets, {each_s:.0f} s each, ANDON_FUZZ_SEED={number}", flush=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        verdicts = list(pool.map(lambda name: _judged(name, number, each_s, keep=options.keep), names))
    broken = [verdict for verdict in verdicts if verdict.problem]
    print(f"{sum(verdict.inputs for verdict in verdicts):,} inputs, {len(broken)} targets broken, ANDON_FUZZ_SEED={number}")
    return 1 if broken else 0


def _judged(name: str, number: int, seconds: float, *, keep: bool) -> Verdict:
    """Search one target in a process of its own, which may crash or hang, and print what came of it."""
    with tempfile.TemporaryDirectory(prefix="andon-fuzz-") as directory:
        place = Path(directory)
        until = time.monotonic() + seconds  # the start of the process is in it: ten minutes are ten minutes
        command = [sys.executable, "-m", "tests.fuzz", name, "--child", directory, "--until", str(until), *(["--keep"] if keep else [])]
        environment = {**os.environ, "ANDON_FUZZ_SEED": str(number), "TMPDIR": directory}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds + GRACE_S, check=False)
            said = (place / "verdict").exists()
            died = "" if said else f"the process ended with {done.returncode}: {done.stderr[-2_000:]}"
        except subprocess.TimeoutExpired:
            died = "the process did not end"
        if died:
            data = (place / "current").read_bytes() if (place / "current").exists() else b""
            verdict = Verdict(name, problem=f"{died}; the input is {_keep(name, 'find', data)}")
        else:
            verdict = Verdict(**json.loads((place / "verdict").read_text()))
    mark = "BROKEN" if verdict.problem else "ok    "
    print(f"{mark} {name:<16} {verdict.inputs:>8,} inputs, {verdict.lines:>5,} lines of ours  {verdict.problem}", flush=True)
    return verdict


def _child(target: Target, number: int, until: float, place: Path, *, keep: bool) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    logging.getLogger().addHandler(logging.NullHandler())  # what a parser logs of bad input is not for this terminal
    current = place / "current"
    search = Search(target, number, before=current.write_bytes)
    find = search.until(until)
    if keep:
        _keep_fresh(search)
    problem = _told(target, find) if find else ""
    (place / "verdict").write_text(
        json.dumps({"name": target.name, "inputs": search.inputs, "lines": len(search.lines), "problem": problem})
    )
    return 1 if find else 0


def _told(target: Target, find: Find) -> str:
    path = _keep(target.name, "find", find.data)
    last = traceback.format_exception(find.error)[-4:]
    return f"{type(find.error).__name__} by {path} ({len(find.data)} bytes)\n" + "".join(last)


def _keep_fresh(search: Search) -> None:
    """Add small inputs that reached new lines to the corpus, as long as there is room."""
    known = {*search.target.kept(), *search.target.seeds()}
    fresh = [data for data in search.fresh if len(data) <= KEPT_FILE_BYTES_MAX and data not in known]
    for data in fresh[: max(0, KEPT_FILES_MAX - len(search.target.kept()))]:
        _keep(search.target.name, "line", data)


def _keep(name: str, kind: str, data: bytes) -> Path:
    path = CORPUS / name / f"{kind}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
