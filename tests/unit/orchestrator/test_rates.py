"""One rate limit for everybody: cool-down, calls at once, fair turns; time and chance are the test's."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.contract.wire import RATE_PAUSE_MAX_S, RATE_WAIT_MAX_S
from supervisor.orchestrator.rates import CALL_MAX_S, FAMILIES_MAX, GRANT_S, LOOK_AGAIN_S, PATIENCE_S, Caller, Rates, family_of

MODEL = "claude-sonnet-5-5"


@dataclass
class Scene:
    """Rates on a clock that stands still."""

    now: float = 1000.0
    chance: float = 0.0
    held: set[Caller] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.rates = Rates(lambda: self.now, self.held.__contains__, lambda: self.chance)

    def ask(self, caller: Caller, model: str = MODEL) -> float:
        """Ask once; the ledger holds what was granted."""
        wait_s = self.rates.ask(caller, model)
        if wait_s == 0:
            self.held.add(caller)
        return wait_s

    def end(self, caller: Caller, *, limited_s: float | None = None) -> None:
        """End a call: served, or limited."""
        self.held.discard(caller)
        self.rates.settled(caller, is_served=limited_s is None, limited_s=limited_s)

    def leave(self, caller: Caller) -> None:
        """End a call that proves nothing: the provider could not be reached."""
        self.held.discard(caller)
        self.rates.settled(caller, is_served=False, limited_s=None)

    def limit_to(self, calls: int) -> None:
        """Let the provider refuse, so that `calls` may run at once from now on, and let the cool-down pass."""
        out = [a_caller("burst", call=f"{number}.1") for number in range(2 * calls)]
        assert [self.ask(caller) for caller in out] == [0] * len(out)
        for caller in out:
            self.end(caller, limited_s=1.0)
        self.now += 1.0


def a_caller(run: str = "run-1", job: str = "spec", call: str = "1.1") -> Caller:
    return Caller(run, f"{run}-{job}-1", 1, call)


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("claude-sonnet-5-5", "claude-sonnet"),
        ("claude-sonnet-5-5-20260101", "claude-sonnet"),
        ("claude-3-5-sonnet", "claude-sonnet"),
        ("claude-opus-5-5", "claude-opus"),
        ("4711", "4711"),
    ],
)
def test_a_family_is_a_model_without_its_version(model: str, family: str):
    """The provider limits the model class, not the release."""
    assert family_of(model) == family


def test_nobody_waits_before_the_provider_has_refused():
    """A thousand calls at once are the provider's business until it says otherwise."""
    scene = Scene()

    assert {scene.ask(a_caller(call=f"{number}.1")) for number in range(1000)} == {0}


def test_one_refusal_makes_every_run_wait_and_no_other_family():
    """The pause is the provider's own, and it is the organisation's: other runs and hosts wait too."""
    scene = Scene()
    first = a_caller("run-1")
    scene.ask(first)
    scene.end(first, limited_s=20)
    scene.now += 5

    assert scene.ask(a_caller("run-2"), "claude-sonnet-4-1") == 15
    assert scene.ask(a_caller("run-2"), "claude-haiku-5-5") == 0


def test_a_pause_has_jitter_and_an_end():
    """Callers come back at different moments, at most 2 s late, and nobody is sent away for longer than a minute."""
    scene = Scene()
    first = a_caller("run-1")
    scene.ask(first)
    scene.end(first, limited_s=20)
    scene.chance = 1.0

    assert scene.ask(a_caller("run-2")) == 22
    scene.chance = 0.5
    assert scene.ask(a_caller("run-3")) == 21
    scene.now += 20
    assert scene.ask(a_caller("run-2")) == 0
    scene.end(a_caller("run-2"), limited_s=RATE_PAUSE_MAX_S)
    scene.chance = 1.0
    assert scene.ask(a_caller("run-3")) == RATE_PAUSE_MAX_S


