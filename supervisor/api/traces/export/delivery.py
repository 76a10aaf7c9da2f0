"""Takes what is buffered to the collector, until it has it; what it will never take is dropped and counted."""

import asyncio
import gzip
import random
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sandbox.bus.export_buffer import Buffered, give_back
from sandbox.contract.errors import BrokerError
from sandbox.log import Log
from supervisor.api.traces.export.collector import Answer, Collector
from supervisor.api.traces.otlp import spans_in

log = Log(__name__)

MESSAGES_MAX: Final = 64
"""In one request, so that a collector that takes a second for each is not asked once for each span."""
BATCH_BYTES_MAX: Final = 256 << 10
"""Of one request's messages as they are buffered, compressed about ten to one."""
WAIT_S: Final = 10.0
PAUSE_S: Final = 1.0
"""After the first failure; doubled after each further one."""
PAUSE_S_MAX: Final = 30.0


class Source(Protocol):
    """Where buffered messages come from (`sandbox.bus.export_buffer`)."""

    async def take(self, messages_max: int, bytes_max: int, wait_s: float) -> list[Buffered]:
        """Return the next messages."""
        ...


class Delivery:
    """Empties the buffer."""

    def __init__(self, source: Source, collector: Collector, drop: Callable[[str, int], None], pause_s: float = PAUSE_S) -> None:
        """Deliver from `source` to `collector`; `drop` is told why how many spans will never arrive."""
        self._source = source
        self._collector = collector
        self._drop = drop
        self._first_pause_s = pause_s
        self.failures = 0
        """In a row, by now."""

    async def run(self) -> None:
        """Deliver, until cancelled; what is on its way then is given back."""
        while True:
            try:
                batch = await self._source.take(MESSAGES_MAX, BATCH_BYTES_MAX, WAIT_S)
                pause_s = await self._deliver(batch) if batch else 0.0
            except BrokerError as error:  # what was taken comes again, perhaps also to the collector, who stores a span once
                log.debug("spans.unbuffered", error=error)
                pause_s = self._first_pause_s
            await asyncio.sleep(pause_s)

    async def _deliver(self, batch: Sequence[Buffered]) -> float:
        """Deliver a batch, or give it back; return for how many seconds to leave the collector alone."""
        requests = [gzip.decompress(each.data) for each in batch]
        try:
            answer = await self._collector.send(requests)
        except asyncio.CancelledError:
            await give_back(batch)
            raise
        if answer.is_of_payload and len(batch) > 1:
            return await self._deliver_each(batch)
        if answer.is_later:
            pause_s = self._pause_s(answer)
            await give_back(batch, pause_s)
            return pause_s
        self._note_taken(answer, requests)
        for each in batch:
            await each.done()
        return 0.0

    async def _deliver_each(self, batch: Sequence[Buffered]) -> float:
        """Deliver message by message, so that only those are dropped which the collector will never take."""
        left = list(batch)
        try:
            while left:
                pause_s = await self._deliver(left[:1])
                del left[0]
                if pause_s:
                    return pause_s
        finally:
            await give_back(left)
        return 0.0

    def _note_taken(self, answer: Answer, requests: Sequence[bytes]) -> None:
        if self.failures:
            log.info("spans.taken", "the collector takes spans again")
        self.failures = 0
        if answer.refused:
            spans = sum(1 for request in requests for _ in spans_in(ExportTraceServiceRequest.FromString(request)))
            self._drop("refused", spans)
            log.warning("spans.refused", "the collector refused spans for good", reason=answer.refused, spans=spans)
        elif answer.rejected_spans:
            self._drop("rejected", answer.rejected_spans)
            log.warning("spans.refused", "the collector took a request without some spans", spans=answer.rejected_spans)

    def _pause_s(self, answer: Answer) -> float:
        if not self.failures:
            log.warning("spans.unsent", "the collector does not take spans; they wait for it", reason=answer.why)
        self.failures += 1
        longest = min(self._first_pause_s * 2 ** min(self.failures - 1, 10), PAUSE_S_MAX)
        return answer.retry_after_s if answer.retry_after_s is not None else longest * random.uniform(0.5, 1)  # noqa: S311 - spreads load
