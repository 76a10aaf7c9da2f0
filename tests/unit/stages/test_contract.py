"""Stage contracts: what each role may write by default, what a stage can name, and how a violation is explained."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.contract.errors import ConfigError
from sandbox.contract.scope import WriteScope
from supervisor.pipeline.definition import Pipeline, Role, Stage
from supervisor.stages.contract import class_of, contract_for, feature_directory, scope_for, scope_in_words, spec_path, violation

PATHS = st.lists(
    st.sampled_from(
        [
            "src",
            "tests",
            "docs",
            "a.py",
            "test_a.py",
            "conftest.py",
            "README.md",
            "AGENTS.md",
            ".github",
            ".claude",
            "uv.lock",
            "__tests__",
            "x",
        ]
    ),
    min_size=1,
    max_size=4,
).map("/".join)


def a_stage(role: Role, *allow: str, output: str | None = None) -> Stage:
    return Stage(name=role, role=role, allow=allow, output=output)


def the_scope(role: Role, *allow: str) -> WriteScope:
    return scope_for(a_stage(role, *allow), "rate-limit")


@pytest.mark.parametrize(
    ("path", "spec", "interface", "test", "docs"),
    [
        ("src/app.py", False, True, False, False),
        ("app.py", False, True, False, False),
        (".env.example", False, True, False, False),
        ("tests/test_app.py", False, False, True, False),
        ("tests/data/a.json", False, False, True, False),
        ("test/a.rb", False, False, True, False),
        ("src/test_app.py", False, False, True, False),
        ("src/app_test.go", False, False, True, False),
        ("web/app.test.ts", False, False, True, False),
        ("web/app.spec.ts", False, False, True, False),
        ("web/__tests__/app.ts", False, False, True, False),
        ("tests/README.md", False, False, True, False),
        ("tests/conftest.py", False, False, True, False),
        ("tests/unit/conftest.py", False, False, True, False),
        ("web/__tests__/conftest.py", False, False, True, False),
        ("src/conftest.py", False, False, False, False),
        ("conftest.py", False, False, False, False),
        ("docs/guide.md", False, False, False, True),
        ("docs/img/a.png", False, False, False, True),
        ("src/notes.md", False, False, False, True),
        ("README.rst", False, False, False, True),
        ("CHANGELOG", False, False, False, True),
        ("changelog.d/1.feature", False, False, False, True),
        (".gitignore", False, False, False, False),
        (".gitmodules", False, False, False, False),
        (".gitlab-ci.yml", False, False, False, False),
        (".github/workflows/ci.yml", False, False, False, False),
        (".andon/pipeline.yaml", False, False, False, False),
        (".andon/features/rate-limit/spec.yaml", True, False, False, False),
        (".andon/features/other/spec.yaml", False, False, False, False),
        (".andon/features/rate-limit/AGENTS.md", False, False, False, False),
        ("quality.toml", False, False, False, False),
        ("src/quality.toml", False, True, False, False),
        ("pyproject.toml", False, False, False, False),
        ("packages/x/pyproject.toml", False, True, False, False),
        ("Makefile", False, False, False, False),
        ("makefile", False, False, False, False),
        ("AGENTS.md", False, False, False, False),
        ("docs/CLAUDE.md", False, False, False, False),
        ("tests/agents.md", False, False, False, False),
        ("src/.claude/settings.json", False, False, False, False),
        ("poetry.lock", False, False, False, False),
        ("web/package-lock.json", False, False, False, False),
        ("tests/fixtures/uv.lock", False, False, False, False),
    ],
)
def test_the_default_scopes_are_those_of_the_decision(path: str, spec: bool, interface: bool, test: bool, docs: bool):
    """Each class of path belongs to one stage, the protected ones to none (DECISIONS G3)."""
    allowed = {role: the_scope(role).allows(path) for role in ("spec", "interface", "implement", "test", "docs")}

    assert allowed == {"spec": spec, "interface": interface, "implement": interface, "test": test, "docs": docs}


@given(PATHS)
def test_the_scopes_of_stages_that_run_at_once_are_disjoint(path: str):
    """No path is writable by two of implement, test and docs, whatever it is called."""
    writers = [role for role in ("implement", "test", "docs") if the_scope(role).allows(path)]

    assert len(writers) <= 1


@given(PATHS)
def test_a_path_belongs_to_the_class_its_writer_says(path: str):
    """The class used to explain a violation agrees with the scopes used to judge it."""
    roles: tuple[Role, ...] = ("implement", "test", "docs")
    writer = {"tests": "test", "docs": "docs", "other": "implement", "protected": None}[class_of(path)]

    assert {role for role in roles if the_scope(role).allows(path)} <= {writer}


@pytest.mark.parametrize("path", ["tests", "docs", ".andon", ".claude", "src/.claude", "Tests/test_a.PY", "src/__tests__"])
def test_a_file_in_the_place_of_a_denied_directory_is_denied(path: str):
    """A link named `tests` or `.claude` is a way into what is below it."""
    assert not the_scope("implement").allows(path)


def test_a_stage_that_names_a_protected_path_may_write_it_and_only_it():
    """What the pipeline file names beats the protected list."""
    scope = the_scope("implement", "pyproject.toml", "tests/data/{feature_slug}/**")

    assert scope.allows("pyproject.toml")
    assert scope.allows("tests/data/rate-limit/a.json")
    assert not scope.allows("setup.py")
    assert not scope.allows("tests/test_a.py")


def test_the_output_of_a_stage_is_a_path_it_names():
    """The first source's `output:` says where a stage leaves its file."""
    stage = a_stage("spec", output="specs/{feature_slug}.yaml")

    assert scope_for(stage, "rate-limit").allows("specs/rate-limit.yaml")
    assert spec_path(Pipeline(stages=(stage,)), "rate-limit") == "specs/rate-limit.yaml"
    assert spec_path(Pipeline(stages=(a_stage("docs"),)), "x") == f"{feature_directory('x')}/spec.yaml"