def test_an_overload_that_names_no_pause_doubles_it():
    """1, 2, 4 … 60 s, and from 1 again once a call was served."""
    scene = Scene()
    pauses = []
    for number in range(8):
        caller = a_caller(call=f"{number}.1")
        assert scene.ask(caller) == 0
        scene.end(caller, limited_s=0)
        pauses.append(scene.ask(a_caller("other")))
        scene.rates.drop(a_caller("other"))
        scene.now += pauses[-1]
    served = a_caller(call="9.1")
    scene.ask(served)
    scene.end(served)
    again = a_caller(call="10.1")
    scene.ask(again)
    scene.end(again, limited_s=0)

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert scene.ask(a_caller("other")) == 1


def test_a_burst_counts_once():
    """Ten calls that were out together are refused together: half of them may run after that, not a thousandth."""
    scene = Scene()
    scene.limit_to(5)

    answers = [scene.ask(a_caller(call=f"{number}.1")) for number in range(10)]

    assert answers.count(0) == 5


def test_calls_that_are_served_bring_the_limit_back():
    """One more at once for each round that was served."""
    scene = Scene()
    scene.limit_to(2)
    for number in range(2):
        caller = a_caller(call=f"{number}.1")
        scene.ask(caller)
        scene.end(caller)
    for number in range(2, 5):
        caller = a_caller(call=f"{number}.1")
        scene.ask(caller)
        scene.end(caller)

    answers = [scene.ask(a_caller(call=f"{number}.2")) for number in range(10)]

    assert answers.count(0) == 3


def test_a_call_the_provider_did_not_work_for_proves_nothing():
    """An outage is no sign that more calls would be served."""
    scene = Scene()
    scene.limit_to(1)
    for number in range(20):
        caller = a_caller(call=f"{number}.1")
        assert scene.ask(caller) == 0
        scene.leave(caller)

    assert [scene.ask(a_caller(call=f"{number}.2")) > 0 for number in range(2)] == [False, True]


def test_a_run_with_many_callers_does_not_keep_a_run_with_one_waiting():
    """The greedy run holds every place and has forty in the queue: the next free place goes to the other run."""
    scene = Scene()
    scene.limit_to(2)
    greedy = [a_caller("greedy", call=f"{number}.1") for number in range(42)]
    for caller in greedy:
        scene.ask(caller)
    assert scene.ask(a_caller("modest")) > 0

    scene.end(greedy[0])

    assert scene.ask(greedy[2]) > 0
    assert scene.ask(a_caller("modest")) == 0
    assert scene.ask(greedy[2]) > 0


def test_jobs_of_a_run_share_its_turns():
    """implement has ten callers in the queue, test has one: they alternate."""
    scene = Scene()
    scene.limit_to(1)
    out = a_caller("run-1", "spec")
    scene.ask(out)
    many = [a_caller("run-1", "implement", f"{number}.1") for number in range(10)]
    for caller in (*many, one := a_caller("run-1", "test")):
        assert scene.ask(caller) > 0
    scene.leave(out)
    assert scene.ask(many[0]) == 0

    scene.leave(many[0])

    assert scene.ask(many[1]) > 0
    assert scene.ask(one) == 0


def test_a_caller_keeps_its_place_as_long_as_it_asks():
    """Whoever asked first goes first; one that stays away longer than its patience is forgotten."""
    scene = Scene()
    scene.limit_to(1)
    out, first, second = (a_caller(call=f"{number}.1") for number in range(3))
    scene.ask(out)
    wait_s = scene.ask(first)
    scene.ask(second)
    scene.leave(out)

    assert scene.ask(second) > 0
    scene.now += wait_s + PATIENCE_S + 0.01
    assert scene.ask(second) == 0


def test_asking_again_after_a_lost_answer_is_the_same_yes():
    """The call counts once."""
    scene = Scene()
    scene.limit_to(1)

    assert scene.ask(a_caller()) == 0
    assert scene.ask(a_caller()) == 0
    scene.end(a_caller())
    assert scene.ask(a_caller(call="2.1")) == 0


def test_a_call_whose_executor_is_gone_gives_its_place_back():
    """The ledger has settled it with its attempt; before the ledger can hold it, it is given ten seconds."""
    scene = Scene()
    scene.limit_to(1)
    scene.ask(lost := a_caller("lost"))
    scene.held.discard(lost)

    assert scene.ask(a_caller()) > 0
    scene.now += GRANT_S
    assert scene.ask(a_caller()) == 0


