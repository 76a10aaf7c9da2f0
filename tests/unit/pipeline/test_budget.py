"""The ledger: it never grants past the limit and never counts a call twice."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.pipeline.budget import Ruling, call_key, held_by, is_over_warning, reserved, rule, settled
from supervisor.pipeline.events import BudgetReserved, BudgetSettled
from supervisor.pipeline.run import BudgetState
from tests.fakes.line_driver import RUN

JOB = f"{RUN}-spec-1"
Op = Literal["reserve", "extend", "settle"]


def step(budget: BudgetState, op: Op, call: str, amount: int) -> tuple[BudgetState, Ruling]:
    """Answer one request and append what the ruling says."""
    ruling = rule(budget, call_key(JOB, 1, call), op, amount)
    if ruling.append:
        budget = apply(budget, op, call, amount)
    return budget, ruling


def apply(budget: BudgetState, op: Op, call: str, amount: int) -> BudgetState:
    """Fold the event of one request."""
    if op == "settle":
        return settled(budget, BudgetSettled(run_id=RUN, at=0, job_id=JOB, attempt=1, call_id=call, nano_usd=amount))
    return reserved(budget, BudgetReserved(run_id=RUN, at=0, job_id=JOB, attempt=1, call_id=call, nano_usd=amount))


requests = st.lists(st.tuples(st.sampled_from(["reserve", "extend", "settle"]), st.sampled_from("abcd"), st.integers(0, 60)), max_size=40)


@given(requests)
def test_the_limit_is_never_passed(sequence: list[tuple[Op, str, int]]):
    """Whatever is asked in whatever order, settled and held stay within the limit if calls keep to their reservation."""
    budget = BudgetState(limit_nano_usd=100)

    for op, call, wanted in sequence:
        amount = min(wanted, budget.held.get(call_key(JOB, 1, call), 0)) if op == "settle" else wanted
        budget, _ = step(budget, op, call, amount)
        assert budget.settled_nano_usd + budget.held_nano_usd <= 100
        assert budget.remaining_nano_usd >= 0


@given(requests)
def test_asking_twice_is_asking_once(sequence: list[tuple[Op, str, int]]):
    """A repeated request has the same answer and appends nothing; a repeated event changes nothing."""
    budget = BudgetState(limit_nano_usd=100)

    for op, call, amount in sequence:
        budget, ruling = step(budget, op, call, amount)
        if not ruling.granted:
            continue
        again, second = step(budget, op, call, amount)
        assert (again, second.granted, second.append) == (budget, True, False)
        if ruling.append:
            assert apply(budget, op, call, amount) == budget


@given(requests)
def test_every_settled_call_is_in_the_sum_once(sequence: list[tuple[Op, str, int]]):
    """The sum is that of the calls."""
    budget = BudgetState(limit_nano_usd=100)

    for op, call, amount in sequence:
        budget, _ = step(budget, op, call, amount)

    assert budget.settled_nano_usd == sum(budget.settled_calls.values())
    assert not budget.settled_calls.keys() & budget.held.keys()


def test_a_settlement_above_its_reservation_is_recorded_as_it_is():
    """The money is gone: nothing more is granted."""
    budget, _ = step(BudgetState(limit_nano_usd=100), "reserve", "a", 90)
    budget, ruling = step(budget, "settle", "a", 120)

    assert (ruling.granted, budget.settled_nano_usd, budget.remaining_nano_usd) == (True, 120, -20)
    assert not step(budget, "reserve", "b", 0)[1].granted


def test_an_extension_holds_the_larger_sum():
    """It names the whole reservation; without one it is refused, and a smaller one changes nothing."""
    budget = BudgetState(limit_nano_usd=100)
    assert not step(budget, "extend", "a", 10)[1].granted
    budget, _ = step(budget, "reserve", "a", 40)
    budget, ruling = step(budget, "extend", "a", 100)

    assert (ruling.granted, budget.held_nano_usd) == (True, 100)
    assert step(budget, "extend", "a", 101)[1].reason == "the run's budget is exhausted"
    assert step(budget, "extend", "a", 50)[0].held_nano_usd == 100


def test_a_stages_own_budget_is_a_limit_too():
    """What the stage has left decides, whatever the run has."""
    budget = BudgetState(limit_nano_usd=100)

    assert rule(budget, "k", "reserve", 10, stage_left_nano_usd=10).granted
    assert rule(budget, "k", "reserve", 11, stage_left_nano_usd=10) == Ruling(granted=False, reason="the stage's budget is exhausted")


@pytest.mark.parametrize(("spent", "warned", "over"), [(9, False, False), (10, False, True), (10, True, False)])
def test_the_warning_is_due_once(spent: int, warned: bool, over: bool):
    """At the threshold, until it was said."""
    assert is_over_warning(BudgetState(limit_nano_usd=100, settled_nano_usd=spent, warned=warned), 10) is over


def test_what_an_attempt_holds_is_its_own():
    """Attempt 1 does not see what attempt 11 holds."""
    budget = BudgetState(limit_nano_usd=9, held={call_key(JOB, 1, "a"): 1, call_key(JOB, 11, "b"): 2})

    assert held_by(budget, JOB, 1) == {"a": 1}
