"""What a term of leadership may write, and when a supervisor takes no new runs."""

from pathlib import Path

import pytest

from sandbox.mirror import Mirror
from supervisor.bootstrap.supervise import Place
from supervisor.config import Config, StateDirectory
from supervisor.store.log.event_log import StaleWriter
from supervisor.store.log.fenced import FencedLog
from tests.fakes.memory_log import MemoryEventLog
from tests.fakes.run_events import RUN, happy


async def test_a_leader_whose_lease_is_over_writes_nothing():
    """Not even where nobody has written since, which compare-and-swap alone would let pass; it still reads."""
    leads = [True]
    log = MemoryEventLog()
    fenced = FencedLog(log, lambda: leads[0])
    first, second = happy()[:2]
    seq = await fenced.append(first, 0)
    leads[0] = False

    with pytest.raises(StaleWriter, match="does not lead"):
        await fenced.append(second, seq)
    assert [event.type for event in await fenced.read(RUN)] == ["run_accepted"]
    assert (await fenced.head()).last_seq == seq


@pytest.mark.parametrize(("floor_mib", "is_held"), [(0, False), (1, False), (1 << 40, True)])
async def test_a_disk_below_its_floor_holds_the_intake(tmp_path: Path, floor_mib: int, is_held: bool):
    """One line that says how much is left, the floor and its name; 0 switches it off."""
    state = StateDirectory.open(tmp_path / "state")
    config = Config(state_directory=state.root, disk_floor_mib=floor_mib)
    held = Place(config, state, await Mirror.open(state.mirror), embedded=False).hold()

    assert bool(held) is is_held
    if is_held:
        assert f"below its floor of {floor_mib} MiB (ANDON_DISK_FLOOR_MIB)" in held
        assert "\n" not in held
