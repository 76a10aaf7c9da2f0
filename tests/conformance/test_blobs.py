"""What the object store promises, shown on the fake and over JetStream."""

import pytest

from sandbox.contract.errors import BrokerError, Rejected
from tests.fakes.wire_data import RUN
from tests.fakes.wires import Wire

MIB = 1 << 20


@pytest.mark.parametrize("size", [0, 1, 4096, MIB, 5 * MIB + 17], ids=["empty", "byte", "page", "one chunk and more", "many chunks"])
async def test_an_object_comes_back_as_it_was(wire: Wire, size: int) -> None:
    """Both ways, of any size, named by digest and length."""
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]

    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        down = await supervisor.put_blob(f"{RUN}/in", data)
        up = await executor.put_blob(f"{RUN}/spec/1/1/out", data)

        assert await executor.get_blob(down) == data
        assert await supervisor.get_blob(up) == data
        assert await supervisor.get_blob(down) == data

    assert (down.bucket, up.bucket, down.sha256, down.size_bytes) == ("IN", "OUT", up.sha256, size)


async def test_names_may_hold_anything(wire: Wire) -> None:
    """A name is data, never part of a subject's structure."""
    name = f"{RUN}/stage.x/* > $JS/ünïcode-{'n' * 350}"

    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        ref = await supervisor.put_blob(name, b"data")

        assert await executor.get_blob(ref) == b"data"


async def test_an_object_that_is_not_there_is_a_broker_error(wire: Wire) -> None:
    """Expired or never written: it may come back, so it is not a refusal."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        ref = (await supervisor.put_blob(f"{RUN}/in", b"data")).model_copy(update={"name": f"{RUN}/other"})

        with pytest.raises(BrokerError, match=f"{RUN}/other"):
            await executor.get_blob(ref)


async def test_an_object_replaced_under_its_name_is_refused(wire: Wire) -> None:
    """Whoever may write to a bucket cannot change what a reference in a job or result stands for."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as first, wire.executor("ex2") as second:
        ref = await first.put_blob(f"{RUN}/out", b"honest")
        await second.put_blob(f"{RUN}/out", b"forged")

        with pytest.raises(Rejected, match="announced"):
            await supervisor.get_blob(ref)


async def test_an_object_of_another_length_is_refused(wire: Wire) -> None:
    """A reference's length is checked before the bytes are read."""
    async with wire.supervisor() as supervisor:
        ref = await supervisor.put_blob(f"{RUN}/in", b"data")

        with pytest.raises(Rejected):
            await supervisor.get_blob(ref.model_copy(update={"size_bytes": 5}))


async def test_the_same_object_may_be_put_again(wire: Wire) -> None:
    """A repetition after a lost answer is harmless."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        once = await supervisor.put_blob(f"{RUN}/in", b"data")
        again = await supervisor.put_blob(f"{RUN}/in", b"data")

        assert once == again
        assert await executor.get_blob(once) == b"data"


async def test_an_executor_reads_only_what_was_meant_for_executors(wire: Wire) -> None:
    """Results of others are not an executor's business."""
    async with wire.executor("ex1") as first, wire.executor("ex2") as second:
        ref = await first.put_blob(f"{RUN}/out", b"data")

        with pytest.raises(BrokerError, match="OUT"):
            await second.get_blob(ref)


async def test_a_cli_reads_and_writes_objects(wire: Wire) -> None:
    """The base pack and a cassette go in, a recording comes back."""
    async with wire.fleet() as cli, wire.executor("ex1") as executor:
        down = await cli.put_blob(f"{RUN}/base", b"pack")
        up = await executor.put_blob(f"{RUN}/recording", b"record")

        assert await executor.get_blob(down) == b"pack"
        assert await cli.get_blob(up) == b"record"
