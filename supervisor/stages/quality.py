"""Which commands judge a run: `quality.toml [quality_checks]` of the base commit, or a stage's own command (DECISIONS G5).

Parsing only. The commands run in a sandbox (`sandbox/inside/checks`), never here, and never through a shell.
"""

import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import PurePosixPath

from sandbox.contract.errors import ConfigError, Rejected, UnsafePath
from sandbox.contract.job import Check, ReportFormat
from sandbox.contract.scope import WriteScope, checked_path
from sandbox.contract.tree import Tree
from supervisor.pipeline.definition import Stage
from supervisor.stages.importable import python_of
from supervisor.stages.path_classes import OF_THE_TESTS

QUALITY_FILE = "quality.toml"
QUALITY_BYTES_MAX = 64 << 10
LINE_CHARS_MAX = 2_000
"""A dotted key of 30,000 parts takes tomllib 18 s and 3.4 GB (measured); one of a line this long, 10 ms."""
CHECKS_MAX = 32

SIGNATURES = "signatures"
"""The name of the check of ours that imports the locked modules; in the file, which Python does, or `false`."""

_TABLE = "quality_checks"
_KEYS = ("command", "report", "path", "blocking", "sealed")
_TEST_NAMES = frozenset({"tests", "test_runner"})
_FORMATS: dict[str, ReportFormat] = {"junit": "junit", "sarif": "sarif", "none": "none"}
_SHELL_WORDS = frozenset({"&&", "||", "|", ";", "&", ">", ">>", "<", "2>&1"})
_DEFAULT_TESTS = "pytest"


