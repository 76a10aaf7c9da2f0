"""Text a person can paste when a repository's checks cannot run: `.andon/Dockerfile` and `quality.toml`; nothing is written here."""

import re
import tomllib
from collections.abc import Iterable

from sandbox.contract.errors import Rejected
from sandbox.contract.tree import Tree

_BYTES_MAX = 256 << 10
_PACKAGES_MAX = 60
_REQUIREMENTS = ("requirements.txt", "requirements-dev.txt", "requirements-test.txt", "requirements_dev.txt", "dev-requirements.txt")
_TEST_GROUPS = ("test", "tests", "testing", "dev")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._,-]+\])?\s*([<>=!~]=?[A-Za-z0-9.*+!,<>=~ -]*)?(;.*)?")
_NO_MODULE = re.compile(r"No module named '?([A-Za-z_][\w.]*)")


def missing_modules(texts: Iterable[str]) -> list[str]:
    """Return the top-level modules that tracebacks or outputs say are missing, sorted."""
    return sorted({match.group(1).split(".")[0] for text in texts for match in _NO_MODULE.finditer(text)})


def dockerfile_for(tree: Tree, missing: Iterable[str]) -> str:
    """Return a `.andon/Dockerfile` that installs what the base commit declares, else what was missing.

    Requirements are written out, not copied: the image is made anew when this file changes, and only then.
    """
    packages = _declared(tree) or sorted(missing)
    install = " ".join(f"'{package}'" for package in ["pytest", *(one for one in packages if one != "pytest")][:_PACKAGES_MAX])
    return f"FROM andon/agent\nRUN pip install --no-cache-dir {install}\n"


def quality_toml_for(command: str = "python -m pytest -q") -> str:
    """Return a `quality.toml` with one check, the tests."""
    return f'[quality_checks]\ntests = "{command}"\n'


def paste(*files: tuple[str, str]) -> str:
    """Return files as one block to paste, each under its path."""
    return "\n".join(f"--- {path}\n{text.rstrip()}" for path, text in files)


def _declared(tree: Tree) -> list[str]:
    found: list[str] = []
    for path in _REQUIREMENTS:
        found += [line.split(" #")[0].strip() for line in _text(tree, path).splitlines() if not line.lstrip().startswith(("#", "-"))]
    try:
        project = tomllib.loads(_text(tree, "pyproject.toml"))
    except (tomllib.TOMLDecodeError, RecursionError, MemoryError):
        project = {}
    table = project.get("project")
    if isinstance(table, dict):
        found += _strings(table.get("dependencies"))
        found += _of_groups(table.get("optional-dependencies"))
    found += _of_groups(project.get("dependency-groups"))
    return list(dict.fromkeys(one for one in found if len(one) <= 200 and "'" not in one and _REQUIREMENT.fullmatch(one)))


def _of_groups(groups: object) -> list[str]:
    return [one for name in _TEST_GROUPS for one in _strings(groups.get(name))] if isinstance(groups, dict) else []


def _strings(value: object) -> list[str]:
    return [one.strip() for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _text(tree: Tree, path: str) -> str:
    try:
        text = tree.read(path, _BYTES_MAX).decode("utf-8", "replace")
    except (KeyError, Rejected):
        return ""
    # The same bound as for quality.toml: long dotted keys make tomllib need gigabytes.
    return text if all(len(line) <= 2_000 for line in text.splitlines()) else ""
