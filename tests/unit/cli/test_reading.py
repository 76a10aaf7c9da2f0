"""The verbs that only read: from the run's files alone, with no supervisor, engine or broker."""

import asyncio
import fcntl
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox.contract.result import Finding
from sandbox.git import ANDON
from sandbox.mirror import Mirror
from supervisor.api.run_files import RunFiles
from supervisor.api.views import Probe
from supervisor.api.walls import WallProof
from supervisor.config import StateDirectory
from supervisor.delivery import snapshot
from supervisor.pipeline.events import AnyEvent, AttemptEnded
from supervisor.pipeline.fold import fold
from supervisor.stack import StackFile
from tests.fakes import run_events
from tests.fakes.command_line import CommandLine
from tests.fakes.run_events import RUN

OTHER = "01jd8m7zzz"


@pytest.mark.parametrize("verb", ["status", "logs", "diff", "resume", "stop"])
def test_an_unknown_run_is_exit_code_2(andon: CommandLine, verb: str) -> None:
    """One line that says what to do; nothing is started."""
    andon.has_run(run_events.happy())

    ended = andon(verb, "zzzz")

    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "andon: error: no run 'zzzz' is known here; `andon list` shows the runs\n"
    assert andon.bootstrap.connections == 0


def test_a_unique_prefix_of_four_names_a_run(andon: CommandLine) -> None:
    """Shorter is refused, several are listed, upper case is the same."""
    andon.has_run(run_events.happy())
    andon.has_run(run_events.happy(run=OTHER))

    assert andon("status", "01JD8M7", "--json").json["run_id"] == OTHER
    assert andon("status", "01j").err.startswith("andon: error: run '01j' is too short: give at least 4 characters")
    assert andon("status", "01jd8").err == f"andon: error: run '01jd8' is not the only one of its kind: {RUN}, {OTHER}\n"


def test_reading_on_a_fresh_machine_makes_nothing(andon: CommandLine) -> None:
    """Not even the state directory."""
    assert andon("status").code == 2
    assert andon("list").out == ""
    assert json.loads(andon("list", "--json").out) == []
    assert andon("logs").code == 2

    assert not andon.home.exists()


def test_status_json_is_the_object_run_printed(andon: CommandLine) -> None:
    """For a run that is over the two are equal, and for one that goes on the exit code is null."""
    files = andon.has_run(run_events.happy())
    files.write_result(fold(run_events.happy()))

    over = andon("status", RUN, "--json")
    andon.has_run(run_events.happy(run=OTHER)[:12])
    under_way = andon("status", OTHER, "--json")

    assert over.out == (files.directory / "result.json").read_text()
    assert (under_way.json["state"], under_way.json["exit_code"], under_way.json["report"]) == ("running", None, None)


def test_status_says_what_each_stage_waits_for(andon: CommandLine) -> None:
    """Queued, running, and why the rest waits."""
    story = run_events.until_implement(run_events.Story()).dispatched("implement").dispatched("test").started("implement")
    andon.has_run(story.log)
    andon.now = story.at + 30

    shown = andon("status").out.splitlines()

    assert shown[0] == f"{RUN}  running  add-rate-limiting"
    assert shown[5:] == [
        "  baseline                  3 s            passed",
        "  spec                      5 s   $0.0500  passed",
        "  interface                 5 s   $0.0600  passed",
        "  implement                33 s            running (parallel)",
        "  test                     32 s            queued (parallel): no executor has taken it yet",
        "  validate                                 waiting after implement, test",
        "  docs                                     waiting after validate",
        "  land                                     waiting after docs",
        "",
        f"  nobody works on it now, the stack is not running; go on with: andon resume {RUN}",
    ]


def test_status_says_once_what_the_sandboxes_did_without(andon: CommandLine) -> None:
    """Whatever it was, in whichever attempt; nothing where nothing was missing."""
    log = [
        event.model_copy(update={"missing": ("no AppArmor: \x1b[2Jkernel",)}) if isinstance(event, AttemptEnded) else event
        for event in run_events.happy()
    ]

    andon.has_run(run_events.happy(run=OTHER))
    andon.has_run(log)

    assert [line for line in andon("status", RUN).out.splitlines() if "missing" in line] == ["  missing: no AppArmor: [2Jkernel"]
    assert "missing" not in andon("status", OTHER).out


def test_list_shows_the_newest_first(andon: CommandLine) -> None:
    """Also a run that has no result file yet; a directory without events is left out."""
    andon.has_run(run_events.failed()).write_result(fold(run_events.failed()))
    andon.has_run(run_events.happy(run=OTHER)[:12])
    (andon.state.runs / "01jd8m0000").mkdir()

    rows = json.loads(andon("list", "--json").out)
    plain = andon("list", "-n", "1").out

    assert [(row["run_id"], row["state"], row["exit_code"]) for row in rows] == [(OTHER, "running", None), (RUN, "failed", 1)]
    assert plain == f"{OTHER}  2025-01-01 00:00  running    $   0.05  add-rate-limiting  Add rate limiting to the API\n"


