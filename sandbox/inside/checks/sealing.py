"""Prepares a check whose tests are parted from the product: policy file, environment; not the parting itself (`inside/sealed`)."""

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sandbox.contract.job import Check
from sandbox.contract.scope import WriteScope
from sandbox.inside import sealed
from sandbox.inside.paths import Paths
from sandbox.inside.sealed.policy import POLICY_VARIABLE
from sandbox.inside.sealed.walls import landlock_abi

PACKAGE = "andon_sealed"
"""What the package `sandbox.inside.sealed` is called in the user's Python."""


class Plugins(NamedTuple):
    """What a run of pytest is given of ours."""

    environment: dict[str, str]
    sealed: bool = False
    why_not: str = ""
    """Why the run is not sealed although that was asked for."""


def plugins_for(check: Check, paths: Paths, environment: dict[str, str]) -> Plugins:
    """Return the environment with our pytest plugins, and whether tests and product are parted by them.

    A host without Landlock cannot part them: the check runs in one process, and says why.
    """
    if not (check.canary or check.tests_scope):
        return Plugins(environment)
    directory = _package_directory(paths)
    options = ["-p", f"{PACKAGE}.canary"] if check.canary else []
    path = os.pathsep.join(filter(None, [str(directory), environment.get("PYTHONPATH", "")]))
    environment = {**environment, "PYTHONPATH": path}
    if check.tests_scope is None:
        return Plugins(_with_options(environment, options))
    if not landlock_abi():
        return Plugins(_with_options(environment, options), why_not="this host's kernel has no Landlock")
    policy, scratch = _policy(check.name, check.tests_scope, paths)
    options += ["-p", f"{PACKAGE}.oracle", f"--basetemp={scratch}/tests"]
    more = {POLICY_VARIABLE: str(policy), "PYTHONSAFEPATH": "1"}
    return Plugins(_with_options(environment | more, options), sealed=True)


def behind_the_wall(check: Check, paths: Paths, python: Sequence[str], argv: Sequence[str]) -> tuple[str, ...]:
    """Return the command that runs `argv` as the product of a sealed run; `argv` itself where the check is not sealed or there is no wall.

    Args:
        check: Whose `tests_scope` says what the product may not read.
        paths: Of the sandbox.
        python: Starts a Python.
        argv: What to run.
    """
    if check.tests_scope is None or not landlock_abi():
        return tuple(argv)
    policy, _ = _policy(check.name, check.tests_scope, paths)
    plugins = str(_package_directory(paths))
    code = f"import sys; sys.path.insert(0, {plugins!r}); from {PACKAGE}.command import run; run(sys.argv[1], sys.argv[2:])"
    return (*python, "-I", "-c", code, str(policy), *argv)


def _policy(name: str, tests_scope: WriteScope, paths: Paths) -> tuple[Path, Path]:
    """Write the policy of a check and return its path and the directory both sides may write."""
    own, scratch = (_directory(paths.tmp / f"{PACKAGE}-{name}-{which}") for which in ("product", "scratch"))
    policy = own.with_suffix(".json")
    product = product_paths(paths.workspace, tests_scope)
    policy.write_text(
        json.dumps({"workspace": os.path.realpath(paths.workspace), "product": product, "own": str(own), "scratch": str(scratch)})
    )
    return policy, scratch


def product_paths(workspace: Path, tests_scope: WriteScope) -> list[str]:
    """Return the files and directories, absolute and sorted, that hold no test; links are left out, and `.git`, which holds them all."""
    found: list[str] = []
    _collect(os.path.realpath(workspace), "", tests_scope, found)
    return sorted(found)


def _collect(top: str, relative: str, tests_scope: WriteScope, found: list[str]) -> bool:
    """Add what may be read below a directory; return whether something in it may not."""
    mine: list[str] = []
    hidden = False
    with os.scandir(f"{top}/{relative}" if relative else top) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            path = f"{relative}/{entry.name}" if relative else entry.name
            if path == ".git" or entry.is_symlink():
                hidden = hidden or path == ".git"
            elif entry.is_dir(follow_symlinks=False):
                below: list[str] = []
                if _collect(top, path, tests_scope, below):
                    hidden = True
                    mine += below
                else:
                    mine.append(entry.path)
            elif tests_scope.allows(path):
                hidden = True
            else:
                mine.append(entry.path)
    found += mine
    return hidden


def _with_options(environment: dict[str, str], options: list[str]) -> dict[str, str]:
    given = environment.get("PYTEST_ADDOPTS", "")
    return {**environment, "PYTEST_ADDOPTS": " ".join(filter(None, [given, shlex.join(options)]))}


def _package_directory(paths: Paths) -> Path:
    directory = _directory(paths.tmp / f"{PACKAGE}-package")
    link = directory / PACKAGE
    if not link.is_symlink():
        link.symlink_to(Path(sealed.__file__).parent)
    return directory


def _directory(path: Path) -> Path:
    path.mkdir(mode=0o700, exist_ok=True)
    return path
