"""Real git repositories of every shape we promise to handle; made by real git, nothing here is simulated."""

import hashlib
import os
import stat
import subprocess
from pathlib import Path

AUTHOR = "Sam Ple <sam@example.org>"

TREES = ("plain", "submodule", "links", "crlf", "exec", "conftest", "odd_names")
"""Kinds that differ by what is in the tree."""
TOPOLOGIES = ("linked_worktree", "bare", "shallow")
"""Kinds that differ by where git keeps its parts; their tree is that of `everything`."""
KINDS = (*TREES, "everything", *TOPOLOGIES)

SUBMODULE_COMMIT = "5b0a7c8d9e" * 4

_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "Sam Ple",
    "GIT_AUTHOR_EMAIL": "sam@example.org",
    "GIT_AUTHOR_DATE": "1735689600 +0100",
    "GIT_COMMITTER_NAME": "Sam Ple",
    "GIT_COMMITTER_EMAIL": "sam@example.org",
    "GIT_COMMITTER_DATE": "1735689600 +0100",
}

_PLAIN: dict[str, bytes] = {
    "README.md": b"# Sample\n",
    ".gitignore": b"*.log\n/build/\n",
    "src/app/__init__.py": b"",
    "src/app/core.py": b"def answer() -> int:\n    return 42\n",
    "tests/test_core.py": b"from app.core import answer\n\n\ndef test_answer():\n    assert answer() == 42\n",
}


