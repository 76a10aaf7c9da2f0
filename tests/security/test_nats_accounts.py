"""What an executor may and may not do to the broker (NATS.md §8, ABUSE N01 to N09): each refusal beside its control.

The attacker is a process with a real executor key that speaks the protocol directly, not our link, over TLS as from another
host. What clients may do is in `test_nats_clients.py`.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox.bus import Connection, NatsExecutorLink, Subscription, public_key
from sandbox.bus.assets import BUCKET_BYTES_MAX, ensure_export
from sandbox.contract import subjects
from sandbox.contract.blob import input_bucket, output_bucket
from sandbox.contract.errors import BrokerError, Rejected
from supervisor.store.broker.embedded import EmbeddedBroker
from supervisor.store.log.jetstream import JetStreamEventLog
from tests.fakes.paper_desk import PaperDesk
from tests.fakes.wire_data import (
    RUN,
    a_claim,
    a_heartbeat,
    a_job,
    a_join,
    a_progress,
    a_reservation,
    a_result,
    an_event,
    grant,
    opened,
    pay,
    take,
)
from tests.security.nats_site import Site, open_site

INPUT = input_bucket("default")
DENIED_S = 0.4
"""A denied publish is not answered at all; an allowed one is in a few milliseconds."""


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as opened_site:
        yield opened_site


async def test_an_executor_does_its_work_with_its_own_rights(site: Site) -> None:
    """The control for everything below: all an executor needs is allowed."""
    await site.supervisor.serve(PaperDesk(grant, pay), {})
    assert (await site.ex1.join(a_join())).accepted
    given = await site.supervisor.put_blob(f"{RUN}/in", b"input", INPUT)
    await site.supervisor.publish_job(a_job(), "d1")

    delivery = await site.ex1.next_job(5)
    assert delivery is not None
    assert (await site.ex1.claim(a_claim(delivery.ack_subject))).decision == "granted"
    assert (await site.ex1.budget(a_reservation())).granted
    assert await site.ex1.get_blob(given) == b"input"
    await site.ex1.in_progress(delivery.ack_subject)
    ref = await site.ex1.put_blob(f"{RUN}/out", b"data")
    await site.ex1.publish_result(a_result())
    await site.ex1.publish_telemetry(b"spans")
    await site.ex1.heartbeat(a_heartbeat())
    await site.ex1.ack(delivery.ack_subject)

    assert await site.supervisor.get_blob(ref) == b"data"
    assert await _messages(site, "JOBS") == 0
    assert [await _messages(site, name) for name in ("RESULTS", "TEL", "KV_EXECUTORS")] == [1, 1, 1]


@pytest.mark.abuse("N01", "N02", "N04", "N06", "A06")
@pytest.mark.parametrize(
    ("subject", "payload"),
    [
        ("andon.job.default", "{}"),
        ("andon.job.default@ex1", "{}"),
        ("andon.job.gpu", "{}"),
        ("andon.ev.0123456789", "{}"),
        ("andon.res.ex2.done", "{}"),
        ("andon.tel.ex2", "{}"),
        ("andon.progress.ex2", "{}"),
        ("andon.export", "{}"),
        ("andon.rpc.join.ex2", "{}"),
        ("andon.rpc.claim.ex2", "{}"),
        ("andon.rpc.budget.ex2", "{}"),
        ("andon.rpc.intent", "{}"),
        ("andon.rpc.stop", "{}"),
        ("andon.rpc.resume", "{}"),
        ("andon.rpc.answer", "{}"),
        ("andon.rpc.why", "{}"),
        ("andon.rpc.delivered", "{}"),
        ("andon.ctl.ex2.cancel", "{}"),
        ("andon.ctl.all.drain", "{}"),
        ("$KV.EXECUTORS.ex2", "{}"),
        ("$KV.LEASES.supervisor", "{}"),
        ("$O.IN.C.abc", "{}"),
        ("$O.IN.M.abc", "{}"),
        ("$O.IN_default.C.abc", "{}"),
        ("$O.OUT_ex2.C.abc", "{}"),
        ("$O.OUT_ex2.M.abc", "{}"),
        ("andon.res.ex1.another", "{}"),
        ("$JS.ACK.JOBS.gpu.1.1.1.1.0", "+TERM"),
        ("$JS.ACK.JOBS.default@ex2.1.1.1.1.0", "+TERM"),
        ("$JS.ACK.RESULTS.sup.1.1.1.1.0", "+TERM"),
        ("$JS.API.INFO", ""),
        ("$JS.API.STREAM.INFO.JOBS", ""),
        ("$JS.API.STREAM.PURGE.RESULTS", ""),
        ("$JS.API.STREAM.DELETE.EVENTS", ""),
        ("$JS.API.STREAM.MSG.GET.EVENTS", '{"seq":1}'),
        ("$JS.API.STREAM.MSG.DELETE.RESULTS", '{"seq":1}'),
        ("$JS.API.CONSUMER.CREATE.JOBS", "{}"),
        ("$JS.API.CONSUMER.DELETE.JOBS.default", ""),
        ("$JS.API.CONSUMER.MSG.NEXT.JOBS.gpu", "1"),
        ("$JS.API.CONSUMER.MSG.NEXT.JOBS.gpu@ex2", "1"),
        ("$JS.API.CONSUMER.MSG.NEXT.JOBS.default@ex2", "1"),
        ("$JS.API.CONSUMER.MSG.NEXT.RESULTS.sup", "1"),
        ("$JS.API.DIRECT.GET.OBJ_IN", '{"seq":1}'),
        ("$JS.API.DIRECT.GET.OBJ_IN_gpu", '{"seq":1}'),
        ("$JS.API.DIRECT.GET.KV_LEASES", '{"seq":1}'),
        ("$JS.API.DIRECT.GET.OBJ_OUT_ex2", '{"seq":1}'),
        ("$JS.API.DIRECT.GET.EVENTS", '{"seq":1}'),
        ("$SYS.REQ.SERVER.PING", ""),
        ("$SYS.REQ.SERVER.x.RELOAD", ""),
        ("_INBOX_ex2.x", "{}"),
    ],
)
async def test_an_executor_may_not_publish_elsewhere(site: Site, subject: str, payload: str) -> None:
    """Nothing but its own subjects is answered, and nothing is stored, read, removed or granted."""
    await site.supervisor.serve(PaperDesk(grant, pay), {"andon.rpc.intent": _never, "andon.rpc.stop": _never})
    await site.supervisor.publish_job(a_job(pool="gpu"), "d1")
    await JetStreamEventLog(site.fleet).append(an_event(), 0)
    before = [await _messages(site, name) for name in _STREAMS]

    with pytest.raises(BrokerError, match=r"(?i)permissions violation"):
        await site.attacker.request(subject, payload.encode(), timeout_s=DENIED_S)

    assert [await _messages(site, name) for name in _STREAMS] == before
    assert await site.ex2.next_job(2) is not None


@pytest.mark.abuse("N03", "N08")
@pytest.mark.parametrize(
    "subject",
    [
        ">",
        "_INBOX.>",
        "_INBOX_ex2.>",
        "_INBOX_fleet.>",
        "_R_.>",
        "andon.>",
        "andon.ctl.ex2.>",
        "andon.progress.*",
        "andon.job.*",
        "andon.ev.*",
        "andon.rpc.claim.*",
        "$JS.>",
        "$SYS.>",
        "$KV.>",
        "$O.>",
    ],
)
async def test_an_executor_may_not_listen_elsewhere(site: Site, subject: str) -> None:
    """A subscription to others' replies, jobs, events or objects stays silent."""
    await site.supervisor.serve(PaperDesk(grant, pay), {})

    async with site.attacker.subscription(subject) as overheard:
        await site.supervisor.publish_job(a_job(pool="gpu"), "d1")
        delivery = await site.ex2.next_job(5)
        assert delivery is not None
        await site.ex2.ack(delivery.ack_subject)
        await site.supervisor.cancel("ex2", f"{RUN}-spec-1", "")
        await JetStreamEventLog(site.fleet).append(an_event(), 0)
        await site.supervisor.put_blob(f"{RUN}/in", b"data")
        await site.ex2.publish_progress(a_progress("ex2"))

        assert await overheard.next(0.2) is None


