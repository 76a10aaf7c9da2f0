"""Which model requests may leave a sandbox: an allow-list over a strict copy; the copy is judged, the original bytes are forwarded.

Everything the built-in agent does not send is refused with 400 and the field's name (DECISIONS D6): server tools, MCP servers,
URL and file sources, containers, threads, service tiers, fallbacks, and whatever the API grows next. A foreign program's
driver adds named permissions (`driver_policy`). Nothing is re-serialised, so preserved thinking and caches stay valid.
Not here: money (`reservation`) and headers (`model_proxy`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from sandbox.contract.agent_spec import AgentSpec, CacheTtl
from sandbox.contract.model import Frozen
from sandbox.gateway.driver_policy import DriverPolicy, driver_policy
from sandbox.gateway.refusal import Refusal
from sandbox.gateway.strict_json import parse_strictly

MESSAGES_MAX = 10_000
BLOCKS_MAX = 10_000
TOOLS_MAX = 64
USER_ID_CHARS_MAX = 1_000
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}", re.ASCII)
_TYPED_TOOLS = {"bash_20250124": "bash", "text_editor_20250728": "str_replace_based_edit_tool"}

Check = Callable[[Any, str], None]


class Policy(Frozen):
    """What one attempt may ask of the model."""

    model: str
    output_tokens_max: int = Field(ge=1)
    """The largest `max_tokens`."""
    cache_ttl: CacheTtl = "5m"
    """The only ttl a cache marker may have; a marker without one means 5m."""
    calls_max: int = Field(120, ge=1)
    """Requests to the model routes in one attempt, counted ones that failed included."""
    driver: DriverPolicy = DriverPolicy()
    """What this agent's program may send besides."""

    @classmethod
    def of(cls, agent: AgentSpec) -> "Policy":
        """Return the policy of an agent; a step may be tried four times, by its own retries."""
        return cls(
            model=agent.model,
            output_tokens_max=agent.output_tokens_max,
            cache_ttl=agent.cache_ttl,
            calls_max=4 * agent.steps_max + 20,
            driver=driver_policy(agent.driver.kind),
        )


@dataclass(frozen=True)
class Judged:
    """A request that may leave."""

    document: Mapping[str, Any]
    """The strict copy: for digests and figures, never to be sent."""
    model: str
    output_tokens_max: int
    """Its `max_tokens`; 0 for a count of tokens."""
    turn: int
    """One more than the number of assistant messages."""
    is_streamed: bool = True
    """The client wants the reply's events as they come; otherwise one JSON object at the end."""
    volatile: tuple[str, ...] = ()
    """Patterns a replay does not compare."""


def judge(body: bytes, policy: Policy, *, is_count: bool = False) -> Judged:
    """Return the request in `body` if every part of it is allowed.

    Args:
        body: A request of `/v1/messages`, or of `/v1/messages/count_tokens` if `is_count`.
        policy: What this attempt may ask.
        is_count: Judge it as a count of tokens, which has neither `max_tokens` nor `stream`.

    Raises:
        Refusal: 400, naming the first field that is not allowed.
    """
    try:
        document = parse_strictly(body)
    except ValueError as error:
        raise Refusal(400, "invalid_request_error", f"the body is refused: {error}", retry=False) from error
    request = _Judge(policy).request(document, is_count=is_count)
    turn = 1 + sum(message["role"] == "assistant" for message in request["messages"])
    return Judged(request, policy.model, request.get("max_tokens", 0), turn, request.get("stream", False), policy.driver.volatile)