def test_the_list_reads_a_final_run_without_folding_it(andon: CommandLine) -> None:
    """The quick row equals the folded one."""
    files = andon.has_run(run_events.happy())
    folded = json.loads(andon("list", "--json").out)
    files.write_result(fold(run_events.happy()))

    assert json.loads(andon("list", "--json").out) == folded


def test_logs_interleave_events_and_the_containers_output(andon: CommandLine) -> None:
    """In order, with prefixes; escape sequences of the container are inert."""
    files = andon.has_run(run_events.happy())
    files.write_log("spec", 1, 1, b"reading\x1b[2J\r\nwriting \xff\n")

    lines = andon("logs").out.splitlines()

    at = lines.index("[spec] started on host-1")
    assert lines[at + 1 : at + 4] == ["[spec] | reading[2J", "[spec] | writing \ufffd", "[spec] pass in 5 s, 1,100 tokens, $0.0500"]


def test_logs_of_one_stage(andon: CommandLine) -> None:
    """Nothing of the others."""
    andon.has_run(run_events.happy())

    assert {line.split(" ")[0] for line in andon("logs", "--stage", "validate").out.splitlines()} == {"[validate]"}


def test_logs_json_is_the_events_line_by_line(andon: CommandLine) -> None:
    """Every one, in order."""
    andon.has_run(run_events.happy())

    events = [json.loads(line) for line in andon("logs", "--json").out.splitlines()]

    assert [event["seq"] for event in events] == [event.seq for event in run_events.happy()]


def test_logs_follow_until_the_run_is_over(andon: CommandLine) -> None:
    """What is appended meanwhile is shown, then it ends by itself."""
    log = run_events.happy()
    files = andon.has_run(log[:12])

    def go_on(files: RunFiles) -> None:
        time.sleep(0.3)
        files.append(log)

    writer = threading.Thread(target=go_on, args=(files,))
    writer.start()
    with a_running_stack(andon.state):
        ended = andon("logs", "-f")
    writer.join()

    assert ended.out.splitlines()[-1] == "[land] andon/add-rate-limiting is in /home/ada/notes"


