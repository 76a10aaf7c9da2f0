"""Every log line of ours is an event with a stable name, listed in docs/logs.md; nothing goes around `sandbox.log`."""

import ast
import re
from pathlib import Path

from supervisor.api.said import name_of
from supervisor.pipeline.events import AnyEvent
from tests.architecture.source import ROOT, modules, tree

LEVELS = {"debug", "info", "warning", "error", "exception"}
HEAD = {"ts", "level", "event", "msg", "logger", "service.name", "exc"}
"""What a line has anyway: a field of that name would not be seen."""
NAME = re.compile(r"[a-z][a-z_]*\.[a-z][a-z_]*")
HERE = Path("sandbox/log.py")
FROM_EVENTS = Path("supervisor/api/said.py")
"""Names its lines by the events of a run."""


def calls(path: Path) -> list[ast.Call]:
    """Return every call of a module's `log` or `logger`."""
    found = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return [call for call in found if ast.unparse(call.func).split(".")[0] in {"log", "logger"} and _method(call) in LEVELS]


def _method(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def events_of(path: Path) -> set[str]:
    return {str(call.args[0].value) for call in calls(path) if call.args and isinstance(call.args[0], ast.Constant)}


def said() -> dict[str, Path]:
    """Return every event's name, and one module that says it."""
    named = {event: path for path in modules("sandbox", "supervisor") if path != FROM_EVENTS for event in events_of(path)}
    # typing.Annotated[A | B, …]: the union is its first argument.
    kinds = [kind.model_fields["type"].default for kind in AnyEvent.__args__[0].__args__]
    return named | {name_of(str(kind)): FROM_EVENTS for kind in kinds} | {"process.crashed": HERE, "library.said": HERE}


def test_every_line_begins_with_the_name_of_its_event():
    """`subject.happening`, written where it is said: that is what people search for and alarms are set on."""
    nameless = [
        f"{path}:{call.lineno}"
        for path in modules("sandbox", "supervisor")
        if path != FROM_EVENTS
        for call in calls(path)
        if not (call.args and isinstance(call.args[0], ast.Constant) and NAME.fullmatch(str(call.args[0].value)))
    ]

    assert nameless == []


def test_no_field_hides_behind_the_head_of_a_line():
    """It would be dropped without a word."""
    hidden = [
        f"{path}:{call.lineno}: {word.arg}"
        for path in modules("sandbox", "supervisor")
        for call in calls(path)
        for word in call.keywords
        if word.arg in HEAD
    ]

    assert hidden == []


def test_nobody_logs_around_the_one_place():
    """A line of the standard library's logger would have no event and no fields."""
    strays = [
        str(path)
        for path in modules("sandbox", "supervisor")
        if path != HERE and any(isinstance(node, ast.Assign) and "getLogger(" in ast.unparse(node.value) for node in ast.walk(tree(path)))
    ]

    assert strays == []


def test_every_event_is_in_the_document_and_no_other():
    """docs/logs.md is what an operator has."""
    section = (ROOT / "docs" / "logs.md").read_text().partition("\n## Events\n")[2]
    rows = re.findall(r"(?m)^\| (`[a-z_.]+`(?: · `[a-z_.]+`)*) \|", section)
    documented = {name for row in rows for name in re.findall(r"`([a-z_]+\.[a-z_]+)`", row)}

    assert documented == set(said())
