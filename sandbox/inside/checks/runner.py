"""Runs the commands of a checks job, one after the other, and says how each ended; not what their reports mean (`supervisor/gates`).

Exit codes and output are for people: verdicts come from the reports in `/out`, which the host reads after the container
is dead.
"""

import hashlib
import os
import shlex
import stat
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sandbox.contract.job import Assignment, Check, CheckExit, Submission
from sandbox.inside.checks.importing import import_and_read, keep
from sandbox.inside.checks.sealing import plugins_for
from sandbox.inside.gateway_client import say_alive
from sandbox.inside.otlp import below_check
from sandbox.inside.paths import Paths
from sandbox.inside.process import CommandNotStarted, run_process

TAIL_CHARS_MAX = 16_000
TAILS_JSON_BYTES_MAX = 56 << 10
"""All tails together, as JSON: a submission has at most 64 KiB."""
NOT_STARTED = 127
REPORT_BYTES_MAX = 16 << 20
"""What the host reads of a report; a digest of more than that cannot match."""


def run_checks(assignment: Assignment, paths: Paths, environment: dict[str, str], say: Callable[[str], None]) -> Submission:
    """Run every check, whatever becomes of the others, within the assignment's `wall_s` in all."""
    deadline = time.monotonic() + assignment.wall_s
    exits: list[CheckExit] = []
    for check in assignment.checks:
        say_alive(str(paths.gateway))  # checks ask for nothing, and silence ends a stage
        say(f"check {check.name}: {shlex.join(check.argv)}")
        context = below_check(assignment.traceparent, check.name)
        exits.append(_run_check(check, paths, environment | ({"TRACEPARENT": context} if context else {}), deadline))
        say(f"check {check.name}: exit {exits[-1].exit_code} after {exits[-1].duration_s:.1f} s")
    return Submission(status="checked", steps=len(exits), exits=_within_limit(exits))


def _run_check(check: Check, paths: Paths, environment: Mapping[str, str], deadline: float) -> CheckExit:
    tail = _Tail()

    def sink(chunk: bytes) -> None:
        tail.take(chunk)
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()

    timeout_s = max(0.0, min(float(check.timeout_s), deadline - time.monotonic()))
    if check.to_import is not None:
        return _import(check, paths, environment, timeout_s, tail, sink)
    plugins = plugins_for(check, paths, environment_of(check, paths.out, environment))
    started_at = time.time()
    try:
        ended = run_process(check.argv, cwd=paths.workspace, env=plugins.environment, timeout_s=timeout_s, sink=sink)
    except CommandNotStarted as error:
        return _not_started(check, error, started_at)
    return CheckExit(
        name=check.name,
        exit_code=ended.exit_code,
        duration_s=ended.duration_s,
        started_at=started_at,
        output_tail=tail.text(),
        report_sha256=_digest(paths.out, check),
        sealed=plugins.sealed,
        why_not_sealed=plugins.why_not,
    )


def _import(
    check: Check, paths: Paths, environment: Mapping[str, str], timeout_s: float, tail: "_Tail", sink: Callable[[bytes], None]
) -> CheckExit:
    started_at = time.time()
    try:
        ended, report = import_and_read(check, paths, environment, timeout_s, sink)
    except CommandNotStarted as error:
        return _not_started(check, error, started_at)
    return CheckExit(
        name=check.name,
        exit_code=ended.exit_code,
        duration_s=time.time() - started_at,
        started_at=started_at,
        report_sha256=keep(report, paths.out / str(check.report_path), sink) if report is not None else None,
        output_tail=tail.text(),
    )


def _not_started(check: Check, error: CommandNotStarted, started_at: float) -> CheckExit:
    told = f"not started: {error}"[:TAIL_CHARS_MAX]
    return CheckExit(name=check.name, exit_code=NOT_STARTED, duration_s=0, started_at=started_at, output_tail=told)


def _digest(out: Path, check: Check) -> str | None:
    """Return the digest of a report as the command left it, so that nobody can change it unseen until the container is dead."""
    if check.report_path is None:
        return None
    try:
        file = os.open(out / check.report_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(file, "rb") as stream:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return None
        digest, left = hashlib.sha256(), REPORT_BYTES_MAX + 1
        while left > 0 and (chunk := stream.read(min(left, 1 << 20))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def environment_of(check: Check, out: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Return a check's environment; one that owes a JUnit report makes pytest write it, however pytest is started (G5).

    One file that cannot be collected hides all others unless collection goes on (G22). These come before the command's
    own options, so that a repository's own `--junitxml` wins.
    """
    report = check.report_path
    if report is None:
        return dict(environment)
    target = out / report
    target.parent.mkdir(parents=True, exist_ok=True)
    if check.report != "junit":
        return dict(environment)
    ours = f"--junitxml={shlex.quote(str(target))} --continue-on-collection-errors -p no:cacheprovider"
    return {**environment, "PYTEST_ADDOPTS": f"{environment.get('PYTEST_ADDOPTS', '')} {ours}".strip()}


class _Tail:
    """The newest bytes of an output."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def take(self, chunk: bytes) -> None:
        self._kept += chunk
        if len(self._kept) > 8 * TAIL_CHARS_MAX:
            del self._kept[: -4 * TAIL_CHARS_MAX]

    def text(self) -> str:
        return self._kept.decode("utf-8", errors="replace")[-TAIL_CHARS_MAX:]


def _within_limit(exits: list[CheckExit]) -> tuple[CheckExit, ...]:
    """Halve the longest tails until all fit into one submission."""
    kept = list(exits)
    sizes = [len(item.model_dump_json()) for item in kept]
    while sum(sizes) > TAILS_JSON_BYTES_MAX:
        at = sizes.index(max(sizes))
        if not kept[at].output_tail:
            break  # only names are left: 64 of them are far below the limit
        tail = kept[at].output_tail
        kept[at] = kept[at].model_copy(update={"output_tail": tail[len(tail) - len(tail) // 2 :]})
        sizes[at] = len(kept[at].model_dump_json().encode())
    return tuple(kept)