@pytest.mark.parametrize(
    "target",
    ["andon.job.default", "andon.job.default@ex1", "andon.job.gpu", "andon.res.ex2.done", "andon.ev.0123456789", "andon.export"],
)
async def test_a_reply_subject_cannot_carry_a_message_into_a_stream(site: Site, target: str) -> None:
    """Reply subjects are not permission-checked; the account boundary is what keeps the answers out (measured: NATS.md §8)."""
    await ensure_export(site.fleet)
    await site.supervisor.publish_job(a_job(), "d1")
    ref = await site.supervisor.put_blob(f"{RUN}/in", b"data", INPUT)
    before = {name: await _messages(site, name) for name in ("JOBS", "RESULTS", "EVENTS", "EXPORT")}

    await site.attacker.publish("andon.res.ex1.done", b"{}", reply=target)
    await site.attacker.publish("$KV.EXECUTORS.ex1", b"{}", reply=target)
    await site.attacker.publish("$O.OUT_ex1.C.abc", b"{}", reply=target)
    await site.attacker.publish("$JS.API.DIRECT.GET.OBJ_IN_default", b'{"seq":1}', reply=target)
    await site.attacker.publish("$JS.API.CONSUMER.MSG.NEXT.JOBS.default", b"1", reply=target)
    assert await site.ex1.get_blob(ref) == b"data"  # a round trip on the same broker: the above is through
    await asyncio.sleep(0.1)

    after = {name: await _messages(site, name) for name in before}
    assert after == {**before, "RESULTS": before["RESULTS"] + 1}


