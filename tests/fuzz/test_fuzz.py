"""A short, always equal run over every target, the kept corpus, and proof that the search finds what it has to."""

import re
import time

import pytest

from tests.fuzz.everything import TARGETS
from tests.fuzz.search import Search
from tests.fuzz.target import CORPUS, Hang, Target, TooSlow

SHORT_ROUND = 15


@pytest.mark.parametrize("name", TARGETS)
def test_right_and_kept_inputs_break_nothing(name: str):
    """Seeds are what the parser takes; in the corpus is all that ever broke it."""
    assert Search(TARGETS[name], 1).known() is None


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_search_breaks_nothing(name: str):
    """`make fuzz` searches for ten minutes; this is the same search with one seed."""
    assert Search(TARGETS[name], 1).round(SHORT_ROUND) is None


def test_the_corpus_belongs_to_targets():
    """An input of a target that has another name now would never be run again."""
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)


def _breaks_on(word: bytes) -> Target:
    def check(data: bytes) -> None:
        if word in data:
            raise KeyError(word)

    return Target("planted", check, lambda: [b"a b c d"], (b"open",))


def test_a_planted_fault_is_found_and_made_small():
    """The control for all of the above: a search that cannot find proves nothing."""
    find = None
    search = Search(_breaks_on(b"openopen"), 7)
    for _ in range(100):
        find = find or search.round()

    assert find is not None
    assert isinstance(find.error, KeyError)
    assert b"openopen" in find.data
    assert len(find.data) < 40


def test_a_fault_behind_a_line_of_ours_is_reached_step_by_step():
    """Inputs that reach new lines of ours join the seeds: what they have in common with a deeper one need not be found again."""
    search = Search(TARGETS["bundle-header"], 7)

    assert search.known() is None
    for _ in range(3):
        assert search.round() is None
    assert search.fresh
    assert len(search.lines) > 5


def test_an_input_that_takes_too_long_is_a_find():
    """By CPU time, so that a busy machine finds nothing."""

    def check(data: bytes) -> None:
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass

    with pytest.raises(TooSlow):
        Target("planted", check, lambda: [b"a"], cpu_s_max=0.01).run(b"a")


def test_an_input_that_never_ends_is_given_up():
    """Also where the code catches everything."""

    def check(data: bytes) -> None:
        while True:
            try:
                re.fullmatch("(a+)+$", "a" * 40 + "b")
            except Exception:
                continue

    with pytest.raises(Hang):
        Target("planted", check, lambda: [b"a"], hang_cpu_s=0.1).run(b"a")
