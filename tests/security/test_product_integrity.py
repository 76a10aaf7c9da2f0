"""What a change could do to those who judge it, build it or open it: configuration, hooks, instructions, dependencies, silenced tools."""

import ast
import compileall
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.contract.errors import ConfigError
from sandbox.contract.interface_lock import drift, lock_interface
from sandbox.contract.scope import WriteScope, offending_paths
from sandbox.inside.paths import Paths, base_environment
from sandbox.inside.process import run_process
from supervisor.gates.implement import judge_implement, notes_on
from supervisor.gates.scope import judge_scope
from supervisor.gates.suppressions import marks_in
from supervisor.gates.verdict import judgement
from supervisor.gates.whole import with_whole
from supervisor.pipeline.definition import Role, Stage
from supervisor.stages.contract import scope_for
from supervisor.stages.quality import checks_for
from tests.fakes.memory_tree import Executable, Link, MemoryTree, Submodule, changes_between

VALIDATE = Stage(name="validate", role="validate")
BASE = MemoryTree({"app.py": "x = 1\n", "src/lib/a.py": "x = 1\n", "tests/test_app.py": "def test_a(): pass\n"})
EVERYTHING = WriteScope(patterns=("**",))

GATES = (
    "quality.toml pyproject.toml setup.cfg tox.ini pytest.ini ruff.toml .flake8 .coveragerc mypy.ini "
    "conftest.py Quality.TOML sub/conftest.py"
)
CI = ".github/workflows/ci.yml .gitlab-ci.yml .circleci/config.yml Makefile Jenkinsfile .andon/pipeline.yaml .andon/Dockerfile"
HOOKS = (
    ".pre-commit-config.yaml .vscode/tasks.json web/.vscode/settings.json .envrc sub/.envrc package.json setup.py .husky/pre-push "
    ".devcontainer/devcontainer.json .gitattributes .githooks/pre-commit noxfile.py .idea/workspace.xml"
)
INSTRUCTIONS = "CLAUDE.md AGENTS.md docs/CLAUDE.md .claude/settings.json GEMINI.md .cursor/rules/a.md .cursorrules .mcp.json"
DEPENDENCIES = "poetry.lock uv.lock package-lock.json web/yarn.lock go.sum requirements.txt requirements-dev.txt .npmrc pip.conf"
PROTECTED = " ".join((GATES, CI, HOOKS, INSTRUCTIONS, DEPENDENCIES)).split()


def writes(path: str, role: Role, *allow: str) -> list[str]:
    """Return what the gate says of one new file by a stage."""
    stage = Stage(name=role, role=role, allow=allow)
    changes = changes_between(BASE, BASE.with_files({path: "text"}))
    return [each.message for each in judge_scope(changes, scope_for(stage, "limits"), stage)]


@pytest.mark.abuse("S03", "S05", "S12", "S13", "S14")
@pytest.mark.parametrize("role", ["interface", "implement", "test", "docs"])
@pytest.mark.parametrize("path", PROTECTED)
def test_protected_paths_need_a_scope_of_their_own(path: str, role: Role):
    """The finding names the path and the line that would allow it; the control: a scope of everything lets it pass."""
    refused = writes(path, role)

    assert offending_paths([path], EVERYTHING) == []  # control
    assert len(refused) == 1
    assert path in refused[0]
    assert f'`scope: ["{path}"]`' in refused[0]
    assert writes(path, role, path) == []


@pytest.mark.abuse("S12", "S03")
def test_a_protected_path_that_a_pipeline_allows_needs_a_person_s_eye():
    """The verdict says so; the control: the same verdict before the tree was looked at says nothing."""
    result = BASE.with_files({".github/workflows/ci.yml": "on: push\n", ".andon/features/limits/spec.yaml": "feature: limits\n"})
    said = judgement([], ["all green"], assurance="sealed")

    told = with_whole(said, [BASE, result], changes_between(BASE, result))

    assert said.notes == ("all green",)
    assert told.notes == (
        "all green",
        "needs a person's eye: protected paths were changed, as the pipeline allows: .github/workflows/ci.yml",
    )
    assert told.assurance == "sealed"


