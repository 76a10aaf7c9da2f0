"""How bulk data is named when it crosses the bus; the bytes move in `sandbox/blob.py`."""

from typing import Literal

from pydantic import Field

from sandbox.contract.ids import Sha256
from sandbox.contract.model import Frozen

Bucket = Literal["IN", "OUT"]


class BlobRef(Frozen):
    """An immutable object: IN is written by the supervisor, OUT by executors (NATS.md §1)."""

    bucket: Bucket
    name: str = Field(min_length=1, max_length=400)
    """`<run>/<stage>/<round>/<attempt>/<what>-<sha256>` or `<run>/<what>-<sha256>`; unique, never replaced."""
    sha256: Sha256
    size_bytes: int = Field(ge=0, le=2 << 30)