async def test_a_rollup_header_empties_no_bucket(site: Site) -> None:
    """`Nats-Rollup: all` on a subject one may write would remove everybody's; the buckets refuse the header."""
    await site.ex2.heartbeat(a_heartbeat("ex2"))
    ref = await site.ex2.put_blob(f"{RUN}/out", b"data")

    for subject in ("$KV.EXECUTORS.ex1", "$O.OUT_ex1.M.abc", "andon.res.ex1.done"):
        with pytest.raises(BrokerError, match=r"(?i)rollup"):
            await site.attacker.store(subject, b"{}", headers={"Nats-Rollup": "all"})

    assert [beat.executor for beat in await site.supervisor.executors()] == ["ex2"]
    assert await site.supervisor.get_blob(ref) == b"data"


@pytest.mark.abuse("N05")
async def test_another_executor_cannot_use_up_a_results_message_id(site: Site) -> None:
    """The id holds a secret of the attempt; a guessed one suppresses nothing (ABUSE N05)."""
    guesses = (f"{RUN}-spec-1:1", f"{RUN}-spec-1:1:", f"{RUN}-spec-1:1:{'0' * 32}")
    for guess in guesses:
        await site.attacker.store("andon.res.ex1.done", b"{}", headers={"Nats-Msg-Id": guess})

    await site.ex2.publish_result(a_result("ex2"))

    async with opened(site.supervisor.results()) as results:
        [stored] = await take(results, 1)
        await stored.confirm()
    assert stored.result == a_result("ex2")


@pytest.mark.abuse("N01")
async def test_a_result_in_anothers_name_is_dropped(site: Site) -> None:
    """The subject says who spoke; a payload that says otherwise, or cannot be read, is removed and does not block (ABUSE N01)."""
    await site.attacker.store("andon.res.ex1.done", a_result("ex2").model_dump_json().encode())
    await site.attacker.store("andon.res.ex1.done", b"\xff not json")
    await site.ex1.publish_result(a_result("ex1"))

    async with opened(site.supervisor.results()) as results:
        [stored] = await take(results, 1)
        await stored.confirm()
    assert stored.result.executor == "ex1"


async def test_a_life_sign_in_anothers_name_is_not_listed(site: Site) -> None:
    """A heartbeat counts only under its own key; rubbish under the key is left out."""
    await site.attacker.store("$KV.EXECUTORS.ex1", a_heartbeat("ex2").model_dump_json().encode())
    assert await site.supervisor.executors() == []

    await site.attacker.store("$KV.EXECUTORS.ex1", b"rubbish")
    assert await site.supervisor.executors() == []


