"""What a client's key is good for, and what not (docs/adr/0010): each refusal beside its control, over TLS as from another host."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.bus import Connection, NatsExecutorLink, NatsSupervisorLink
from sandbox.contract.blob import input_bucket
from sandbox.contract.errors import BrokerError
from supervisor.store.broker.admission import admit_client, admit_executor
from supervisor.store.broker.embedded import EmbeddedBroker
from supervisor.store.broker.listen import Listen
from supervisor.store.client import NatsFleetClient
from supervisor.store.log.jetstream import JetStreamEventLog
from tests.fakes.paper_desk import PaperDesk
from tests.fakes.wire_data import RUN, a_heartbeat, a_job, a_progress, an_event, grant, opened, pay, take

DENIED_S = 0.4
REQUESTS = ("intent", "stop", "resume", "why", "answer", "delivered")
STREAMS = ("JOBS", "RESULTS", "EVENTS", "KV_EXECUTORS", "KV_LEASES", "OBJ_IN", "OBJ_IN_default", "OBJ_OUT_ex1")


@dataclass
class Site:
    """A broker with a supervisor, an executor and a client; `attacker` is a raw connection with the client's key."""

    directory: Path
    supervisor: NatsSupervisorLink
    executor: NatsExecutorLink
    client: NatsFleetClient
    attacker: Connection

    async def state(self) -> list[tuple[int, int]]:
        """Return what every stream holds: number of messages, number of the last one."""
        found = [(await self.supervisor.connection.api(f"STREAM.INFO.{name}"))["state"] for name in STREAMS]
        return [(int(each["messages"]), int(each["last_seq"])) for each in found]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        listen = Listen(host="0.0.0.0", advertise="localhost")
        broker = await stack.enter_async_context(EmbeddedBroker.run(tmp_path / "nats", listen=listen))
        supervisor = await stack.enter_async_context(NatsSupervisorLink.connect(broker.supervisor))
        own = await admit_client(tmp_path / "nats", "laptop")
        await supervisor.admit("ex1", ("default",))
        executor = await stack.enter_async_context(NatsExecutorLink.connect(await admit_executor(tmp_path / "nats", "ex1")))
        client = await stack.enter_async_context(NatsFleetClient.connect(own))
        attacker = await stack.enter_async_context(Connection.open(own, name="laptop", inbox=own.inbox))
        yield Site(tmp_path / "nats", supervisor, executor, client, attacker)


async def test_a_client_does_its_work_with_its_own_rights(site: Site) -> None:
    """The control for everything below: requests, objects, events, life signs, progress, drain."""

    async def echo(payload: bytes) -> bytes:
        return payload

    await site.supervisor.serve(PaperDesk(grant, pay), {f"andon.rpc.{name}": echo for name in REQUESTS})
    assert [await site.client.request(f"andon.rpc.{name}", name.encode()) for name in REQUESTS] == [name.encode() for name in REQUESTS]

    given = await site.client.put_blob(f"{RUN}/base", b"pack")
    recording = await site.executor.put_blob(f"{RUN}/recording", b"record")
    assert (await site.supervisor.get_blob(given), await site.client.get_blob(recording)) == (b"pack", b"record")

    await JetStreamEventLog(site.supervisor.connection).append(an_event(), 0)
    await site.executor.heartbeat(a_heartbeat())
    assert await site.client.runs() == [RUN]
    assert len(await site.client.read(RUN)) == 1
    assert [beat.executor for beat in await site.client.executors()] == ["ex1"]
    async with opened(site.client.progress()) as progress, opened(site.executor.controls()) as controls:
        seen, heard = asyncio.create_task(take(progress, 1)), asyncio.create_task(take(controls, 1))
        while not (seen.done() and heard.done()):
            await site.executor.publish_progress(a_progress())
            await site.client.drain("ex1", "maintenance")
            await asyncio.wait({seen, heard}, timeout=0.05)
        assert [each.job_id for each in await seen] == [f"{RUN}-spec-1"]
        assert [each.verb for each in await heard] == ["drain"]


