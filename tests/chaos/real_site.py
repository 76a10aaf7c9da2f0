"""Chaos over the real thing: the `andon` command, a stack of its own, real containers, the scripted model; people who do not give up.

One site is one state directory with a few runs at once. While any of them goes on, faults hit its processes; a person watches each
run and does what a person would: `andon resume` when it is parked or its command died, `andon run` again when nothing was begun.
"""

import contextlib
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any

from tests.chaos import scene
from tests.chaos.faults import Fault, Plan, Tally
from tests.e2e.line import Line, Provider
from tests.e2e.watching import a_sample, sandboxes, stack_pids, wait_until
from tests.leaks import mounts_below

LEVEL = "real"
RUN_END_S = 420.0
"""A person gives up on a run after that long; it must have landed or said why by then."""
COMMANDS_MAX = 40
DOCUMENTED = {0, 1, 2, 3, 4, 5, 6, 124, 130}
POLL_S = 0.05
LEAK_S = 30.0


@dataclass
class Person:
    """Somebody who wants one feature in one repository."""

    line: Line
    before: scene.Before
    pipeline: Path
    slug: str
    process: "Popen[str] | None" = None
    run_id: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    """How each command ended, one line each."""
    problems: list[str] = field(default_factory=list)

    def go(self, incident: Callable[[str], None]) -> None:
        """Want it until it is there; bounded in commands and time."""
        deadline = time.monotonic() + RUN_END_S
        for _ in range(COMMANDS_MAX):
            if self._is_over(self._command(deadline), incident):
                return
            if time.monotonic() > deadline:
                break
        self.problems.append(f"run {self.run_id or self.slug} did neither land nor end: {self.said[-3:]}")

    def _command(self, deadline: float) -> tuple[str, int, str]:
        """Run the command a person would type now, and return what it was, its exit code and its last words."""
        known = self._known()
        arguments = ["resume", known, "--json"] if known else ["run", scene_request(self.slug), *self._options(), "--json"]
        self.process = self.line.start(*arguments)
        try:
            stdout, stderr = self.process.communicate(timeout=max(5.0, deadline - time.monotonic()))
        except TimeoutExpired:
            self.process.kill()
            stdout, stderr = self.process.communicate()
        code = self.process.returncode
        lines = [line for line in stderr.splitlines() if line.strip()]
        if code >= 0:
            self._read(stdout, stderr, code)
        self.said.append(f"{arguments[0]} → {code}: {lines[-1] if lines else ''}")
        return arguments[0], code, lines[-1] if lines else ""

    def _read(self, stdout: str, stderr: str, code: int) -> None:
        if "Traceback" in stderr or "this is a bug" in stderr:
            self.problems.append(f"a bug was shown: {stderr[-600:]}")
        if code not in DOCUMENTED or (code != 0 and not stderr.strip()):
            self.problems.append(f"exit code {code} is not a documented end with a reason: {stderr[-300:]!r}")
        try:
            self.result = json.loads(stdout)
        except ValueError:
            self.problems.append(f"`--json` printed no object (exit {code}): {stdout[:200]!r} {stderr[-300:]!r}")

    def _is_over(self, ended: tuple[str, int, str], incident: Callable[[str], None]) -> bool:
        verb, code, words = ended
        if code == 0 and self.result.get("state") == "landed":
            self.run_id = self.result["run_id"]
            return True
        if code < 0:
            incident(f"`andon {verb}` was killed; a person went on")
        else:
            incident(f"`andon {verb}` ended with {code}; a person went on: {_kind_of(words)}")
        if code in {0, 1, 2, 6} and self.result.get("state") in {"failed", "cancelled"}:
            self.problems.append(f"run {self.slug} ended {self.result.get('state')} with {code}: {words}")
            return True
        return False

    def _known(self) -> str:
        """Return the run of this repository, if one was opened."""
        listed = self.line.andon("list", "--json", timeout_s=60)
        rows = json.loads(listed.stdout) if listed.exit_code == 0 and listed.stdout.strip() else []
        found = [row["run_id"] for row in rows if row["repo"] == str(self.before.repository)]
        if len(found) > 1:
            self.problems.append(f"{len(found)} runs were opened for {self.slug}: {found}")
        return found[0] if found else ""

    def _options(self) -> list[str]:
        return ["--repo", str(self.before.repository), "--pipeline", str(self.pipeline), "--slug", self.slug, "--no-baseline"]


def scene_request(slug: str) -> str:
    """Return what is asked for."""
    return f"Add chaos to the notes: {slug}"


def _kind_of(words: str) -> str:
    """Return a command's last words without what differs from run to run."""
    return " ".join("…" if any(character.isdigit() for character in word) or "/" in word else word for word in words.split())[:110]


