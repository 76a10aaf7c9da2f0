"""Judges a span of the user's own code, as it came from a tool or a check; not where it hangs (`otlp_relay`).

What a sandbox says is data: a span may carry names, numbers and identifiers of public conventions, and no text, no tokens, no cost. A
name of ours is not taken from it, so that whoever reads a trace knows who said what.
"""

import math
import re
from typing import NamedTuple

from opentelemetry.trace import SpanKind

from sandbox.gateway.otlp_body import GivenSpan, Value
from sandbox.scrub import Scrub

NAME_CHARS_MAX = 200
NAME_WORDS_MAX = 4
ATTRIBUTES_MAX = 32
OTHER_ERROR = "_OTHER"
"""An error that names no type, as the convention calls it."""

_WORD = r"[A-Za-z0-9_.:/\[\]{}<>()*@#,=+~-]"
_NAME = re.compile(rf"{_WORD}+(?: {_WORD}+){{0,{NAME_WORDS_MAX - 1}}}")
_VALUE = re.compile(rf"{_WORD}{{1,{NAME_CHARS_MAX}}}")
_OURS = frozenset(
    {
        *("ack", "agent", "chat", "check", "container", "dispatch", "execute_tool", "gate", "gateway", "invoke_agent", "invoke_workflow"),
        *("process", "queue", "run", "send", "stage", "workspace"),
    }
)
"""First words of our own names, in lower case."""
_OURS_WHOLE = frozenset({"commit", "image resolve", "merge", "result delivery", "retry wait"})
_KEY = re.compile(r"(?:client|code|db|exception|http|messaging|network|pytest|rpc|server|test|url)\.[a-z0-9_.-]{1,80}|error\.type")
_TEXTS = re.compile(
    r"http\.(?:request|response)\.header\..*|url\.query|exception\.(?:message|stacktrace)|db\.(?:statement|query\.(?:text|parameter\..*))"
)
"""Of those conventions, but made to hold texts or secrets."""
_SCRUB = Scrub()
_KINDS = {2: SpanKind.SERVER, 3: SpanKind.CLIENT, 4: SpanKind.PRODUCER, 5: SpanKind.CONSUMER}
_INT_BITS = 63


class UserSpan(NamedTuple):
    """One span that may be made."""

    name: str
    kind: SpanKind
    attributes: dict[str, Value]
    attributes_dropped: int
    error_type: str | None
    """None: it is no error."""


def judged(given: GivenSpan) -> UserSpan | None:
    """Return what may be made of a span, None if its name is none, or one of ours."""
    if len(given.name) > NAME_CHARS_MAX or not _NAME.fullmatch(given.name) or _SCRUB.finds(given.name) or _is_ours(given.name):
        return None
    plain = [(key, value) for key, value in given.attributes if _is_public(key) and _is_plain(value)]
    kept = dict(plain[:ATTRIBUTES_MAX])
    dropped = given.attributes_dropped + len(given.attributes) - len(kept)
    said = kept.pop("error.type", None)
    if said is not None and not given.is_error:
        dropped += 1  # without an error it would say there was one
    return UserSpan(
        given.name,
        _KINDS.get(given.kind, SpanKind.INTERNAL),
        kept,
        dropped,
        _error_type(said or given.exception) if given.is_error else None,
    )


def _is_ours(name: str) -> bool:
    first, _, rest = name.partition(" ")
    return (bool(rest) and first.lower() in _OURS) or name.lower() in _OURS_WHOLE


def _is_public(key: str) -> bool:
    return bool(_KEY.fullmatch(key)) and not _TEXTS.fullmatch(key)


def _is_plain(value: Value) -> bool:
    if isinstance(value, str):
        return bool(_VALUE.fullmatch(value)) and not _SCRUB.finds(value)
    return value.bit_length() <= _INT_BITS if isinstance(value, int) else math.isfinite(value)


def _error_type(said: object) -> str:
    return said if isinstance(said, str) and _VALUE.fullmatch(said) and not _SCRUB.finds(said) else OTHER_ERROR
