"""What each stage owes and may write: scopes, rules in words, checks; not how a result is judged against them (`gates`).

The sets and their order are DECISIONS G3: a path the stage names > protected > tests > documentation > the rest.
"""

from collections.abc import Iterable
from typing import Literal

from pydantic import ValidationError

from sandbox.contract.errors import ConfigError
from sandbox.contract.model import Frozen
from sandbox.contract.scope import WriteScope
from supervisor.pipeline.definition import Pipeline, Stage
from supervisor.stages.path_classes import CONFTESTS_OF_TESTS, DOCS, PROTECTED_ANYWHERE, PROTECTED_AT_ROOT, TESTS
from supervisor.stages.quality import checks_for, checks_of_tests

__all__ = [
    "StageContract",
    "checks_for",
    "checks_of_tests",
    "class_of",
    "contract_for",
    "feature_directory",
    "scope_for",
    "scope_in_words",
    "spec_path",
    "violation",
]

FEATURES = ".andon/features"
SPEC_FILE = "spec.yaml"

Empty = Literal["allowed with a reason", "refused"]
PathClass = Literal["protected", "tests", "docs", "other"]


class StageContract(Frozen):
    """What a role promises: given to the agent in words, judged by the gate of the same name."""

    owes: str
    """What has to be there at the end, in one sentence."""
    rules: tuple[str, ...]
    empty: Empty
    """Whether a result without a change can pass."""


_CONTRACTS: dict[str, StageContract] = {
    "spec": StageContract(
        owes="one YAML file that says what the feature is, in requirements a test can decide",
        rules=(
            "Write only the specification; no code, no tests, no documentation.",
            "Keys: feature, description, requirements, affected_components, dependencies. No other key.",
            "Each requirement has id (REQ-001, REQ-002, …), description and acceptance.",
            "`acceptance` is a list of lines; a criterion begins at each line that starts with `Given` and needs a `When` and a `Then`.",
            "Do not number the criteria: their ids (REQ-001.1 is the first one of REQ-001) are written by Andon.",
            "Affected components are paths that exist in the repository, or will.",
        ),
        empty="refused",
    ),
    "interface": StageContract(
        owes="signatures, types, docstrings and configuration models of everything the feature adds, without bodies",
        rules=(
            "A body is a docstring and `...`, `pass` or `raise NotImplementedError`; nothing else.",
            "At module level: imports, definitions, and assignments of constants or types. No code that runs.",
            "Annotate every parameter and every return; say units, errors and limits in the docstring.",
            "Do not touch the bodies of existing functions; what you add or change is locked afterwards.",
            "If the feature needs no new interface, change nothing and say why in the summary.",
        ),
        empty="allowed with a reason",
    ),
    "implement": StageContract(
        owes="working bodies for everything the interface declares",
        rules=(
            "The interface is locked: signatures, defaults, annotations, decorators, bases, class attributes and `__all__` stay.",
            "In a locked file you may add imports and names that begin with an underscore; other new names go into new files.",
            "Leave no stub behind.",
            "Tests are written by somebody else, from the same interface, and you will not see them: build what the specification says.",
            "If the interface makes the feature impossible, submit `blocked` and say exactly what has to change.",
        ),
        empty="refused",
    ),
    "test": StageContract(
        owes="at least one test for each acceptance criterion, red now because the bodies are missing",
        rules=(
            "A test's name carries the criterion it decides: `test_req_001_1_…` for REQ-001.1.",
            "Test what the specification and the interface promise, never how it might be built.",
            "Each requirement needs at least one test that fails on the stubs by reaching them or by a failed assertion; "
            "a test that fails because it cannot be imported or collected is broken, not red.",
            "Do not skip, do not mark as expected failure, do not sleep.",
        ),
        empty="refused",
    ),
    "docs": StageContract(
        owes="documentation of what the feature changed for its users",
        rules=(
            "Change only documentation; update existing sections before adding new ones, and the changelog if there is one.",
            "Every example must be true of the code as it is.",
            "If nothing needs documenting, change nothing and say why in the summary.",
        ),
        empty="allowed with a reason",
    ),
}

_NO_WORK = StageContract(owes="nothing: it writes no file", rules=(), empty="allowed with a reason")


def contract_for(role: str) -> StageContract:
    """Return what a role owes; roles without an agent owe nothing."""
    return _CONTRACTS.get(role, _NO_WORK)


def feature_directory(feature: str) -> str:
    """Return the directory a feature's specification lives in."""
    return f"{FEATURES}/{feature}"


