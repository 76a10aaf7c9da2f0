"""Which commands judge a run: the base commit's `quality.toml`, a stage's command, or pytest."""

import pytest

from sandbox.contract.errors import ConfigError
from sandbox.contract.job import Check, Limits
from supervisor.pipeline.definition import Stage
from supervisor.stages.quality import QUALITY_BYTES_MAX, checks_for, checks_of_tests, signatures_python
from tests.fakes.memory_tree import Link, MemoryTree


def the_checks(text: str | None, command: str | None = None, wall_s: int = 1800) -> tuple[Check, ...]:
    tree = MemoryTree({} if text is None else {"quality.toml": text})
    return checks_for(tree, Stage(name="validate", role="validate", command=command, limits=Limits(wall_s=wall_s)))


@pytest.mark.parametrize("text", [None, "", "[quality_checks]\n", "[other]\na = 1\n"])
def test_without_a_file_pytest_judges(text: str | None):
    """No file, or none of our table, means pytest with its JUnit report required."""
    (check,) = the_checks(text)

    assert (check.name, check.argv, check.report, check.report_path, check.is_tests) == ("tests", ("pytest",), "junit", "tests.xml", True)


def test_the_first_source_s_four_keys_are_four_checks_in_order():
    """`linter`, `type_checker`, `security_scanner` and `test_runner` are ordinary names; the last one has test ids."""
    checks = the_checks(
        '[quality_checks]\nlinter = "ruff check ."\ntype_checker = "mypy src"\n'
        'security_scanner = "bandit -r src"\ntest_runner = "python -m pytest -q"\n'
    )

    assert [check.name for check in checks] == ["linter", "type_checker", "security_scanner", "test_runner"]
    assert [check.is_tests for check in checks] == [False, False, False, True]
    assert checks[0].argv == ("ruff", "check", ".")
    assert checks_of_tests(checks) == (checks[3],)


def test_a_file_without_tests_gets_pytest():
    """A line of linters alone would let a feature land untested."""
    checks = the_checks('[quality_checks]\nlinter = "ruff check ."\n')

    assert [check.name for check in checks] == ["linter", "tests"]


def test_a_table_says_where_its_report_is():
    """`command`, `report`, `path` and `blocking` are the four options."""
    tests, lint = the_checks(
        '[quality_checks]\ntests = {command = "npx jest", report = "junit", path = "/out/j/junit.xml"}\n'
        'lint = {command = "ruff check .", report = "sarif", blocking = false}\n'
    )

    assert (tests.report_path, tests.is_tests) == ("j/junit.xml", True)
    assert (lint.report_path, lint.blocking, lint.is_tests) == ("lint.sarif", False, False)


@pytest.mark.parametrize("command", ["pytest -q", "python3 -m pytest", "/opt/venv/bin/pytest tests"])
def test_pytest_is_known_by_its_command(command: str):
    """Whatever the check is called, pytest reports its ids."""
    (check,) = the_checks(f'[quality_checks]\nunit = "{command}"\n')

    assert (check.report, check.is_tests) == ("junit", True)


@pytest.mark.parametrize(
    ("command", "canary"),
    [
        ("pytest", True),
        ("python -m pytest -q", True),
        ("python -W error -m pytest", True),
        ("python -I -m pytest", False),
        ("python -sE -m pytest", False),
        ("make test", False),
        ("tox", False),
    ],
)
def test_a_test_that_must_fail_is_owed_where_one_can_be_added(command: str, canary: bool):
    """A Python that ignores `PYTHONPATH`, or another program, cannot be given it."""
    (check,) = the_checks(f'[quality_checks]\ntests = "{command}"\n')

    assert check.canary == canary


