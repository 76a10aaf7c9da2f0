"""`POST /v1/traces` of one attempt, by the program inside, and by tools and checks; not what becomes of a span (`otlp_relay`).

Bounded in requests, bytes and unpacked bytes. Nobody is told to try again who would only wait: a trace stands in no test's way.
"""

import asyncio
from collections.abc import Callable, Mapping

from sandbox.gateway.caps import OF_TOOLS, TRACES, Bucket
from sandbox.gateway.connection import JSON_TYPE, Exchange
from sandbox.gateway.otlp_body import UNPACKED_BYTES_MAX, TracesBody, unpacked
from sandbox.gateway.refusal import Refusal

REQUEST_BYTES_MAX = 1 << 20
BYTES_MAX = 10 << 20
"""In one attempt, unpacked, of the program; and as much of all tools and checks. Beyond it traces are refused and counted."""
INLINE_BYTES_MAX = 16 << 10
"""A larger body is judged in a thread; the program's own have less than one KiB."""
PROTOBUF_TYPE = "application/x-protobuf"


class TracesRoute:
    """Counts, unpacks and hands on."""

    def __init__(self, on_traces: Callable[[TracesBody], None] | None, buckets: Mapping[str, Bucket]) -> None:
        """Hand each body to `on_traces`, from a thread where it is large; None: they are taken and forgotten."""
        self._on_traces = on_traces
        self._buckets = buckets
        self._bytes = {TRACES: 0, OF_TOOLS: 0}
        self._judging = {TRACES: asyncio.Lock(), OF_TOOLS: asyncio.Lock()}
        """One body of each at a time: a sandbox does not get all our threads, and the program does not wait for its tools."""
        self.refused = 0

    async def answer(self, exchange: Exchange, *, is_from_program: bool) -> None:
        """Take one request.

        Raises:
            Refusal: 429 beyond the cap, 413 too large, 415 of another type, 400 not gzip though it says so.
        """
        sender = TRACES if is_from_program else OF_TOOLS
        self._buckets[sender].take()
        is_protobuf = _is_protobuf(exchange)
        data = await exchange.read_body(REQUEST_BYTES_MAX)
        async with self._judging[sender]:
            if "gzip" in exchange.values("content-encoding"):
                data = await self._unpacked(data)
            self._charge(sender, len(data))
            await self._hand_on(TracesBody(data, is_protobuf, is_from_program))
        await exchange.reply(200, *((b"", PROTOBUF_TYPE) if is_protobuf else (b"{}", JSON_TYPE)))

    async def _unpacked(self, data: bytes) -> bytes:
        try:
            return await asyncio.to_thread(unpacked, data)
        except ValueError as error:
            self.refused += 1
            status = 413 if "more than" in str(error) else 400
            raise Refusal(status, "invalid_request_error", f"traces in gzip: {error}; at most {UNPACKED_BYTES_MAX}", retry=False) from error

    def _charge(self, sender: str, count: int) -> None:
        if self._bytes[sender] + count > BYTES_MAX:
            self.refused += 1
            raise Refusal(413, "request_too_large", f"this attempt has sent its {BYTES_MAX} bytes of traces", retry=False)
        self._bytes[sender] += count

    async def _hand_on(self, body: TracesBody) -> None:
        if self._on_traces is None:
            return
        if body.is_protobuf or len(body.data) > INLINE_BYTES_MAX:
            await asyncio.to_thread(self._on_traces, body)
        else:
            self._on_traces(body)


def _is_protobuf(exchange: Exchange) -> bool:
    kinds = {value.partition(";")[0].strip().lower() for value in exchange.values("content-type")}
    if not kinds <= {JSON_TYPE, PROTOBUF_TYPE} or len(kinds) > 1:
        raise Refusal(415, "invalid_request_error", f"traces are {JSON_TYPE} or {PROTOBUF_TYPE}", retry=False)
    return kinds == {PROTOBUF_TYPE}
