"""The critical path through a run's trace: every second of the run is somebody's, and the longest wait is named first."""

from hypothesis import given
from hypothesis import strategies as st

from supervisor.api.traces.critical_path import OVERLAP_S, own_seconds, shares
from supervisor.api.traces.span_tree import Node

NOW = 100.0


def a_span(name: str, start: float, end: float | None, *children: Node) -> Node:
    return Node(name, name, start, end, children=list(children))


def told(root: Node) -> list[tuple[str, str, float]]:
    return [(share.what, share.part, round(share.seconds, 3)) for share in shares(root, NOW)]


def test_what_ran_beside_something_longer_is_not_on_the_path() -> None:
    """Of two stages at once, the one that ended last held up the run; the other's spans cost nothing."""
    test = a_span("stage test", 1, 6, a_span("check", 1, 6))
    implement = a_span("stage implement", 1, 9, a_span("chat", 1, 8))

    assert told(a_span("RUN", 0, 10, test, implement)) == [
        ("chat", "stage implement", 7.0),
        ("RUN itself", "", 2.0),
        ("stage implement itself", "stage implement", 1.0),
    ]


def test_calls_of_one_model_in_one_stage_are_one_share() -> None:
    """Ten short calls are one long wait, and its number of calls is said."""
    stage = a_span("stage implement", 0, 10, *(a_span("chat", at, at + 0.75) for at in range(10)))

    longest = shares(a_span("RUN", 0, 10, stage), NOW)[0]

    assert (longest.what, longest.part, longest.seconds, longest.times) == ("chat", "stage implement", 7.5, 10)


def test_two_clocks_may_differ_by_a_little() -> None:
    """A tool that began before the gateway had ended the call's span does not hide the call; one that began long before does."""
    for overlap, is_on_path in ((OVERLAP_S * 0.9, True), (OVERLAP_S * 1.1, False)):
        root = a_span("RUN", 0, 10, a_span("chat", 0, 5), a_span("tool", 5 - overlap, 10))

        assert ("chat" in {what for what, _, _ in told(root)}) is is_on_path


def test_what_still_goes_on_counts_up_to_now() -> None:
    """Of a run that goes on, the stage that runs is on the path."""
    assert told(a_span("RUN", 90, None, a_span("stage spec", 92, None))) == [("stage spec", "stage spec", 8.0), ("RUN itself", "", 2.0)]


_TIMES = st.floats(0, 100, allow_nan=False)


def _span(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    def made(start: float, end: float | None, below: list[Node]) -> Node:
        return a_span("span", start, end, *below)

    return st.builds(made, _TIMES, st.one_of(st.none(), _TIMES), st.lists(children, max_size=4))


@given(st.recursive(st.builds(lambda start, end: a_span("leaf", start, end), _TIMES, _TIMES), _span, max_leaves=25))
def test_every_second_is_counted_once(root: Node) -> None:
    """Also where children leave their parents or end before they begin, as an untrusted span may."""
    whole = max(0.0, (NOW if root.end is None else root.end) - root.start)

    own = own_seconds(root, NOW)

    assert abs(sum(own.values()) - whole) < 1e-6
    assert min(own.values(), default=0.0) >= 0.0
