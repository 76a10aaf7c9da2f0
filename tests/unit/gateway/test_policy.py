"""Which model requests may leave a sandbox."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.contract.agent_spec import AgentSpec
from sandbox.gateway.policy import Policy, judge
from sandbox.gateway.refusal import Refusal

POLICY = Policy(model="claude-sonnet-5-5", output_tokens_max=1_000)
Document = dict[str, Any]
MARKER = {"type": "ephemeral"}


def a_request() -> Document:
    """Return everything the built-in agent may send, once."""
    return {
        "model": "claude-sonnet-5-5",
        "max_tokens": 1_000,
        "stream": True,
        "system": [{"type": "text", "text": "be good", "cache_control": MARKER}],
        "stop_sequences": ["END"],
        "thinking": {"type": "adaptive", "display": "summarized"},
        "output_config": {"effort": "high"},
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": False},
        "tools": [
            {"type": "bash_20250124", "name": "bash"},
            {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool", "max_characters": 9_000},
            {"name": "submit", "description": "end", "input_schema": {"type": "object", "properties": {"url": {}}}, "strict": True},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "do it", "cache_control": MARKER}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                    {"type": "redacted_thinking", "data": "eA=="},
                    {"type": "text", "text": "yes", "citations": None},
                    {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"mcp_servers": [1]}, "caller": {"type": "direct"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "ok"}], "is_error": False},
                    {"type": "tool_result", "tool_use_id": "toolu_2", "content": "ok", "cache_control": {"type": "ephemeral", "ttl": "5m"}},
                    {"type": "text", "text": "go on"},
                ],
            },
            {"role": "assistant", "content": "done"},
        ],
    }


def judged(document: object, policy: Policy = POLICY, *, is_count: bool = False) -> str:
    """Return "" if the document passes, else the refusal's message."""
    try:
        judge(json.dumps(document).encode(), policy, is_count=is_count)
    except Refusal as refusal:
        shape = (refusal.status, refusal.kind, refusal.retry)
        message = refusal.message
    else:
        return ""
    assert shape == (400, "invalid_request_error", False)
    return message


def test_what_the_built_in_agent_sends_passes():
    """Every field and block it knows, in one request."""
    assert judged(a_request()) == ""


def test_the_shortest_request_passes():
    """Nothing is required beyond what the API requires, and the stream."""
    assert judged({"model": POLICY.model, "max_tokens": 1, "stream": True, "messages": [{"role": "user", "content": "hi"}]}) == ""


def test_the_turn_is_counted_by_assistant_messages():
    """Two of them: this is the third turn."""
    assert judge(json.dumps(a_request()).encode(), POLICY).turn == 3


def test_a_count_of_tokens_has_neither_limit_nor_stream():
    """The same request without them passes as a count, and with them does not."""
    document = {key: value for key, value in a_request().items() if key not in {"max_tokens", "stream", "stop_sequences"}}

    assert judged(document, is_count=True) == ""
    assert judged({**document, "stream": True}, is_count=True) == "stream: not allowed here"


FORBIDDEN = [
    "metadata",
    "container",
    "mcp_servers",
    "fallbacks",
    "fallback_credit_token",
    "billing_policy",
    "service_tier",
    "speed",
    "inference_geo",
    "user_profile_id",
    "workspace_id",
    "thread",
    "diagnostics",
    "betas",
    "context_management",
    "compaction",
    "temperature",
    "prefill",
    "Model",
    "model ",
]


@pytest.mark.abuse("W04")
@pytest.mark.parametrize("key", FORBIDDEN)
def test_a_field_that_reaches_out_is_refused_by_name(key: str):
    """Provider-side exits, price levers and anything new are named in the reply."""
    message = judged({**a_request(), key: None})

    assert message.startswith((key, repr(key)))
    assert message.endswith("not allowed here")


