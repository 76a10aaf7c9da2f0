"""Finished results and their objects survive the process that made them, and are delivered once."""

from pathlib import Path

import pytest

from sandbox.contract.blob import BlobRef
from sandbox.contract.errors import BrokerError, InfrastructureError
from sandbox.contract.result import AttemptResult
from sandbox.executor.outbox import Outbox
from tests.fakes.memory_bus import MemoryBroker, MemoryExecutorLink
from tests.fakes.wire_data import a_result


class Breaking(MemoryExecutorLink):
    """A link that breaks at the result, once."""

    is_broken = True

    async def publish_result(self, result: AttemptResult) -> None:
        if self.is_broken:
            self.is_broken = False
            raise BrokerError("nobody is there")
        await super().publish_result(result)


async def kept(outbox: Outbox) -> AttemptResult:
    ref = await outbox.put(a_result().job_id, 1, "run/spec/1/1/work.bundle-x", b"bundle")
    result = a_result(git_bundle=ref)
    await outbox.keep(result)
    return result


async def test_a_kept_result_is_left_for_the_next_process(tmp_path: Path):
    """What was kept and not delivered is found again, whole."""
    await Outbox(tmp_path, "ex1").keep(a_result())

    assert await Outbox(tmp_path, "ex1").left() == [a_result()]


async def test_a_result_is_delivered_with_its_objects_by_whichever_process_comes_next(tmp_path: Path):
    """Objects go first: a result that names what is not there would be worth nothing."""
    broker, result = MemoryBroker(), await kept(Outbox(tmp_path, "ex1"))
    link = Breaking(broker, "ex1", ("default",))
    with pytest.raises(BrokerError):
        await Outbox(tmp_path, "ex1").send(link, result)
    assert await Outbox(tmp_path, "ex1").left() == [result]

    await Outbox(tmp_path, "ex1").send(link, result)

    assert broker.blobs["OUT_ex1", "run/spec/1/1/work.bundle-x"] == b"bundle"
    assert len(broker.results) == 1
    assert list(tmp_path.iterdir()) == []


async def test_delivering_one_attempt_leaves_the_others(tmp_path: Path):
    """Each has its own file."""
    outbox = Outbox(tmp_path, "ex1")
    await outbox.keep(a_result(attempt=1))
    await outbox.keep(a_result(attempt=2))

    await outbox.send(MemoryExecutorLink(MemoryBroker(), "ex1", ("default",)), a_result(attempt=1))

    assert await outbox.left() == [a_result(attempt=2)]


async def test_an_object_is_named_as_the_broker_would_name_it(tmp_path: Path):
    """The reference is in the result before the object crosses the bus."""
    named = await Outbox(tmp_path, "ex1").put("0123456789-spec-1", 1, "a/b", b"data")

    assert named == await MemoryExecutorLink(MemoryBroker(), "ex1", ()).put_blob("a/b", b"data")
    assert isinstance(named, BlobRef)


async def test_a_half_written_result_is_not_read(tmp_path: Path):
    """A crash in the middle of writing leaves a .part file, never a result."""
    (tmp_path / "0123456789-spec-1.1.part").write_text('{"job_id":')

    assert await Outbox(tmp_path, "ex1").left() == []


async def test_a_file_that_is_no_result_is_put_aside_and_hides_no_other(tmp_path: Path):
    """It must not keep the executor from starting for ever, and is not deleted either."""
    (tmp_path / "0000000000-spec-1.1.json").write_text("{}")
    await Outbox(tmp_path, "ex1").keep(a_result())

    assert await Outbox(tmp_path, "ex1").left() == [a_result()]
    assert (tmp_path / "0000000000-spec-1.1.unreadable").exists()


async def test_a_disk_that_refuses_is_infrastructure(tmp_path: Path):
    """The work then stays in its slot."""
    (tmp_path / "results").write_text("a file, not a directory")

    with pytest.raises(InfrastructureError, match="cannot be written"):
        await Outbox(tmp_path / "results", "ex1").keep(a_result())
