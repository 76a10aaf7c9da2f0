"""What a tool is, what it is called with and what it answers; not any one tool."""

from typing import Any, NamedTuple, Protocol


class ToolResult(NamedTuple):
    """The answer to one call, as the model reads it; cut to its final length here and never again."""

    text: str
    is_error: bool = False
    is_malformed: bool = False
    """The call itself made no sense: counted against the agent's limit."""
    exit_code: int | None = None
    """Of the command it ran, if it ran one to its end."""


class MalformedCall(Exception):
    """A call without a needed argument, or with one of the wrong type; the message names it."""


class Tool(Protocol):
    """One client tool."""

    @property
    def name(self) -> str:
        """Return the name the model calls it by."""
        ...

    @property
    def definition(self) -> dict[str, Any]:
        """Return its entry in a request's `tools`."""
        ...

    def run(self, arguments: dict[str, Any], timeout_s: float, traceparent: str = "") -> ToolResult:
        """Run one call within `timeout_s`, its processes in the trace context `traceparent`; empty: they keep what they have.

        Raises:
            MalformedCall: The arguments make no sense.
        """
        ...


def text_argument(arguments: dict[str, Any], name: str, default: str | None = None) -> str:
    """Return a string argument.

    Raises:
        MalformedCall: It is missing without a default, or no string.
    """
    value = arguments.get(name, default)
    if value is None:
        raise MalformedCall(f"the call lacks `{name}`")
    if not isinstance(value, str):
        raise MalformedCall(f"`{name}` is a string, not {type(value).__name__}")
    return value


def number_argument(arguments: dict[str, Any], name: str) -> int:
    """Return an integer argument.

    Raises:
        MalformedCall: It is missing or no integer.
    """
    value = arguments.get(name)
    if value is None:
        raise MalformedCall(f"the call lacks `{name}`")
    if isinstance(value, bool) or not isinstance(value, int):
        raise MalformedCall(f"`{name}` is a whole number, not {type(value).__name__}")
    return value