@pytest.mark.abuse("W04")
@pytest.mark.parametrize(
    "kind",
    [
        "web_search_20260318",
        "web_fetch_20260318",
        "code_execution_20260521",
        "tool_search_tool_regex_20251119",
        "mcp_toolset",
        "memory_20250818",
        "computer_20251124",
        "bash_20241022",
        "text_editor_20250429",
        "advisor_20260301",
        "BASH_20250124",
        "",
        None,
        7,
    ],
)
def test_a_tool_of_another_kind_is_refused(kind: object):
    """Only custom tools, one bash and one editor; server tools run at the provider, with a network."""
    message = judged({**a_request(), "tools": [{"type": kind, "name": "bash"}]})

    assert message.startswith("tools[0].type: ")


@pytest.mark.parametrize(
    ("role", "block"),
    [
        ("user", {"type": "image", "source": {"type": "url", "url": "http://169.254.169.254/"}}),
        ("user", {"type": "document", "source": {"type": "url", "url": "http://x/"}}),
        ("user", {"type": "document", "source": {"type": "file", "file_id": "f"}}),
        ("user", {"type": "container_upload", "file_id": "f"}),
        ("user", {"type": "search_result", "source": "x", "title": "x", "content": []}),
        ("user", {"type": "tool_use", "id": "a", "name": "bash", "input": {}}),
        ("user", {"type": "thinking", "thinking": "", "signature": ""}),
        ("assistant", {"type": "server_tool_use", "id": "a", "name": "web_search", "input": {}}),
        ("assistant", {"type": "mcp_tool_use", "id": "a", "name": "x", "server_name": "y", "input": {}}),
        ("assistant", {"type": "compaction", "content": "x"}),
        ("assistant", {"type": "tool_result", "tool_use_id": "a"}),
        ("user", "a string"),
        ("user", None),
        ("user", {"type": ["text"]}),
        ("user", {}),
    ],
)
def test_a_block_of_another_kind_is_refused(role: str, block: object):
    """Blocks are allowed by the turn they stand in; whatever names a source elsewhere is not."""
    message = judged({**a_request(), "messages": [{"role": role, "content": [block]}]})

    assert message.startswith("messages[0].content[0].type: ")


def test_a_tool_result_holds_only_text():
    """An image inside a result is no way around."""
    inner = {"type": "image", "source": {"type": "url", "url": "http://x/"}}
    message = judged(
        {**a_request(), "messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": [inner]}]}]}
    )

    assert message.startswith("messages[0].content[0].content[0]")


Edit = Callable[[Document], object]


@pytest.mark.abuse("W08")
@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (lambda d: d.update(model="claude-opus-5-5"), "model"),
        (lambda d: d.update(model=["claude-sonnet-5-5"]), "model"),
        (lambda d: d.update(max_tokens=1_001), "max_tokens"),
        (lambda d: d.update(max_tokens=0), "max_tokens"),
        (lambda d: d.update(max_tokens=1.0), "max_tokens"),
        (lambda d: d.update(max_tokens=True), "max_tokens"),
        (lambda d: d.update(max_tokens="1"), "max_tokens"),
        (lambda d: d.update(stream=False), "stream"),
        (lambda d: d.update(stream=1), "stream"),
        (lambda d: d.update(messages={}), "messages"),
        (lambda d: d.update(system=3), "system"),
        (lambda d: d.update(stop_sequences=[3]), "stop_sequences[0]"),
        (lambda d: d.update(thinking={"type": "auto"}), "thinking.type"),
        (lambda d: d.update(output_config={"format": {}}), "output_config.format"),
        (lambda d: d.update(cache_control={"type": "persistent"}), "cache_control.type"),
        (lambda d: d["system"][0].update(cache_control={"type": "ephemeral", "ttl": "1h"}), "system[0].cache_control.ttl"),
        (lambda d: d["system"][0].update(cache_control={"type": "ephemeral", "scope": "all"}), "system[0].cache_control.scope"),
        (lambda d: d["messages"][1].update(role="system"), "messages[1].role"),
        (lambda d: d["messages"][1].update(role=["user"]), "messages[1].role"),
        (lambda d: d["messages"][1].update(name="x"), "messages[1].name"),
        (lambda d: d["messages"][1]["content"][3].update(caller={"type": "code_execution_20260521"}), "messages[1].content[3].caller.type"),
        (lambda d: d["messages"][1]["content"][3].update(input=[]), "messages[1].content[3].input"),
        (lambda d: d["messages"][1]["content"][2].update(citations=[{}]), "messages[1].content[2].citations"),
        (lambda d: d["messages"][2]["content"][0].update(tool_use_id="a b"), "messages[2].content[0].tool_use_id"),
        (lambda d: d["tools"][0].update(name="sh"), "tools[0].name"),
        (lambda d: d["tools"][0].update(allowed_callers=["code_execution_20260521"]), "tools[0].allowed_callers"),
        (lambda d: d["tools"][2].update(defer_loading=True), "tools[2].defer_loading"),
        (lambda d: d["tools"][2].pop("input_schema"), "tools[2].input_schema"),
        (lambda d: d.pop("max_tokens"), "max_tokens"),
        (lambda d: d.pop("stream"), "stream"),
    ],
)
def test_a_value_outside_the_terms_is_refused_by_its_place(edit: Edit, field: str):
    """The agent can see what to mend."""
    document = a_request()
    edit(document)

    assert judged(document).startswith(f"{field}: ")


