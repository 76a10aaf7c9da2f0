"""What the broker's accounts do not cover (ABUSE N08 to N10, A06), and the controls of rows N and A06.

A control makes the attack with a key that no account and no permission bounds, the supervisors' own, at the same broker: there it works.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sandbox.bus import Connection
from sandbox.bus.unclaimed import UNCLAIMED_S
from sandbox.contract import subjects
from sandbox.contract.blob import BlobRef
from sandbox.contract.errors import Rejected, UsageError
from sandbox.contract.ids import parse_slug
from sandbox.contract.wire import ClaimReply
from tests.fakes.paper_desk import PaperDesk
from tests.fakes.wire_data import RUN, a_claim, a_heartbeat, a_job, a_join, a_reservation, a_result, grant, opened, pay, take
from tests.security.nats_site import Site, open_site

ACK = "$JS.ACK.JOBS.default.1.1.1.1.0"
ODD_WORDS = ("*", ">", "x y", "x\r\nPUB andon.job.default 0", "", "x" * 5_000, "é")


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path) as opened_site:
        yield opened_site


@asynccontextmanager
async def an_open_key(site: Site) -> AsyncIterator[Connection]:
    """Yield a connection that may do anything on the supervisor's side of the walls."""
    async with Connection.open(site.broker.supervisor, name="open", inbox="fleet") as connection:
        yield connection


@pytest.mark.abuse("A06")
async def test_an_executor_asks_for_itself_only(site: Site):
    """The subject, which its key bounds, says who asks; a body that says otherwise is refused."""
    await site.supervisor.serve(PaperDesk(grant, pay), {})

    joined = await site.attacker.request("andon.rpc.join.ex1", a_join("ex2").model_dump_json().encode())
    claimed = await site.attacker.request("andon.rpc.claim.ex1", a_claim(ACK, "ex2").model_dump_json().encode())
    paid = await site.attacker.request("andon.rpc.budget.ex1", a_reservation("ex2").model_dump_json().encode())

    assert json.loads(joined.data)["accepted"] is False
    assert json.loads(claimed.data)["decision"] == "refused"
    assert json.loads(paid.data)["granted"] is False


@pytest.mark.abuse("A06")
async def test_control_without_accounts_anybody_claims_for_anybody(site: Site):
    """The same claim, on the victim's subject: it is granted, token and all."""
    await site.supervisor.serve(PaperDesk(grant, pay), {})

    async with an_open_key(site) as key:
        claimed = await key.request("andon.rpc.claim.ex2", a_claim(ACK, "ex2").model_dump_json().encode())

    assert json.loads(claimed.data)["token"] == "secret"


@pytest.mark.abuse("N01", "N10")
async def test_control_without_accounts_anybodys_result_is_anothers_and_comes_twice(site: Site):
    """A result stands under the victim's name; sent again, it is delivered again: the broker remembers ids, not contents."""
    forged = a_result("ex2").model_dump_json().encode()

    async with an_open_key(site) as key, opened(site.supervisor.results()) as results:
        await key.store("andon.res.ex2.done", forged)
        await key.store("andon.res.ex2.done", forged)
        taken = await take(results, 2)
        for stored in taken:
            await stored.confirm()

    assert [stored.result for stored in taken] == [a_result("ex2")] * 2


@pytest.mark.abuse("N02")
async def test_control_without_accounts_an_object_is_replaced(site: Site):
    """A reader who trusts the record gets the attacker's bytes; ours compares them with what the job announced."""
    ref = await site.ex2.put_blob(f"{RUN}/out", b"data")
    name = base64.urlsafe_b64encode(ref.name.encode()).decode()

    async with an_open_key(site) as key:
        await key.store(f"$O.{ref.bucket}.C.evil", b"evil")
        await key.store(f"$O.{ref.bucket}.M.{name}", json.dumps({"name": ref.name, "nuid": "evil", "size": 4}).encode())
        naive = await _trusting(key, ref)

    assert naive == b"evil"
    with pytest.raises(Rejected, match="not the one that was announced"):
        await site.supervisor.get_blob(ref)


@pytest.mark.abuse("N03")
async def test_control_without_accounts_somebody_else_answers_first(site: Site):
    """Whoever hears the question may answer it, and is believed."""
    async with an_open_key(site) as key, key.subscription("andon.rpc.claim.ex2") as questions:
        await key.api("INFO")  # a round trip: the broker knows of the subscription
        asking = asyncio.create_task(site.ex2.claim(a_claim("$JS.ACK.JOBS.gpu.1.1.1.1.0", "ex2")))
        question = await questions.next(5)
        assert question is not None
        await key.publish(question.reply, ClaimReply(decision="granted", attempt=7, token="forged").model_dump_json().encode())
        answer = await asking

    assert (answer.attempt, answer.token) == (7, "forged")


@pytest.mark.abuse("N04")
async def test_control_without_accounts_a_job_is_ended_by_its_subject(site: Site):
    """The subject can be guessed: stream, consumer and three small numbers."""
    await site.supervisor.publish_job(a_job(pool="gpu"), "d1")
    delivery = await site.ex2.next_job(5)
    assert delivery is not None

    async with an_open_key(site) as key:
        await key.request(delivery.ack_subject, b"+TERM")

    assert (await site.fleet.api("STREAM.INFO.JOBS"))["state"]["messages"] == 0


@pytest.mark.abuse("N05")
async def test_control_a_known_message_id_suppresses_a_result(site: Site):
    """Sent first under the victim's id, rubbish takes the place of its result; so the id holds a secret of the attempt."""
    await site.ex2.publish_result(a_result("ex2"))
    used = (await _last_result(site))["Nats-Msg-Id"]

    async with an_open_key(site) as key:
        await key.api("STREAM.PURGE.RESULTS")
        late = await key.store("andon.res.ex2.done", b"what the victim has to say", dedupe=used)

    assert late.duplicate
    assert (await site.fleet.api("STREAM.INFO.RESULTS"))["state"]["messages"] == 0
    assert a_result("ex2").token not in used