def test_a_call_whose_settlement_was_lost_does_not_keep_everybody_waiting():
    """Its attempt goes on, so the ledger holds its money to the end; with one place in all, nobody else could ever call."""
    scene = Scene()
    scene.limit_to(1)
    scene.ask(a_caller("unsettled"))
    scene.now += CALL_MAX_S - 1

    assert scene.ask(a_caller()) > 0
    scene.now += 1
    assert scene.ask(a_caller()) == 0


def test_a_call_that_is_dropped_gives_its_place_back():
    """Its money was refused after all."""
    scene = Scene()
    scene.limit_to(1)
    scene.ask(a_caller("broke"))
    scene.rates.drop(a_caller("broke"))

    assert scene.ask(a_caller()) == 0


def test_the_longer_the_queue_the_rarer_each_asks():
    """Forty askers a second in all, whoever waits."""
    scene = Scene()
    scene.chance = 0.5
    scene.limit_to(1)
    scene.ask(a_caller("out"))

    waits = [scene.ask(a_caller(f"run-{number}")) for number in range(400)]

    assert (waits[0], round(scene.ask(a_caller("run-0")), 3)) == (LOOK_AGAIN_S, 10.0)


def test_an_attempts_waits_are_added_up():
    """From the refusal to the next yes; and one that never comes back waits no longer than its patience."""
    scene = Scene()
    scene.ask(a_caller())
    scene.end(a_caller(), limited_s=20)
    job = a_caller().job_id
    scene.now += 20
    assert scene.ask(a_caller(call="1.2")) == 0
    scene.now += 100

    assert scene.rates.waited_s(job, 1) == 20
    assert scene.rates.waited_s(job, 2) == 0
    scene.end(a_caller(call="1.2"), limited_s=10)
    scene.now += 100
    assert scene.rates.waited_s(job, 1) == 20 + 10 + PATIENCE_S


def test_no_more_is_excused_than_was_decided():
    """An attempt cannot live for ever on a provider that is always busy."""
    scene = Scene()
    for number in range(40):
        scene.ask(a_caller(call=f"{number}.1"))
        scene.end(a_caller(call=f"{number}.1"), limited_s=60)
        scene.now += 60

    assert scene.rates.waited_s(a_caller().job_id, 1) == RATE_WAIT_MAX_S


def test_names_of_models_do_not_fill_the_memory():
    """An executor may claim any model."""
    scene = Scene()
    for number in range(3 * FAMILIES_MAX):
        scene.ask(a_caller(call=f"{number}.1"), "x" * (number + 1))

    assert len(scene.rates._families) == FAMILIES_MAX


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from(["ask", "served", "limited", "later"])), max_size=120),
    st.integers(1, 4),
)
def test_never_more_run_than_the_limit_allows_and_everybody_has_a_turn(steps: list[tuple[int, int, str]], calls: int):
    """Whatever happened before: with one place that becomes free again and again, every caller that asks is let go."""
    scene = Scene()
    scene.limit_to(calls)
    family = scene.rates._families[family_of(MODEL)]
    for run, call, step in steps:
        caller = a_caller(f"run-{run}", call=f"{call}.1")
        before = len(family.running)
        if step == "ask" and scene.ask(caller) == 0 and len(family.running) > before:
            assert len(family.running) <= (family.limit or 1e9)
        elif step in {"served", "limited"} and caller in family.running:
            scene.end(caller, limited_s=1.0 if step == "limited" else None)
        elif step == "later":
            scene.now += 1.0
    for caller in list(family.running):
        scene.end(caller)
    scene.now += 60

    eager = [a_caller(f"last-{number % 3}", call=f"{number}.1") for number in range(9)]
    for _ in range(len(eager)):
        granted = next(caller for _ in range(2) for caller in eager if scene.ask(caller) == 0)
        scene.end(granted)
        eager.remove(granted)
    assert eager == []