def test_a_sealed_check_knows_which_paths_are_tests():
    """Tests and their conftest on one side, the product on the other; without the key there are no sides."""
    text = '[quality_checks]\ntests = {command = "python -m pytest", sealed = true}\nmore = {command = "pytest more", path = "x.xml"}\n'

    sealed, plain = the_checks(text)

    assert sealed.tests_scope is not None
    assert [sealed.tests_scope.allows(path) for path in ("tests/a.py", "conftest.py", "a/conftest.py", "app.py", "pyproject.toml")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert plain.tests_scope is None


@pytest.mark.parametrize(
    "value", ['"make test", sealed = true', '"python -I -m pytest", sealed = true', '"pytest", sealed = "yes"', '"pytest", sealed = 1']
)
def test_only_pytest_can_be_sealed(value: str):
    """The message names file and key."""
    with pytest.raises(ConfigError, match=r"quality_checks\.tests\.sealed: true or false"):
        the_checks(f"[quality_checks]\ntests = {{command = {value}}}\n")


def test_a_stage_s_command_wins_over_the_file():
    """The pipeline's `command: pytest` is what the first source writes."""
    (check,) = the_checks('[quality_checks]\nlinter = "ruff check ."\n', command="pytest -x")

    assert (check.argv, check.is_tests) == (("pytest", "-x"), True)


def test_a_check_may_use_most_of_the_stage_s_wall_clock():
    """A check that hangs ends before its stage does, so that it can be named."""
    (check,) = the_checks(None, wall_s=600)

    assert check.timeout_s == 540


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[quality_checks\n", "is not TOML"),
        ("quality_checks = 3\n", "is not a table"),
        ("[quality_checks]\ntests = 3\n", "quality_checks.tests: write a command"),
        ('[quality_checks]\n"Lint It" = "ruff"\n', "a check's name is"),
        ('[quality_checks]\ntests = ""\n', "empty"),
        ('[quality_checks]\ntests = "pytest \'"\n', "cannot be split"),
        ('[quality_checks]\ntests = "ruff . && pytest"\n', "needs a shell"),
        ('[quality_checks]\ntests = "FOO=1 pytest"\n', "write `env FOO=1"),
        ('[quality_checks]\ntests = {command = "pytest", reprot = "junit"}\n', "quality_checks.tests.reprot: unknown key"),
        ('[quality_checks]\ntests = {command = "pytest", report = "none"}\n', "tests need report"),
        ('[quality_checks]\nlint = {command = "ruff", report = "html"}\n', "one of junit, sarif, none"),
        ('[quality_checks]\nlint = {command = "ruff", report = "sarif", path = "../x"}\n', "climbs"),
        ('[quality_checks]\nlint = {command = "ruff", path = "x"}\n', "for a check with report"),
        ('[quality_checks]\ntests = {command = "pytest", blocking = false}\n', "always true for tests"),
        ('[quality_checks]\na = "pytest a"\nb = {command = "pytest b", path = "a.xml"}\n', "both leave /out/a.xml"),
        ("[quality_checks]\n" + "".join(f'c{n} = "true"\n' for n in range(40)), "at most 32"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_file_and_key(text: str, message: str):
    """Nothing is guessed: a typo never silently removes a check."""
    with pytest.raises(ConfigError, match=r"quality\.toml") as raised:
        the_checks(text)

    assert message in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "a" + ".a" * 30_000 + " = 1\n",
        "a = '''\n" + "a" * 30_000 + "\n'''\n",
        "a = " + "[" * 30_000,
        "a = " + "{b = " * 10_000,
        "#" * (QUALITY_BYTES_MAX + 1),
        "a = '\xff",
    ],
)
def test_a_bomb_is_an_error_of_configuration(text: str):
    """Depth and size are bounded (SANDBOX.md §1.6)."""
    with pytest.raises(ConfigError):
        the_checks(text)


def test_a_link_in_its_place_is_no_file():
    """Links are never followed."""
    tree = MemoryTree({"quality.toml": Link("/etc/passwd")})

    assert checks_for(tree, Stage(name="validate", role="validate"))[0].argv == ("pytest",)


@pytest.mark.parametrize(
    ("text", "python"),
    [
        ("", ("python",)),
        ('[quality_checks]\ntest_runner = "uv run pytest"\n', ("uv", "run", "python")),
        ('[quality_checks]\nsignatures = true\ntests = "python3.12 -m pytest"\n', ("python3.12",)),
        ('[quality_checks]\nsignatures = "uv run python"\n', ("uv", "run", "python")),
        ("[quality_checks]\nsignatures = false\n", None),
    ],
)
def test_signatures_are_read_by_the_python_of_the_tests_or_the_one_that_is_named(text: str, python: tuple[str, ...] | None):
    """`signatures` is no check of the repository's own."""
    stage = Stage(name="validate", role="validate")

    assert signatures_python(MemoryTree({"quality.toml": text}), stage) == python
    assert "signatures" not in [check.name for check in the_checks(text)]


@pytest.mark.parametrize("value", ["3", "{command = 'python'}", "'python && x'", "''"])
def test_signatures_that_name_no_python_are_refused(value: str):
    """At the run's intake, where the checks are read."""
    with pytest.raises(ConfigError, match=r"quality_checks\.signatures"):
        the_checks(f"[quality_checks]\nsignatures = {value}\n")
