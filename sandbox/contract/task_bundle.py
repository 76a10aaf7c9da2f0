"""The task bundle: a hashed directory of context an agent reads at `/task`; not what goes into it (`supervisor/knowledge`)."""

import hashlib
import json

from pydantic import Field, ValidationError

from sandbox.contract.errors import Rejected
from sandbox.contract.model import Frozen
from sandbox.contract.scope import checked_path

BUNDLE_BYTES_MAX = 8 << 20
BUNDLE_FILES_MAX = 500


class TaskBundle(Frozen):
    """Text files by relative path; the encoding is deterministic, so equal content has equal digests."""

    files: dict[str, str] = Field(default_factory=dict, max_length=BUNDLE_FILES_MAX)

    def encode(self) -> bytes:
        """Return the canonical bytes: JSON, sorted keys, no spaces, UTF-8."""
        for path in self.files:
            checked_path(path)
        return json.dumps({"files": self.files}, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def decode(cls, data: bytes) -> "TaskBundle":
        """Parse canonical bytes.

        Raises:
            Rejected: Too large, not JSON, or a path is unsafe.
        """
        if len(data) > BUNDLE_BYTES_MAX:
            raise Rejected(f"task bundle of {len(data)} bytes; at most {BUNDLE_BYTES_MAX}")
        try:
            bundle = cls.model_validate_json(data)
        except ValidationError as error:
            raise Rejected(f"the task bundle cannot be read: {error.error_count()} errors") from error
        for path in bundle.files:
            checked_path(path)
        return bundle

    @property
    def sha256(self) -> str:
        """Return the digest of the canonical bytes."""
        return hashlib.sha256(self.encode()).hexdigest()
