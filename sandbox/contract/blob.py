"""How bulk data is named when it crosses the bus; the bytes move in `sandbox/blob.py`."""

from typing import Annotated

from pydantic import Field, StringConstraints

from sandbox.contract.ids import Sha256
from sandbox.contract.model import Frozen

_NAME = r"[a-z0-9](?:[a-z0-9_-]{0,30}[a-z0-9])?"
Bucket = Annotated[str, StringConstraints(pattern=rf"^(?:IN|IN_{_NAME}|OUT_{_NAME})$")]
"""`IN`: what a CLI hands the supervisor and back; `IN_<pool>`: what jobs of a pool read; `OUT_<executor>`: what one executor writes."""


def input_bucket(pool: str) -> str:
    """Return the bucket jobs of a pool read their input from; executors may read those of their own pools only (DECISIONS D3)."""
    return f"IN_{pool}"


def output_bucket(executor: str) -> str:
    """Return the only bucket an executor may write: when it is full, nobody else is in want of space (ABUSE N07)."""
    return f"OUT_{executor}"


class BlobRef(Frozen):
    """An immutable object in one of the buckets (NATS.md §1)."""

    bucket: Bucket
    name: str = Field(min_length=1, max_length=400)
    """`<run>/<stage>/<round>/<attempt>/<what>-<sha256>` or `<run>/<what>-<sha256>`; unique, never replaced."""
    sha256: Sha256
    size_bytes: int = Field(ge=0, le=2 << 30)