def spec_path(pipeline: Pipeline, feature: str) -> str:
    """Return where the run's specification is: the spec stage's `output`, or the default."""
    for stage in pipeline.stages:
        if stage.role == "spec" and stage.output:
            return _filled(stage.output, feature)
    return f"{feature_directory(feature)}/{SPEC_FILE}"


def scope_for(stage: Stage, feature: str) -> WriteScope:
    """Return what a stage may write (DECISIONS G3); validate, land and the checks jobs may write nothing.

    Raises:
        ConfigError: A glob the stage names can match nothing; the message names stage and glob.
    """
    named = tuple(_filled(glob, feature) for glob in (*stage.allow, *((stage.output,) if stage.output else ())))
    match stage.role:
        case "interface" | "implement":
            globs = ("**", *_denied(DOCS), *_denied(TESTS), *_denied(PROTECTED_AT_ROOT), *_denied(PROTECTED_ANYWHERE))
        case "test":
            globs = (*TESTS, *_denied(PROTECTED_AT_ROOT), *_denied(PROTECTED_ANYWHERE), *CONFTESTS_OF_TESTS)
        case "docs":
            globs = (*DOCS, *_denied(TESTS), *_denied(PROTECTED_AT_ROOT), *_denied(PROTECTED_ANYWHERE))
        case "spec":
            globs = (f"{feature_directory(feature)}/**", *_denied(PROTECTED_ANYWHERE))
        case "validate" | "land":
            return WriteScope()
    try:
        return WriteScope(patterns=(*globs, *named))
    except ValidationError as error:
        raise ConfigError(f"stage {stage.name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def scope_in_words(stage: Stage, feature: str) -> str:
    """Return a stage's write scope as sentences, for the agent and for a person."""
    named = [*stage.allow, *([stage.output] if stage.output else [])]
    also = f" Also: {', '.join(f'`{_filled(glob, feature)}`' for glob in named)}." if named else ""
    protected = (
        "Never: "
        + ", ".join(f"`{glob}`" for glob in (*PROTECTED_AT_ROOT, *PROTECTED_ANYWHERE))
        + " (outside directories of tests for the last one)."
    )
    match stage.role:
        case "interface" | "implement":
            return f"Everything but tests ({_listed(TESTS)}) and documentation ({_listed(DOCS)}). {protected}{also}"
        case "test":
            return f"Tests only: {_listed(TESTS)}. {protected}{also}"
        case "docs":
            return f"Documentation only: {_listed(DOCS)}, but nothing among the tests ({_listed(TESTS)}). {protected}{also}"
        case "spec":
            return f"Only `{feature_directory(feature)}/**`.{also}"
        case "validate" | "land":
            return "Nothing."


def violation(path: str, stage: Stage) -> str:
    """Return the finding for one path outside a stage's scope: path, stage, why, and the line of YAML that would allow it."""
    return (
        f"stage {stage.name} may not write {path!r}: {_reason(path, stage.role)}. "
        f"If it should, add `scope: [{_yaml(path)}]` to stage {stage.name} in `.andon/pipeline.yaml`"
    )


def class_of(path: str) -> PathClass:
    """Return which set of G3 a path belongs to, in the order protected > tests > documentation."""
    sets: tuple[tuple[PathClass, tuple[str, ...]], ...] = (
        ("tests", CONFTESTS_OF_TESTS),
        ("protected", (*PROTECTED_AT_ROOT, *PROTECTED_ANYWHERE)),
        ("tests", TESTS),
        ("docs", DOCS),
    )
    return next((name for name, globs in sets if _any(path, globs)), "other")


def _reason(path: str, role: str) -> str:
    if role in {"validate", "land"}:
        return "it may write nothing"
    return {
        "protected": "the file is protected (configuration, gates, lock files or instructions to agents)",
        "tests": "tests are written by the test stage",
        "docs": "documentation is written by the docs stage",
        "other": f"it is outside what a {role} stage writes",
    }[class_of(path)]


def _denied(globs: Iterable[str]) -> tuple[str, ...]:
    """Return denials of `globs`; a file or link in the place of a denied directory is denied like what is below it."""
    denials: list[str] = []
    for glob in globs:
        denials.append(f"!{glob}")
        if glob.endswith("/**"):
            denials.append(f"!{glob.removesuffix('/**')}")
    return tuple(denials)


def _any(path: str, globs: Iterable[str]) -> bool:
    return not WriteScope(patterns=("**", *_denied(globs))).allows(path)


def _filled(template: str, feature: str) -> str:
    return template.replace("{feature_slug}", feature).replace("{feature}", feature)


def _listed(globs: Iterable[str]) -> str:
    return ", ".join(f"`{glob}`" for glob in globs)


def _yaml(path: str) -> str:
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
