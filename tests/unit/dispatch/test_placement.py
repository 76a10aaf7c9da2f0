"""Which lane a job may go to, and what is said when there is none."""

import pytest

from sandbox.contract.wire import Heartbeat
from supervisor.dispatch.placement import Lane, Room, obstacle


def beat(name: str, *, pools: tuple[str, ...] = ("default",), held: str = "", slots: int = 1, busy: int = 0, **labels: str) -> Heartbeat:
    """Return an executor's life sign."""
    return Heartbeat(executor=name, release="1", pools=pools, labels=labels, slots=slots, busy=busy, held=held, model="none")


def test_a_job_without_labels_takes_a_place_of_its_pool():
    """As many as there are, and none of another pool."""
    room = Room({("default", ""): 2, ("gpu", ""): 1})

    assert [room.take("default", {}, []) for _ in range(3)] == [("default", ""), ("default", ""), None]
    assert room.take("gpu", {}, []) == ("gpu", "")
    assert room.take("other", {}, []) is None


def test_a_directed_job_takes_the_slots_place_on_every_lane_it_pulls():
    """The executor of two pools has one slot: four lanes count it, one job fills it."""
    lanes: dict[Lane, int] = {("default", ""): 1, ("big", ""): 1, ("default", "one"): 1, ("big", "one"): 1}
    one = [beat("one", pools=("default", "big"), gpu="1")]
    room = Room(lanes)

    assert room.take("big", {"gpu": "1"}, one) == ("big", "one")
    assert [room.take(pool, labels, one) for pool in ("default", "big") for labels in ({}, {"gpu": "1"})] == [None] * 4


def test_the_executor_with_the_most_room_is_chosen():
    """So that directed jobs spread."""
    two = [beat("one", gpu="1"), beat("two", gpu="1")]
    room = Room({("default", "one"): 1, ("default", "two"): 2})

    assert [room.take("default", {"gpu": "1"}, two) for _ in range(4)] == [
        ("default", "two"),
        ("default", "two"),
        ("default", "one"),
        None,
    ]


@pytest.mark.parametrize(
    ("executors", "labels", "says"),
    [
        ([], {}, "no executor of pool default is connected"),
        ([beat("one", pools=("gpu",))], {}, "no executor of pool default is connected"),
        ([beat("one")], {"gpu": "1"}, "no executor of pool default matches the labels gpu=1:"),
        ([beat("one", arch="arm64")], {"gpu": "1", "arch": "arm64"}, "matches the labels gpu=1: start one with `andon executor --label`"),
        ([beat("one")], {"runtime.runsc": "yes"}, "matches the labels runtime.runsc=yes: see docs/engines.md"),
        ([beat("one", arch="x"), beat("two", mem="8")], {"arch": "x", "mem": ">=4"}, "matches the labels together (one lacks mem>=4)"),
        ([beat("one", held="its disk is full"), beat("two", held="draining")], {}, "takes no jobs: one (its disk is full), two (draining)"),
        ([beat("one", slots=2, busy=2), beat("two", slots=3, busy=3)], {}, "all 5 slots of pool default are busy"),
        ([beat("one", slots=2, busy=1)], {}, "a slot of pool default is free"),
        ([beat("one", gpu="1", busy=1), beat("two", slots=9)], {"gpu": "1"}, "the one slot of pool default with its labels is busy"),
    ],
)
def test_an_obstacle_is_named(executors: list[Heartbeat], labels: dict[str, str], says: str):
    """One line that says what nobody has, or why those who have it do not take the job."""
    assert says in obstacle("default", labels, executors)
