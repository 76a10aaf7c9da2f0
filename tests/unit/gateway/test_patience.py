"""The pauses of one call that is made again; chance is the test's."""

import pytest

from sandbox.contract.wire import RATE_PAUSE_MAX_S
from sandbox.gateway.patience import JITTER_MAX_S, LIMITED_TRIES_MAX, Patience
from sandbox.gateway.upstream import Fault

PAUSES_S = (1.0, 2.0, 4.0)


def a_fault(*, is_limit: bool = False, is_retryable: bool = True, after_s: float | None = None) -> Fault:
    return Fault(529, "overloaded_error", "busy", is_retryable=is_retryable, is_limit=is_limit, retry_after_s=after_s)


def pauses_of(fault: Fault, chance: float = 0.0) -> list[float]:
    """Return all pauses of a call that always meets this fault."""
    patience = Patience(PAUSES_S, lambda: chance)
    pauses = []
    while (pause_s := patience.pause_s(fault)) is not None:
        pauses.append(pause_s)
    return pauses


def test_an_outage_has_three_more_tries():
    """After 1, 2 and 4 s, each a quarter longer by chance (REQUIREMENTS c-7)."""
    assert pauses_of(a_fault()) == [1, 2, 4]
    assert pauses_of(a_fault(), chance=1.0) == [1.25, 2.5, 5]


def test_a_limited_rate_has_seven_more_tries_whose_pauses_double():
    """And is capped at a minute, jitter included."""
    assert pauses_of(a_fault(is_limit=True)) == [1, 2, 4, 8, 16, 32, RATE_PAUSE_MAX_S]
    assert len(pauses_of(a_fault(is_limit=True))) == LIMITED_TRIES_MAX - 1
    assert pauses_of(a_fault(is_limit=True), chance=1.0)[4:] == [16 + JITTER_MAX_S, 32 + JITTER_MAX_S, RATE_PAUSE_MAX_S]


@pytest.mark.parametrize("is_limit", [True, False])
def test_the_provider_may_name_the_pause(is_limit: bool):
    """It knows better than our guess."""
    assert pauses_of(a_fault(is_limit=is_limit, after_s=7.0))[:2] == [7, 7]


def test_what_is_final_is_not_tried_again():
    """Whatever it is about."""
    assert pauses_of(a_fault(is_limit=True, is_retryable=False)) == []
