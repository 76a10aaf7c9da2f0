"""Which program is the agent, as a pipeline file and an agent definition say it."""

import pytest

from sandbox.contract.agent_spec import DriverSpec
from sandbox.contract.errors import ConfigError
from supervisor.pipeline.definition import Stage
from supervisor.pipeline.load import load_pipeline
from supervisor.stages.agents import agent_spec, load_agent, parse_agent

MINI = DriverSpec(kind="command", command=("mini", "-t", "{prompt} {x}"), environment={"A": "{model}"}, clients="sandbox")


def stages_of(text: str, defaults: str = "{}") -> dict[str, Stage]:
    line = load_pipeline(
        f"pipeline: {{defaults: {defaults}, stages: [{text}, {{name: check, command: pytest, depends_on: []}}]}}", "x.yaml"
    )
    return {stage.name: stage for stage in line.stages}


def test_a_name_alone_is_as_it_was():
    """No driver: what the definition says."""
    stage = stages_of("{name: one, agent: impl-agent}")["one"]

    assert (stage.agent, stage.role, stage.driver) == ("implement", "implement", None)


def test_a_mapping_names_agent_and_driver():
    """The role follows from the agent's name, or from the stage's."""
    stages = stages_of("{name: one, agent: {name: test, driver: claude-code}}, {name: docs, agent: {driver: builtin}}")

    assert (stages["one"].agent, stages["one"].role, stages["one"].driver) == ("test", "test", DriverSpec(kind="claude-code"))
    assert (stages["docs"].agent, stages["docs"].driver) == ("docs", DriverSpec())


@pytest.mark.parametrize("command", ["mini -t '{prompt} {x}'", ["mini", "-t", "{prompt} {x}"]])
def test_a_command_is_words_or_a_text_of_words(command: object):
    """Split, never expanded; variables and clients go with it."""
    keys = f"driver: command, command: {command!r}, environment: {{A: '{{model}}'}}, clients: sandbox"
    if isinstance(command, str):
        keys = keys.replace(repr(command), f'"{command}"')

    assert stages_of(f"{{name: docs, agent: {{{keys}}}}}")["docs"].driver == MINI


def test_defaults_give_every_agent_a_driver():
    """A stage's own beats it; a stage without an agent has none."""
    stages = stages_of("{name: spec}, {name: docs, agent: {driver: builtin}}, {name: validate}", "{agent: {driver: claude-code}}")

    assert stages["spec"].driver == DriverSpec(kind="claude-code")
    assert stages["docs"].driver == DriverSpec()
    assert stages["validate"].driver is None
    assert stages["land"].driver is None


@pytest.mark.parametrize(
    ("agent", "says"),
    [
        ("{driver: codex}", "stage 'docs': agent.driver: input should be 'builtin', 'claude-code' or 'command'"),
        ("{drivr: command}", "stage 'docs': unknown key 'agent.drivr'; did you mean 'driver'?"),
        ("{driver: command}", "stage 'docs': agent: command: missing"),
        ("{driver: claude-code, command: claude}", "stage 'docs': agent: command: only driver `command` has one"),
        ("{command: mini}", "stage 'docs': agent: driver: missing"),
        ("{driver: builtin, clients: sandbox}", "stage 'docs': agent: driver: `builtin` has neither"),
        ('{driver: command, command: "mini \'x"}', "stage 'docs': agent.command: value error, No closing quotation"),
        ("{driver: command, command: [1]}", "stage 'docs': agent.command.0: input should be a valid string"),
        ("{driver: command, command: a, environment: {'A B': x}}", "stage 'docs': agent: environment.A B"),
        ("{driver: command, command: a, environment: {A: 1}}", "stage 'docs': agent.environment.A: input should be a valid string"),
        ("{name: Docs}", "stage 'docs': agent.name: string should match"),
        ("[docs]", "stage 'docs': agent: a mapping of keys is needed here"),
    ],
)
def test_what_is_wrong_names_stage_and_key(agent: str, says: str):
    """One line each."""
    with pytest.raises(ConfigError) as raised:
        stages_of(f"{{name: docs, agent: {agent}}}")

    assert says in str(raised.value)


def test_defaults_cannot_name_the_agent_of_every_stage():
    """Each has its own."""
    with pytest.raises(ConfigError, match=r"defaults: agent.name"):
        stages_of("{name: docs}", "{agent: docs}")


FILE = """---
name: docs
model: m
driver: command
command: mini -t "{prompt} {x}"
environment: {A: "{model}"}
clients: sandbox
---
Write it.
"""


def test_a_definition_brings_its_driver_and_the_stages_beats_it():
    """From the front matter to the wire."""
    definition = parse_agent(FILE, "docs.md")

    assert agent_spec(definition, "p").driver == MINI
    assert agent_spec(definition, "p", driver=DriverSpec(kind="claude-code")).driver.kind == "claude-code"
    assert agent_spec(load_agent("docs"), "p").driver == DriverSpec()
    with pytest.raises(ConfigError, match=r"docs.md: command: only driver `command`"):
        parse_agent(FILE.replace("driver: command", "driver: claude-code"), "docs.md")
