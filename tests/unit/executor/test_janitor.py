"""The janitor removes what is ours and left over, and nothing else, whatever lies about."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox.contract.errors import EngineError
from sandbox.executor.config import Host
from sandbox.executor.inputs import MARKER
from sandbox.executor.janitor import ORPHANED_S, Janitor, empty
from sandbox.executor.post import Letter
from sandbox.executor.slots import Slot
from sandbox.executor.state_lock import held_state, is_state_free
from sandbox.runtime.container_spec import FoundContainer
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink
from tests.unit.executor.a_host import BareEngine, a_host


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def engine() -> BareEngine:
    return BareEngine()


@pytest.fixture
async def host(tmp_path: Path, engine: BareEngine) -> AsyncIterator[Host]:
    async with MemoryExecutorLink.connect(MemoryBroker(), "ex1") as link, a_host(tmp_path / "state", link, engine, slots=2) as made:
        yield made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def letters() -> list[Letter]:
    return []


@pytest.fixture
def janitor(host: Host, clock: Clock, letters: list[Letter]) -> Janitor:
    """A janitor to whom slot 0 is busy."""
    return Janitor(host, is_busy=lambda number: number == 0, salvage=letters.append, clock=clock)


def a_container(
    name: str, instance: str = "ex1-test", slot: int | None = 1, deadline: float = 0, workspace: Path | None = None
) -> FoundContainer:
    return FoundContainer(container_id=name, instance=instance, slot=slot, deadline=deadline, workspace=workspace)


def a_left_over_slot(host: Host, number: int = 7) -> Slot:
    """Make a slot of an earlier process, with marker and work."""
    slot = Slot(number, None, host.config.state / "slots" / str(number), host.config.sockets / str(number))
    for directory in (slot.workspace, slot.task, slot.out):
        directory.mkdir(parents=True)
        (directory / "file").write_text("x")
    (slot.home / MARKER).touch()
    return slot


async def test_only_containers_of_this_instance_that_no_attempt_holds_are_removed(janitor: Janitor, engine: BareEngine):
    """A running slot's, another executor's, and one whose slot nobody can read stay."""
    engine.planted = [
        a_container("stale"),
        a_container("running", slot=0),
        a_container("other", instance="ex2-test"),
        a_container("prefix", instance="ex1-test2"),
        a_container("odd", slot=None),
    ]

    await janitor.sweep()

    assert engine.discarded == ["stale"]


async def test_an_overdue_container_is_removed_when_its_executor_has_been_gone_for_minutes(
    janitor: Janitor, engine: BareEngine, clock: Clock, tmp_path: Path
):
    """Seen without its executor by our own clock: another clock may have jumped past the deadline."""
    other = tmp_path / "other"
    with held_state(other):
        pass
    engine.planted = [a_container("orphan", "ex2-x", deadline=time.time() - 10, workspace=other / "slots/0/workspace")]

    await janitor.sweep()
    clock.now += ORPHANED_S - 1
    await janitor.sweep()
    assert engine.discarded == []
    clock.now += 1
    await janitor.sweep()

    assert engine.discarded == ["orphan"]


@pytest.mark.parametrize("spared_by", ["its executor lives", "its deadline is to come", "no deadline", "nobody's state", "another shape"])
async def test_another_executors_container_is_spared(janitor: Janitor, engine: BareEngine, clock: Clock, tmp_path: Path, spared_by: str):
    """What we cannot prove to be an orphan is left alone."""
    other = tmp_path / "other"
    workspace = other / ("slots/0/workspace" if spared_by != "another shape" else "elsewhere/0/workspace")
    if spared_by == "nobody's state":
        other.mkdir()
    else:
        with held_state(other):
            pass
    deadline = {"its deadline is to come": time.time() + 1_000, "no deadline": 0}.get(spared_by, time.time() - 10)
    engine.planted = [a_container("theirs", "ex2-x", deadline=deadline, workspace=workspace)]

    for _ in range(3):
        if spared_by == "its executor lives":
            with held_state(other):
                await janitor.sweep()
        else:
            await janitor.sweep()
        clock.now += ORPHANED_S + 1

    assert engine.discarded == []


async def test_a_container_that_was_seen_with_its_executor_again_begins_anew(
    janitor: Janitor, engine: BareEngine, clock: Clock, tmp_path: Path
):
    """An executor that restarts in between is no dead one."""
    other = tmp_path / "other"
    with held_state(other):
        pass
    engine.planted = [a_container("theirs", "ex2-x", deadline=1, workspace=other / "slots/0/workspace")]

    await janitor.sweep()
    clock.now += ORPHANED_S - 1
    with held_state(other):
        await janitor.sweep()
    clock.now += 2
    await janitor.sweep()

    assert engine.discarded == []


async def test_a_failing_engine_stops_neither_the_janitor_nor_its_other_steps(tmp_path: Path, engine: BareEngine):
    """The next minute tries again; slots of earlier processes are emptied all the same."""
    state = tmp_path / "state"
    engine.error = EngineError("the engine is away")
    async with MemoryExecutorLink.connect(MemoryBroker(), "ex1") as link:
        async with a_host(state, link, engine) as first:
            slot = a_left_over_slot(first)
        async with a_host(state, link, engine) as host:
            await Janitor(host, is_busy=lambda _: False, salvage=lambda _: None).sweep()

    assert not slot.workspace.exists()


async def test_a_slot_is_emptied_and_keeps_its_marker(janitor: Janitor, host: Host):
    """Workspace, task and reports go, and so do the note and the socket."""
    slot = a_left_over_slot(host)
    slot.lease_file.write_text("torn")
    slot.sockets.mkdir()
    (slot.sockets / "gateway.sock").touch()

    await janitor.put_in_order(slot)

    assert sorted(path.name for path in slot.home.iterdir()) == [MARKER]
    assert list(slot.sockets.iterdir()) == []
    slot.sockets.rmdir()


async def test_a_directory_without_our_marker_is_not_touched(janitor: Janitor, host: Host):
    """It may look like a slot and be somebody's."""
    slot = a_left_over_slot(host)
    (slot.home / MARKER).unlink()

    await janitor.put_in_order(slot)

    assert (slot.workspace / "file").read_text() == "x"