class RealSite:
    """One state directory, its stack, its people and their repositories."""

    def __init__(self, home: Path, provider: Provider, *, people: int, validated: bool = False, say: Callable[[str], None]) -> None:
        """Set the place up below `home`; nothing is started."""
        home.mkdir(parents=True)
        self._provider = provider
        self._say = say
        self.line = Line(home, {**provider.server.environment(), "ANDON_SLOTS": str(max(2, people))})
        pipeline = home / "chaos.yaml"
        pipeline.write_text(scene.VALIDATED_PIPELINE if validated else scene.PIPELINE)
        self.people = [
            Person(self.line, scene.Before.of(a_sample(home / f"notes-{number}")), pipeline, f"chaos-{number}") for number in range(people)
        ]
        self._stopped: list[tuple[int, float]] = []
        """Processes that stand still, and until when."""

    def run(self, plan: Plan, tally: Tally) -> list[str]:
        """Let everybody work under the plan's faults, and return what is wrong afterwards."""
        began = time.monotonic()
        threads = [threading.Thread(target=person.go, args=(lambda what: _note(tally, what),)) for person in self.people]
        for thread in threads:
            thread.start()
        try:
            self._hit(plan, tally, lambda: any(thread.is_alive() for thread in threads))
        finally:
            self._let_go(float("inf"))
            for thread in threads:
                thread.join(RUN_END_S)
        problems = [problem for person in self.people for problem in person.problems] + self._end()
        problems += [problem for person in self.people for problem in self._judge(person, tally)]
        tally.seconds[LEVEL] = tally.seconds.get(LEVEL, 0) + time.monotonic() - began
        return problems

    def _hit(self, plan: Plan, tally: Tally, goes_on: Callable[[], bool]) -> None:
        while goes_on():
            if plan.is_done:
                self._let_go(time.monotonic())
                time.sleep(POLL_S)
                continue
            fault = plan.next()
            until = time.monotonic() + fault.pause_s
            while goes_on() and time.monotonic() < until:
                self._let_go(time.monotonic())
                time.sleep(POLL_S)
            if goes_on() and self._strike(fault):
                tally.count(LEVEL, fault)
                self._say(f"{LEVEL}: {fault.line()}")
            else:
                plan.put_back(fault)

    def _strike(self, fault: Fault) -> bool:
        """Do it to a process that is ours and moves; return whether there was one."""
        still = {pid for pid, _ in self._stopped}
        victims = [pid for pid in self._victims(fault) if pid not in still and (fault.victim == "container" or is_ours(pid, self.line))]
        if not victims:
            return False
        pid = victims[int(fault.pick * len(victims))]
        try:
            os.kill(pid, fault.signal)
        except ProcessLookupError:
            return False
        if fault.signal is signal.SIGSTOP:
            self._stopped.append((pid, time.monotonic() + fault.stop_s))
        return True

    def _victims(self, fault: Fault) -> list[int]:
        if fault.victim == "cli":
            return [person.process.pid for person in self.people if person.process is not None and person.process.poll() is None]
        if fault.victim == "container":
            boxes = sandboxes(self.line)
            return [int(box["State"]["Pid"]) for box in boxes if box["State"]["Running"] and box["State"]["Pid"]]
        name = "nats-server" if fault.victim == "broker" else fault.victim
        try:
            return [stack_pids(self.line)[name]]
        except (OSError, ValueError, KeyError):
            return []

    def _let_go(self, now: float) -> None:
        for pid, until in [one for one in self._stopped if one[1] <= now]:
            self._stopped.remove((pid, until))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _end(self) -> list[str]:
        """Bring the site down as a person does, and return what is left of it."""
        # A stack that was killed after the last run landed left what the next one cleans.
        for verb in ("up", "down"):
            done = self.line.andon(verb, timeout_s=120)
            if done.exit_code != 0:
                return [f"`andon {verb}` ended with {done.exit_code}: {done.stderr[-300:]}"]
        try:
            wait_until(lambda: not self._left(), "nothing is left", LEAK_S)
        except AssertionError:
            return [f"left behind: {what}" for what in self._left()]
        return []

    def _left(self) -> list[str]:
        instance = hashlib.sha256(os.fsencode(self.line.state / "executor")).hexdigest()[:8]
        sockets = Path("/tmp") / f"andon-{os.getuid()}" / instance
        left = [f"process {each}" for each in processes_of(self.line)]
        left += [f"container {box['Id'][:12]}" for box in sandboxes(self.line)]
        left += [f"mount {path}" for path in mounts_below(self.line.home)]
        left += [f"sockets {sockets}"] if sockets.exists() else []
        left += [f"worktree {path}" for path in self.line.state.glob("executor/slots/*/workspace/*")]
        return left + [f"file {path}" for path in (self.line.state / "stack.json",) if path.exists()]

    def _judge(self, person: Person, tally: Tally) -> list[str]:
        calls, landed = self._provider.server.begun, person.result.get("state") == "landed"
        tally.ends[LEVEL, "landed" if landed else f"{person.result.get('state')} {person.said[-1]}"] += 1
        problems = scene.problems_of_repository(person.before, f"andon/{person.slug}", landed=landed)
        if not person.run_id:
            return [f"{person.slug}: {problem}" for problem in problems]
        problems += scene.problems_of_bill(calls, person.run_id, person.result["cost_usd"])
        for mirror in (self.line.state / "mirrors").glob("*.git"):
            problems += scene.problems_of_work(calls, person.run_id, mirror, [person.result["commit"]] if landed else [])
        return [f"{person.slug} ({person.run_id}): {problem}" for problem in problems]


def _note(tally: Tally, what: str) -> None:
    tally.incidents[LEVEL, what] += 1


def is_ours(pid: int, line: Line) -> bool:
    """Return whether a process belongs to this line: a number may have been given to somebody else meanwhile."""
    try:
        return os.fsencode(line.home) in Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def processes_of(line: Line) -> list[str]:
    """Return every process that has our home in its arguments or environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(path.name) != os.getpid() and is_ours(int(path.name), line):
                found.append(f"{path.name} {(path / 'cmdline').read_bytes().replace(bytes(1), b' ').decode(errors='replace')[:100]}")
    return found
