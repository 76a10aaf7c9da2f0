"""What a foreign agent is started with."""

import pytest

from sandbox.contract.agent_spec import AgentSpec, DriverSpec
from sandbox.inside.drivers.form import PLACEHOLDERS, command_of, environment_of, load_form
from sandbox.inside.drivers.prompt import prompt_text, system_text

VALUES = {name: f"<{name}>" for name in PLACEHOLDERS}


def an_agent(driver: DriverSpec) -> AgentSpec:
    return AgentSpec(name="implement", model="m", system="the rules", prompt="the task", driver=driver)


def test_placeholders_are_filled_once_and_other_braces_stay():
    """What a value holds is text, never a placeholder; JSON in a word is no placeholder either."""
    driver = DriverSpec(kind="command", command=("run", "-m{model}", '{"a": {"b": 1}}', "{", "}{model}{x}", "{prompt}"))

    words = command_of(an_agent(driver), VALUES | {"prompt": "say {model}"})

    assert words == ["run", "-m<model>", '{"a": {"b": 1}}', "{", "}<model>{x}", "say {model}"]


def test_a_persons_variable_beats_the_drivers():
    """Both are filled; the key is a constant, for the gateway adds the real one."""
    driver = DriverSpec(kind="command", command=("run",), environment={"ANTHROPIC_BASE_URL": "{base_url}/v1", "MODEL": "{model}"})

    assert environment_of(an_agent(driver), VALUES) == {
        "ANTHROPIC_BASE_URL": "<base_url>/v1",
        "ANTHROPIC_API_KEY": "none",
        "PYTHONPYCACHEPREFIX": "",
        "MODEL": "<model>",
    }


def test_claude_code_gets_its_limits_and_no_traffic_of_its_own():
    """Turns, tokens, one model, no settings from the repository; the prompt is its standard input."""
    agent = an_agent(DriverSpec(kind="claude-code"))
    words, variables = command_of(agent, VALUES), environment_of(agent, VALUES)

    assert words[:3] == ["claude", "--bare", "--print"]
    assert words[words.index("--max-turns") + 1] == "<steps_max>"
    assert words[words.index("--model") + 1] == "<model>"
    assert variables["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "<output_tokens_max>"
    assert variables["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] == "1"
    assert load_form("claude-code").reads_prompt


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "command"},
        {"kind": "claude-code", "command": ("claude",)},
        {"kind": "builtin", "environment": {"A": "1"}},
        {"kind": "builtin", "clients": "sandbox"},
        {"kind": "command", "command": ("a\0b",)},
        {"kind": "command", "command": ("a",), "environment": {"A=B": "1"}},
        {"kind": "command", "command": ("a",) * 65},
    ],
)
def test_a_driver_is_whole_or_refused(wrong: dict[str, object]):
    """A command for `command` alone, bounded words, names of variables."""
    with pytest.raises(ValueError, match=r"."):
        DriverSpec.model_validate(wrong)


def test_who_may_ask_the_model_is_said_for_the_record():
    """Our own agent lowers nothing; a program that asks through its children lowers more (DECISIONS D18)."""
    assert DriverSpec().lowers == ()
    assert "its tools can look into" in DriverSpec(kind="claude-code").lowers[0]
    assert "every process of the sandbox" in DriverSpec(kind="command", command=("a",), clients="sandbox").lowers[0]


def test_the_prompt_says_how_to_end_without_our_tool():
    """The definition's text comes first, byte for byte, so that it is cached."""
    agent = an_agent(DriverSpec(kind="claude-code"))

    assert system_text(agent, "/out/result.json").startswith("the rules\n\n## How to end\n")
    assert '`/out/result.json` first: {"status": "blocked", "summary": "why"}' in system_text(agent, "/out/result.json")
    assert prompt_text(agent, "<file>spec</file>") == "<file>spec</file>\n\nthe task\n"
    assert prompt_text(agent, "", with_system="the rules") == "the rules\n\nthe task\n"