def run_git(directory: Path, *args: str, stdin: bytes = b"") -> str:
    """Run porcelain git as a user would, without this machine's configuration; return its output."""
    argv = ["git", "-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main", *args]
    done = subprocess.run(argv, cwd=directory, env=_ENVIRONMENT, input=stdin, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("utf-8", "surrogateescape").strip()


def sample_repository(path: Path, kind: str = "plain") -> Path:
    """Make a repository of one of `KINDS` below `path` and return what a user would give as REPO.

    It has two commits on `main`, user.name and user.email, and a hook that would tell on whoever runs it.
    """
    path.mkdir(parents=True, exist_ok=True)
    origin = path / "repository"
    origin.mkdir()
    run_git(origin, "init", "--quiet")
    run_git(origin, "config", "user.name", "Ref O'Sitory")
    run_git(origin, "config", "user.email", "ref@example.org")
    (origin / "HISTORY").write_text("first\n")
    run_git(origin, "add", "-A")
    run_git(origin, "commit", "--quiet", "-m", "first")
    write_files(origin, _PLAIN)
    for part in TREES if kind == "everything" or kind in TOPOLOGIES else (kind,):
        _ADD[part](origin)
    _without_attributes(origin, "add", "-A")
    if kind in {"submodule", "everything", *TOPOLOGIES}:
        run_git(origin, "update-index", "--add", "--cacheinfo", f"160000,{SUBMODULE_COMMIT},vendor/library")
    run_git(origin, "commit", "--quiet", "-m", "second")
    if kind in {"exec", "everything", *TOPOLOGIES}:
        _commit_old_mode(origin, "old-mode.txt")
    plant_hooks(origin / ".git", path / "hook-ran")
    return _arranged(path, origin, kind)


def write_files(root: Path, files: dict[str, bytes]) -> None:
    """Write files below a directory."""
    for name, data in files.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def plant_hooks(git_dir: Path, canary: Path) -> None:
    """Install every hook git knows; each one makes `canary`."""
    names = (
        "applypatch-msg commit-msg fsmonitor-watchman post-applypatch post-checkout post-commit post-index-change post-merge "
        "post-receive post-rewrite post-update pre-applypatch pre-auto-gc pre-commit pre-merge-commit pre-push pre-rebase "
        "pre-receive prepare-commit-msg proc-receive push-to-checkout reference-transaction sendemail-validate update"
    )
    (git_dir / "hooks").mkdir(parents=True, exist_ok=True)
    for name in names.split():
        hook = git_dir / "hooks" / name
        hook.write_text(f"#!/bin/sh\necho {name} >> '{canary}'\n")
        hook.chmod(0o755)


def everything_in(path: Path) -> dict[str, tuple[int, int, str]]:
    """Return (mode, size, content's hash) of each path below a directory, `.git` included; times are left out."""
    found: dict[str, tuple[int, int, str]] = {}
    for directory, directories, files in os.walk(os.fsencode(path)):
        for name in directories + files:
            full = os.path.join(directory, name)  # noqa: PTH118  # bytes: names need not be UTF-8
            seen = os.lstat(full)
            if stat.S_ISLNK(seen.st_mode):
                content = os.readlink(full)  # noqa: PTH115
            elif stat.S_ISREG(seen.st_mode):
                with open(full, "rb") as file:  # noqa: PTH123
                    content = file.read()
            else:
                content = b""
            found[os.fsdecode(os.path.relpath(full, os.fsencode(path)))] = (
                seen.st_mode,
                0 if stat.S_ISDIR(seen.st_mode) else seen.st_size,
                hashlib.sha256(content).hexdigest(),
            )
    return found


def _arranged(path: Path, origin: Path, kind: str) -> Path:
    if kind == "linked_worktree":
        run_git(origin, "worktree", "add", "--quiet", "-b", "topic", str(path / "linked"))
        (path / "hook-ran").unlink(missing_ok=True)
        return path / "linked"
    if kind == "bare":
        run_git(path, "clone", "--quiet", "--bare", f"file://{origin}", "bare.git")
        plant_hooks(path / "bare.git", path / "hook-ran")
        return path / "bare.git"
    if kind == "shallow":
        run_git(path, "clone", "--quiet", "--depth", "1", f"file://{origin}", "shallow")
        plant_hooks(path / "shallow/.git", path / "hook-ran")
        return path / "shallow"
    return origin


def _without_attributes(root: Path, *args: str) -> None:
    """Run git with the tree's own attributes overruled."""
    overruling = root / ".git/info/attributes"
    overruling.write_text("* -text -ident -filter\n")
    run_git(root, *args)
    overruling.unlink()


def _add_nothing(root: Path) -> None:
    assert root.is_dir()


def _add_submodule(root: Path) -> None:
    write_files(root, {".gitmodules": b'[submodule "library"]\n\tpath = vendor/library\n\turl = https://example.org/library.git\n'})


def _add_links(root: Path) -> None:
    (root / "docs").mkdir(exist_ok=True)
    for name, target in {
        "latest.md": "README.md",
        "docs/app": "../src/app",
        "docs/dangling": "nowhere/yet",
        "absolute": "/etc/hostname",
        "docs/escaping": "../../../outside",
        "docs/winding": "../src/../README.md",
    }.items():
        (root / name).symlink_to(target)


def _add_crlf(root: Path) -> None:
    write_files(root, {"windows.txt": b"one\r\ntwo\r\n", "mixed.txt": b"one\r\ntwo\nthree\r", "binary.bin": bytes(range(256))})
    # They are committed as they are (see `_without_attributes`); a checkout that obeyed this would change them.
    write_files(root, {".gitattributes": b"*.txt text eol=lf\n*.bin ident filter=rot13\n"})


def _add_exec(root: Path) -> None:
    write_files(root, {"run.sh": b"#!/bin/sh\nexit 0\n", "old-mode.txt": b"group writable in git\n"})
    (root / "run.sh").chmod(0o755)


def _add_conftest(root: Path) -> None:
    write_files(root, {"conftest.py": b"import sys\nsys.path.insert(0, 'src')\n", "tests/conftest.py": b"", "pytest.ini": b"[pytest]\n"})


def _add_odd_names(root: Path) -> None:
    odd = {
        "naïve/日本語.txt": b"nihongo\n",
        "naïve/עברית.txt": b"ivrit\n",
        "spaces and 'quotes' \"too\".txt": b"q\n",
        "-leading-dash": b"d\n",
        "--output=x": b"o\n",
        "café-nfd.txt": b"nfd\n",
        "emoji-🦊.md": b"fox\n",
        "new\nline.txt": b"n\n",
        "tab\there.txt": b"t\n",
        "back\\slash.txt": b"b\n",
        "bidi-\u202etxt.py": b"x\n",
        "Case.txt": b"upper\n",
        "case.txt": b"lower\n",
        ".env": b"SECRET=canary-7f3a\n",
        ".env.local": b"SECRET=canary-7f3b\n",
        ".env.example": b"SECRET=\n",
        "empty": b"",
        "kept.log": b"committed although ignored\n",
    }
    write_files(root, odd)
    with open(os.fsencode(root) + b"/latin-\xe9.txt", "wb") as file:  # noqa: PTH123
        file.write(b"not UTF-8\n")
    run_git(root, "add", "-f", "kept.log")


def _commit_old_mode(root: Path, name: str) -> None:
    """Replace the last commit by one where a file has mode 100664, as git wrote in 2005."""
    tree = run_git(root, "mktree", "-z", stdin=_tree_with_mode(root, name))
    commit = run_git(root, "commit-tree", tree, "-p", "HEAD~1", "-m", "second, with an old mode")
    run_git(root, "update-ref", "refs/heads/main", commit)


def _tree_with_mode(root: Path, name: str) -> bytes:
    listing = run_git(root, "ls-tree", "-z", "HEAD").split("\0")
    changed = [line.replace("100644", "100664", 1) if line.endswith(f"\t{name}") else line for line in listing if line]
    return "".join(f"{line}\0" for line in changed).encode("utf-8", "surrogateescape")


_ADD = {
    "plain": _add_nothing,
    "submodule": _add_submodule,
    "links": _add_links,
    "crlf": _add_crlf,
    "exec": _add_exec,
    "conftest": _add_conftest,
    "odd_names": _add_odd_names,
}