def test_markers_have_the_ttl_of_the_stage():
    """A stage whose commands are long pins 1h: there the plain marker, which means 5m, is refused."""
    policy = Policy(model=POLICY.model, output_tokens_max=1_000, cache_ttl="1h")
    document = {**a_request(), "messages": [], "system": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}

    assert judged(document, policy) == ""
    assert judged({**document, "cache_control": MARKER}, policy) == "cache_control.ttl: only 1h"


@pytest.mark.abuse("W08")
@pytest.mark.parametrize(
    "body",
    [b'{"model": "a", "model": "b"}', b'{"max_tokens": NaN}', b"\xff", b"[" * 1_000, b"null", b"[]", b'"x"', b"", "{}".encode("utf-16")],
)
def test_a_body_with_two_readings_is_refused(body: bytes):
    """Not even the fields are looked at."""
    with pytest.raises(Refusal) as caught:
        judge(body, POLICY)

    assert caught.value.status == 400


def test_a_refusal_quotes_little_of_the_request():
    """A megabyte of key does not come back."""
    message = judged({**a_request(), "x" * 1_000_000: 1})

    assert len(message) < 200


def _places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return where the objects are whose keys are judged: not those inside a tool's schema or input."""
    if isinstance(value, dict):
        inner = [place for key, item in value.items() if key not in {"input", "input_schema"} for place in _places(item, (*path, key))]
        return [path, *inner]
    if isinstance(value, list):
        return [place for index, item in enumerate(value) for place in _places(item, (*path, index))]
    return []


PLACES = _places(a_request())
KNOWN = {key for place in PLACES for key in ["type", "model"]} | {"cache_control", "citations", "ttl", "display", "budget_tokens", "name"}


@given(
    place=st.sampled_from(PLACES),
    key=st.text(min_size=1, max_size=20).filter(lambda key: key not in json.dumps(a_request()) and key not in KNOWN),
    value=st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)
def test_an_unknown_key_is_refused_wherever_it_stands(place: tuple[str | int, ...], key: str, value: object):
    """Fail closed: also on features the API does not have yet."""
    document = copy.deepcopy(a_request())
    target: Any = document
    for step in place:
        target = target[step]
    target[key] = value

    message = judged(document)

    assert message != ""
    assert "not allowed here" in message


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c), max_leaves=10
    )
)
def test_no_document_breaks_the_judge(document: object):
    """Whatever comes, the answer is a pass or a 400."""
    judged(document)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_judge(body: bytes):
    """The same, below JSON."""
    with pytest.raises(Refusal):
        judge(body, POLICY)


def test_a_policy_is_made_from_an_agent():
    """Model, limits and ttl are the agent's; each step may be tried four times."""
    agent = AgentSpec(name="spec", model="claude-opus-5-5", system="s", prompt="p", steps_max=10, output_tokens_max=500, cache_ttl="1h")

    assert Policy.of(agent) == Policy(model="claude-opus-5-5", output_tokens_max=500, cache_ttl="1h", calls_max=60)
