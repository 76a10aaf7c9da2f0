"""The history beside a supervisor's own connection: a real broker's stream into a real file."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from sandbox.bus import Connection, NatsSupervisorLink
from supervisor.bootstrap.history import keep_history
from supervisor.config import Config
from supervisor.pipeline.events import AnyEvent
from supervisor.pipeline.fold import fold
from supervisor.store.broker.embedded import EmbeddedBroker
from supervisor.store.log.jetstream import JetStreamEventLog
from tests.fakes.histories import Database, in_file, kept, told
from tests.fakes.run_events import RUN, happy, rework
from tests.fakes.wire_data import wait_until

OTHER = "01jd8m6w30"


@contextlib.asynccontextmanager
async def kept_history(config: Config, link: NatsSupervisorLink | None) -> AsyncIterator[asyncio.Task[None]]:
    """Keep the history while the block runs."""
    async with asyncio.TaskGroup() as tasks:
        connection = link.connection if link is not None else cast(Connection, None)
        task = tasks.create_task(keep_history(config, connection))
        yield task
        task.cancel()


async def append(log: JetStreamEventLog, events: list[AnyEvent]) -> None:
    """Store a run's events."""
    after = 0
    for event in events:
        after = await log.append(event, after)


async def until(here: Database, log: JetStreamEventLog) -> None:
    """Wait until the file is at the end of the stream."""
    head = await log.head()

    async def is_there() -> bool:
        return here.position() == head.last_seq

    await wait_until(is_there, "the history is at the end of the stream", within_s=30)


async def test_the_stream_is_in_the_file_and_a_new_supervisor_goes_on(tmp_path: Path) -> None:
    """One term writes, the next one goes on where it was; both runs are as their events say."""
    config = Config(state_directory=tmp_path)
    here = in_file(tmp_path / "history.db")
    async with EmbeddedBroker.run(tmp_path / "nats") as broker, NatsSupervisorLink.connect(broker.supervisor) as link:
        log = JetStreamEventLog(link.connection)
        await append(log, rework())
        async with kept_history(config, link):
            await until(here, log)
        await append(log, [event.model_copy(update={"run_id": OTHER}) for event in happy()[:1]])
        async with NatsSupervisorLink.connect(broker.supervisor) as next_term, kept_history(config, next_term):
            await until(here, log)

        for run_id in (RUN, OTHER):
            assert kept(here, run_id) == told(fold(await log.read(run_id)))


async def test_a_stream_made_anew_has_a_history_made_anew(tmp_path: Path) -> None:
    """A broker whose store was lost counts from 1 again: what the file says of the old numbers is gone with them."""
    config = Config(state_directory=tmp_path)
    here = in_file(tmp_path / "history.db")
    for store, run_id, events in (("one", RUN, rework()), ("two", OTHER, happy()[:1])):
        async with EmbeddedBroker.run(tmp_path / store) as broker, NatsSupervisorLink.connect(broker.supervisor) as link:
            log = JetStreamEventLog(link.connection)
            await append(log, [event.model_copy(update={"run_id": run_id}) for event in events] if run_id != RUN else events)
            async with kept_history(config, link):
                await until(here, log)

    assert kept(here, OTHER)["run"][0] == "queued"
    with pytest.raises(ValueError, match="unpack"):
        kept(here, RUN)


async def test_a_fault_in_the_history_stops_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not even one of ours: it is in the log with its trace, and whoever runs beside it runs on."""
    async with kept_history(Config(state_directory=tmp_path), None) as task:

        async def is_said() -> bool:
            return any("stands still" in record.getMessage() for record in caplog.records)

        await wait_until(is_said, "the fault is in the log")

        assert not task.done()