@pytest.mark.parametrize(
    ("subject", "payload"),
    [
        ("andon.job.default", "{}"),
        ("andon.ev.0123456789", "{}"),
        ("andon.res.ex1.done", "{}"),
        ("andon.rpc.join.ex1", "{}"),
        ("andon.rpc.claim.ex1", "{}"),
        ("andon.rpc.budget.ex1", "{}"),
        ("andon.ctl.ex1.cancel", "{}"),
        ("andon.progress.ex1", "{}"),
        ("$KV.EXECUTORS.ex1", "{}"),
        ("$KV.LEASES.supervisor", "{}"),
        ("$O.OUT_ex1.C.abc", "{}"),
        ("$O.IN.X.abc", "{}"),
        ("$O.IN_default.C.abc", "{}"),
        ("$JS.ACK.JOBS.default.1.1.1.1.0", "+TERM"),
        ("$JS.API.INFO", ""),
        ("$JS.API.STREAM.INFO.EVENTS", ""),
        ("$JS.API.STREAM.PURGE.EVENTS", ""),
        ("$JS.API.STREAM.MSG.DELETE.EVENTS", '{"seq":1}'),
        ("$JS.API.STREAM.CREATE.MINE", '{"name":"MINE","subjects":["mine"]}'),
        (
            "$JS.API.CONSUMER.CREATE.EVENTS",
            '{"stream_name":"EVENTS","config":{"ack_policy":"none","deliver_subject":"andon.job.default"}}',
        ),
        ("$JS.API.CONSUMER.MSG.NEXT.JOBS.default", "1"),
        ("$JS.API.DIRECT.GET.JOBS", '{"seq":1}'),
        ("$JS.API.DIRECT.GET.KV_LEASES", '{"seq":1}'),
        ("$JS.API.DIRECT.GET.OBJ_IN_default", '{"seq":1}'),
        ("$SYS.REQ.SERVER.PING", ""),
    ],
)
async def test_a_client_may_not_publish_elsewhere(site: Site, subject: str, payload: str) -> None:
    """It neither makes jobs nor events, nor speaks for an executor, nor reads what jobs are given."""
    await site.supervisor.serve(PaperDesk(grant, pay), {})
    await site.supervisor.publish_job(a_job(), "d1")
    await JetStreamEventLog(site.supervisor.connection).append(an_event(), 0)
    await site.supervisor.put_blob(f"{RUN}/in", b"data", input_bucket("default"))
    before = await site.state()

    with pytest.raises(BrokerError, match=r"(?i)permissions violation"):
        await site.attacker.request(subject, payload.encode(), timeout_s=DENIED_S)

    assert await site.state() == before


@pytest.mark.parametrize(
    "subject", [">", "_INBOX.>", "_INBOX_desk.>", "_INBOX_fleet.>", "_R_.>", "andon.>", "andon.rpc.*", "andon.ctl.>", "$JS.>", "$O.>"]
)
async def test_a_client_may_not_listen_elsewhere(site: Site, subject: str) -> None:
    """Replies to another client, requests of others, and objects on their way are not for it."""

    async def secret(payload: bytes) -> bytes:
        return b"the other's answer"

    await site.supervisor.serve(PaperDesk(grant, pay), {"andon.rpc.why": secret})
    key = await admit_client(site.directory, "desk")
    async with NatsFleetClient.connect(key) as other, site.attacker.subscription(subject) as overheard:
        assert await other.request("andon.rpc.why", b"{}") == b"the other's answer"
        await other.put_blob(f"{RUN}/base", b"pack")
        await site.supervisor.cancel("ex1", f"{RUN}-spec-1", "")

        assert await overheard.next(0.2) is None


@pytest.mark.parametrize(
    "target",
    ["andon.job.default", "andon.ev.0123456789", "andon.res.ex1.done", "$JS.API.STREAM.DELETE.JOBS", "$JS.API.STREAM.PURGE.RESULTS"],
)
async def test_a_reply_subject_carries_nothing_of_a_clients_into_a_stream(site: Site, target: str) -> None:
    """What it put into IN itself would be a job; in an account of its own the answers go nowhere but to itself."""
    ref = await site.client.put_blob(f"{RUN}/base", a_job().model_dump_json().encode())
    before = await site.state()

    await site.attacker.publish("$JS.API.DIRECT.GET.OBJ_IN", b'{"seq":1}', reply=target)
    await site.attacker.publish("$JS.API.DIRECT.GET.EVENTS", b'{"seq":1}', reply=target)
    await site.attacker.publish("andon.rpc.why", b"{}", reply=target)
    assert await site.client.get_blob(ref) == a_job().model_dump_json().encode()  # a round trip: the above is through
    await asyncio.sleep(0.1)

    assert await site.state() == before


async def test_in_the_fleets_own_account_the_same_reply_is_a_job(site: Site) -> None:
    """Why clients are no users of FLEET: there, the very same request stores the object as a job."""
    await site.client.put_blob(f"{RUN}/base", a_job().model_dump_json().encode())

    await site.supervisor.connection.publish("$JS.API.DIRECT.GET.OBJ_IN", b'{"seq":1}', reply="andon.job.default")

    stolen = await site.executor.next_job(5)
    assert stolen is not None
    assert stolen.job == a_job()


async def test_a_clients_key_does_not_open_the_supervisors_link(site: Site) -> None:
    """Whoever starts a supervisor with a client's file is told so, not let in half way."""
    credentials = await admit_client(site.directory, "desk")

    with pytest.raises(BrokerError, match="is a client's"):
        async with NatsSupervisorLink.connect(credentials):
            pass
