"""`docs/agents.md` names every key of an agent, every driver and every placeholder."""

from typing import get_args

from sandbox.contract.agent_spec import DriverKind
from sandbox.inside.drivers.form import PLACEHOLDERS
from supervisor.pipeline.load import load_pipeline
from supervisor.stages.agents import AgentDefinition
from tests.architecture.source import ROOT
from tests.fakes.documents import block_of

PAGE = ROOT / "docs" / "agents.md"


def test_every_key_driver_and_placeholder_is_named():
    """What a person may write is on the page."""
    text = PAGE.read_text()
    keys = [f"`{name}`" for name in AgentDefinition.model_fields if name != "system"]
    names = [*keys, *(f"`{kind}`" for kind in get_args(DriverKind)), *(f"{{{name}}}" for name in PLACEHOLDERS)]

    assert [name for name in names if name not in text] == []


def test_its_pipeline_loads():
    """Copied as it is; the end-to-end test runs it."""
    line = load_pipeline(block_of(PAGE, "yaml"), "docs/agents.md")

    assert [stage.driver.kind if stage.driver else None for stage in line.stages] == ["claude-code", "command", None, None]
