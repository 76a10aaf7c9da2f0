"""Git bundles of a lying executor: the file's bytes, and trees of any bytes in a well-formed one; the store and its git are real."""

import asyncio
import atexit
import hashlib
import shutil
import tempfile
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sandbox.contract.errors import RejectedBundle
from sandbox.contract.tree_rules import TreeLimits
from sandbox.git import Git
from sandbox.mirror import Mirror, pack_of
from sandbox.quarantine import BUNDLE_HEADER, RESULT_REF, changes_between, parse_bundle, receive
from tests.fakes.repositories import run_git, sample_repository
from tests.fuzz.target import Target

_COMMIT, _TREE, _BLOB = (b"commit", 1), (b"tree", 2), (b"blob", 3)
_LIMITS = TreeLimits(file_bytes_max=1 << 20, changed_bytes_max=4 << 20)


@dataclass(frozen=True)
class _Store:
    """A mirror with a base commit, and one blob every tree may name."""

    git: Git
    base: str


@cache
def _store() -> _Store:
    top = Path(tempfile.mkdtemp(prefix="andon-fuzz-"))
    atexit.register(shutil.rmtree, top, ignore_errors=True)
    repository = sample_repository(top / "user")
    base = run_git(repository, "rev-parse", "HEAD")

    async def made() -> Mirror:
        mirror = await Mirror.open(top / "mirror")
        await mirror.import_base(base, pack_of(Git(repository / ".git"), base))
        return mirror

    return _Store(asyncio.run(made()).git, base)


def _header(data: bytes) -> None:
    """What is taken has exactly our header; git never sees another."""
    try:
        commit, pack = parse_bundle(data, _store().base)
    except RejectedBundle:
        return
    assert data == b"%s-%s\n%s %s\n\n" % (BUNDLE_HEADER, _store().base.encode(), commit.encode(), RESULT_REF.encode()) + pack


def _received(bundle: bytes) -> None:
    """A bundle is refused in words, or its changes obey the rules of trees; no ref is made of either."""
    store = _store()
    try:
        commit = receive(store.git, bundle, store.base, _LIMITS)
    except RejectedBundle as refused:
        reason = str(refused)
    else:
        reason = ""
        assert [change.path for change in changes_between(store.git, store.base, commit) if _tricks(change.path)] == []
    assert reason.isprintable()
    assert store.git.run("for-each-ref", "refs/heads/", "refs/tags/", RESULT_REF) == b""


def _tricks(path: str) -> bool:
    """Return whether a path is one of those the rules of trees name, by other means than the code under test."""
    odd = any(char < " " or char in "\x7f\\\u200c\u200d\u202e\u2028" or "\udc80" <= char <= "\udcff" for char in path)
    return odd or any(part in {"", ".", ".."} or part.casefold() in {".git", "git~1"} for part in path.split("/"))


def _tree(data: bytes) -> None:
    """A tree object may hold any bytes."""
    _received(_bundle(data, b"contents of a file\n"))


def _bundle(tree: bytes, blob: bytes) -> bytes:
    """Return a bundle of one commit on the base, whose root is a tree object of these bytes."""
    base = _store().base
    who = b"A <a@example.org> 1 +0000"
    commit = b"tree %s\nparent %s\nauthor %s\ncommitter %s\n\nm\n" % (_sha(_TREE, tree).hex().encode(), base.encode(), who, who)
    objects = [(_COMMIT, commit), (_TREE, tree), (_BLOB, blob)]
    pack = b"PACK" + (2).to_bytes(4, "big") + len(objects).to_bytes(4, "big") + b"".join(_packed(kind, data) for kind, data in objects)
    head = b"%s-%s\n%s %s\n\n" % (BUNDLE_HEADER, base.encode(), _sha(_COMMIT, commit).hex().encode(), RESULT_REF.encode())
    return head + pack + hashlib.sha1(pack).digest()


def _packed(kind: tuple[bytes, int], data: bytes) -> bytes:
    """Return an object as a pack holds it: type and length, seven bits a byte, then zlib."""
    size, first = len(data) >> 4, (kind[1] << 4) | (len(data) & 15)
    head = bytearray()
    while size:
        head.append(first | 0x80)
        first, size = size & 0x7F, size >> 7
    head.append(first)
    return bytes(head) + zlib.compress(data, 1)


def _sha(kind: tuple[bytes, int], data: bytes) -> bytes:
    return hashlib.sha1(b"%s %d\0" % (kind[0], len(data)) + data).digest()


def _trees() -> list[bytes]:
    blob = _sha(_BLOB, b"contents of a file\n")
    names = (b"100644 README.md", b"100755 run.sh", b"120000 way")
    return [b"".join(name + b"\0" + blob for name in names), b"100644 a\0" + blob]


_WORDS: tuple[bytes, ...] = (
    b"40000 d\0",
    b"160000 m\0",
    b"100664 g\0",
    b"100600 x\0",
    b"0100644 z\0",
    b"120000 l\0",
    b"100644 .git\0",
    b".GIT",
    b"git~1",
)
_WORDS += (b"..", b"a/b", b"\xe2\x80\x8c", b"\xff", b"\n", b"\x1b[2J", b".gitmodules\0", b"100644 \0", b"A", b"a", b"CON", b"x" * 300)

TARGETS = (
    Target(
        "bundle-header",
        _header,
        lambda: [_bundle(tree, b"x") for tree in _trees()],
        (b"# v3 git bundle\n", b"@object-format=sha1\n", b"0", b"a", b"-"),
    ),
    Target("bundle", _received, lambda: [_bundle(tree, b"contents of a file\n") for tree in _trees()], (b"PACK", b"\x00\x00\x00\x02")),
    Target("bundle-tree", _tree, _trees, (*_WORDS, _sha(_BLOB, b"contents of a file\n"))),
)
