"""What a CLI may ask of a running supervisor (DECISIONS D19), over the FLEET account; not what it asks (`pipeline/submit`)."""

from collections.abc import AsyncIterator
from typing import Protocol

from sandbox.contract.blob import BlobRef, Bucket
from sandbox.contract.wire import Heartbeat, Progress
from supervisor.pipeline.events import AnyEvent


class FleetClient(Protocol):
    """A CLI's end of the wire. Every call is bounded; a broker that does not answer raises `BrokerError`."""

    async def request(self, subject: str, payload: bytes, *, timeout_s: float = 30.0) -> bytes:
        """Ask the supervisor (`subjects.RPC_INTENT` and its like) and return its answer, JSON both ways.

        Raises:
            BrokerError: No supervisor answers, it took longer than `timeout_s`, or it could not handle the request.
            UsageError: The request is larger than the broker takes.
        """
        ...

    def follow(self, run_id: str, after_seq: int = 0) -> AsyncIterator[AnyEvent]:
        """Yield a run's events numbered above `after_seq`, then each new one, without end."""
        ...

    def progress(self) -> AsyncIterator[Progress]:
        """Yield what running attempts of all runs do; lossy."""
        ...

    async def executors(self) -> list[Heartbeat]:
        """Return the executors whose life sign has not expired."""
        ...

    async def get_blob(self, ref: BlobRef) -> bytes:
        """Read an object of either bucket and verify its digest."""
        ...

    async def put_blob(self, name: str, data: bytes, bucket: Bucket = "IN") -> BlobRef:
        """Store an object."""
        ...