class _Judge:
    """The shape of a request, one method for each kind of object in it; `at` is where we are, for the message."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def request(self, document: object, *, is_count: bool) -> dict[str, Any]:
        fields: dict[str, Check] = {
            "model": _exactly(self._policy.model),
            "messages": _list_of(self.message, MESSAGES_MAX),
            "system": _text_or(_list_of(self.text, BLOCKS_MAX)),
            "tools": _list_of(self.tool, TOOLS_MAX),
            "tool_choice": self.tool_choice,
            "thinking": self.thinking,
            "output_config": self.output_config,
            "cache_control": self.cache_control,
        }
        required = {"model", "messages"}
        driver = self._policy.driver
        if "metadata" in driver.fields:
            fields["metadata"] = self.metadata
        if not is_count:
            fields |= {
                "max_tokens": _integer(1, self._policy.output_tokens_max),
                "stream": _boolean if driver.whole_replies else _exactly(True),
                "stop_sequences": _list_of(_text, 16),
            }
            required |= {"max_tokens"} if driver.whole_replies else {"max_tokens", "stream"}
        return _fields(document, "", fields, required)

    def message(self, value: object, at: str) -> None:
        role = value.get("role") if isinstance(value, dict) else None
        blocks = {"user": self.user_block, "assistant": self.assistant_block}.get(role) if isinstance(role, str) else None
        if blocks is None:
            raise _refused(f"{at}.role", "only user and assistant")
        _fields(value, at, {"role": _text, "content": _text_or(_list_of(blocks, BLOCKS_MAX))}, {"role", "content"})

    def user_block(self, value: object, at: str) -> None:
        _by_type(value, at, {"text": self.text, "tool_result": self.tool_result})

    def assistant_block(self, value: object, at: str) -> None:
        _by_type(
            value,
            at,
            {"text": self.text, "tool_use": self.tool_use, "thinking": self.thinking_block, "redacted_thinking": self.redacted_thinking},
        )

    def text(self, value: object, at: str) -> None:
        fields: dict[str, Check] = {"type": _exactly("text"), "text": _text, "cache_control": self.cache_control, "citations": _nothing}
        _fields(value, at, fields, {"type", "text"})

    def tool_result(self, value: object, at: str) -> None:
        fields: dict[str, Check] = {
            "type": _exactly("tool_result"),
            "tool_use_id": _name,
            "content": _text_or(_list_of(self.text, BLOCKS_MAX)),
            "is_error": _boolean,
            "cache_control": self.cache_control,
        }
        _fields(value, at, fields, {"type", "tool_use_id"})

    def tool_use(self, value: object, at: str) -> None:
        fields: dict[str, Check] = {
            "type": _exactly("tool_use"),
            "id": _name,
            "name": _name,
            "input": _any_object,
            "cache_control": self.cache_control,
            "caller": self.caller,
        }
        _fields(value, at, fields, {"type", "id", "name", "input"})

    def caller(self, value: object, at: str) -> None:
        _fields(value, at, {"type": _exactly("direct")}, {"type"})

    def thinking_block(self, value: object, at: str) -> None:
        fields: dict[str, Check] = {"type": _exactly("thinking"), "thinking": _text, "signature": _text}
        _fields(value, at, fields, {"type", "thinking", "signature"})

    def redacted_thinking(self, value: object, at: str) -> None:
        _fields(value, at, {"type": _exactly("redacted_thinking"), "data": _text}, {"type", "data"})

    def tool(self, value: object, at: str) -> None:
        kind = value.get("type", "custom") if isinstance(value, dict) else None
        shared: dict[str, Check] = {"type": _text, "name": _name, "cache_control": self.cache_control}
        if kind == "custom":
            fields: dict[str, Check] = {**shared, "description": _text, "input_schema": _any_object, "strict": _boolean}
            _fields(value, at, fields, {"name", "input_schema"})
        elif isinstance(kind, str) and kind in _TYPED_TOOLS:
            fields = {**shared, "name": _exactly(_TYPED_TOOLS[kind])}
            if kind.startswith("text_editor"):
                fields["max_characters"] = _integer(1, 10_000_000)
            _fields(value, at, fields, {"type", "name"})
        else:
            raise _refused(f"{at}.type", f"{_quoted(kind)}: only custom tools, {' and '.join(_TYPED_TOOLS)}")

    def cache_control(self, value: object, at: str) -> None:
        if value is None:
            return
        marker = _fields(value, at, {"type": _exactly("ephemeral"), "ttl": _text}, {"type"})
        if marker.get("ttl", "5m") != self._policy.cache_ttl:
            raise _refused(f"{at}.ttl", f"only {self._policy.cache_ttl}")

    def tool_choice(self, value: object, at: str) -> None:
        fields: dict[str, Check] = {"type": _one_of("auto", "any", "none", "tool"), "name": _name, "disable_parallel_tool_use": _boolean}
        _fields(value, at, fields, {"type"})

    def thinking(self, value: object, at: str) -> None:
        fields: dict[str, Check] = {
            "type": _one_of("adaptive", "between_tools", "disabled", "enabled"),
            "display": _one_of("summarized", "omitted"),
            "budget_tokens": _integer(1, self._policy.output_tokens_max),
        }
        _fields(value, at, fields, {"type"})

    def metadata(self, value: object, at: str) -> None:
        _fields(value, at, {"user_id": _short_text}, set())

    def output_config(self, value: object, at: str) -> None:
        _fields(value, at, {"effort": _one_of("low", "medium", "high", "xhigh", "max")}, set())


def _fields(value: object, at: str, fields: Mapping[str, Check], required: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refused(at or "the body", "expected an object")
    where = f"{at}." if at else ""
    for key in value:
        if key not in fields:
            raise _refused(f"{where}{_shown(key)}", "not allowed here")
    for key in sorted(required - value.keys()):
        raise _refused(f"{where}{key}", "missing")
    for key, item in value.items():
        fields[key](item, f"{where}{key}")
    return value


def _by_type(value: object, at: str, kinds: Mapping[str, Check]) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise _refused(f"{at}.type", f"{_quoted(kind)}: only {', '.join(kinds)}")
    kinds[kind](value, at)


def _list_of(check: Check, items_max: int) -> Check:
    def is_list(value: object, at: str) -> None:
        if not isinstance(value, list):
            raise _refused(at, "expected a list")
        if len(value) > items_max:
            raise _refused(at, f"more than {items_max} items")
        for index, item in enumerate(value):
            check(item, f"{at}[{index}]")

    return is_list


def _text_or(check: Check) -> Check:
    def is_text_or_checked(value: object, at: str) -> None:
        if not isinstance(value, str):
            check(value, at)

    return is_text_or_checked


def _exactly(expected: str | bool) -> Check:
    def is_exactly(value: object, at: str) -> None:
        if type(value) is not type(expected) or value != expected:
            raise _refused(at, f"{_quoted(value)}: only {expected!r}")

    return is_exactly


def _one_of(*expected: str) -> Check:
    def is_one_of(value: object, at: str) -> None:
        if not isinstance(value, str) or value not in expected:
            raise _refused(at, f"{_quoted(value)}: only {', '.join(expected)}")

    return is_one_of


def _integer(least: int, most: int) -> Check:
    def is_integer(value: object, at: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise _refused(at, f"only an integer from {least} to {most}")

    return is_integer


def _text(value: object, at: str) -> None:
    if not isinstance(value, str):
        raise _refused(at, "expected text")


def _short_text(value: object, at: str) -> None:
    _text(value, at)
    if isinstance(value, str) and len(value) > USER_ID_CHARS_MAX:
        raise _refused(at, f"more than {USER_ID_CHARS_MAX} characters")


def _name(value: object, at: str) -> None:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise _refused(at, "expected 1 to 128 of a-z, A-Z, 0-9, '_' and '-'")


def _boolean(value: object, at: str) -> None:
    if not isinstance(value, bool):
        raise _refused(at, "expected true or false")


def _nothing(value: object, at: str) -> None:
    if value is not None and value != []:
        raise _refused(at, "not allowed here")


def _any_object(value: object, at: str) -> None:
    """Accept free-form JSON: a tool's schema or input; `strict_json` has bounded its depth."""
    if not isinstance(value, dict):
        raise _refused(at, "expected an object")


def _refused(field: str, why: str) -> Refusal:
    return Refusal(400, "invalid_request_error", f"{field}: {why}", retry=False)


def _shown(key: str) -> str:
    return key if _NAME.fullmatch(key) else repr(key[:80])


def _quoted(value: object) -> str:
    return repr(value[:80]) if isinstance(value, str) else f"a {type(value).__name__}"
