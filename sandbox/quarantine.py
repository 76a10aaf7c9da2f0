"""Take in a git bundle from somewhere we do not trust: header, objects, sizes, commit, changes; then the store, else nothing.

The bundle is unpacked into a directory of its own that only borrows the store's objects (SANDBOX.md §5), because git
before 2.46 ignores `fsckObjects` for bundles. Not responsible for write scopes and gates: what passes here is a
well-formed tree within the published limits, no more.
"""

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sandbox.contract.errors import GitError, RejectedBundle
from sandbox.contract.tree import Change, Entry
from sandbox.contract.tree_rules import LINK_TARGET_BYTES_MAX, TreeLimits, collision, refused_change, shown, too_much, withheld
from sandbox.git import LISTING_BYTES_MAX, Git, GitOutputTooLarge, checked_sha, list_tree, objects_reader, sizes

BUNDLE_HEADER = b"# v2 git bundle\n"
RESULT_REF = "refs/andon/result"
BUNDLE_BYTES_MAX = 512 << 20
COMMIT_BYTES_MAX = 64 << 10
NO_MODE = "000000"
"""How git writes that a path is not there."""
OBJECTS_MAX = 200_000
"""Objects in one git bundle."""
UNPACKING_MEMORY_BYTES_MAX = 2 << 30
"""Address space of `index-pack`, the store's mapped packs included."""
UNPACKING_TIMEOUT_S = 120.0

_HEADER_BYTES_MAX = 4_096
_CHANGE_BYTES_MAX = 1_200
"""One line of a raw difference: the longest path and 100 bytes."""


def receive(git: Git, bundle: bytes, base: str, limits: TreeLimits) -> str:
    """Check a git bundle in quarantine, move its objects into the store, and return its one commit; no ref is made.

    Args:
        git: The store; it holds `base`.
        bundle: A v2 bundle of one commit on top of `base`, as `Mirror.bundle_of` makes it.
        base: The commit it must be based on.
        limits: What its tree may hold.

    Raises:
        RejectedBundle: It breaks a rule, in words; the store is untouched.
        GitError: The store itself failed.
    """
    commit, pack = parse_bundle(bundle, base)
    if sizes(git, [base]).get(base, ("", 0))[0] != "commit":
        raise GitError(f"the base commit {base} is not in {git.git_dir}")
    with tempfile.TemporaryDirectory(prefix="andon-quarantine-") as directory:
        quarantine = replace(git, objects=Path(directory), alternates=git.git_dir / "objects")
        if git.run_as is not None:
            os.chown(directory, git.run_as.uid, git.run_as.gid)
        _unpack(quarantine, pack)
        _judge_objects(git, quarantine, commit)
        _judge_commit(quarantine, commit, base)
        _judge_extent(quarantine, commit, base, limits)
        _judge_changes(quarantine, commit, base, limits)
    _unpack(git, pack)
    return commit


def parse_bundle(bundle: bytes, base: str) -> tuple[str, bytes]:
    """Return (commit, pack) of a bundle whose header is exactly the one we write; git's own parser never sees it.

    Raises:
        RejectedBundle: Another version, another prerequisite, more or other refs, or too large.
    """
    if len(bundle) > BUNDLE_BYTES_MAX:
        raise RejectedBundle(f"the git bundle has {len(bundle)} bytes; at most {BUNDLE_BYTES_MAX}")
    header, separator, _ = bundle[:_HEADER_BYTES_MAX].partition(b"\n\n")
    expected = re.escape(BUNDLE_HEADER) + rb"-([0-9a-f]{40})\n([0-9a-f]{40}) " + re.escape(RESULT_REF.encode())
    found = re.fullmatch(expected, header)
    if not separator or found is None:
        raise RejectedBundle("the git bundle's header is not one prerequisite and the one ref refs/andon/result")
    if found[1].decode() != base:
        raise RejectedBundle(f"the git bundle is based on {found[1].decode()}, not on {base}")
    return found[2].decode(), bundle[len(header) + 2 :]


