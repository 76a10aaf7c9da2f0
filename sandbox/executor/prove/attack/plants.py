"""Leaves in the workspace and among the reports what a careless host would execute, follow or wait for."""

import os
import socket
import subprocess
from pathlib import Path

from .attempts import Stopped, attempt, attempt_here

GIT_TREE = "git-config"
"""A directory below the workspace, one for each kind of plant."""
HOOKS = ("post-index-change", "reference-transaction", "pre-commit", "post-checkout", "post-commit")


def plant(workspace: Path, out: Path, canary: Path, secret: str) -> None:
    """Leave everything.

    Args:
        workspace: Each kind goes into a directory of its own below it.
        out: Where reports are left.
        canary: A file whose appearance shows that a plant was executed.
        secret: A file of the host's, for links to point at.
    """
    _git_repository(workspace / GIT_TREE, canary)
    _git_repository(workspace / "git-nested" / "below", canary)
    for name in ("link", "fifo", "socket"):
        (workspace / name).mkdir()
    (workspace / "link" / "result.json").symlink_to(secret)
    (out / "link.xml").symlink_to(secret)
    attempt_here("plants.special", lambda: _special_files(workspace, out))


def _special_files(workspace: Path, out: Path) -> str:
    os.mkfifo(workspace / "fifo" / "result.json")
    os.mkfifo(out / "fifo.xml")
    _socket_at(workspace / "socket" / "result.sock")
    return "FIFOs and a socket"


def use_plain_git(tree: Path, canary: Path) -> None:
    """Do what a careless host does, plain git in that tree, and see whether a plant was executed."""
    attempt("git.executed", lambda: _use_plain_git(tree, canary))


def _use_plain_git(tree: Path, canary: Path) -> str:
    for command in (["status"], ["add", "--all"], ["diff", "--cached"], ["commit", "--quiet", "--message", "x"]):
        _git(tree, *command)
        if canary.exists():
            return f"plain `git {command[0]}` executed what lay in the tree"
    raise Stopped("plain git executed nothing")


def _git_repository(tree: Path, canary: Path) -> None:
    tree.mkdir(parents=True)
    _git(tree, "init", "--quiet")
    touch = f"touch '{canary}'"
    (tree / "notes.txt").write_text("harmless\n")
    (tree / ".gitattributes").write_text("* filter=planted diff=planted\n")
    for key, value in (
        ("core.fsmonitor", f"{touch};:"),
        ("filter.planted.clean", f"{touch};cat"),
        ("filter.planted.process", touch),
        ("diff.external", touch),
        ("core.sshCommand", touch),
    ):
        _git(tree, "config", key, value)
    for hook in HOOKS:
        path = tree / ".git" / "hooks" / hook
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{touch}\n")
        path.chmod(0o755)


def _git(tree: Path, *arguments: str) -> None:
    identity = {"GIT_AUTHOR_NAME": "x", "GIT_AUTHOR_EMAIL": "x@x", "GIT_COMMITTER_NAME": "x", "GIT_COMMITTER_EMAIL": "x@x"}
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "GIT_CONFIG_NOSYSTEM": "1", **identity}
    subprocess.run(["git", *arguments], cwd=tree, env=environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=10, check=False)


def _socket_at(path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.close()
