"""What the object store promises, shown on the fake and over JetStream."""

import pytest

from sandbox.contract.blob import input_bucket, output_bucket
from sandbox.contract.errors import BrokerError, Rejected
from tests.fakes.wire_data import RUN
from tests.fakes.wires import Wire

MIB = 1 << 20
INPUT = input_bucket("default")


@pytest.mark.parametrize("size", [0, 1, 4096, MIB, 5 * MIB + 17], ids=["empty", "byte", "page", "one chunk and more", "many chunks"])
async def test_an_object_comes_back_as_it_was(wire: Wire, size: int) -> None:
    """Both ways, of any size, named by digest and length."""
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]

    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        await supervisor.admit("ex1", ("default",))
        down = await supervisor.put_blob(f"{RUN}/in", data, INPUT)
        up = await executor.put_blob(f"{RUN}/spec/1/1/out", data)

        assert await executor.get_blob(down) == data
        assert await supervisor.get_blob(up) == data
        assert await supervisor.get_blob(down) == data

    assert (down.bucket, up.bucket, down.sha256, down.size_bytes) == (INPUT, output_bucket("ex1"), up.sha256, size)


async def test_names_may_hold_anything(wire: Wire) -> None:
    """A name is data, never part of a subject's structure."""
    name = f"{RUN}/stage.x/* > $JS/ünïcode-{'n' * 350}"

    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        ref = await supervisor.put_blob(name, b"data", INPUT)

        assert await executor.get_blob(ref) == b"data"


async def test_an_object_that_is_not_there_is_a_broker_error(wire: Wire) -> None:
    """Expired or never written: it may come back, so it is not a refusal."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        ref = (await supervisor.put_blob(f"{RUN}/in", b"data", INPUT)).model_copy(update={"name": f"{RUN}/other"})

        with pytest.raises(BrokerError, match=f"{RUN}/other"):
            await executor.get_blob(ref)


async def test_an_object_replaced_under_its_name_is_refused(wire: Wire) -> None:
    """Whoever may write to a bucket cannot change what a reference in a job or result stands for."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor:
        await supervisor.admit("ex1", ("default",))
        ref = await executor.put_blob(f"{RUN}/out", b"honest")
        await executor.put_blob(f"{RUN}/out", b"forged")

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
        once = await supervisor.put_blob(f"{RUN}/in", b"data", INPUT)
        again = await supervisor.put_blob(f"{RUN}/in", b"data", INPUT)

        assert once == again
        assert await executor.get_blob(once) == b"data"


@pytest.mark.parametrize("bucket", ["IN", output_bucket("ex1"), output_bucket("ex2"), input_bucket("gpu"), input_bucket("never-used")])
async def test_an_executor_reads_only_what_its_pools_jobs_read(wire: Wire, bucket: str) -> None:
    """Results of others and inputs of other pools are not an executor's business (DECISIONS D3)."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as executor, wire.executor("ex2", ("gpu",)) as gpu:
        ref = await supervisor.put_blob(f"{RUN}/data", b"data", bucket)
        own = await supervisor.put_blob(f"{RUN}/data", b"own", INPUT)

        with pytest.raises(BrokerError, match=bucket):
            await executor.get_blob(ref)
        assert await executor.get_blob(own) == b"own"
        if bucket == input_bucket("gpu"):
            assert await gpu.get_blob(ref) == b"data"


async def test_what_a_cli_hands_in_comes_back_to_it(wire: Wire) -> None:
    """The base pack and a cassette go in, a bundle and a recording come back."""
    async with wire.executor("ex1") as executor, wire.fleet() as cli, wire.supervisor() as supervisor:
        await supervisor.admit("ex1", ("default",))
        base = await cli.put_blob(f"{RUN}/base", b"pack")
        bundle = await supervisor.put_blob(f"{RUN}/bundle", b"commit")
        recording = await executor.put_blob(f"{RUN}/recording", b"record")

        assert await supervisor.get_blob(base) == b"pack"
        assert await cli.get_blob(bundle) == b"commit"
        assert await cli.get_blob(recording) == b"record"


async def test_an_object_of_one_executor_is_untouched_by_another(wire: Wire) -> None:
    """The same name in two executors' buckets names two objects."""
    async with wire.supervisor() as supervisor, wire.executor("ex1") as first, wire.executor("ex2") as second:
        for name in ("ex1", "ex2"):
            await supervisor.admit(name, ("default",))
        ref = await first.put_blob(f"{RUN}/out", b"honest")
        other = await second.put_blob(f"{RUN}/out", b"forged")

        assert (ref.bucket, other.bucket) == (output_bucket("ex1"), output_bucket("ex2"))
        assert await supervisor.get_blob(ref) == b"honest"