@pytest.mark.abuse("N06")
async def test_control_without_permissions_a_stream_is_purged(site: Site):
    """And what was in it is gone."""
    await site.ex2.publish_result(a_result("ex2"))

    async with an_open_key(site) as key:
        await key.api("STREAM.PURGE.RESULTS")

    assert (await site.fleet.api("STREAM.INFO.RESULTS"))["state"]["messages"] == 0


@pytest.mark.abuse("N07")
async def test_control_a_stream_without_a_bound_takes_a_flood(site: Site):
    """The bytes that the bucket of an executor refuses."""
    async with an_open_key(site) as key:
        await key.api("STREAM.CREATE.FLOOD", {"name": "FLOOD", "subjects": ["flood"], "storage": "file"})
        for _ in range(6):
            await key.store("flood", bytes(1 << 20 >> 1))
        held = (await key.api("STREAM.INFO.FLOOD"))["state"]["bytes"]

    assert held > 3 << 20


@pytest.mark.abuse("N08")
@pytest.mark.parametrize("word", [*ODD_WORDS, "x.y"])
def test_a_word_that_is_no_name_reaches_no_subject(word: str):
    """Every name that becomes part of a subject is a name of ours before it is one: pool, executor, run, slug."""
    with pytest.raises(ValueError, match="validation error"):
        a_job(pool=word)
    with pytest.raises(ValueError, match="validation error"):
        a_heartbeat(word)
    with pytest.raises(ValueError, match="validation error"):
        a_claim(ACK, job_id=word)
    with pytest.raises(UsageError, match="slug"):
        parse_slug(word)


@pytest.mark.abuse("N08")
async def test_a_subject_that_is_none_is_not_sent(site: Site):
    """Whatever slipped past the models stays here, and the connection lives."""
    for word in ODD_WORDS:
        with pytest.raises(ValueError, match="no subject to send to"):
            await site.fleet.publish(f"andon.ctl.{word}", b"{}")
        with pytest.raises(ValueError, match="no subject to send to"):
            await site.fleet.request(f"andon.ctl.{word}.x")

    assert (await site.fleet.api("INFO"))["streams"] > 0


@pytest.mark.abuse("N08")
async def test_control_a_wildcard_in_a_naive_subject_hears_everybody(site: Site):
    """A name that is pasted into a subject without a look is `*` one day."""
    name = "*"
    async with an_open_key(site) as key, key.subscription(f"andon.ctl.{name}.cancel") as heard:
        await key.api("INFO")  # a round trip: the broker knows of the subscription
        await site.supervisor.cancel("ex2", f"{RUN}-spec-1", "")
        message = await heard.next(5)

    assert message is not None
    assert message.subject == subjects.control("ex2", "cancel")


@pytest.mark.abuse("N09")
async def test_jobs_that_are_hoarded_come_back(site: Site):
    """An executor that pulls and never claims keeps nothing: after two seconds, not a lease, the job is handed out again."""
    await site.supervisor.serve(PaperDesk(grant, pay), {})
    pulling = {"batch": 100, "expires": 5_000_000_000}

    async with site.attacker.subscription("_INBOX_ex1.hoard") as hoard:
        await site.attacker.publish("$JS.API.CONSUMER.MSG.NEXT.JOBS.default", json.dumps(pulling).encode(), reply="_INBOX_ex1.hoard")
        for number in range(3):
            await site.supervisor.publish_job(a_job(), f"d{number}")
        hoarded = [await hoard.next(5) for _ in range(3)]
    delivery = await site.ex1.next_job(3 * UNCLAIMED_S)

    assert all(message is not None for message in hoarded)
    assert delivery is not None
    consumer = (await site.fleet.api("CONSUMER.INFO.JOBS.default"))["config"]
    assert (consumer["max_ack_pending"], consumer["ack_wait"]) == (1000, 60_000_000_000)


@pytest.mark.abuse("N09")
async def test_control_nobody_watches_and_a_hoarded_job_is_kept(site: Site):
    """Without the supervisor's eye on what nobody claims the hoarder has it for its whole lease."""
    async with site.attacker.subscription("_INBOX_ex1.hoard") as hoard:
        await site.attacker.publish("$JS.API.CONSUMER.MSG.NEXT.JOBS.default", b'{"batch":100}', reply="_INBOX_ex1.hoard")
        await site.supervisor.publish_job(a_job(), "d1")
        assert await hoard.next(5) is not None

    assert await site.ex1.next_job(1.5 * UNCLAIMED_S) is None


async def _trusting(key: Connection, ref: BlobRef) -> bytes:
    """Read an object as its record says."""
    subject = f"$O.{ref.bucket}.M.{base64.urlsafe_b64encode(ref.name.encode()).decode()}"
    [record] = await key.direct(f"OBJ_{ref.bucket}", {"last_by_subj": subject})
    [chunk] = await key.direct(f"OBJ_{ref.bucket}", {"last_by_subj": f"$O.{ref.bucket}.C.{json.loads(record.data)['nuid']}"})
    return chunk.data


async def _last_result(site: Site) -> dict[str, str]:
    """Return the headers of the last stored result."""
    found = await site.fleet.api("STREAM.MSG.GET.RESULTS", {"last_by_subj": "andon.res.ex2.done"})
    lines = base64.b64decode(found["message"]["hdrs"]).decode().split("\r\n")
    return dict(line.split(": ", 1) for line in lines if ": " in line)
