"""The lifetime of the export in a leading supervisor: its parts, its bounded end, and what it had to drop."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from sandbox.bus import Connection
from sandbox.bus.export_buffer import ExportBuffer
from sandbox.bus.lifetimes import Tasks, completed
from sandbox.contract.errors import BrokerError, ConfigError
from sandbox.log import Log
from supervisor.api.traces.export.backlog import Backlog
from supervisor.api.traces.export.collector import Collector
from supervisor.api.traces.export.delivery import Delivery
from supervisor.api.traces.export.endpoint import Endpoint

log = Log(__name__)

STOP_S: Final = 1.0
"""How long the end waits for the last spans to arrive; what is buffered by then is delivered by the next supervisor."""
LOOK_S: Final = 0.02


class Exporter:
    """What a supervisor tells of its runs' trace files."""

    def __init__(self, backlog: Backlog, dropped: Counter[str]) -> None:
        self._backlog = backlog
        self.dropped = dropped
        """Spans that will never be exported, by why: refused, rejected, too_large."""

    def expect(self, run_id: str) -> None:
        """Note that a run's file is about to grow; returns at once."""
        self._backlog.expect(run_id)


@asynccontextmanager
async def exporting(
    environment: Mapping[str, str], connection: Connection, file_of: Callable[[str], Path], run_ids: Callable[[], Iterable[str]]
) -> AsyncIterator[Exporter | None]:
    """Export what is expected, and what earlier supervisors left, for as long as the context lasts.

    Args:
        environment: OpenTelemetry's standard names.
        connection: A supervisor's; its stream EXPORT is the buffer.
        file_of: Names a run's trace file.
        run_ids: Names all runs of this host.

    Yields:
        None if nobody wants spans, or the wish cannot be understood, which is logged: no run stops for it.
    """
    endpoint = _endpoint(environment)
    if endpoint is None:
        yield None
        return
    dropped: Counter[str] = Counter()

    def drop(why: str, spans: int) -> None:
        dropped[why] += spans

    buffer = ExportBuffer(connection)
    backlog = Backlog(file_of, buffer, drop)
    async with Collector.open(endpoint) as collector, Tasks.open() as tasks:
        delivery = Delivery(buffer, collector, drop)
        for work in (backlog.recall(run_ids()), backlog.run(), delivery.run()):
            tasks.start(work)
        try:
            yield Exporter(backlog, dropped)
        finally:
            if not connection.is_lost:
                await completed(_emptied(backlog, buffer, delivery), STOP_S)


def _endpoint(environment: Mapping[str, str]) -> Endpoint | None:
    try:
        endpoint = Endpoint.of(environment)
        if endpoint is not None:
            endpoint.trust()
    except ConfigError as error:
        log.error("spans.unexported", "traces stay in the runs' files", error=error)  # noqa: TRY400 - the message says it all
        return None
    return endpoint


async def _emptied(backlog: Backlog, buffer: ExportBuffer, delivery: Delivery) -> None:
    """Wait until the collector has everything, or takes nothing."""
    with suppress(BrokerError):
        while not delivery.failures:
            if backlog.is_empty and not await buffer.waiting():
                return
            await asyncio.sleep(LOOK_S)