async def test_a_slot_that_is_a_link_is_not_followed(janitor: Janitor, host: Host, tmp_path: Path):
    """Not even to a directory that has a marker."""
    slot = a_left_over_slot(host)
    elsewhere = tmp_path / "elsewhere"
    slot.home.rename(elsewhere)
    slot.home.symlink_to(elsewhere)

    await janitor.put_in_order(slot)

    assert (elsewhere / "workspace" / "file").read_text() == "x"
    slot.home.unlink()


@pytest.mark.parametrize("name", ["workspace", "out", "task"])
def test_a_link_in_a_slot_is_removed_and_not_followed(host: Host, tmp_path: Path, name: str):
    """What it points at stays whole."""
    slot = a_left_over_slot(host)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    (slot.home / name / "file").unlink()
    (slot.home / name).rmdir()
    (slot.home / name).symlink_to(precious)

    empty(slot)

    assert (precious / "file").read_text() == "x"
    assert not os.path.lexists(slot.home / name)


def test_links_inside_a_workspace_are_not_followed(host: Host, tmp_path: Path):
    """An agent may point anywhere."""
    slot = a_left_over_slot(host)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    (slot.workspace / "link").symlink_to(precious)
    (slot.workspace / "up").symlink_to("../../../..")

    empty(slot)

    assert (precious / "file").read_text() == "x"
    assert not slot.workspace.exists()


async def test_a_state_directory_has_one_executor_and_looking_does_not_take_it(tmp_path: Path):
    """A janitor that looks at the moment another executor starts must not keep it from starting."""
    with held_state(tmp_path / "s"):
        assert not is_state_free(tmp_path / "s")
    assert is_state_free(tmp_path / "s")

    def start_often() -> None:
        for _ in range(50):
            with held_state(tmp_path / "s"):
                pass

    def look_often() -> None:
        for _ in range(2_000):
            is_state_free(tmp_path / "s")

    await asyncio.gather(asyncio.to_thread(start_often), asyncio.to_thread(look_often))
