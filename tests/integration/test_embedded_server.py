"""The embedded broker as a process: it dies with us, is alone on its store, and comes back as it was."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from sandbox.bus import Connection, NatsExecutorLink, NatsSupervisorLink
from sandbox.contract.blob import input_bucket
from sandbox.contract.credentials import SupervisorCredentials, read_credentials
from sandbox.contract.errors import BrokerError, BrokerRefused, ConfigError, ConflictError
from supervisor.store.broker.embedded import RESTARTS_MAX, EmbeddedBroker, find_server, supervisor_file
from supervisor.store.log.jetstream import JetStreamEventLog
from tests.fakes.wire_data import RUN, a_heartbeat, a_job, a_result, an_event, number_of, opened, take, wait_until

_PARENT = """
import asyncio, sys
from pathlib import Path
from supervisor.store.broker.embedded import EmbeddedBroker
async def main():
    async with EmbeddedBroker.run(Path(sys.argv[1])) as broker:
        print(broker.pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_it_starts_quickly_and_stops_without_a_trace(tmp_path: Path) -> None:
    """A start is a matter of a tenth of a second; at the end the process is gone."""
    began = time.monotonic()
    async with EmbeddedBroker.run(tmp_path / "nats") as broker:
        started_s = time.monotonic() - began
        pid = broker.pid
        assert os.getpgid(pid) != os.getpgid(0), "Ctrl-C must not reach it"

    assert started_s < 5
    assert not _lives(pid)


async def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """A killed supervisor leaves no server behind, and the next one starts on the same store at once."""
    async with _parent(tmp_path / "nats") as (parent, pid):
        assert _lives(pid)

        parent.kill()
        await parent.wait()

        await wait_until(lambda: _is_gone(pid), "the server is gone", within_s=5)
    async with EmbeddedBroker.run(tmp_path / "nats") as broker:
        assert broker.pid != pid


async def test_a_store_has_one_server(tmp_path: Path) -> None:
    """A second server on the directory is refused while the first runs; nats-server itself would not notice."""
    async with EmbeddedBroker.run(tmp_path / "nats"):
        with pytest.raises(ConflictError, match="another broker"):
            async with EmbeddedBroker.run(tmp_path / "nats"):
                pass
    async with EmbeddedBroker.run(tmp_path / "nats"):
        pass


async def test_a_server_in_another_process_holds_the_store_too(tmp_path: Path) -> None:
    """The lock is the kernel's, not ours."""
    async with _parent(tmp_path / "nats") as (parent, _):
        with pytest.raises(ConflictError):
            async with EmbeddedBroker.run(tmp_path / "nats"):
                pass
        parent.terminate()


async def test_a_restart_keeps_port_keys_and_data(tmp_path: Path) -> None:
    """Whoever knew the broker before a restart still does, and everything stored is there."""
    async with EmbeddedBroker.run(tmp_path / "nats") as broker:
        executor = await broker.add_executor("ex1")
        before = broker.supervisor
        async with NatsSupervisorLink.connect(before) as link:
            await link.publish_job(a_job(), "d1")
            await JetStreamEventLog(link.connection).append(an_event(7), 0)
            ref = await link.put_blob(f"{RUN}/in", b"data", input_bucket("default"))

    async with EmbeddedBroker.run(tmp_path / "nats") as broker:
        assert broker.supervisor == before == read_credentials(supervisor_file(tmp_path / "nats"), SupervisorCredentials)
        async with NatsSupervisorLink.connect(before) as link, NatsExecutorLink.connect(executor) as worker:
            assert [number_of(event) for event in await JetStreamEventLog(link.connection).read(RUN)] == [7]
            assert await worker.get_blob(ref) == b"data"
            assert await worker.next_job(5) is not None


async def test_a_taken_port_is_replaced(tmp_path: Path) -> None:
    """Somebody else's server on our old port is not in the way."""
    async with EmbeddedBroker.run(tmp_path / "nats") as broker:
        port = int(broker.url.rsplit(":", 1)[1])

    with socket.create_server(("127.0.0.1", port)):
        async with EmbeddedBroker.run(tmp_path / "nats") as broker:
            assert not broker.url.endswith(f":{port}")
            async with NatsSupervisorLink.connect(broker.supervisor) as link:
                assert await link.executors() == []


async def test_a_killed_server_comes_back_and_its_clients_with_it(tmp_path: Path) -> None:
    """Kill -9 in mid-use: waiting pulls, followers and results go on, and nothing stored is lost."""
    async with EmbeddedBroker.run(tmp_path / "nats") as broker:
        executor = await broker.add_executor("ex1")
        async with NatsSupervisorLink.connect(broker.supervisor) as link, NatsExecutorLink.connect(executor) as worker:
            log = JetStreamEventLog(link.connection)
            seq = await log.append(an_event(1), 0)
            ref = await link.put_blob(f"{RUN}/in", b"data", input_bucket("default"))
            await link.publish_job(a_job("held"), "d1")
            held = await worker.next_job(5)
            assert held is not None
            async with opened(log.follow(RUN)) as events, opened(link.results()) as results:
                await take(events, 1)
                result = asyncio.create_task(take(results, 1, within_s=30))
                await asyncio.sleep(0.3)  # the broker writes down who holds a job a moment after it was handed out (NATS.md §2)
                pid = broker.pid

                os.kill(pid, signal.SIGKILL)
                await wait_until(lambda: _is_another(broker, pid), "the server was started again")

                seq = await log.append(an_event(2), seq)
                await worker.in_progress(held.ack_subject)
                await worker.publish_result(a_result())
                await worker.ack(held.ack_subject)
                await link.publish_job(a_job("next"), "d2")
                following = await worker.next_job(10)
                [stored] = await result
                await stored.confirm()
                [event] = await take(events, 1)

            assert number_of(event) == 2
            assert stored.result == a_result()
            assert following is not None
            assert following.job.stage == "next"
            assert [number_of(event) for event in await log.read(RUN)] == [1, 2]
            assert await worker.get_blob(ref) == b"data"


async def test_a_pull_that_waited_in_a_killed_server_ends_at_once(tmp_path: Path) -> None:
    """Its executor asks the new server instead of waiting out a pull nobody remembers."""
    async with EmbeddedBroker.run(tmp_path / "nats") as broker:
        executor = await broker.add_executor("ex1")
        async with NatsSupervisorLink.connect(broker.supervisor) as link, NatsExecutorLink.connect(executor) as worker:
            pulling = asyncio.create_task(worker.next_job(15))
            await asyncio.sleep(0.2)
            began = time.monotonic()

            os.kill(broker.pid, signal.SIGKILL)
            nothing = await pulling
            await link.publish_job(a_job(), "d1")
            delivery = await worker.next_job(15)

        assert nothing is None
        assert delivery is not None
        assert time.monotonic() - began < 8


async def test_a_call_under_a_killed_server_fails_soon_and_a_deduped_one_succeeds(tmp_path: Path) -> None:
    """What the server swallowed does not wait out its time; what may be repeated is."""
    async with (
        EmbeddedBroker.run(tmp_path / "nats") as broker,
        NatsSupervisorLink.connect(broker.supervisor) as link,
        link.connection.subscription("never.answered"),
    ):
        asking = asyncio.create_task(link.connection.request("never.answered", timeout_s=60))
        await asyncio.sleep(0.1)
        began = time.monotonic()

        os.kill(broker.pid, signal.SIGKILL)
        publishing = asyncio.create_task(link.publish_job(a_job(), "d1"))

        with pytest.raises(BrokerError):
            await asking
        assert time.monotonic() - began < 5
        await publishing


async def test_a_large_object_survives_a_killed_server(tmp_path: Path) -> None:
    """An object half written when the server died is written again, whole."""
    data = os.urandom(1 << 20) * 40
    async with EmbeddedBroker.run(tmp_path / "nats") as broker, NatsSupervisorLink.connect(broker.supervisor) as link:
        pid = broker.pid
        putting = asyncio.create_task(link.put_blob(f"{RUN}/in", data))
        await wait_until(lambda: _has_messages(link, "OBJ_IN"), "some of it is stored")

        os.kill(pid, signal.SIGKILL)
        ref = await putting

        assert await link.get_blob(ref) == data
        assert broker.pid != pid


async def test_a_server_that_keeps_dying_is_given_up(tmp_path: Path) -> None:
    """Restarts are bounded; whoever waits is told why."""
    async with EmbeddedBroker.run(tmp_path / "nats") as broker:
        for _ in range(RESTARTS_MAX):
            pid = broker.pid
            os.kill(pid, signal.SIGKILL)
            await wait_until(partial(_is_another, broker, pid), "the server was started again")
        os.kill(broker.pid, signal.SIGKILL)

        assert "died" in await asyncio.wait_for(broker.wait_failed(), 10)


async def test_admitting_an_executor_disturbs_nobody(tmp_path: Path) -> None:
    """A new key works at once, and connections of others stay up."""
    async with EmbeddedBroker.run(tmp_path / "nats") as broker:
        first = await broker.add_executor("ex1")
        async with NatsSupervisorLink.connect(broker.supervisor) as link, NatsExecutorLink.connect(first) as worker:
            pulling = asyncio.create_task(worker.next_job(10))
            second = await broker.add_executor("ex2", ("gpu",))
            async with NatsExecutorLink.connect(second) as other:
                await link.publish_job(a_job(pool="gpu"), "d1")
                assert await other.next_job(5) is not None
            await link.publish_job(a_job(), "d2")

            assert await pulling is not None


@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_a_key_taken_back_is_worth_nothing(tmp_path: Path, how: str) -> None:
    """The connection of a removed or replaced executor is dropped for good, and its key opens no new one."""
    async with EmbeddedBroker.run(tmp_path / "nats") as broker:
        old = await broker.add_executor("ex1")
        async with NatsExecutorLink.connect(old) as worker:
            if how == "removed":
                await broker.remove_executor("ex1")
            else:
                await broker.add_executor("ex1")

            assert await asyncio.wait_for(worker.wait_lost(), 20)
            with pytest.raises(BrokerError):
                await worker.next_job(1)
        with pytest.raises(BrokerRefused, match=r"(?i)authorization"):
            async with NatsExecutorLink.connect(old):
                pass


async def test_a_lost_connection_ends_what_listens_on_it(tmp_path: Path) -> None:
    """Once the key is taken back, a listener is told, again at each try, instead of waiting for what cannot come."""
    async with EmbeddedBroker.run(tmp_path / "nats") as broker:
        credentials = await broker.add_executor("ex1")
        async with Connection.open(credentials, name="ex1", inbox="ex1") as connection:
            async with connection.subscription("andon.ctl.ex1.*") as said:
                await broker.remove_executor("ex1")
                await asyncio.wait_for(connection.wait_lost(), 20)
                for _ in range(3):
                    with pytest.raises(BrokerError):
                        await said.next(60)

            assert connection.is_lost


async def test_admitted_executors_outlive_a_restart(tmp_path: Path) -> None:
    """Who was let in is remembered, by public key."""
    async with EmbeddedBroker.run(tmp_path / "nats") as broker:
        kept, dropped = await broker.add_executor("ex1"), await broker.add_executor("ex2")
        await broker.remove_executor("ex2")

    async with EmbeddedBroker.run(tmp_path / "nats"):
        async with NatsExecutorLink.connect(kept):
            pass
        with pytest.raises(BrokerError):
            async with NatsExecutorLink.connect(dropped):
                pass


async def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """Its last words are in the error, whatever they are."""
    program = tmp_path / "nats-server"
    program.write_text("#!/bin/sh\necho 'no space on the moon' >&2\nexit 3\n")
    program.chmod(0o755)

    with pytest.raises(BrokerError, match="no space on the moon"):
        async with EmbeddedBroker.run(tmp_path / "nats", binary=program):
            pass


def test_the_server_is_found_or_its_absence_explained(tmp_path: Path) -> None:
    """A given program wins and has to exist; otherwise the one beside this Python is taken."""
    assert find_server(None).name == "nats-server"
    assert find_server(Path(sys.executable)) == Path(sys.executable)
    with pytest.raises(ConfigError, match="NATS_SERVER_BIN"):
        find_server(tmp_path / "nothing")


async def test_nobody_there_is_said_in_time(tmp_path: Path) -> None:
    """A first connect is bounded; its error names the address."""
    async with EmbeddedBroker.run(tmp_path / "nats") as broker:
        credentials = broker.supervisor
    began = time.monotonic()

    with pytest.raises(BrokerError, match=credentials.url):
        async with Connection.open(credentials, name="test", inbox="test", connect_s=1):
            pass

    assert time.monotonic() - began < 3


async def test_an_oversized_message_is_our_own_error_and_closes_nothing(tmp_path: Path) -> None:
    """The broker would close the connection for good; it is never sent."""
    async with EmbeddedBroker.run(tmp_path / "nats") as broker, NatsSupervisorLink.connect(broker.supervisor) as link:
        connection = link.connection
        async with connection.subscription("self") as received:
            with pytest.raises(ValueError, match="at most"):
                await connection.publish("self", bytes(connection.payload_bytes_max + 1))
            with pytest.raises(ValueError, match="at most"):
                await connection.request("self", b"", headers={"X": "x" * 5000})
            await connection.publish("self", bytes(connection.payload_bytes_max), headers={"X": "x" * 4000})
            message = await received.next(5)

        assert message is not None
        assert len(message.data) == connection.payload_bytes_max


async def test_a_slow_reader_loses_its_own_messages_only(tmp_path: Path) -> None:
    """Beyond a subscription's capacity messages are dropped and counted; what was kept stays in order."""
    async with EmbeddedBroker.run(tmp_path / "nats") as broker, NatsSupervisorLink.connect(broker.supervisor) as link:
        async with link.connection.subscription("self", capacity=3) as received:
            for number in range(5):
                await link.connection.publish("self", str(number).encode())
            await link.connection.api("INFO")
            kept = [message.data for message in received.left()]

        assert (kept, received.dropped) == ([b"0", b"1", b"2"], 2)


@asynccontextmanager
async def _parent(directory: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """Run a broker under a process of its own; yield both."""
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PARENT, str(directory)), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        assert parent.stdout is not None
        yield parent, int(await asyncio.wait_for(parent.stdout.readline(), 20))
    finally:
        if parent.returncode is None:
            parent.terminate()
        await asyncio.wait_for(parent.communicate(), 20)


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def _is_gone(pid: int) -> bool:
    return not _lives(pid)


async def _is_another(broker: EmbeddedBroker, pid: int) -> bool:
    return broker.pid != pid


async def _has_messages(link: NatsSupervisorLink, stream: str) -> bool:
    return int((await link.connection.api(f"STREAM.INFO.{stream}"))["state"]["messages"]) > 2


async def test_executors_are_seen_again_after_the_broker_was_killed(tmp_path: Path) -> None:
    """Life signs are kept in memory only, their stream with them: a supervisor that does not make it anew sees nobody for ever."""
    async with (
        EmbeddedBroker.run(tmp_path / "nats") as broker,
        NatsSupervisorLink.connect(broker.supervisor) as supervisor,
        NatsExecutorLink.connect(await broker.add_executor("ex1")) as executor,
    ):
        await executor.heartbeat(a_heartbeat())
        assert [beat.executor for beat in await supervisor.executors()] == ["ex1"]
        before = broker.pid

        os.kill(before, signal.SIGKILL)

        async def is_seen() -> bool:
            with suppress(BrokerError):
                await executor.heartbeat(a_heartbeat())
            with suppress(BrokerError):
                return broker.pid != before and [beat.executor for beat in await supervisor.executors()] == ["ex1"]
            return False

        await wait_until(is_seen, "the executor is seen again", within_s=20)
