"""What one attempt did at the gateway, added up: for the live view, the result and the trace; the run's ledger decides, not this."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from sandbox.contract.cassette import CassetteRecord, dump_recording
from sandbox.contract.model import Frozen
from sandbox.contract.result import Usage
from sandbox.gateway.activity import Activity
from sandbox.gateway.reservation import Hold

RECORDING_BYTES_MAX = 48 << 20
ANOMALIES_MAX = 100

FailureKind = Literal["budget", "auth", "provider", "stale_cassette", "no_record"]


class Failure(Frozen):
    """Why model calls cannot succeed any more; the first one of an attempt is kept."""

    kind: FailureKind
    """budget: exit 4. auth: the provider refuses our key, exit 2. provider: down or capped after retries, exit 5.
    stale_cassette: exit 2. no_record: the cassette has nothing for this stage and round, exit 1 (DECISIONS G11, G12)."""
    message: str


class View(NamedTuple):
    """What an attempt is doing, for a person who watches."""

    turn: int
    tool: str
    """The tool the model called last; empty while it thinks."""
    tokens: int
    """Input (cached included) and output together."""
    cost_nano_usd: int
    is_limited: bool = False
    """It waits for the provider's rate limit."""


@dataclass
class CallReport:
    """One call on `/v1/messages` from its arrival to its settlement: what a trace needs to show it."""

    turn: int
    model: str
    output_tokens_max: int
    is_replay: bool
    traceparent: str
    """As the client sent it: untrusted."""
    started_at: float
    """Unix seconds."""
    first_event_at: float | None = None
    ended_at: float = 0.0
    tries: int = 0
    limited: int = 0
    """Tries that the provider refused for its rate or its load."""
    waited_s: float = 0.0
    """How long it waited for the rate limit, its own and everybody's."""
    reply_model: str = ""
    reply_id: str = ""
    stop_reason: str = ""
    usage: Usage = field(default_factory=Usage)
    cost_nano_usd: int = 0
    unsettled: bool = False
    """At least one try was charged in full because its figure was lost or could not be priced."""
    error: str = ""
    """`error.type` of the reply if the call failed, e.g. billing_error."""
    content: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What was said, as attributes of a span (`content`); empty unless a person opted in."""


class Tally:
    """The sums of one attempt."""

    def __init__(self) -> None:
        self.activity = Activity()
        self.turn = 0
        self.tool = ""
        self.calls = 0
        """Requests to the model routes, refused ones included."""
        self.usage = Usage()
        self.cost_nano_usd = 0
        self.unsettled_calls = 0
        self.divergences = 0
        self.failure: Failure | None = None
        self.anomalies: list[str] = []
        """Why calls were charged in full, at most 100 lines."""
        self.records_dropped = 0
        """Calls that did not fit into the recording."""
        self._records: dict[tuple[str, int, int], CassetteRecord] = {}
        self._recorded_bytes = 0

    @property
    def view(self) -> View:
        """Return what to show."""
        tokens = self.usage.all_input_tokens + self.usage.output_tokens
        return View(self.turn, self.tool, tokens, self.cost_nano_usd, self.activity.is_limited)

    def begin(self, turn: int) -> None:
        """Note that the model is asked for a turn."""
        self.turn = turn
        self.tool = ""

    def settled(self, held: Hold) -> None:
        """Add what a reservation was settled at."""
        self.usage = self.usage + held.usage
        self.cost_nano_usd += held.cost_nano_usd or 0
        self.unsettled_calls += held.unsettled

    def fail(self, failure: Failure) -> None:
        """Keep the first failure."""
        self.failure = self.failure or failure

    def succeeded(self) -> None:
        """Forget that the provider was down: it answered."""
        if self.failure and self.failure.kind == "provider":
            self.failure = None

    def note(self, anomalies: list[str]) -> None:
        """Keep why a call was charged in full."""
        self.anomalies += anomalies[: max(0, ANOMALIES_MAX - len(self.anomalies))]

    def record(self, record: CassetteRecord) -> None:
        """Keep a call for a cassette; a turn that is made again replaces its record."""
        if self._recorded_bytes + len(record.sse) > RECORDING_BYTES_MAX:
            self.records_dropped += 1
            return
        self._recorded_bytes += len(record.sse)
        self._records[record.key] = record

    def recording(self) -> bytes:
        """Return the recorded calls as JSON lines."""
        return dump_recording(self._records.values())
