"""What the event log does when an answer is lost: the part of its promise only a real broker can show."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from nats.aio.client import Client

from sandbox.bus import ApiError, Connection, Interrupted, Message, NatsSupervisorLink
from sandbox.bus.client import CALL_S
from sandbox.bus.lifetimes import Tasks
from supervisor.store.broker.embedded import EmbeddedBroker
from supervisor.store.log.event_log import StaleWriter
from supervisor.store.log.jetstream import JetStreamEventLog
from tests.fakes.wire_data import RUN, an_event, number_of


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[EmbeddedBroker]:
    async with EmbeddedBroker.run(tmp_path / "nats") as broker:
        yield broker


@pytest.fixture
async def link(broker: EmbeddedBroker) -> AsyncIterator[NatsSupervisorLink]:
    async with NatsSupervisorLink.connect(broker.supervisor) as link:
        yield link


class _LossyConnection(Connection):
    """Does not hear the answer to the first try of any message with an id."""

    def __init__(self, client: Client, inbox: str, tasks: Tasks, probe: str) -> None:
        super().__init__(client, inbox, tasks, probe)
        self._heard: set[str] = set()

    async def request(
        self, subject: str, payload: bytes = b"", *, timeout_s: float = CALL_S, headers: Mapping[str, str] | None = None
    ) -> Message:
        answer = await super().request(subject, payload, timeout_s=timeout_s, headers=headers)
        message_id = (headers or {}).get("Nats-Msg-Id")
        if message_id is not None and message_id not in self._heard:
            self._heard.add(message_id)
            raise Interrupted("the test lost the answer")
        return answer


@pytest.fixture
async def lossy(broker: EmbeddedBroker, link: NatsSupervisorLink) -> AsyncIterator[JetStreamEventLog]:
    """Return a log over a connection that loses answers; `link` has made the streams."""
    async with _LossyConnection.open(broker.supervisor, name="lossy", inbox="fleet") as connection:
        yield JetStreamEventLog(connection)


async def test_an_append_whose_answer_is_lost_is_not_taken_for_anothers(link: NatsSupervisorLink, lossy: JetStreamEventLog) -> None:
    """The event is stored, the answer is not heard, the repetition meets its own first try: one event, no stale writer."""
    first = await lossy.append(an_event(0), 0)
    second = await lossy.append(an_event(1), first)
    with pytest.raises(StaleWriter):
        await lossy.append(an_event(2), first)

    assert await JetStreamEventLog(link.connection).read(RUN) == await lossy.read(RUN)
    assert [(event.seq, number_of(event)) for event in await lossy.read(RUN)] == [(first, 0), (second, 1)]


async def test_the_log_cannot_be_rewritten(link: NatsSupervisorLink) -> None:
    """Not even the supervisor's own account deletes or purges events."""
    log = JetStreamEventLog(link.connection)
    seq = await log.append(an_event(1), 0)

    for call, query in (("STREAM.MSG.DELETE.EVENTS", {"seq": seq}), ("STREAM.PURGE.EVENTS", None)):
        with pytest.raises(ApiError):
            await link.connection.api(call, query)

    assert [number_of(event) for event in await log.read(RUN)] == [1]


async def test_what_is_acknowledged_is_on_disk(tmp_path: Path) -> None:
    """The server syncs every write: with its default a power cut loses minutes (NATS.md §4)."""
    async with EmbeddedBroker.run(tmp_path / "nats"):
        config = (tmp_path / "nats" / "nats.conf").read_text()

    assert "sync_interval: always" in config
    assert "js_ack_fc_v2: false" in config


async def test_assets_of_an_older_release_are_brought_up_to_date(tmp_path: Path) -> None:
    """Connecting changes streams and consumers in place, and keeps what is in them."""
    async with EmbeddedBroker.run(tmp_path / "nats") as broker:
        async with NatsSupervisorLink.connect(broker.supervisor, lease_s=5) as link:
            config = (await link.connection.api("STREAM.INFO.JOBS"))["config"] | {"max_msgs": 7}
            await link.connection.api("STREAM.UPDATE.JOBS", config)
            seq = await JetStreamEventLog(link.connection).append(an_event(1), 0)

        async with NatsSupervisorLink.connect(broker.supervisor, lease_s=60) as link:
            jobs = await link.connection.api("STREAM.INFO.JOBS")
            pool = await link.connection.api("CONSUMER.INFO.JOBS.default")
            events = await JetStreamEventLog(link.connection).read(RUN)

    assert jobs["config"]["max_msgs"] == 10_000
    assert pool["config"]["ack_wait"] == 60 * 10**9
    assert [event.seq for event in events] == [seq]
