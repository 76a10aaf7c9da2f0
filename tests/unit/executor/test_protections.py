"""What a host lacks, what it says of itself, and what becomes of a strict job."""

import os
from pathlib import Path
from typing import Any

import pytest

from sandbox.contract.errors import EngineError, InfrastructureError, ProtectionMissing
from sandbox.contract.result import Outcome
from sandbox.executor.ending import Ending
from sandbox.executor.place import Surroundings
from sandbox.executor.protections import RUNTIMES_MAX, Proofs, check_strict, labels_of, missing_by_default, missing_of_host
from sandbox.executor.slots import NO_UID_OF_ITS_OWN, Slot
from sandbox.runtime.container_spec import OnStep, Sandbox, SlotSpec, unheard
from tests.unit.executor.a_host import BareEngine
from tests.unit.runtime.test_hardening import facts

NEW_GIT = (2, 46, 0)


def place(*, locks: Path | None = Path("/l"), **changes: Any) -> Surroundings:
    return Surroundings(False, lambda instance: Path("/t") / instance, locks, **changes)


def test_a_host_that_has_everything_lacks_nothing_and_says_so():
    """Its label is what strict jobs ask for."""
    whole = missing_of_host(place(), facts(), git=NEW_GIT, uid=0)

    assert whole == ()
    assert labels_of(whole, facts()) == {"strict.runc": "yes"}


@pytest.mark.parametrize(
    ("changes", "git", "begins"),
    [
        ({"locks": None}, NEW_GIT, NO_UID_OF_ITS_OWN),
        ({"no_quota": "no quota mount: /s is not mounted rshared"}, NEW_GIT, "no quota mount: /s is not mounted rshared: the workspace"),
        ({"missing": ("uids are shared",)}, NEW_GIT, "uids are shared"),
        ({}, (2, 45, 9), "old git (2.45.9)"),
    ],
)
def test_each_thing_a_host_lacks_is_a_line_and_ends_its_wholeness(changes: dict[str, Any], git: tuple[int, ...], begins: str):
    """Under every runtime: what the host lacks, all of them lack."""
    (line,) = missing_of_host(place(**changes), facts(), git=git, uid=0)

    assert line.startswith(begins)
    assert labels_of((line,), facts(runtimes=("crun", "runc"))) == {"runtime.crun": "yes"}


def test_an_ordinary_user_has_neither_a_uid_for_each_slot_nor_a_quota():
    """Known before the first job."""

    assert [line.split(":")[0] for line in missing_of_host(place(locks=None), facts(), git=NEW_GIT, uid=1000)] == [
        "no uid per slot",
        "no quota mount without root",
    ]


def test_runtimes_are_told_by_name_and_not_whole_where_they_lack_something():
    """gVisor has no pin; shims of the engine itself are no choice of anybody's; names that are no labels stay unsaid."""
    told = facts(runtimes=("Odd", "io.containerd.runc.v2", "runc", "runsc", "x" * 32), gvisor=("runsc",))

    assert labels_of((), told) == {"runtime.runsc": "yes", "strict.runc": "yes"}
    assert len(labels_of(("x",), facts(runtimes=tuple(f"r{n}" for n in range(20))))) == RUNTIMES_MAX


def test_an_old_runc_is_said_in_the_life_sign_and_ends_wholeness():
    """It is what a sandbox of the default runtime does without."""
    old = facts(warnings=("runc 1.1.5 is older",))

    assert missing_by_default(("no swap limit",), old) == ("no swap limit", "runc 1.1.5 is older")
    assert labels_of((), old) == {}


def test_a_strict_job_is_refused_by_name_of_what_is_missing():
    """Each line is told, and the attempt's cause makes the run end at once, not try again."""
    check_strict(())
    with pytest.raises(ProtectionMissing, match=r"cannot give: no swap limit · no AppArmor$") as raised:
        check_strict(("no swap limit", "no AppArmor"))
    with pytest.raises(ProtectionMissing, match=r"\(and 1 more\)$"):
        check_strict(tuple(f"line {n}" for n in range(41)))

    assert Ending.of(raised.value) == Ending(Outcome.LOST, str(raised.value), "strict")
    assert Ending.of(InfrastructureError("broke")) == Ending(Outcome.LOST, "broke", "")


class Refusing(BareEngine):
    """Counts how often a container is asked for, and refuses it."""

    asked = 0

    async def stand_by(self, slot: SlotSpec, image_id: str, on_step: OnStep = unheard) -> Sandbox:
        self.asked += 1
        raise EngineError(f"no {slot.runtime} of {image_id[:3]} today")


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    (tmp_path / "s").mkdir()
    (tmp_path / "t").mkdir()
    return Slot(7, 231_007 if os.geteuid() == 0 else None, tmp_path / "s", tmp_path / "t")


async def test_a_runtime_somebody_tried_is_not_tried_again(slot: Slot, tmp_path: Path):
    """What an earlier process saw is read from disk; a runtime that is not there costs no container."""
    engine, told = Refusing(), facts(runtimes=("runc", "runsc"))
    proofs = Proofs(engine, told, "ex1", tmp_path / "proven")

    with pytest.raises(EngineError, match="no runsc of sha"):
        await proofs.shown("runsc", "sha256:1", slot)
    remembered = proofs._path("runsc", "sha256:1")
    remembered.parent.mkdir(exist_ok=True)
    remembered.write_text('["no agent pin: so"]')

    assert await proofs.shown("runsc", "sha256:1", slot) == ("no agent pin: so",)
    assert await proofs.shown("kata", "sha256:1", slot) == ()
    assert engine.asked == 1
    with pytest.raises(EngineError):  # another image is another proof
        await proofs.shown("runsc", "sha256:2", slot)
