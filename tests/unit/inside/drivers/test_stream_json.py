"""What Claude Code prints, read."""

import json
from typing import Any, cast

from sandbox.inside.agent.spans import Call, ToolSpans
from sandbox.inside.agent.tools.call import ToolResult
from sandbox.inside.drivers.stream_json import LINE_BYTES_MAX, StreamJson


class Kept:
    """Keeps spans instead of sending them."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str, int, bool]] = []

    def begin(self) -> Call:
        """Begin a call."""
        return Call("", "", 0)

    def record(self, name: str, call_id: str, turn: int, _call: Call, result: ToolResult) -> None:
        """Keep one."""
        self.spans.append((name, call_id, turn, result.is_error))


def reader() -> tuple[StreamJson, Kept, list[str]]:
    kept, said = Kept(), list[str]()
    return StreamJson(said.append, cast(ToolSpans, kept)), kept, said


def line(kind: str, **fields: Any) -> bytes:
    return json.dumps({"type": kind, **fields}).encode() + b"\n"


def reply(id_: str, *blocks: dict[str, Any]) -> bytes:
    return b"".join(line("assistant", message={"id": id_, "content": [block]}) for block in blocks)


def results(*blocks: dict[str, Any]) -> bytes:
    return line("user", message={"content": [{"type": "tool_result", **block} for block in blocks]})


WHOLE = b"".join(
    (
        line("system", subtype="init"),
        reply("m1", {"type": "text", "text": "I look."}, {"type": "tool_use", "id": "t1", "name": "Bash", "input": {}}),
        results({"tool_use_id": "t1", "content": "ok"}),
        reply("m2", {"type": "tool_use", "id": "t2", "name": "Read", "input": {}}),
        results({"tool_use_id": "t2", "content": [{"type": "text", "text": "no"}], "is_error": True}),
        line("result", subtype="success", is_error=False, result="All done."),
    )
)


def test_each_tool_call_becomes_a_span_however_the_output_is_cut():
    """Name in lower case, turn by the reply it stood in, whether it failed."""
    output, kept, said = reader()

    for byte in WHOLE:
        output.feed(bytes([byte]))
    output.end()

    assert kept.spans == [("bash", "t1", 1, False), ("read", "t2", 2, True)]
    assert said == ["turn 1: bash", "turn 2: read error"]
    assert output.turns == 2
    assert output.result["result"] == "All done."


def test_other_output_is_kept_as_the_last_line():
    """A program that says in plain words why it cannot."""
    output, kept, _ = reader()

    output.feed(b"npm notice\n[1, 2]\n{broken\n\nno such option: --bare")
    output.end()

    assert output.tail == "no such option: --bare"
    assert (kept.spans, output.result, output.turns) == ([], {}, 0)


def test_a_line_without_end_is_given_up():
    """At most so many bytes are held; what follows it is read again."""
    output, kept, _ = reader()

    output.feed(b'{"type": "assistant", "x": "' + b"y" * (LINE_BYTES_MAX + 1))
    output.feed(b'z"}\n' + WHOLE)

    assert len(kept.spans) == 2


def test_strange_shapes_are_passed_over():
    """It is the program's output, and the tools' too."""
    output, kept, _ = reader()

    for told in ({"type": "assistant"}, {"type": "assistant", "message": {"content": "x"}}, {"type": "user", "message": []}):
        output.feed(json.dumps(told).encode() + b"\n")
    output.feed(results({"tool_use_id": "never called"}, {}))
    output.feed(b"[" * 100_000 + b"\n")

    assert kept.spans == []
