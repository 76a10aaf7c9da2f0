"""One attempt whose surroundings break is a lost attempt, never the end of the executor."""

from pathlib import Path

from sandbox.contract.blob import input_bucket
from sandbox.contract.result import Outcome
from sandbox.contract.wire import ClaimReply, Delivery
from sandbox.executor.attempt import run_attempt
from sandbox.executor.ending import Cancel
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink
from tests.fakes.wire_data import PACK, a_job
from tests.unit.executor.a_host import a_host

GRANT = ClaimReply(decision="granted", attempt=1, token="t", wall_left_s=60)
PACK_HERE = PACK.model_copy(update={"bucket": input_bucket("default")})
DELIVERY = Delivery(job=a_job(input_pack=PACK_HERE), ack_subject="ack")


async def test_an_input_that_is_not_the_announced_one_costs_the_attempt_only(tmp_path: Path):
    """Whoever put it there must not be able to stop executors one after the other."""
    broker = MemoryBroker()
    broker.blobs[PACK_HERE.bucket, PACK_HERE.name] = b"something else"
    async with MemoryExecutorLink.connect(broker, "ex1") as link, a_host(tmp_path, link) as host:
        result = await run_attempt(host, host.slots.slots[0], DELIVERY, GRANT, Cancel())

    assert (result.outcome, result.token) == (Outcome.LOST, "t")
    assert "not the one that was announced" in result.reason


async def test_a_disk_that_refuses_costs_the_attempt_only(tmp_path: Path):
    """Also where nobody translates the error."""
    async with MemoryExecutorLink.connect(MemoryBroker(), "ex1") as link, a_host(tmp_path, link) as host:
        slot = host.slots.slots[0]
        (slot.home / "task").write_text("a file where a directory is due")

        result = await run_attempt(host, slot, DELIVERY, GRANT, Cancel())

    assert result.outcome is Outcome.LOST
