"""The `submit` tool: how an agent says that it is done or blocked; the loop answers it, and nobody believes it (G6)."""

from typing import Any, Literal, NamedTuple, cast

from sandbox.inside.agent.tools.call import MalformedCall, text_argument

SUBMIT_NAME = "submit"
SUMMARY_CHARS_MAX = 8_000
SUBMIT_DEFINITION: dict[str, Any] = {
    "name": SUBMIT_NAME,
    "description": (
        "End your work. Call it alone, as the only call of its turn, when the task is finished (status done) or cannot be "
        "finished (status blocked). The summary says what you did, what you checked and how, and what is left open."
    ),
    "input_schema": {
        "type": "object",
        "properties": {
            "status": {"type": "string", "enum": ["done", "blocked"]},
            "summary": {"type": "string"},
        },
        "required": ["status", "summary"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Submit(NamedTuple):
    """A well-formed submit."""

    status: Literal["done", "blocked"]
    summary: str


def parse_submit(arguments: object) -> Submit:
    """Return a submit's arguments, the summary cut to `SUMMARY_CHARS_MAX`.

    Raises:
        MalformedCall: They make no sense.
    """
    if not isinstance(arguments, dict):
        raise MalformedCall("the input of a call is an object")
    status = text_argument(arguments, "status")
    if status not in {"done", "blocked"}:
        raise MalformedCall(f"`status` is done or blocked, not {status!r}")
    return Submit(cast(Literal["done", "blocked"], status), text_argument(arguments, "summary")[:SUMMARY_CHARS_MAX])
