"""A cassette: recorded model calls as JSON lines; not how they are recorded or replayed (`sandbox/gateway/cassette.py`).

The first line is the header and says who made it, every further line is one model call. A *recording* is what one
attempt sends back: the same lines without a header. Both are UTF-8, one JSON object a line.
"""

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, ValidationError

from sandbox.contract.errors import UsageError
from sandbox.contract.ids import Sha256, StageName
from sandbox.contract.model import Frozen
from sandbox.contract.result import Usage

CASSETTE_BYTES_MAX = 64 << 20


class CassetteHeader(Frozen):
    """Who made a cassette, and what it answers."""

    format: Literal["andon-cassette"] = "andon-cassette"
    version: Literal[1] = 1
    made_by: Literal["scripted", "live"]
    """scripted: the scripted model server of the test suite; live: a provider."""
    note: str = Field("", max_length=2_000)
    """For a person who opens the file."""
    matches: dict[str, str] = Field(default_factory=dict)
    """Digests that decide whether it fits a run (DECISIONS G11): request, tree, pipeline, agents."""


class CassetteRecord(Frozen):
    """One model call: what was asked, as digests, and what was answered, as it was streamed."""

    stage: StageName
    round: int = Field(ge=1)
    turn: int = Field(ge=1)
    """One more than the number of assistant messages in the request."""
    compared: Sha256
    """Digest of model, system, tools and assistant turns; another one means that the cassette is stale."""
    tool_output: Sha256
    """Digest of what the tools gave; another one is counted as a divergence."""
    model: str
    sse: str
    """The reply's events, as text."""
    usage: Usage
    cost_nano_usd: int = Field(ge=0, strict=True)

    @property
    def key(self) -> tuple[str, int, int]:
        """Return (stage, round, turn), unique in a cassette."""
        return self.stage, self.round, self.turn


class Cassette(Frozen):
    """A whole cassette."""

    header: CassetteHeader
    records: tuple[CassetteRecord, ...] = ()

    def find(self, stage: str, round_: int, turn: int) -> CassetteRecord | None:
        """Return the record of one turn, or None."""
        return next((record for record in self.records if record.key == (stage, round_, turn)), None)

    def covers(self, stage: str, round_: int) -> bool:
        """Return whether any turn of this stage and round was recorded."""
        return any(record.stage == stage and record.round == round_ for record in self.records)

    def dump(self) -> bytes:
        """Return the file's bytes."""
        return self.header.model_dump_json().encode() + b"\n" + dump_recording(self.records)

    @classmethod
    def load(cls, data: bytes, source: str = "cassette") -> "Cassette":
        """Parse a file's bytes.

        Raises:
            UsageError: Too large, not a cassette of this version, a line that is no record, or a turn twice; names the line.
        """
        head, _, rest = _bounded(data, source).partition(b"\n")
        try:
            header = CassetteHeader.model_validate_json(head)
        except ValidationError as error:
            raise UsageError(f"{source}: line 1 is not the header of a cassette of version 1: {_first(error)}") from error
        return cls(header=header, records=_records(rest, source, first_line=2))


def dump_recording(records: Iterable[CassetteRecord]) -> bytes:
    """Return records as JSON lines, without a header."""
    return b"".join(record.model_dump_json().encode() + b"\n" for record in records)


def load_recording(data: bytes, source: str = "recording") -> tuple[CassetteRecord, ...]:
    """Parse JSON lines without a header.

    Raises:
        UsageError: Too large, a line that is no record, or a turn twice; names the line.
    """
    return _records(_bounded(data, source), source, first_line=1)


def _records(data: bytes, source: str, first_line: int) -> tuple[CassetteRecord, ...]:
    records: dict[tuple[str, int, int], CassetteRecord] = {}
    for number, line in enumerate(data.split(b"\n"), first_line):
        if not line:
            continue
        try:
            record = CassetteRecord.model_validate_json(line)
        except ValidationError as error:
            raise UsageError(f"{source}: line {number} is not a recorded call: {_first(error)}") from error
        if record.key in records:
            raise UsageError(f"{source}: line {number} repeats stage {record.stage}, round {record.round}, turn {record.turn}")
        records[record.key] = record
    return tuple(records.values())


def _bounded(data: bytes, source: str) -> bytes:
    if len(data) > CASSETTE_BYTES_MAX:
        raise UsageError(f"{source}: {len(data)} bytes; at most {CASSETTE_BYTES_MAX}")
    return data


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, problem['loc'])) or 'line'}: {problem['msg']}"