def changes_between(git: Git, base: str, commit: str, *, changes_max: int = OBJECTS_MAX) -> list[Change]:
    """Return what differs between two commits' trees, sorted by path; a rename is a deletion and an addition.

    Raises:
        GitOutputTooLarge: More than `changes_max` changes of long paths.
        GitError: No such commits.
    """
    found = differences(git, base, commit, changes_max=changes_max)
    blobs = {sha for each in found for sha in _blobs((each.old_mode, each.old_sha), (each.new_mode, each.new_sha))}
    size_of = sizes(git, sorted(blobs)) if blobs else {}
    return [Change(each.path, _side(each.old_mode, each.old_sha, size_of), _side(each.new_mode, each.new_sha, size_of)) for each in found]


class Difference(NamedTuple):
    """One path that differs between two trees, as git tells it; `NO_MODE`: it is not there."""

    path: str
    old_mode: str
    new_mode: str
    old_sha: str
    new_sha: str


def differences(git: Git, base: str, commit: str, *, changes_max: int = OBJECTS_MAX) -> list[Difference]:
    """Return what `changes_between` does, without the sizes, which take git as long again.

    Raises:
        GitOutputTooLarge: As there.
        GitError: As there.
    """
    options = ("-r", "-z", "--raw", "--no-renames", "--no-abbrev", "--ignore-submodules=none")
    shas = (checked_sha(base), checked_sha(commit))
    output = git.run("diff-tree", *options, "--end-of-options", *shas, output_bytes_max=changes_max * _CHANGE_BYTES_MAX)
    fields = output.decode("utf-8", "surrogateescape").split("\0")[:-1]
    found = [Difference(path, *meta[1:].split(" ", 4)[:4]) for meta, path in zip(fields[::2], fields[1::2], strict=True)]
    return sorted(found)


def _unpack(git: Git, pack: bytes) -> None:
    """Index a thin pack into `git`'s object directory with git's strict checks."""
    options = ("--strict", "--fix-thin", "--stdin", "--threads=1", f"--max-input-size={BUNDLE_BYTES_MAX}")
    try:
        git.run("index-pack", *options, stdin=pack, timeout_s=UNPACKING_TIMEOUT_S, memory_bytes_max=UNPACKING_MEMORY_BYTES_MAX)
    except GitError as error:
        if "No space left" in str(error) or "Permission denied" in str(error):
            raise
        raise RejectedBundle(f"the git bundle's objects are refused: {error}") from error


def _judge_objects(git: Git, quarantine: Git, commit: str) -> None:
    """Refuse too many objects, a second commit or a tag, before anything is read."""
    try:
        listing = replace(quarantine, alternates=None).run(
            "cat-file", "--batch-all-objects", "--batch-check", "--unordered", output_bytes_max=OBJECTS_MAX * 64
        )
    except GitOutputTooLarge as error:
        raise RejectedBundle(f"the git bundle holds more than {OBJECTS_MAX} objects") from error
    objects = [line.split() for line in listing.decode().splitlines()]
    # `--fix-thin` copies the store's own objects, the bases of deltas, into the pack: these are not judged.
    known = sizes(git, [name for name, _, _ in objects])
    fresh = {name: (kind, int(size)) for name, kind, size in objects if name not in known}
    special = {name: size for name, (kind, size) in fresh.items() if kind in {"commit", "tag"}}
    if set(special) - {commit}:
        raise RejectedBundle("the git bundle holds more than one commit, or a tag")
    if special.get(commit, 0) > COMMIT_BYTES_MAX:
        raise RejectedBundle(f"the commit has {special[commit]} bytes; at most {COMMIT_BYTES_MAX}")


def _judge_commit(quarantine: Git, commit: str, base: str) -> None:
    """Refuse a commit that is not there, or has another parent than `base`, or more."""
    if sizes(quarantine, [commit]).get(commit, ("", 0))[0] != "commit":
        raise RejectedBundle(f"{commit} is not a commit of the git bundle")
    header = quarantine.run("cat-file", "commit", commit).partition(b"\n\n")[0]
    parents = [line.removeprefix(b"parent ").decode("ascii", "replace") for line in header.split(b"\n") if line.startswith(b"parent ")]
    if parents != [base]:
        raise RejectedBundle(f"the commit has parents {', '.join(parents) or '(none)'}; exactly {base} is expected")


