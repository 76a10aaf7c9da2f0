"""What one model call used, read from the provider's own events; not what a token costs (`contract/price`) nor who pays (`reservation`).

A figure counts only if it is a plain non-negative integer in a field we know. Anything else that is not zero is an
anomaly: the call is then charged in full (DECISIONS D13).
"""

from datetime import date

from sandbox.contract.agent_spec import CacheTtl
from sandbox.contract.price import PriceList
from sandbox.contract.result import Usage
from sandbox.gateway.sse import Event
from sandbox.gateway.strict_json import parse_strictly

TOKENS_MAX = 1_000_000_000
ANOMALIES_MAX = 20
_COUNTS = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
_TTLS = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
_PLAIN = {"service_tier": {"standard"}, "speed": {"standard"}, "inference_geo": {"global", "not_available"}}
"""Fields that say how a call was priced, with the values that mean list price."""
_READ = {"message_start", "message_delta", "content_block_start"}


class Meter:
    """Merges the usage of one call's events; a later figure replaces an earlier one."""

    def __init__(self, default_ttl: CacheTtl) -> None:
        """Start at nothing; `default_ttl` is what cache writes are priced at when the provider does not say."""
        self.anomalies: list[str] = []
        """What made the figures unfit for pricing, at most 20."""
        self.has_started = False
        """The provider has said what the prompt was."""
        self.is_complete = False
        """The provider has said why it stopped, and the output up to there."""
        self.stop_reason = ""
        self.tool = ""
        """The tool the reply last called."""
        self.reply_model = ""
        self.reply_id = ""
        self._default_ttl = default_ttl
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._writes: dict[str, int] = {}

    def read(self, event: Event) -> None:
        """Take what one event says; never raises on what a provider sends."""
        if event.name not in _READ:
            return
        try:
            document = parse_strictly(event.data)
        except ValueError as error:
            self._anomaly(f"{event.name}: {error}")
            return
        if not isinstance(document, dict):
            self._anomaly(f"{event.name}: not an object")
        elif event.name == "message_start":
            self._start(document.get("message"))
        elif event.name == "message_delta":
            self._delta(document)
        else:
            block = document.get("content_block")
            if isinstance(block, dict) and block.get("type") == "tool_use":
                self.tool = _line(block.get("name"))

    @property
    def usage(self) -> Usage:
        """Return the tokens as far as they are known."""
        return Usage(
            input_tokens=self._counts["input_tokens"],
            output_tokens=self._counts["output_tokens"],
            cache_read_input_tokens=self._counts["cache_read_input_tokens"],
            cache_write_input_tokens=sum(self._writes_by_ttl()),
        )

    @property
    def prompt_tokens(self) -> int:
        """Return the size of the whole prompt, cached tokens included."""
        return self.usage.all_input_tokens

    def cost_nano_usd(self, prices: PriceList, model: str, on: date) -> int:
        """Return what the tokens known so far cost; the model the provider names decides, if it has a price."""
        usage = self.usage
        rates = prices.rates(self.reply_model if prices.knows(self.reply_model) else model, self.prompt_tokens, on)
        writes_5m, writes_1h = self._writes_by_ttl()
        return (
            usage.input_tokens * rates.input
            + usage.output_tokens * rates.output
            + usage.cache_read_input_tokens * rates.cache_read
            + writes_5m * rates.cache_write_5m
            + writes_1h * rates.cache_write_1h
        )

    def _start(self, message: object) -> None:
        if not isinstance(message, dict):
            self._anomaly("message_start: no message")
            return
        self.has_started = True
        self.reply_model = _line(message.get("model"))
        self.reply_id = _line(message.get("id"))
        self._take(message.get("usage"))

    def _delta(self, document: dict[str, object]) -> None:
        usage = document.get("usage")
        self._take(usage)
        delta = document.get("delta")
        reason = delta.get("stop_reason") if isinstance(delta, dict) else None
        if isinstance(reason, str) and isinstance(usage, dict) and type(usage.get("output_tokens")) is int:
            self.stop_reason = _line(reason)
            self.is_complete = self.has_started

    def _take(self, usage: object) -> None:
        if not isinstance(usage, dict):
            self._anomaly("usage: missing")
            return
        for key, value in usage.items():
            if key in _COUNTS:
                self._count(self._counts, key, value)
            elif key == "cache_creation" and isinstance(value, dict):
                for ttl, tokens in value.items():
                    self._count(self._writes, ttl, tokens) if ttl in _TTLS else self._unknown(f"cache_creation.{ttl}", tokens)
            elif isinstance(value, str) and value in _PLAIN.get(key, ()):
                continue
            elif key == "iterations" and _are_messages(value):
                continue  # parts of the sums above; other kinds of iterations are billed beside them
            elif key != "output_tokens_details":  # how the output splits, already in its sum
                self._unknown(key, value)

    def _count(self, into: dict[str, int], key: str, value: object) -> None:
        if value is None:
            return
        if type(value) is int and 0 <= value <= TOKENS_MAX:
            into[key] = value
        else:
            self._anomaly(f"usage.{key}: not a count of tokens")

    def _unknown(self, key: str, value: object) -> None:
        if _weighs(value):
            self._anomaly(f"usage.{_line(key)}: not known here and not zero")

    def _anomaly(self, what: str) -> None:
        if len(self.anomalies) < ANOMALIES_MAX:
            self.anomalies.append(what)

    def _writes_by_ttl(self) -> tuple[int, int]:
        """Return cache writes at 5m and at 1h; what the breakdown does not cover is at the default ttl.

        A breakdown in message_start covers the first iteration only, so the total may be larger.
        """
        at_5m, at_1h = (self._writes.get(ttl, 0) for ttl in _TTLS)
        rest = max(0, self._counts["cache_creation_input_tokens"] - at_5m - at_1h)
        return (at_5m + rest, at_1h) if self._default_ttl == "5m" else (at_5m, at_1h + rest)


def _are_messages(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) and item.get("type") == "message" for item in value)


def _weighs(value: object) -> bool:
    if isinstance(value, dict):
        return any(_weighs(item) for item in value.values())
    if isinstance(value, list):
        return any(_weighs(item) for item in value)
    return bool(value)


def _line(value: object) -> str:
    return value[:100] if isinstance(value, str) and value.isprintable() else ""