@pytest.mark.abuse("N07")
async def test_an_executor_cannot_fill_shared_storage(site: Site) -> None:
    """Each executor's objects have a bound of their own; at it a flood is refused, and everybody else's work goes on (ABUSE N07)."""
    stream = f"OBJ_{output_bucket('ex1')}"
    config = (await site.fleet.api(f"STREAM.INFO.{stream}"))["config"]
    assert config["max_bytes"] == BUCKET_BYTES_MAX == 4 << 30
    await site.fleet.api(f"STREAM.UPDATE.{stream}", config | {"max_bytes": 4 << 20})  # the same bound, within a test's reach

    with pytest.raises(BrokerError, match="maximum bytes"):
        await site.ex1.put_blob(f"{RUN}/flood", bytes(5 << 20))

    assert (await site.fleet.api(f"STREAM.INFO.{stream}"))["state"]["bytes"] <= 4 << 20
    assert await site.supervisor.get_blob(await site.ex2.put_blob(f"{RUN}/small", b"data")) == b"data"
    await JetStreamEventLog(site.fleet).append(an_event(), 0)
    await site.supervisor.publish_job(a_job(pool="gpu"), "d1")
    await site.supervisor.put_blob(f"{RUN}/in", b"data", INPUT)
    assert await site.ex2.next_job(5) is not None
    await site.ex2.publish_result(a_result("ex2"))


@pytest.mark.abuse("N07")
async def test_whatever_an_executor_may_write_is_bounded(site: Site) -> None:
    """Every stream its key reaches keeps a bounded number of bytes, all of them reserved in the broker's store."""
    bounds = {name: (await site.fleet.api(f"STREAM.INFO.{name}"))["config"]["max_bytes"] for name in _WRITABLE}
    account = await site.fleet.api("INFO")

    assert all(0 < bound <= BUCKET_BYTES_MAX for bound in bounds.values())
    assert sum(bound for name, bound in bounds.items() if not name.startswith("KV_")) <= account["reserved_storage"] < 64 << 40


async def test_a_flood_of_results_pushes_out_its_own(site: Site) -> None:
    """An executor's results are bounded by number too; another's stay."""
    await site.ex2.publish_result(a_result("ex2"))
    config = (await site.fleet.api("STREAM.INFO.RESULTS"))["config"]
    assert config["max_msgs_per_subject"] == 1000

    for number in range(1010):
        await site.attacker.publish("andon.res.ex1.done", str(number).encode())
    await site.attacker.store("andon.res.ex1.done", b"last")

    assert await _messages(site, "RESULTS") == 1001
    async with opened(site.supervisor.results()) as results:
        [stored] = await take(results, 1)
    assert stored.result == a_result("ex2")


@pytest.mark.abuse("N02")
async def test_a_broken_record_in_the_store_is_refused(site: Site) -> None:
    """Whatever an executor writes under an object's name, the supervisor gets the announced bytes or none."""
    ref = await site.ex1.put_blob(f"{RUN}/out", b"data")
    subject = "$O.OUT_ex1.M.MDEyMzQ1Njc4OS9vdXQ="
    for record in (
        b"rubbish",
        b"[]",
        b"{}",
        json.dumps({"size": 4, "nuid": ">"}).encode(),
        json.dumps({"size": 4, "nuid": "a.b"}).encode(),
    ):
        await site.attacker.store(subject, record)

        with pytest.raises(Rejected):
            await site.supervisor.get_blob(ref)


async def test_a_malformed_request_is_answered_and_hurts_nobody(site: Site) -> None:
    """Rubbish on its own claim subject gets an error; the next claim is served."""
    await site.supervisor.serve(PaperDesk(grant, pay), {})

    for subject in ("andon.rpc.join.ex1", "andon.rpc.claim.ex1", "andon.rpc.budget.ex1"):
        for payload in (b"", b"\xff", b"{}", b"[" * 1000):
            answer = await site.attacker.request(subject, payload)
            assert "malformed" in answer.headers["Andon-Error"]

    assert (await site.ex1.claim(a_claim("$JS.ACK.JOBS.default.1.1.1.1.0"))).decision == "granted"


