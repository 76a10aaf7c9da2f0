"""One request to a collector over OTLP/HTTP, and what its answer means; when to ask again is `delivery`'s matter."""

import asyncio
import email.utils
import gzip
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import httpx2
from google.protobuf.json_format import Parse, ParseError
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from supervisor.api.traces.export.endpoint import Endpoint
from supervisor.api.traces.otlp import line_of

RETRY_AFTER_S_MAX: Final = 600.0
ANSWER_BYTES_MAX: Final = 64 << 10
"""Of an answer, how much is read."""
_LATER: Final = frozenset({408, 429, 502, 503, 504})
"""What the specification of OTLP/HTTP calls retryable, and a request that took the server too long."""
_OURS: Final = frozenset({401, 403, 404, 405})
"""It is the address or the key that is wrong, whatever is sent."""


@dataclass(frozen=True)
class Answer:
    """What became of one request."""

    is_later: bool = False
    """It was not taken, and may be the next time."""
    refused: str = ""
    """Why it will never be taken; empty: it was, or will be."""
    is_of_payload: bool = False
    """It was refused for what is in it: other spans may be taken."""
    rejected_spans: int = 0
    """Of a request that was taken."""
    retry_after_s: float | None = None
    """How long the collector asks to be left alone."""
    why: str = ""
    """Why it was not taken now."""


class Collector:
    """Sends OTLP requests to one endpoint; never raises for what it answers."""

    def __init__(self, endpoint: Endpoint, client: httpx2.AsyncClient) -> None:
        self._endpoint = endpoint
        self._client = client

    @classmethod
    @asynccontextmanager
    async def open(cls, endpoint: Endpoint) -> AsyncIterator["Collector"]:
        """Hold its connections for as long as the context lasts.

        Raises:
            ConfigError: A certificate cannot be read.
        """
        kind = "application/json" if endpoint.is_json else "application/x-protobuf"
        own = {"content-type": kind, **({"content-encoding": "gzip"} if endpoint.is_gzip else {})}
        headers = [*((key.lower(), value) for key, value in endpoint.headers if key.lower() not in own), *own.items()]
        async with httpx2.AsyncClient(timeout=endpoint.timeout_s, headers=headers, verify=endpoint.trust()) as client:
            yield cls(endpoint, client)

    async def send(self, requests: Iterable[bytes]) -> Answer:
        """Send encoded requests as one: encoded lists of spans, one behind the other, are the encoding of one list."""
        body = b"".join(requests)
        if self._endpoint.is_json:
            body = line_of(ExportTraceServiceRequest.FromString(body)).encode()
        if self._endpoint.is_gzip:
            body = gzip.compress(body, mtime=0)
        try:
            # The client's own timeout is of each step, and an answer may have many.
            async with asyncio.timeout(self._endpoint.timeout_s), self._client.stream("POST", self._endpoint.url, content=body) as reply:
                return self._meaning(reply, await _beginning_of(reply))
        except TimeoutError:
            return Answer(is_later=True, why=f"no answer within {self._endpoint.timeout_s:g} s")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            return Answer(is_later=True, why=f"{type(error).__name__} {error}"[:200])

    def _meaning(self, reply: httpx2.Response, answer: bytes) -> Answer:
        if reply.is_success:
            return Answer(rejected_spans=_rejected(answer, is_json=self._endpoint.is_json))
        if reply.status_code in _LATER:
            return Answer(
                is_later=True, why=f"status {reply.status_code}", retry_after_s=_retry_after_s(reply.headers.get("retry-after", ""))
            )
        return Answer(refused=f"status {reply.status_code}", is_of_payload=reply.status_code not in _OURS)


async def _beginning_of(reply: httpx2.Response) -> bytes:
    read = b""
    async for part in reply.aiter_bytes():
        read += part
        if len(read) > ANSWER_BYTES_MAX:
            return b""
    return read


def _rejected(answer: bytes, *, is_json: bool) -> int:
    """Return how many spans of a request that was taken were not; 0 if the answer does not say so in OTLP."""
    try:
        if is_json:
            said = Parse(answer or b"{}", ExportTraceServiceResponse(), ignore_unknown_fields=True)
        else:
            said = ExportTraceServiceResponse.FromString(answer)
    except (DecodeError, ParseError, ValueError):
        return 0
    return max(0, said.partial_success.rejected_spans)


def _retry_after_s(text: str) -> float | None:
    """Return the seconds of a `Retry-After`, a number or a date, from 0 to `RETRY_AFTER_S_MAX`; None if there is none."""
    text = text.strip()
    if text.isdecimal():
        seconds = float(text[:9])
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(0.0, seconds), RETRY_AFTER_S_MAX)