def checks_for(tree: Tree, stage: Stage) -> tuple[Check, ...]:
    """Return the checks of a validate stage, in the file's order.

    A stage's `command` wins over the file; no file, or one that names no tests, means `pytest`. Each check may use nine
    tenths of the stage's wall clock.

    Args:
        tree: The run's base commit: never the branch under test (DECISIONS D12).
        stage: The validate stage.

    Raises:
        ConfigError: The file or the command is wrong; the message names file and key.
    """
    timeout_s = max(1, stage.limits.wall_s * 9 // 10)
    if stage.command is not None:
        source = f"stage {stage.name}: command"
        return (_check("tests", {"command": stage.command}, source, timeout_s),)
    table = dict(_table(tree))
    _python(table.pop(SIGNATURES, True))
    if len(table) > CHECKS_MAX:
        raise ConfigError(f"{QUALITY_FILE}: [{_TABLE}] has {len(table)} checks; at most {CHECKS_MAX}")
    checks = [_check(name, value, f"{QUALITY_FILE}: {_TABLE}.{name}", timeout_s) for name, value in table.items()]
    if not any(check.is_tests for check in checks):
        checks.append(_check("pytest" if "tests" in table else "tests", _DEFAULT_TESTS, QUALITY_FILE, timeout_s))
    _refuse_shared_reports(checks)
    return tuple(checks)


def checks_of_tests(checks: tuple[Check, ...]) -> tuple[Check, ...]:
    """Return those checks that report test ids: what a red-check runs."""
    return tuple(check for check in checks if check.is_tests)


def signatures_python(tree: Tree, stage: Stage) -> tuple[str, ...] | None:
    """Return the words that start the Python locked modules are imported in; None if the file says they are not.

    Without a word of the file it is the Python the tests run in.

    Args:
        tree: The run's base commit.
        stage: The validate stage.

    Raises:
        ConfigError: The file is wrong; the message names file and key.
    """
    given = _table(tree).get(SIGNATURES, True)
    if given is not True:
        return _python(given)
    return next((python_of(check.argv) for check in checks_for(tree, stage) if check.is_tests), ("python",))


def is_pytest(argv: tuple[str, ...]) -> bool:
    """Return whether a command is pytest, by name or by `python -m`."""
    names = [PurePosixPath(word).name for word in argv]
    return any(name in {"pytest", "py.test"} for name in names[:1]) or ("-m" in names and "pytest" in names[names.index("-m") + 1 :][:1])


def takes_plugins(argv: tuple[str, ...]) -> bool:
    """Return whether a command is pytest in a Python that looks at `PYTHONPATH`: then it can be given plugins of ours."""
    if not is_pytest(argv):
        return False
    before = argv[1 : argv.index("-m")] if "-m" in argv else ()
    return not any(word.startswith("-") and set(word) & {"I", "E"} for word in before)


def _table(tree: Tree) -> Mapping[str, object]:
    try:
        data = tree.read(QUALITY_FILE, QUALITY_BYTES_MAX)
    except KeyError:
        return {}
    except Rejected as error:
        raise ConfigError(f"{QUALITY_FILE} of the base commit: larger than {QUALITY_BYTES_MAX} bytes") from error
    if any(len(line) > LINE_CHARS_MAX for line in data.splitlines()):
        raise ConfigError(f"{QUALITY_FILE} of the base commit has a line of more than {LINE_CHARS_MAX} characters")
    try:
        document = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{QUALITY_FILE} of the base commit is not TOML: {error}") from error
    except (RecursionError, MemoryError) as error:  # deep nesting, measured: SANDBOX.md §1.6
        raise ConfigError(f"{QUALITY_FILE} of the base commit is nested too deeply") from error
    table = document.get(_TABLE, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{QUALITY_FILE}: {_TABLE} is not a table; write [{_TABLE}]")
    return table


def _check(name: str, value: object, source: str, timeout_s: int) -> Check:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,47}", name):
        raise ConfigError(f"{source}: a check's name is 1 to 48 of a-z, 0-9, '_' and '-'")
    options = {"command": value} if isinstance(value, str) else value
    if not isinstance(options, dict) or not isinstance(options.get("command"), str):
        raise ConfigError(f'{source}: write a command, or {{command = "…", report = "junit"}}')
    unknown = sorted(set(options) - set(_KEYS))
    if unknown:
        raise ConfigError(f"{source}.{unknown[0]}: unknown key; known are {', '.join(_KEYS)}")
    argv = _argv(options["command"], source)
    report = _report(name, argv, options.get("report"), source)
    blocking = options.get("blocking", True)
    is_tests = report == "junit"
    if not isinstance(blocking, bool) or (is_tests and not blocking):
        raise ConfigError(f"{source}.blocking: true or false, and always true for tests")
    return Check(
        name=name,
        argv=argv,
        report=report,
        path=_path(options.get("path"), report, source),
        blocking=blocking,
        is_tests=is_tests,
        canary=is_tests and takes_plugins(argv),
        tests_scope=_sealed(options.get("sealed", False), is_tests and takes_plugins(argv), source),
        timeout_s=timeout_s,
    )


def _python(given: object) -> tuple[str, ...] | None:
    source = f"{QUALITY_FILE}: {_TABLE}.{SIGNATURES}"
    if isinstance(given, bool):
        return ("python",) if given else None
    if not isinstance(given, str):
        raise ConfigError(f'{source}: how Python is started, e.g. "uv run python", or false')
    return _argv(given, source)


def _sealed(given: object, is_possible: bool, source: str) -> WriteScope | None:
    if not isinstance(given, bool) or (given and not is_possible):
        raise ConfigError(f"{source}.sealed: true or false, and true only for `pytest` or `python -m pytest` with a JUnit report")
    return WriteScope(patterns=OF_THE_TESTS) if given else None


def _argv(command: str, source: str) -> tuple[str, ...]:
    try:
        argv = tuple(shlex.split(command))
    except ValueError as error:
        raise ConfigError(f"{source}: {command!r} cannot be split into words: {error}") from error
    if not argv or "\0" in command:
        raise ConfigError(f"{source}: the command is empty or holds a NUL")
    shell = sorted(_SHELL_WORDS & set(argv))
    if shell:
        raise ConfigError(f"{source}: {shell[0]!r} needs a shell and there is none; make it two checks, or a script in the repository")
    if "=" in argv[0]:
        raise ConfigError(f"{source}: {argv[0]!r} is not a program; write `env {argv[0]} …`")
    return argv


def _report(name: str, argv: tuple[str, ...], given: object, source: str) -> ReportFormat:
    """Tests must leave a JUnit report (their ids are the evidence); pytest is made to write one whatever its check is called."""
    if given is None:
        return "junit" if name in _TEST_NAMES or is_pytest(argv) else "none"
    if not isinstance(given, str) or given not in _FORMATS:
        raise ConfigError(f"{source}.report: one of junit, sarif, none")
    if name in _TEST_NAMES and given != "junit":
        raise ConfigError(f'{source}.report: tests need report = "junit", their ids are the evidence')
    return _FORMATS[given]


def _path(given: object, report: ReportFormat, source: str) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str) or report == "none":
        raise ConfigError(f"{source}.path: a path below /out, for a check with report = junit or sarif")
    try:
        return checked_path(given.removeprefix("/out/"))
    except UnsafePath as error:
        raise ConfigError(f"{source}.path: {error}") from error


def _refuse_shared_reports(checks: list[Check]) -> None:
    writers: dict[str, str] = {}
    for check in checks:
        if check.report_path is None:
            continue
        if check.report_path in writers:
            raise ConfigError(
                f"{QUALITY_FILE}: {writers[check.report_path]} and {check.name} both leave /out/{check.report_path}; give one a `path`"
            )
        writers[check.report_path] = check.name