@pytest.mark.abuse("S02", "S03")
@pytest.mark.parametrize("path", ["tests/test_app.py", "conftest.py", "pyproject.toml", "sub/tox.ini"])
def test_a_verdict_says_whose_tests_it_rests_on(path: str):
    """Not a test stage's, not the base's: lower assurance; the control: the same file as a test stage left it."""
    result = BASE.with_files({path: "def test_a(): assert 1\n"})
    said, changes = judgement([], [], assurance="in-process"), changes_between(BASE, result)

    theirs = with_whole(said, [BASE, result, result], changes)
    foreign = with_whole(said, [BASE, result, BASE], changes)

    assert theirs.assurance == "in-process"
    assert foreign.assurance == "unlocked"
    assert path in foreign.notes[-1]


@pytest.mark.abuse("S04")
def test_a_command_of_the_repository_is_data_on_the_host(tmp_path: Path):
    """It becomes words for a process in a sandbox; the control: a shell that is given it does what it says."""
    canary = tmp_path / "canary"
    command = f"linter; touch {canary}"
    subprocess.run(["/bin/sh", "-c", command], check=False, stderr=subprocess.DEVNULL)
    assert canary.exists()  # control
    canary.unlink()

    with pytest.raises(ConfigError, match="needs a shell") as refused:
        checks_for(MemoryTree({"quality.toml": f'[quality_checks]\nlinter = "a ; touch {canary}"\n'}), VALIDATE)
    words = f"touch {canary} $(touch {canary}) `touch {canary}`"
    checks = checks_for(MemoryTree({"quality.toml": f'[quality_checks]\nlinter = "{words}"\n'}), VALIDATE)

    assert "quality.toml" in str(refused.value)
    assert checks[0].argv == ("touch", str(canary), "$(touch", f"{canary})", "`touch", f"{canary}`")
    assert not canary.exists()


@pytest.mark.abuse("S07")
def test_source_decides_and_no_stale_bytecode(tmp_path: Path):
    """The environment of checks looks for bytecode elsewhere; the control: Python takes what lies beside the source."""
    paths = Paths.below(str(tmp_path))
    paths.workspace.mkdir()
    paths.tmp.mkdir()
    source = paths.workspace / "limit.py"
    source.write_text("SAID = 'good'\n")
    compileall.compile_file(source, quiet=1)
    planted, facts = Path(importlib.util.cache_from_source(str(source))), source.stat()
    source.write_text("SAID = 'evil'\n")
    os.utime(source, (facts.st_atime, facts.st_mtime))

    def seen(environment: dict[str, str]) -> str:
        output = bytearray()
        argv = [sys.executable, "-c", "import limit; print(limit.SAID)"]
        run_process(argv, cwd=paths.workspace, env=environment, timeout_s=30, sink=output.extend)
        return output.decode().strip()

    assert planted.exists()
    assert seen({"PATH": os.environ["PATH"]}) == "good"  # control: the source says evil
    assert seen(base_environment(paths)) == "evil"


@pytest.mark.abuse("S09", "S17")
@pytest.mark.parametrize(
    ("line", "mark"),
    [
        ("x = 1  # noqa: F401", "noqa"),
        ("# ruff: noqa", "ruff: noqa"),
        ("x = eval(y)  # nosec B307", "nosec"),
        ("x: int = 'a'  # type:ignore[assignment]", "type:ignore"),
        ("# mypy: ignore-errors", "mypy: ignore-errors"),
        ("def f():  # pragma: no cover", "pragma: no cover"),
        ("x = 1  # pylint: disable=all", "pylint: disable"),
        ("key = 'a'  # pragma: allowlist secret", "pragma: allowlist secret"),
        ("let x = 1 // eslint-disable-line", "eslint-disable"),
        ("/* istanbul ignore next */", "istanbul ignore"),
    ],
)
def test_suppressions_are_counted_and_told(line: str, mark: str):
    """Beyond those that were there; the control: without the mark's comment nothing is counted."""
    result = BASE.with_files({"app.py": f"x = 1\n{line}\n{line}\n"})
    said = judgement([], [])

    told = with_whole(said, [BASE, result], changes_between(BASE, result))
    as_before = with_whole(said, [result, result], changes_between(result, result.with_files({"app.py": f"{line}\n{line}\n"})))

    assert marks_in(line.replace("#", " ").replace("//", " ").replace("/*", " ").encode()) == {}  # control
    assert told.notes == (f"suppressions added by this change: 2 ({mark} 2)",)
    assert as_before.notes == ()


