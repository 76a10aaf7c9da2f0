"""A fleet elsewhere: every verb works from its event log, and the landed commit is brought into the repository on this host."""

import asyncio
import json
from pathlib import Path

import pytest

from sandbox.contract.blob import BlobRef
from sandbox.git import ANDON
from sandbox.mirror import Mirror
from supervisor.delivery import snapshot
from supervisor.errors import BrokerError
from supervisor.pipeline import events as ev
from supervisor.pipeline.submit import Answer
from tests.fakes import run_events
from tests.fakes.command_line import CommandLine
from tests.fakes.repositories import run_git
from tests.fakes.run_events import AT, RUN

OTHER = "01jd8m7zzz"
BRANCH = "andon/add-rate-limiting"


@pytest.fixture
def afar(andon: CommandLine) -> CommandLine:
    """Return a command line that is a client of a fleet elsewhere."""
    andon.environ = {"NATS_URL": "tls://fleet.example:4222", "NATS_CREDS": "/nonexistent/ada.andon.json"}
    return andon


def knows(fleet: CommandLine, *logs: list[ev.AnyEvent]) -> None:
    """Let the fleet's event log hold these runs."""
    fleet.bootstrap.client.fleet_log = {log[0].run_id: log for log in logs}


def landed_afar(fleet: CommandLine, repository: Path) -> list[ev.AnyEvent]:
    """Return the log of a run that has landed for `repository`, its git bundle in the fleet's store."""
    base, commit, bundle = asyncio.run(_a_landing(fleet.home.parent / "mirror", repository))
    fleet.bootstrap.client.blobs["landed"] = bundle
    log = run_events.happy()[:-1]
    intent = log[0].intent.model_copy(update={"repository": str(repository), "base_commit": base, "delivery": "client"})  # type: ignore[union-attr]
    where = {"commit": commit, "bundle": BlobRef(bucket="IN", name="landed", sha256="0" * 64, size_bytes=len(bundle))}
    return [log[0].model_copy(update={"intent": intent}), *log[1:-1], log[-1].model_copy(update=where)]


async def _a_landing(path: Path, repository: Path) -> tuple[str, str, bytes]:
    base = await snapshot(repository, None)
    mirror = await Mirror.open(path)
    await mirror.import_base(base.commit, base.pack)
    files = {"new.txt": b"new\n"}
    commit = await mirror.commit_files(base.commit, files, message="x", author=ANDON, committer=ANDON, at=1_735_689_600)
    return base.commit, commit, await mirror.bundle_of(commit, base.commit)


def delivered(log: list[ev.AnyEvent]) -> ev.RunDelivered:
    """Return what the supervisor writes when it is told."""
    return ev.RunDelivered(run_id=RUN, at=AT + 90, seq=log[-1].seq + 1, branch=BRANCH, commit=getattr(log[-1], "commit", ""))


def test_verbs_that_read_need_no_files_of_this_host(afar: CommandLine) -> None:
    """They are written from the event log; the runs of other hosts do not become this host's."""
    knows(afar, run_events.happy(), run_events.happy(run=OTHER)[:12])

    assert afar("status", RUN, "--json").json["state"] == "landed"
    assert afar("status", OTHER[:8], "--json").json["state"] == "running"
    assert "[land] andon/add-rate-limiting is in /home/ada/notes" in afar("logs", RUN).out
    assert afar("list").out == ""
    assert [row["run_id"] for row in json.loads(afar("list", "--fleet", "--json").out)] == [OTHER, RUN]
    assert afar.bootstrap.connections == 0


def test_files_of_this_host_are_brought_up_to_the_log(afar: CommandLine) -> None:
    """What was known last is not what is."""
    afar.has_run(run_events.happy()[:12])
    knows(afar, run_events.happy())

    assert afar("status", "--json").json["state"] == "landed"


def test_offline_the_verbs_show_what_this_host_knew_last(afar: CommandLine) -> None:
    """And say so; a run nobody here knows is the broker's failure."""
    afar.has_run(run_events.happy()[:12])
    afar.bootstrap.look_error = BrokerError("no broker at tls://fleet.example:4222")

    known, unknown = afar("status", RUN), afar("status", OTHER)

    assert (known.code, unknown.code) == (0, 2)
    assert known.err == "andon: no broker at tls://fleet.example:4222; this is what this host knew last\n"