async def test_an_observer_looks_and_does_not_touch(site: Site) -> None:
    """The OBS account sees events and stream states, and may change nothing."""
    async with Connection.open(site.broker.observer, name="look", inbox="obs") as observer:
        async with observer.subscription("andon.ev.*") as events:
            info = await observer.request("$JS.fleet.API.STREAM.INFO.JOBS")
            await JetStreamEventLog(site.fleet).append(an_event(), 0)
            seen = await events.next(2)

        assert json.loads(info.data)["config"]["name"] == "JOBS"
        assert seen is not None
        for subject in (
            "$JS.fleet.API.STREAM.DELETE.JOBS",
            "$JS.API.STREAM.DELETE.JOBS",
            "andon.ev.0123456789",
            "andon.job.default",
            "$JS.API.STREAM.PURGE.EVENTS",
        ):
            with pytest.raises(BrokerError):
                await observer.request(subject, b"{}", timeout_s=DENIED_S)


async def test_a_stranger_is_not_let_in(site: Site, tmp_path: Path) -> None:
    """A key the broker does not know is refused at once; loopback is no excuse."""
    async with EmbeddedBroker.run(tmp_path / "elsewhere") as elsewhere:
        where = {"url": site.broker.url, "ca": site.attacker_credentials.ca}
        stranger = (await elsewhere.add_executor("ex1")).model_copy(update=where)

    began = asyncio.get_running_loop().time()
    with pytest.raises(BrokerError, match=r"(?i)authorization"):
        async with NatsExecutorLink.connect(stranger):
            pass

    assert asyncio.get_running_loop().time() - began < 2


async def test_the_fleet_is_told_when_an_executor_comes_and_goes(site: Site) -> None:
    """The broker's own notices cross into the FLEET account, with the executor's key: a name is the client's own choice."""
    credentials = await site.broker.add_executor("ex3")
    key = public_key(credentials.nkey_seed or "")
    async with site.fleet.subscription(subjects.SYS_CONNECT, subjects.SYS_DISCONNECT) as notices:
        began = asyncio.get_running_loop().time()
        async with NatsExecutorLink.connect(credentials):
            assert await _is_told(notices, subjects.SYS_CONNECT, key)
        assert await _is_told(notices, subjects.SYS_DISCONNECT, key)

    assert asyncio.get_running_loop().time() - began < 2


async def test_no_secret_is_in_the_brokers_configuration(site: Site, tmp_path: Path) -> None:
    """The configuration holds public halves only; what holds a seed is its owner's alone to read."""
    seeds = [site.attacker_credentials.nkey_seed, site.broker.supervisor.nkey_seed, site.broker.observer.nkey_seed]
    directory = tmp_path / "nats"

    written = {path: path.read_text() for path in directory.iterdir() if path.is_file()}

    assert all(seed and seed not in written[directory / "nats.conf"] for seed in seeds)
    for path, text in written.items():
        assert path.stat().st_mode & 0o077 == 0 or path.name in {"nats.log", "nats.err", "lock"}, path
        assert (site.attacker_credentials.nkey_seed or "") not in text


async def _is_told(notices: Subscription, subject: str, key: str) -> bool:
    """Wait for a notice of this kind about this user; others may come before it."""
    while (message := await notices.next(2)) is not None:
        if message.subject == subject and json.loads(message.data)["client"]["user"] == key:
            return True
    return False


_STREAMS = (
    "JOBS",
    "RESULTS",
    "EVENTS",
    "TEL",
    "KV_EXECUTORS",
    "KV_LEASES",
    "OBJ_IN",
    "OBJ_IN_default",
    "OBJ_IN_gpu",
    "OBJ_OUT_ex1",
    "OBJ_OUT_ex2",
)
_WRITABLE = ("RESULTS", "TEL", "KV_EXECUTORS", "OBJ_OUT_ex1")


async def _messages(site: Site, stream: str) -> int:
    return int((await site.fleet.api(f"STREAM.INFO.{stream}"))["state"]["messages"])


async def _never(payload: bytes) -> bytes:
    raise AssertionError("not to be asked")
