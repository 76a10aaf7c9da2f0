"""The documents say what the linters check, and name commands that exist."""

import re
import subprocess
from typing import Any

import pytest

from tests.architecture.source import ROOT, project

ARCHITECTURE = ROOT / "ARCHITECTURE.md"


def layers_in_contracts() -> list[str]:
    tool: Any = project()["tool"]
    contracts = tool["importlinter"]["contracts"]
    return [layer for contract in contracts if contract["type"] == "layers" for layer in contract["layers"]]


def layers_in_document() -> list[str]:
    """Read the first cell of every row of the tables below a heading that says `may import`."""
    section = re.search(r"(?ms)^#+ [^\n]*may import[^\n]*\n(.*?)(?=^#|\Z)", ARCHITECTURE.read_text())
    assert section, "ARCHITECTURE.md has no section whose heading says `may import`"
    rows = re.findall(r"(?m)^\| (`[^|]*`(?: · `[^|]*`)*) \|", section[1])
    return [" | ".join(re.findall(r"`([^`]+)`", row)) for row in rows]


@pytest.mark.skipif(not ARCHITECTURE.exists(), reason="ARCHITECTURE.md is not written yet")
def test_the_table_of_layers_is_the_linters():
    """What a reader learns from ARCHITECTURE.md is what import-linter enforces, in the same order."""
    assert layers_in_document() == layers_in_contracts()


def test_every_layer_of_the_contracts_exists():
    """A contract about a module that is not there protects nothing."""
    tool: Any = project()["tool"]
    missing = [
        f"{container}.{module}"
        for contract in tool["importlinter"]["contracts"]
        if contract["type"] == "layers"
        for container in contract["containers"]
        for layer in contract["layers"]
        for module in layer.split(" | ")
        if not module.startswith("(") and not ((ROOT / container / module).is_dir() or (ROOT / container / f"{module}.py").is_file())
    ]

    assert missing == []


def test_make_lists_every_command_it_has():
    """A target a person may call has a line of help."""
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"(?m)^\.PHONY: (\S+)", makefile))

    listed = subprocess.run(["make", "--no-print-directory", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout

    assert set(re.findall(r"make (\S+)", listed)) >= phony - {"dev"}


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="README.md is not written yet")
def test_documents_name_only_commands_that_exist():
    """`make X` in a document is a target of the Makefile."""
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]

    named = {word for document in documents for word in re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", document.read_text(), re.MULTILINE)}

    assert {first or second for first, second in named} - targets == set()
