"""`andon why`: the supervisor's reasons as they are; without one, what the files say and how to go on."""

import pytest

from sandbox.contract.ids import job_id
from supervisor.errors import BrokerError
from supervisor.pipeline import events as ev
from supervisor.pipeline.submit import Reason, WhyReply
from tests.fakes import run_events
from tests.fakes.command_line import CommandLine
from tests.fakes.run_events import RUN


def test_the_supervisors_reasons_are_shown_one_a_line(andon: CommandLine) -> None:
    """Stage, kind, text and for how long; text of others is inert."""
    andon.has_run(run_events.happy()[:12])
    reasons = (
        Reason(kind="queued", stage="implement", text="no executor has gpu=a100", job_id=job_id(RUN, "implement", 1), since=andon.now - 90),
        Reason(kind="running", stage="test", text="bash\x1b[2J on host-1", since=andon.now - 5),
    )
    andon.bootstrap.client.why_reply = WhyReply(run_id=RUN, state="running", reasons=reasons)

    ended = andon("why", RUN[:5])
    as_json = andon("why", "--json").json

    assert ended.out.splitlines() == [
        f"{RUN}  running  add-rate-limiting",
        "  implement  queued     no executor has gpu=a100  (for 1 min 30 s)",
        "  test       running    bash[2J on host-1  (for 5 s)",
    ]
    assert list(as_json) == ["run_id", "state", "reasons"]
    assert andon.bootstrap.connections == 0


def test_without_a_stack_it_says_that_nobody_works_on_it(andon: CommandLine) -> None:
    """And how to go on; nothing is started."""
    andon.has_run(run_events.happy()[:12])
    andon.bootstrap.is_up = False

    ended = andon("why")

    assert ended.code == 0
    assert ended.out.endswith(f"nobody works on it now: the stack is not running; go on with: andon resume {RUN}\n")


def test_a_supervisor_that_does_not_answer_is_named(andon: CommandLine) -> None:
    """The broker is there and nobody serves: the files answer, with the reason."""
    andon.has_run(run_events.happy()[:12])
    andon.bootstrap.client.why_reply = BrokerError("nobody answers on andon.rpc.why")

    assert "nobody works on it now: nobody answers on andon.rpc.why; go on with" in andon("why").out


def test_a_broker_that_does_not_answer_is_named(andon: CommandLine) -> None:
    """A stack that is going down: still an answer, not a failure."""
    andon.has_run(run_events.happy()[:12])
    andon.bootstrap.look_error = BrokerError("no broker at nats://127.0.0.1:4222")

    ended = andon("why")

    assert ended.code == 0
    assert "nobody works on it now: no broker at nats://127.0.0.1:4222" in ended.out


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (run_events.parked_on_budget(), f"parked     the budget of $1.00 is exhausted; next: andon resume {RUN} --budget USD"),
        (run_events.failed(), f"over       it has failed: red after 3 reworks; next: andon logs {RUN} --stage validate"),
        (run_events.happy(), "over       it has landed; next: git -C /home/ada/notes diff aaaaaaaaaaaa..andon/add-rate-limiting"),
        (run_events.conflict(), f"over       it has landed: the branch moved to eeeeeeeeeeee; next: andon resume {RUN}"),
    ],
    ids=["parked", "failed", "landed", "conflict"],
)
def test_what_is_over_needs_no_supervisor(andon: CommandLine, log: list[ev.AnyEvent], says: str) -> None:
    """The files know why; nobody is asked."""
    andon.has_run(log)

    ended = andon("why")

    assert says in ended.out
    assert andon.bootstrap.looks == 0


def test_a_refusal_keeps_its_exit_code(andon: CommandLine) -> None:
    """Such as a run this supervisor does not know."""
    andon.has_run(run_events.happy()[:12])
    andon.bootstrap.client.why_reply = WhyReply(error=f"there is no run {RUN}", exit_code=2)

    ended = andon("why")

    assert (ended.code, ended.err) == (2, f"andon: error: there is no run {RUN}\n")