def test_an_unknown_run_is_exit_code_2(afar: CommandLine) -> None:
    """By prefix or by its whole id."""
    knows(afar, run_events.happy())

    assert (afar("status", "zzzz").code, afar("status", OTHER).code, afar("status").code) == (2, 2, 2)


def test_logs_follow_the_event_log(afar: CommandLine) -> None:
    """Until the run is over; the files are written on the way."""
    knows(afar, run_events.happy()[:12])
    afar.bootstrap.client.script = run_events.happy()

    assert afar("logs", RUN, "-f").out.splitlines()[-1] == "[land] andon/add-rate-limiting is in /home/ada/notes"


def test_a_run_is_brought_home_when_it_has_landed(afar: CommandLine, repository: Path) -> None:
    """The branch is made here, the supervisor is told, the files are written here."""
    log = landed_afar(afar, repository)
    afar.bootstrap.client.script = [*log, delivered(log)]

    ended = afar("run", "Add rate limiting", "--repo", str(repository), "--json")

    request, told = afar.bootstrap.client.submitted[0], afar.bootstrap.client.deliveries
    assert (ended.code, ended.json["state"]) == (0, "landed")
    assert run_git(repository, "rev-parse", BRANCH).strip() == ended.json["commit"]
    assert [(each.ok, each.commit) for each in told] == [(True, ended.json["commit"])]
    assert (request.delivery, len(request.request_id)) == ("client", 32)
    files = afar.state.run(RUN)
    assert {"submitted.json", "events.jsonl", "result.json", "report.md", "trace.otlp.jsonl"} <= {path.name for path in files.iterdir()}
    assert afar("list").out.startswith(RUN)


def test_a_delivery_that_fails_is_told_and_ends_the_command_with_its_code(afar: CommandLine, repository: Path) -> None:
    """The branch is somebody else's: the run is won, and stays in the fleet's mirror."""
    log = landed_afar(afar, repository)
    run_git(repository, "branch", BRANCH)
    failed = ev.DeliveryFailed(run_id=RUN, at=AT + 90, seq=log[-1].seq + 1, branch=BRANCH, exit_code=6, reason="the branch exists")
    afar.bootstrap.client.script = [*log, failed]

    ended = afar("run", "Add rate limiting", "--repo", str(repository))

    assert ended.code == 6
    assert [(each.ok, each.exit_code) for each in afar.bootstrap.client.deliveries] == [(False, 6)]
    assert f"andon apply {RUN}" in ended.out


def test_apply_brings_a_run_home_later_and_twice_is_as_once(afar: CommandLine, repository: Path) -> None:
    """After a client that was killed, and again although the branch is there."""
    log = landed_afar(afar, repository)
    knows(afar, log)

    first = afar("apply", RUN, "--repo", str(repository))
    second = afar("apply", RUN, "--repo", str(repository))

    commit = run_git(repository, "rev-parse", BRANCH).strip()
    assert (first.code, first.out) == (0, f"{BRANCH} is in {repository}: {commit}\n")
    assert second.out == first.out
    assert [each.ok for each in afar.bootstrap.client.deliveries] == [True, True]


def test_diff_shows_what_landed_from_the_fleets_store(afar: CommandLine, repository: Path) -> None:
    """The supervisor's mirror is on another host; what has not landed is only there."""
    log = landed_afar(afar, repository)
    base = asyncio.run(snapshot(repository, None))
    afar.bootstrap.client.blobs["01jd8m6w2x/base"] = base.pack
    knows(afar, log, run_events.happy(run=OTHER)[:12])

    assert afar("diff", RUN).out.endswith("\n--- /dev/null\n+++ b/new.txt\n@@ -0,0 +1 @@\n+new\n")
    assert "only in its supervisor's mirror, on another host" in afar("diff", OTHER).err


