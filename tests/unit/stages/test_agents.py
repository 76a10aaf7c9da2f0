"""Agent definitions: what is shipped, what a repository may write, what is refused."""

import pytest

from sandbox.contract.agent_spec import AgentSpec
from sandbox.contract.errors import ConfigError
from supervisor.stages.agents import agent_spec, canonical_name, load_agent, override_path, shipped_agents

OURS = """---
name: implement
model: claude-opus-5-5
steps: 40
tools: [bash]
tool_timeout_s: 900
cache_ttl: 1h
---

# You write Rust

Body with --- dashes.
"""


@pytest.mark.parametrize(
    ("alias", "name"),
    [("spec-agent", "spec"), ("interface-agent", "interface"), ("impl-agent", "implement"), ("test-agent", "test"), ("docs-agent", "docs")],
)
def test_the_first_sources_names_are_aliases(alias: str, name: str) -> None:
    """Its pipeline file loads as it is."""
    assert load_agent(alias) == load_agent(name)
    assert canonical_name(alias) == name


def test_five_agents_are_shipped_with_the_settled_limits() -> None:
    """DECISIONS G4: sonnet, 16k output, 25 steps, 60 for implement and test."""
    definitions = {name: load_agent(name) for name in shipped_agents()}

    assert {name: one.steps for name, one in definitions.items()} == {"spec": 25, "interface": 25, "implement": 60, "test": 60, "docs": 25}
    assert {one.model for one in definitions.values()} == {"claude-sonnet-5-5"}
    assert {one.max_tokens for one in definitions.values()} == {16_000}


@pytest.mark.parametrize("name", sorted(shipped_agents()))
def test_a_shipped_prompt_holds_for_every_task(name: str) -> None:
    """It says how to end, and nothing that differs between tasks: it is cached."""
    system = load_agent(name).system

    assert "call `submit`" in " ".join(system.split())
    assert "/workspace" in system
    assert "{" not in system
    assert len(system) < 6_000


def test_a_repository_overrides_a_whole_definition() -> None:
    """What its file leaves out has the general default, not the shipped agent's."""
    definition = load_agent("impl-agent", OURS)

    assert (definition.model, definition.steps, definition.tools, definition.max_tokens) == ("claude-opus-5-5", 40, ("bash",), 16_000)
    assert definition.system == "# You write Rust\n\nBody with --- dashes."


def test_windows_line_ends_and_a_mark_change_nothing() -> None:
    """Editors add both."""
    assert load_agent("implement", "\ufeff" + OURS.replace("\n", "\r\n")) == load_agent("implement", OURS)


def test_a_repository_may_add_an_agent() -> None:
    """Its name is new; the pipeline names it."""
    text = OURS.replace("name: implement", "name: security-review")

    assert load_agent("security-review", text).name == "security-review"
    assert override_path("security-review") == ".andon/agents/security-review.md"


def test_an_unknown_agent_is_refused_with_those_there_are() -> None:
    """And with the place for one's own."""
    with pytest.raises(
        ConfigError, match=r"'revue' is unknown: there are docs, implement, interface, spec, test.*\.andon/agents/revue\.md"
    ):
        load_agent("revue")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("steps: 40", "stepps: 40"), r"agents/implement\.md: stepps: unknown key; known are name, description, model, tools"),
        (("steps: 40", "steps: many"), r"agents/implement\.md: steps: "),
        (("steps: 40", "steps: 0"), "steps: "),
        (("steps: 40", "steps: true"), "steps: "),
        (("tools: [bash]", "tools: [bash, web_search]"), r"tools\.1: "),
        (("model: claude-opus-5-5\n", ""), "model: field required"),
        (("name: implement", "name: other"), "'other' is not the file's name 'implement'"),
        (("cache_ttl: 1h", "cache_ttl: 2h"), "cache_ttl: "),
        (("cache_ttl: 1h", "system: mine"), "system: unknown key"),
        (("---\nname", "name"), "begins with front matter"),
        (("cache_ttl: 1h\n---", "cache_ttl: 1h"), "no closing line"),
        (("# You write Rust\n\nBody with --- dashes.\n", ""), "no system prompt"),
        (("name: implement\n", "name: implement\nname: implement\n"), "twice"),
        (("name: implement\n", "- name\n"), r"agents/implement\.md"),
    ],
)
def test_a_wrong_file_is_refused_by_file_and_key(change: tuple[str, str], said: str) -> None:
    """One line a person can act on."""
    assert change[0] in OURS

    with pytest.raises(ConfigError, match=said):
        load_agent("implement", OURS.replace(*change))


def test_the_stage_beats_the_definition() -> None:
    """Model and limits of the pipeline file win; what it does not say stays."""
    definition = load_agent("implement", OURS, model="claude-haiku-5-5")

    spec = agent_spec(definition, "the task", steps_max=10)

    assert spec == AgentSpec(
        name="implement",
        model="claude-haiku-5-5",
        system=definition.system,
        prompt="the task",
        tools=("bash",),
        steps_max=10,
        output_tokens_max=16_000,
        cache_ttl="1h",
        tool_timeout_s=900,
    )
    assert agent_spec(definition, "the task", model="claude-fable-5-2").model == "claude-fable-5-2"