@pytest.mark.parametrize("role", ["validate", "land"])
def test_a_stage_without_an_agent_may_write_nothing(role: Role):
    """Checks leave reports, not files."""
    assert scope_for(a_stage(role, "src/**"), "x") == WriteScope()


def test_a_glob_that_can_match_nothing_is_an_error_of_configuration():
    """The message names the stage and the glob."""
    with pytest.raises(ConfigError, match=r"stage implement: glob '/src/\*\*' can match nothing"):
        the_scope("implement", "/src/**")


def test_a_violation_names_path_stage_reason_and_the_line_that_would_allow_it():
    """A person can paste the line; an agent can read why."""
    message = violation("pyproject.toml", a_stage("implement"))

    assert "stage implement may not write 'pyproject.toml'" in message
    assert "protected" in message
    assert 'scope: ["pyproject.toml"]' in message
    assert ".andon/pipeline.yaml" in message


def test_a_hostile_name_cannot_break_the_line_of_yaml():
    """A quote in a path stays inside the quotes."""
    assert r'scope: ["a\"b"]' in violation('a"b', a_stage("test"))


@pytest.mark.parametrize("role", ["spec", "interface", "implement", "test", "docs"])
def test_every_agent_role_has_a_contract_and_a_scope_in_words(role: Role):
    """The words an agent reads exist for each role that has one."""
    contract = contract_for(role)

    assert contract.owes
    assert contract.rules
    assert "`" in scope_in_words(a_stage(role, "x/**"), "rate-limit")
    assert "`x/**`" in scope_in_words(a_stage(role, "x/**"), "rate-limit")


def test_only_interface_and_docs_may_end_empty():
    """An empty result is allowed where a reason can be enough (DECISIONS G7)."""
    allowed = {role for role in ("spec", "interface", "implement", "test", "docs") if contract_for(role).empty != "refused"}

    assert allowed == {"interface", "docs"}
