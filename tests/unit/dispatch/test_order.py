"""The order of waiting jobs, as an algebra: rank, fairness, first come, and the bound on waiting."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from supervisor.dispatch.order import STEP_S, Answer, Waiting, in_turn, rank

SECONDS = st.floats(0, 3600, allow_nan=False)
JOBS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 10), SECONDS), max_size=30)


def waiting(number: int, feature: str = "a", priority: int = 5, since_s: float = 0.0) -> Waiting:
    """Return a waiting job."""
    return Waiting(f"j{number}", feature, priority, since_s, number)


def lines_of(jobs: list[tuple[str, int, float]]) -> list[list[Waiting]]:
    """Return the lines of some jobs that came in the order of their times."""
    lines: dict[tuple[str, int], list[Waiting]] = {}
    for number, (feature, priority, since_s) in enumerate(sorted(jobs, key=lambda job: job[2])):
        lines.setdefault((feature, priority), []).append(waiting(number, feature, priority, since_s))
    return list(lines.values())


def taken(lines: list[list[Waiting]], now_s: float, answers: dict[str, Answer] | None = None) -> list[Waiting]:
    """Take one after the other."""
    turn, order = in_turn(lines, now_s, {}), []
    try:
        each = next(turn)
        while True:
            order.append(each)
            each = turn.send((answers or {}).get(each.name, "taken"))
    except StopIteration:
        return order


@given(jobs=JOBS, later_s=SECONDS)
def test_everyone_gets_a_turn_and_nobody_twice_and_rank_never_rises(jobs: list[tuple[str, int, float]], later_s: float):
    """Whoever goes first is at least as urgent as whoever goes after."""
    now = 3600 + later_s

    order = taken(lines_of(jobs), now)

    assert len(order) == len({each.name for each in order}) == len(jobs)
    ranks = [rank(each, now) for each in order]
    assert ranks == sorted(ranks, reverse=True)


@given(jobs=JOBS)
def test_at_equal_rank_the_feature_with_the_fewest_jobs_out_goes_first(jobs: list[tuple[str, int, float]]):
    """At every moment, among all that are left with the best rank."""
    order, out = taken(lines_of(jobs), 3600), Counter[str]()

    for at, each in enumerate(order):
        peers = [other for other in order[at:] if rank(other, 3600) == rank(each, 3600)]
        assert out[each.feature] == min(out[other.feature] for other in peers)
        out[each.feature] += 1


@given(old=st.integers(1, 10), new=st.integers(1, 10), age_s=SECONDS, extra_s=SECONDS)
def test_a_wait_is_bounded(old: int, new: int, age_s: float, extra_s: float):
    """A job put (10 - p) + 1 minutes after one of priority p never goes before it, whenever one looks."""
    first = waiting(1, "a", old, 0.0)
    late = waiting(2, "b", new, (11 - old) * STEP_S + extra_s)

    order = taken([[late], [first]], late.since_s + age_s)

    assert order[0] is first


def test_a_step_is_a_whole_minute():
    """59.9 s count nothing, 60 s one step of priority; a clock that went backwards counts nothing."""
    assert [rank(waiting(1, since_s=100.0), now) for now in (0.0, 159.9, 160.0, 220.0)] == [5, 5, 6, 7]


def test_a_line_that_is_stuck_keeps_its_place_and_the_others_go_on():
    """Its second job needs the same place, so it is not asked for."""
    lines = [[waiting(1, "a", 9), waiting(2, "a", 9)], [waiting(3, "b", 1)]]

    assert [each.name for each in taken(lines, 0.0, {"j1": "stuck"})] == ["j1", "j3"]


def test_a_dropped_job_does_not_count_against_its_feature():
    """Nobody wanted it."""
    lines = [[waiting(1, "a"), waiting(2, "a")], [waiting(3, "b"), waiting(4, "b")]]

    assert [each.name for each in taken(lines, 0.0, {"j1": "dropped"})] == ["j1", "j2", "j3", "j4"]
    assert [each.name for each in taken(lines, 0.0)] == ["j1", "j3", "j2", "j4"]