@contextmanager
def a_running_stack(state: StateDirectory) -> Iterator[None]:
    """Hold what a stack process holds, as far as verbs that only read look."""
    file = StackFile(
        pid=1, nats_url="nats://127.0.0.1:1", supervisor_credentials=state.nats, fingerprint="", release="", keep=True, children={}
    )
    with (state.root / "stack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state.stack_file.write_text(file.model_dump_json())
        yield


def test_logs_do_not_wait_for_a_stack_that_is_not_there(andon: CommandLine) -> None:
    """After a crash `-f` would wait for ever; it shows what there is and says how to go on."""
    andon.has_run(run_events.happy()[:12])

    ended = andon("logs", "-f")

    assert ended.code == 5
    assert "[spec] started on host-1" in ended.out
    assert ended.err == f"andon: error: nobody works on run {RUN} now; go on with: andon resume {RUN}\n"


def test_diff_shows_what_landed_from_the_mirror(andon: CommandLine, repository: Path) -> None:
    """Against the base; also as JSON."""
    base, commit = asyncio.run(a_landed_commit(andon, repository))
    intent = {"repository": str(repository), "base_commit": base}
    log = [_with_intent(each, intent) for each in run_events.happy()]
    andon.has_run([each.model_copy(update={"commit": commit}) if each.type == "run_landed" else each for each in log])

    shown = andon("diff")
    as_json = andon("diff", "--json").json

    assert shown.out.endswith("\n--- /dev/null\n+++ b/new.txt\n@@ -0,0 +1 @@\n+h\u00e9llo\n")
    assert (as_json["base"], as_json["commit"], as_json["landed"], as_json["patch"]) == (base, commit, True, shown.out)


async def a_landed_commit(andon: CommandLine, repository: Path) -> tuple[str, str]:
    """Make the supervisor's mirror with one commit on top of the repository's."""
    base = await snapshot(repository, None)
    andon.state.mirrors.mkdir()
    mirror = await Mirror.open(andon.state.mirror)
    await mirror.import_base(base.commit, base.pack)
    files = {"new.txt": "h\u00e9llo\n".encode()}
    return base.commit, await mirror.commit_files(base.commit, files, message="x", author=ANDON, committer=ANDON, at=1_735_689_600)


def _with_intent(event: AnyEvent, change: dict[str, str]) -> AnyEvent:
    return event.model_copy(update={"intent": event.intent.model_copy(update=change)}) if event.type == "run_accepted" else event


def test_diff_without_a_mirror_says_where_to_look(andon: CommandLine) -> None:
    """A run another host drove has no mirror here."""
    andon.has_run(run_events.happy())

    ended = andon("diff")

    assert ended.code == 2
    assert "is not on this host" in ended.err
    assert "look at branch andon/add-rate-limiting" in ended.err


def test_diff_before_anything_was_written(andon: CommandLine) -> None:
    """Nothing on stdout, so that it can be piped."""
    andon.has_run(run_events.happy()[:3])

    ended = andon("diff")

    assert (ended.code, ended.out) == (0, "")
    assert "has changed nothing yet" in ended.err


def test_config_show_names_value_and_origin(andon: CommandLine) -> None:
    """A key is never shown."""
    andon.environ = {"ANDON_MODE": "sequential"}

    rows = json.loads(andon("config", "show", "--json").out)

    assert rows["mode"] == {"value": "sequential", "origin": "environment ANDON_MODE"}
    assert rows["budget_usd"] == {"value": "50", "origin": "default"}
    assert rows["ANTHROPIC_API_KEY"]["value"] == "set"
    assert "sk-canary" not in andon("config", "show").out


def test_doctor_fails_only_for_what_it_cannot_do_without(andon: CommandLine) -> None:
    """A missing protection is a warning; a missing engine is exit code 5, with what to do."""
    probes = [
        Probe(name="git", status="ok", detail="2.39"),
        Probe(name="quota", status="warn", detail="no quota mount", advice="run as root"),
    ]
    andon.bootstrap.probes = probes
    works = andon("doctor")
    andon.bootstrap.probes = [*probes, Probe(name="engine", status="fail", detail="none answers", advice="apt install docker.io")]
    broken = andon("doctor", "--json")

    assert (works.code, works.out) == (0, "ok    git    2.39\nwarn  quota  no quota mount\n             -> run as root\n")
    assert broken.code == 5
    assert [probe["status"] for probe in json.loads(broken.out)] == ["ok", "warn", "fail"]


def test_the_report_has_its_seven_sections(andon: CommandLine) -> None:
    """Metadata, execution, results, files, cost, warnings, next steps (S4-22)."""
    files = andon.has_run(run_events.failed())
    files.write_result(fold(run_events.failed()))

    report = Path(files.report_path).read_text()

    assert [line for line in report.splitlines() if line.startswith("## ")] == [
        *("## Run", "## Stages", "## Results", "## Files", "## Cost", "## Warnings", "## Next steps")
    ]
    assert "Stopped at stage `validate`, check `pytest`:" in report
    assert "| validate | 1 | fail | submitted | 3 s | - | - |" in report


def test_a_finding_is_shown_once_in_status(andon: CommandLine) -> None:
    """The failed row says why in one short line."""
    story = run_events.until_implement(run_events.Story()).dispatched("docs").started("docs").ended("docs")
    story.judged("docs", "fail", findings=(Finding(check="write-scope", message="src/x.py " * 40),))
    andon.has_run(story.log)

    (row,) = [line for line in andon("status").out.splitlines() if line.startswith("  docs")]

    assert row.endswith("failed: write-scope: src/x.py src/x.py src/x.py src/x.py src/x.py...")


def a_proof(name: str, *, held: bool = True, control: bool = True) -> WallProof:
    return WallProof(id=name, promise="P1: no network", tried="TCP", held=held, control=control, detail="stopped: EPERM")


def test_a_proof_is_a_line_for_each_probe(andon: CommandLine) -> None:
    """With what was seen below it, where that is not the expected; exit code 0 only if all held."""
    andon.bootstrap.proofs = [a_proof("network"), a_proof("vsock", control=False)]
    works = andon("doctor", "--prove", "--runtime", "runsc")
    andon.bootstrap.proofs = [a_proof("network"), a_proof("vsock", held=False)]
    broken = andon("doctor", "--prove")

    assert (works.code, broken.code) == (0, 1)
    assert works.out.splitlines()[:3] == [
        "held              network  P1: no network | tried: TCP",
        "held, no control  vsock    P1: no network | tried: TCP",
        "                           -> stopped: EPERM",
    ]
    assert works.out.splitlines()[3].startswith("2 of 2 held, 1 of them beside an attack that succeeds")
    assert broken.out.splitlines()[1].startswith("NOT held          vsock")
    assert andon.bootstrap.proved_runtimes == ["runsc", None]


def test_what_succeeds_under_a_runtime_without_breaking_a_promise_is_not_called_held(andon: CommandLine) -> None:
    """A person has to see it, with why; the exit code stays 0."""
    differs = a_proof("agent-pin").model_copy(update={"detail": "differs: reached: the runtime shows no process"})
    andon.bootstrap.proofs = [differs]

    ended = andon("doctor", "--prove", "--runtime", "runsc")

    assert ended.code == 0
    assert ended.out.splitlines()[0].startswith("differs           agent-pin")
    assert "the runtime shows no process" in ended.out.splitlines()[1]


def test_a_proof_in_json_is_one_object(andon: CommandLine) -> None:
    """With true and false, for programs."""
    andon.bootstrap.proofs = [a_proof("network", control=False)]

    ended = andon("doctor", "--prove", "--json")

    assert ended.code == 0
    assert json.loads(ended.out) == {
        "probes": [
            {"id": "network", "promise": "P1: no network", "tried": "TCP", "held": True, "control": False, "detail": "stopped: EPERM"}
        ]
    }


def test_a_runtime_is_named_for_a_proof_only(andon: CommandLine) -> None:
    """Without --prove nothing would be done with it."""
    assert andon("doctor", "--runtime", "runsc").code == 2