@pytest.mark.abuse("S09")
@pytest.mark.parametrize("path", ["src/lib/ruff.toml", "src/lib/pyproject.toml", "src/lib/.flake8", "src/mypy.ini", "src/lib/.coveragerc"])
def test_nested_configuration_is_told(path: str):
    """A tool reads it from beside what it looks at; the control: the same file elsewhere by another name says nothing."""

    def notes(name: str) -> tuple[str, ...]:
        result = BASE.with_files({name: "[x]\n"})
        return with_whole(judgement([], []), [BASE, result], changes_between(BASE, result)).notes

    assert any("configures tools for a part of the tree" in note for note in notes(path))
    assert notes(path + ".txt") == ()  # control


LOCKED = "def allow(n: int, most: int = 100) -> bool: ...\n"


def naive_signature(text: str) -> list[str]:
    """Return the parameters of `allow` as somebody who only compares names sees them."""
    module = ast.parse(text)
    return [arg.arg for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "allow" for arg in node.args.args][:2]


@pytest.mark.abuse("S10")
@pytest.mark.parametrize(
    "later",
    [
        "def allow(n: int, most: int = 1) -> bool: return True\n",
        "def allow(n: str, most: int = 100) -> bool: return True\n",
        "@print\ndef allow(n: int, most: int = 100) -> bool: return True\n",
        "def allow(n: int, most: int = 100) -> bool: return True\nallow = print\n",
        "def allow(n: int, most: int = 100) -> bool: return True\ndel allow\n",
        "def allow(n: int, most: int = 100) -> bool: return True\nglobals()['allow'] = print\n",
        "def allow(n: int, most: int = 100) -> bool: return True\nallow.__defaults__ = (1,)\n",
        "def allow(n: int, most: int = 100) -> bool: return True\nimport sys; sys.modules[__name__] = print\n",
    ],
)
def test_a_locked_signature_is_compared_whole(later: str):
    """The control: comparing names of parameters sees no difference in any of these."""
    lock, _ = lock_interface({"limit.py": (None, LOCKED.encode())})
    seen = naive_signature(later) == naive_signature(LOCKED)

    assert seen  # control
    assert drift(lock, lambda path: later.encode() if path == "limit.py" else None, {"limit.py": None}.keys())
    assert not drift(lock, lambda path: LOCKED.replace("...", "return n <= most").encode(), {"limit.py": None}.keys())


@pytest.mark.abuse("S11")
@pytest.mark.parametrize(
    "files",
    [
        {"tests/test_app.py": None, "src/test_app.txt": "def test_a(): pass\n"},
        {"tests/test_app.py": Executable("def test_a(): pass\n")},
        {"tests/test_app.py": Link("../app.py")},
        {"src/lib": Submodule()},
        {"Tests/test_app.py": "x"},
        {"makefile": "all:\n"},
        {"src/lib/a.py": None, "src/lib": Link("../tests")},
    ],
    ids=["rename", "mode", "link", "submodule", "case", "case of a protected path", "directory to link"],
)
def test_a_write_scope_is_judged_on_raw_trees(files: dict[str, str | None]):
    """The control: someone who looks at the content of files with the scope's own spelling sees nothing amiss."""
    result = BASE.with_files(files)
    stage = Stage(name="implement", role="implement")

    new = [path for path in result.entries() if path not in BASE.entries()]
    naive = [path for path in new if result.entries()[path].mode == "100644" and path.startswith("tests/")]

    assert naive == []  # control
    assert judge_scope(changes_between(BASE, result), scope_for(stage, "limits"), stage)


def said_by(source: bytes) -> tuple[object, ...]:
    """Return the names and constants Python reads in a source; nothing is run."""
    code = compile(source, "app.py", "exec")
    return code.co_names, code.co_consts


@pytest.mark.abuse("S15")
@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"# -*- coding: utf-7 -*-\n# +AAo-import os+AAo-\n", "declares the encoding utf-7"),
        ("access = 'user\u202e \u2066# admin\u2069'\n".encode(), "invisible or direction-changing characters"),
        ("access = 'user\u200b'\n".encode(), "invisible or direction-changing characters"),
    ],
    ids=["utf-7", "direction", "zero width"],
)
def test_source_that_reads_otherwise_than_it_runs_is_told(data: bytes, told: str):
    """A note of the implement gate; the control: what a reviewer is shown is not what Python reads."""
    shown = "".join(char for char in data.decode() if char.isprintable() or char == "\n")

    assert said_by(data) != said_by(shown.replace("coding", "").encode())  # control
    assert any(told in note for note in notes_on("app.py", data))
    result = BASE.with_files({"app.py": data})
    assert any(told in note for note in judge_implement(result, changes_between(BASE, result), []).notes)