def _judge_extent(quarantine: Git, commit: str, base: str, limits: TreeLimits) -> None:
    """Refuse a tree that is far larger than its base, e.g. a few hundred bytes that unfold to 10^10 paths.

    `ls-tree` prints while it walks, directories included, so that it can be stopped; `diff-tree` would hold all of it first.
    """
    listing = ("-r", "-t", "-z", "--full-tree", "--name-only", "--end-of-options")
    bytes_of_base = len(quarantine.run("ls-tree", *listing, base, output_bytes_max=LISTING_BYTES_MAX))
    try:
        quarantine.run("ls-tree", *listing, commit, output_bytes_max=bytes_of_base + limits.changed_files_max * limits.path_bytes_max)
    except GitOutputTooLarge as error:
        raise RejectedBundle(f"the tree holds more than {limits.changed_files_max} new files and directories") from error
    except GitError as error:  # the base was listed: what git cannot walk is the bundle's tree
        raise RejectedBundle(f"the tree cannot be listed: {error}") from error


def _judge_changes(quarantine: Git, commit: str, base: str, limits: TreeLimits) -> None:
    """Apply the rules of `tree_rules` to what changed; entries identical to the base are never judged (DECISIONS G1)."""
    try:
        changes = changes_between(quarantine, base, commit, changes_max=limits.changed_files_max)
    except GitOutputTooLarge as error:
        raise RejectedBundle(f"more than {limits.changed_files_max} changed files") from error
    except GitError as error:  # as above
        raise RejectedBundle(f"the tree cannot be compared with its base: {error}") from error
    reason = too_much(changes, limits)
    if reason:
        raise RejectedBundle(reason)
    before = list_tree(quarantine, base)
    targets = _link_targets(quarantine, changes)
    for change in changes:
        reason = refused_change(change, targets.get((change.path, "new")), limits)
        if reason is None and change.old is not None:
            kept = withheld(change.path, change.old, targets.get((change.path, "old")), limits)
            reason = f"{kept} of the base commit, which no stage may change" if kept else None
        if reason:
            raise RejectedBundle(f"{shown(change.path)} {reason}")
    added = {change.path for change in changes if change.new is not None and change.old is None}
    removed = {change.path for change in changes if change.new is None}
    pair = collision((before.keys() - removed) | added, added)
    if pair:
        raise RejectedBundle(f"{shown(pair[0])} and {shown(pair[1])} differ only in case or Unicode form")


def _link_targets(quarantine: Git, changes: Sequence[Change]) -> dict[tuple[str, str], bytes]:
    """Return the targets of the links on both sides of the changes, by (path, side)."""
    links = [
        (change.path, side, entry)
        for change in changes
        for side, entry in (("old", change.old), ("new", change.new))
        if entry is not None and entry.mode == "120000"
    ]
    if not links:
        return {}
    with objects_reader(quarantine, timeout_s=60) as reader:
        return {
            (path, side): reader.one(entry.sha) if (entry.size_bytes or 0) <= LINK_TARGET_BYTES_MAX else b"-" * (LINK_TARGET_BYTES_MAX + 1)
            for path, side, entry in links
        }


def _blobs(*sides: tuple[str, str]) -> list[str]:
    return [sha for mode, sha in sides if mode not in {NO_MODE, "160000"}]


def _side(mode: str, sha: str, size_of: dict[str, tuple[str, int]]) -> Entry | None:
    if mode == NO_MODE:
        return None
    return Entry(mode, sha, None if mode == "160000" else size_of[sha][1])


__all__ = [
    "BUNDLE_BYTES_MAX",
    "BUNDLE_HEADER",
    "NO_MODE",
    "RESULT_REF",
    "Difference",
    "changes_between",
    "differences",
    "parse_bundle",
    "receive",
]
