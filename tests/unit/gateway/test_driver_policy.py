"""What the driver of a foreign program may send besides, and what it may not."""

import json
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from sandbox.contract.agent_spec import AgentSpec, DriverKind, DriverSpec
from sandbox.gateway.driver_policy import DriverPolicy, driver_policy
from sandbox.gateway.policy import Policy, judge
from sandbox.gateway.refusal import Refusal

MARKER = {"type": "ephemeral"}


def policy_of(kind: DriverKind) -> Policy:
    driver = DriverSpec(kind=kind, command=("program",) if kind == "command" else ())
    return Policy.of(AgentSpec(name="a", model="claude-sonnet-5-5", system="s", prompt="p", output_tokens_max=16_000, driver=driver))


def of_claude_code(**changes: Any) -> dict[str, Any]:
    """Return a request in the shape Claude Code makes it."""
    request: dict[str, Any] = {
        "model": "claude-sonnet-5-5",
        "messages": [
            {"role": "user", "content": "do it\n"},
            {"role": "assistant", "content": [{"type": "text", "text": "Interrupted", "citations": []}]},
            {"role": "user", "content": [{"type": "text", "text": "go on", "cache_control": MARKER}]},
        ],
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2;"},
            {"type": "text", "text": "you", "cache_control": MARKER},
        ],
        "tools": [{"name": "Bash", "description": "runs", "input_schema": {"type": "object"}}],
        "metadata": {"user_id": '{"device_id":"7"}'},
        "max_tokens": 16_000,
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "medium"},
        "stream": True,
    }
    return request | changes


def of_mini_swe_agent(**changes: Any) -> dict[str, Any]:
    """Return a request in the shape mini-swe-agent makes it."""
    request: dict[str, Any] = {
        "model": "claude-sonnet-5-5",
        "max_tokens": 4_000,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "do it", "cache_control": MARKER}]}],
        "system": [{"type": "text", "text": "you"}],
        "tools": [{"name": "bash", "type": "custom", "description": "runs", "input_schema": {"type": "object"}}],
    }
    return request | changes


def refusal_of(request: dict[str, Any], kind: DriverKind) -> str:
    try:
        judge(json.dumps(request).encode(), policy_of(kind))
    except Refusal as refusal:
        return refusal.message if refusal.status == 400 else str(refusal.status)
    return ""


def test_what_each_program_sends_passes_under_its_own_driver():
    """And neither passes as our own agent's."""
    assert refusal_of(of_claude_code(), "claude-code") == ""
    assert refusal_of(of_mini_swe_agent(), "command") == ""
    assert refusal_of(of_claude_code(), "builtin") == "metadata: not allowed here"
    assert refusal_of(of_mini_swe_agent(), "builtin") == "stream: missing"


def test_a_reply_without_a_stream_is_known_as_one():
    """Claude Code may not ask for it."""
    judged = judge(json.dumps(of_mini_swe_agent()).encode(), policy_of("command"))

    assert not judged.is_streamed
    assert judge(json.dumps(of_mini_swe_agent(stream=True)).encode(), policy_of("command")).is_streamed
    assert refusal_of(of_claude_code(stream=False), "claude-code").startswith("stream:")


@pytest.mark.abuse("W04")
@pytest.mark.parametrize("kind", get_args(DriverKind))
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mcp_servers": []}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"context_management": {}}, "context_management"),
        ({"fallbacks": []}, "fallbacks"),
        ({"service_tier": "auto"}, "service_tier"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"tools": [{"type": "web_fetch_20260318", "name": "web_fetch"}]}, "tools[0].type"),
        ({"model": "claude-fable-5-2"}, "model"),
        ({"max_tokens": 128_000}, "max_tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]}, "messages[0]"),
    ],
)
def test_no_driver_opens_an_exit_at_the_provider(kind: DriverKind, change: dict[str, Any], named: str):
    """What reaches out, costs otherwise or is another model is refused whoever asks; the control is the request without it."""
    request = of_claude_code() if kind == "claude-code" else of_mini_swe_agent(stream=True)

    assert refusal_of(request, kind) == ""
    assert refusal_of(request | change, kind).startswith(named)


def test_the_id_of_a_user_is_bounded():
    """At its edge, and beyond; nothing else is in it."""
    assert refusal_of(of_claude_code(metadata={"user_id": "x" * 1_000}), "claude-code") == ""
    assert refusal_of(of_claude_code(metadata={"user_id": "x" * 1_001}), "claude-code").startswith("metadata.user_id")
    assert refusal_of(of_claude_code(metadata={"url": "x"}), "claude-code") == "metadata.url: not allowed here"


def test_our_own_agent_has_no_permission_besides():
    """Its file is empty."""
    assert driver_policy("builtin") == DriverPolicy()


def test_a_file_can_only_switch_on_what_is_known():
    """Anything else in it is an error, also a pattern that is none."""
    wrongs: list[dict[str, Any]] = [{"fields": ["mcp_servers"]}, {"targets": ["?x"]}, {"tools": []}, {"volatile": ["("]}]
    for wrong in wrongs:
        with pytest.raises(ValidationError):
            DriverPolicy.model_validate(wrong)