def test_apply_explains_each_refusal(afar: CommandLine, repository: Path, tmp_path: Path) -> None:
    """Not landed, submitted elsewhere, no repository there, another's branch: one line, and nothing is changed."""
    log = landed_afar(afar, repository)
    knows(afar, log, run_events.happy(run=OTHER)[:12])

    not_landed, elsewhere, nothing = afar("apply", OTHER), afar("apply", RUN), afar("apply", RUN, "--repo", str(tmp_path / "nix"))
    run_git(repository, "branch", BRANCH)
    moved = afar("apply", RUN, "--repo", str(repository))

    assert [each.code for each in (not_landed, elsewhere, nothing, moved)] == [2, 2, 2, 6]
    assert f"run {OTHER} has not landed, it is running: there is nothing to apply; see: andon why {OTHER}" in not_landed.err
    assert f"run {RUN} was submitted on another host; name its repository here: andon apply {RUN} --repo PATH" in elsewhere.err
    assert "is not a directory" in nothing.err
    assert "exists already" in moved.err
    assert run_git(repository, "rev-parse", BRANCH) == run_git(repository, "rev-parse", "HEAD")


def test_a_delivery_the_supervisor_does_not_note_is_said(afar: CommandLine, repository: Path) -> None:
    """The branch is there all the same; to say it again is harmless."""
    knows(afar, landed_afar(afar, repository))
    afar.bootstrap.client.answer = Answer(ok=False, error="standing by", exit_code=5)

    ended = afar("apply", RUN, "--repo", str(repository))

    assert ended.code == 5
    assert f"the supervisor did not note the delivery: standing by; again: andon apply {RUN}" in ended.err
    assert run_git(repository, "rev-parse", BRANCH)


def test_resume_of_a_landed_run_brings_it_home(afar: CommandLine, repository: Path) -> None:
    """There is nothing else left to do; the supervisor is not asked to go on."""
    log = landed_afar(afar, repository)
    afar.bootstrap.client.script = [*log, delivered(log)]
    afar("run", "Add rate limiting", "--repo", str(repository))
    run_git(repository, "branch", "-D", BRANCH)
    knows(afar, log)

    ended = afar("resume", RUN)

    assert ended.code == 0
    assert run_git(repository, "rev-parse", BRANCH)
    assert afar.bootstrap.client.resumes == []


@pytest.mark.parametrize("verb", ["up"])
def test_a_fleet_elsewhere_is_not_this_hosts_to_start(afar: CommandLine, verb: str) -> None:
    """One line that says what to unset."""
    ended = afar(verb)

    assert ended.code == 2
    assert "not this host's to start" in ended.err


def test_without_the_fleets_file_the_run_is_not_taken_for_one_of_this_host(afar: CommandLine, repository: Path) -> None:
    """What reads says so; what acts is refused, or a stack would be started here for nothing."""
    afar.bootstrap.client.script = run_events.parked_on_budget()
    afar("run", "Add rate limiting", "--repo", str(repository))
    afar.environ = {}
    connections = afar.bootstrap.connections

    reads = [afar(verb, RUN) for verb in ("status", "why", "logs")]
    acts = [afar(verb, RUN) for verb in ("resume", "stop", "apply")]

    says = f"run {RUN} was sent to the fleet of tls://fleet.example:4222: set NATS_CREDS to a file of that fleet"
    assert [(each.code, each.err) for each in reads] == [(0, f"andon: {says}; this is what this host knew last\n")] * 3
    assert [(each.code, each.err) for each in acts] == [(2, f"andon: error: {says}\n")] * 3
    assert afar.bootstrap.connections == connections


def test_going_on_with_another_hosts_run_leaves_its_repository_alone(afar: CommandLine, repository: Path) -> None:
    """Its path means nothing here: the command ends when the run has landed and says how to bring it home."""
    log = landed_afar(afar, repository)
    parked = ev.RunParked(run_id=RUN, at=AT, seq=log[3].seq + 1, reason="stopped", exit_code=130)
    go_on = ev.RunResumed(run_id=RUN, at=AT, seq=parked.seq + 1)
    knows(afar, [*log[:4], parked])
    afar.bootstrap.client.script = [*log[:4], parked]
    afar.bootstrap.client.after_resume = [go_on, *(each.model_copy(update={"seq": each.seq + 10}) for each in log[4:])]

    ended = afar("resume", RUN)

    assert (ended.code, afar.bootstrap.client.deliveries) == (0, [])
    assert f"andon apply {RUN}" in ended.out
    assert BRANCH not in run_git(repository, "branch", "--list")
