"""What an agent can leave in its own repository for a host that runs git in it; each plant makes a canary where it is run."""

import hashlib
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.fakes.repositories import plant_hooks, run_git, write_files

Plant = Callable[[Path, Path], None]
"""(root of the workspace, canary)."""

_HOST = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"} | {
    f"GIT_{role}_{part}": "x" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")
}


def naive_git(root: Path, *args: str) -> bytes:
    """Run git as a host does that trusts the tree; whether it succeeds does not matter."""
    return subprocess.run(["git", *args], cwd=root, env=_HOST, capture_output=True, check=False, timeout=30).stdout


def naive_host(root: Path) -> None:
    """Do what we never do: run porcelain in the tree."""
    for args in (
        ["status"], ["diff", "HEAD"], ["add", "-A"], ["commit", "-q", "-m", "x"], ["checkout", "-q", "--", "."], ["log", "-p"], ["fetch"],
    ):  # fmt: skip
        naive_git(root, *args)


def fsmonitor(root: Path, canary: Path) -> None:
    run_git(root, "config", "core.fsmonitor", f"touch {canary}; :")


def git_file(root: Path, canary: Path) -> None:
    fsmonitor(root, canary)
    behind_a_file(root)


def hooks(root: Path, canary: Path) -> None:
    plant_hooks(root / ".git", canary)


def hooks_path(root: Path, canary: Path) -> None:
    plant_hooks(root / "tools", canary)
    run_git(root, "config", "core.hooksPath", "tools/hooks")


def reference_hook(root: Path, canary: Path) -> None:
    """The one that even `tag` and `branch` run."""
    plant_hooks(root / "tools", canary)
    for hook in (root / "tools/hooks").iterdir():
        if hook.name != "reference-transaction":
            hook.unlink()
    run_git(root, "config", "core.hooksPath", "tools/hooks")


def filters(root: Path, canary: Path) -> None:
    run_git(root, "config", "filter.x.clean", f"touch {canary}; cat")
    run_git(root, "config", "filter.x.smudge", f"touch {canary}; cat")
    write_files(root, {".gitattributes": b"*.py filter=x\n", "src/new.py": b"x\n"})


def filter_process(root: Path, canary: Path) -> None:
    run_git(root, "config", "filter.x.process", f"touch {canary}; false")
    write_files(root, {".git/info/attributes": b"*.py filter=x\n", "src/new.py": b"x\n"})


def diff_program(root: Path, canary: Path) -> None:
    run_git(root, "config", "diff.external", f"touch {canary}; :")
    write_files(root, {"README.md": b"edited\n"})


def diff_driver(root: Path, canary: Path) -> None:
    run_git(root, "config", "diff.x.command", f"touch {canary}; :")
    write_files(root, {".gitattributes": b"*.md diff=x\n", "README.md": b"edited\n"})


def text_conversion(root: Path, canary: Path) -> None:
    run_git(root, "config", "diff.x.textconv", f"touch {canary}; cat")
    write_files(root, {".gitattributes": b"*.md diff=x\n", "README.md": b"edited\n"})


def signing_program(root: Path, canary: Path) -> None:
    write_files(root, {"tools/sign": f"#!/bin/sh\ntouch {canary}\n".encode(), "README.md": b"edited\n"})
    (root / "tools/sign").chmod(0o755)
    run_git(root, "config", "gpg.program", str(root / "tools/sign"))
    run_git(root, "config", "commit.gpgSign", "true")


def transport(root: Path, canary: Path) -> None:
    run_git(root, "config", "remote.origin.url", "ssh://localhost/x")
    run_git(root, "config", "core.sshCommand", f"touch {canary}; false")


def remote_program(root: Path, canary: Path) -> None:
    run_git(root, "config", "remote.origin.url", f"ext::sh -c touch% {canary}")
    run_git(root, "config", "protocol.ext.allow", "always")


def promisor(root: Path, canary: Path) -> None:
    """A blob is missing, and whoever needs it asks the agent's remote for it."""
    run_git(root, "config", "core.repositoryFormatVersion", "1")
    run_git(root, "config", "extensions.partialClone", "o")
    run_git(root, "config", "remote.o.url", ".")
    run_git(root, "config", "remote.o.promisor", "true")
    run_git(root, "config", "remote.o.uploadpack", f"touch {canary}; :")
    blob = run_git(root, "rev-parse", "HEAD:README.md")
    (root / ".git/objects" / blob[:2] / blob[2:]).unlink()
    write_files(root, {"README.md": b"edited\n"})


def included_config(root: Path, canary: Path) -> None:
    write_files(root, {"tools/config": f'[core]\n\tfsmonitor = "touch {canary}; :"\n'.encode()})
    run_git(root, "config", "include.path", str(root / "tools/config"))


def conditional_config(root: Path, canary: Path) -> None:
    write_files(root, {"tools/config": f'[core]\n\tfsmonitor = "touch {canary}; :"\n'.encode()})
    run_git(root, "config", "includeIf.onbranch:**.path", str(root / "tools/config"))


def worktree_config(root: Path, canary: Path) -> None:
    run_git(root, "config", "extensions.worktreeConfig", "true")
    write_files(root, {".git/config.worktree": f'[core]\n\tfsmonitor = "touch {canary}; :"\n'.encode()})


def common_dir(root: Path, canary: Path) -> None:
    fsmonitor(root, canary)
    (root / ".git").rename(root / ".elsewhere")
    write_files(root, {".git/HEAD": b"ref: refs/heads/main\n", ".git/commondir": b"../.elsewhere\n"})


def embedded(root: Path, canary: Path) -> None:
    """A repository of its own below the root, tracked as a submodule is: the outer git asks it for its state."""
    write_files(root, {"emb/file": b"x\n"})
    run_git(root / "emb", "init", "-q")
    run_git(root / "emb", "add", "-A")
    run_git(root / "emb", "commit", "-q", "-m", "x")
    run_git(root, "add", "emb")
    fsmonitor(root / "emb", canary)


def behind_a_file(root: Path) -> None:
    """Move a repository elsewhere in the tree, and leave a `.git` file that leads there."""
    (root / ".git").rename(root / ".elsewhere")
    (root / ".git").write_text("gitdir: .elsewhere\n")


def index_that_leaves(root: Path, name: str) -> None:
    """Replace the index by one whose only entry is a path outside the tree."""
    blob = run_git(root, "hash-object", "-w", "--stdin", stdin=b"planted\n")
    path = name.encode()
    entry = struct.pack(">10I", 0, 0, 0, 0, 0, 0, 0o100644, 0, 0, 8) + bytes.fromhex(blob) + struct.pack(">H", len(path)) + path
    entry += b"\0" * (8 - len(entry) % 8)
    data = b"DIRC" + struct.pack(">II", 2, 1) + entry
    (root / ".git/index").write_bytes(data + hashlib.sha1(data, usedforsecurity=False).digest())
