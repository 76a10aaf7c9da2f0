"""Git bundles from an executor that lies: refused before any ref or object of the store changes. Plain git takes them."""

import asyncio
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from sandbox.contract.errors import RejectedBundle
from sandbox.contract.tree_rules import TreeLimits
from sandbox.git import ANDON, Git
from sandbox.mirror import Mirror, pack_of
from sandbox.quarantine import BUNDLE_HEADER, RESULT_REF, parse_bundle
from tests.fakes.repositories import everything_in, run_git, sample_repository
from tests.security.git_plants import naive_git
from tests.security.liar import Liar

PLAIN = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
NAMES_THAT_TRICK = [
    b".git", b".GIT", b"git~1", b"..", b".", b"a/b", b".g\xe2\x80\x8cit", b".git ", b"a\\b", b"caf\xe9", b"a\nb", b"a\xe2\x80\xaeb",
    b"a\x1b[2J",
]  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a store and its base commit, to be copied: making one takes half a second."""
    return asyncio.run(_store(tmp_path_factory.mktemp("template")))


async def _store(path: Path) -> tuple[Path, str]:
    repository = sample_repository(path / "user", "everything")
    base = run_git(repository, "rev-parse", "HEAD")
    mirror = await Mirror.open(path / "mirror")
    await mirror.import_base(base, pack_of(Git(repository / ".git"), base))
    return mirror.path, base


@pytest.fixture
async def liar(template: tuple[Path, str], tmp_path: Path) -> Liar:
    store, base = template
    shutil.copytree(store, tmp_path / "mirror")
    return Liar(await Mirror.open(tmp_path / "mirror"), base)


async def refusal(liar: Liar, bundle: bytes, limits: TreeLimits | None = None) -> str:
    """Return why a bundle is refused; the store is byte for byte what it was."""
    before = everything_in(liar.mirror.path)
    with pytest.raises(RejectedBundle) as error:
        await liar.mirror.receive(bundle, liar.base, limits or TreeLimits())
    assert everything_in(liar.mirror.path) == before
    assert str(error.value).isprintable()
    return str(error.value)


def taken_by_plain_git(liar: Liar, bundle: bytes, path: Path) -> Path:
    """Return a copy of the store into which git itself has unpacked a bundle."""
    shutil.copytree(liar.mirror.path, path / "naive")
    (path / "bundle").write_bytes(bundle)
    said = naive_git(path / "naive", "bundle", "unbundle", str(path / "bundle"))
    assert said.strip(), "plain git refused it"
    return path / "naive"


def paths_without_end(liar: Liar) -> bytes:
    """Return a tree of ten levels with ten entries each."""
    tree = liar.tree(*(("100644", b"%d" % n, liar.store("blob", b"")) for n in range(10)))
    for _ in range(9):
        tree = liar.tree(*(("40000", b"%d" % n, tree) for n in range(10)))
    return tree


async def test_what_the_liar_makes_honestly_is_taken(liar: Liar):
    """The control: its objects, packs and headers are good ones."""
    commit = liar.commit(liar.with_base(("100644", b"new", liar.store("blob", b"x")), ("120000", b"link", liar.store("blob", b"new"))))

    assert await liar.mirror.receive(liar.bundle(commit), liar.base, TreeLimits()) == commit
    assert [change.path for change in await liar.mirror.changes(liar.base, commit)] == ["link", "new"]


@pytest.mark.abuse("G12")
@pytest.mark.parametrize("name", NAMES_THAT_TRICK)
@pytest.mark.parametrize("mode", ["100644", "40000"])
async def test_trees_with_names_that_trick_are_refused(liar: Liar, name: bytes, mode: str):
    """As a file and as a directory, at the root and below."""
    blob = liar.store("blob", b"x")
    target = blob if mode == "100644" else liar.tree(("100644", b"config", blob))

    await refusal(liar, liar.bundle(liar.commit(liar.with_base((mode, name, target)))))
    await refusal(liar, liar.bundle(liar.commit(liar.with_base(("40000", b"below", liar.tree((mode, name, target)))))))


@pytest.mark.abuse("G12", "I09", "I10")
def test_control_plain_git_takes_all_of_it(liar: Liar, tmp_path: Path):
    """Names that trick, 10^10 paths in 3 kB, 64 MiB in 64 KiB: git itself unpacks them."""
    blob, zeros = liar.store("blob", b"x"), liar.store("blob", bytes(64 << 20))
    names = liar.tree(*(("100644", name, blob) for name in sorted(NAMES_THAT_TRICK)))
    commit = liar.commit(liar.tree(("40000", b"bomb", paths_without_end(liar)), ("40000", b"names", names), ("100644", b"zeros", zeros)))

    naive = taken_by_plain_git(liar, liar.bundle(commit), tmp_path)

    assert len(naive_git(naive, "ls-tree", "-z", f"{commit}:names").split(b"\0")) == len(NAMES_THAT_TRICK) + 1
    assert naive_git(naive, "cat-file", "-s", f"{commit}:zeros").strip() == b"67108864"
    with subprocess.Popen(["git", "ls-tree", "-r", f"{commit}:bomb"], cwd=naive, env=PLAIN, stdout=subprocess.PIPE) as listing:
        assert listing.stdout
        assert listing.stdout.read(20 << 20).count(b"\n") > 200_000, "and it would go on for hours"
        listing.kill()


@pytest.mark.parametrize(
    ("mode", "name", "data", "reason"),
    [
        ("120000", b"link", b"/etc/shadow", "is a link to an absolute path"),
        ("120000", b"link", b"../x", "is a link that leaves the tree"),
        ("120000", b"link", b"src/../x", "climbs in the middle"),
        ("120000", b"link", b"x" * 5_000, "is a link of more than 1024 bytes"),
        ("120000", b".gitmodules", b"README.md", ""),
        ("100644", b".env.production", b"SECRET", "is a .env file, which no stage may change"),
        ("100644", b".env", b"SECRET", "is a .env file, which no stage may change"),
        ("100644", b"readme.MD", b"x", "README.md and readme.MD differ only in case"),
        ("100644", b"absolute", b"x", "absolute is a link to an absolute path of the base commit, which no stage may change"),
        ("100644", b"large", b"x" * 6_001, "large has 6001 bytes; at most 6000"),
    ],
)
async def test_changes_no_agent_may_make_are_refused(liar: Liar, mode: str, name: bytes, data: bytes, reason: str):
    """The same rules as the walker's, on a host that has not seen the workspace."""
    commit = liar.commit(liar.with_base((mode, name, liar.store("blob", data))))

    assert reason in await refusal(liar, liar.bundle(commit), TreeLimits(file_bytes_max=6_000))


@pytest.mark.abuse("G05")
async def test_submodules_are_neither_added_nor_changed(liar: Liar):
    """Added, moved, removed."""
    gitlink = bytes.fromhex("7" * 40)
    more, moved, removed = (Liar(liar.mirror, liar.base) for _ in range(3))
    added = more.commit(more.with_base(("160000", b"more", gitlink)))
    other = moved.commit(moved.with_base(("40000", b"vendor", moved.tree(("160000", b"library", gitlink)))))
    gone = removed.commit(removed.with_base(("100644", b"vendor", removed.store("blob", b"x"))))

    assert "more is a submodule, which no stage may add" in await refusal(more, more.bundle(added))
    assert "vendor/library is a submodule, which no stage may change" in await refusal(moved, moved.bundle(other))
    assert "vendor/library is a submodule, which no stage may change" in await refusal(removed, removed.bundle(gone))


@pytest.mark.abuse("G12")
async def test_trees_that_are_no_trees_are_refused(liar: Liar):
    """Twice the same name, a wrong order, missing objects, odd modes."""
    blob = liar.store("blob", b"x")
    for entries in (
        [("100644", b"a", blob), ("100644", b"a", blob)],
        [("120000", b"a", blob), ("40000", b"a", liar.tree(("100644", b"b", blob)))],
        [("100644", b"b", blob), ("100644", b"a", blob)],
        [("100644", b"a", b"\x11" * 20)],
        [("100644", b"", blob)],
        [("0100644", b"a", blob)],
        [("100644", b"a", b"\0" * 20)],
    ):
        await refusal(liar, liar.bundle(liar.commit(liar.tree(*entries))))


@pytest.mark.abuse("N11")
async def test_history_that_is_not_one_commit_on_the_base_is_refused(liar: Liar):
    """Another parent, none, several."""
    for parents in (("3" * 40,), (liar.base, liar.base), (liar.base, "3" * 40)):
        other = _only_a_tree(liar)
        await refusal(other, other.bundle(other.commit(other.last, *parents)))
    orphan = _only_a_tree(liar)
    lines = [f"tree {orphan.last.hex()}", "author a <a@b> 0 +0000", "committer a <a@b> 0 +0000", "", "m", ""]
    root = orphan.store("commit", "\n".join(lines).encode()).hex()

    assert "has parents (none)" in await refusal(orphan, orphan.bundle(root))


@pytest.mark.abuse("N11")
async def test_more_than_one_commit_and_tags_are_refused(liar: Liar, tmp_path: Path):
    """A chain of commits would bring history nobody judged; so would a tag. The control: plain git takes the chain."""
    chain = _only_a_tree(liar)
    tagged = _only_a_tree(liar)
    commit = tagged.commit(tagged.last)
    tagged.store("tag", f"object {commit}\ntype commit\ntag v1\ntagger a <a@b> 0 +0000\n\nm\n".encode())

    second = chain.commit(chain.last, chain.commit(chain.last))
    assert "more than one commit" in await refusal(chain, chain.bundle(second))
    naive = taken_by_plain_git(chain, chain.bundle(second), tmp_path)
    assert naive_git(naive, "rev-list", "--count", f"{liar.base}..{second}").strip() == b"2", "the control"
    assert "or a tag" in await refusal(tagged, tagged.bundle(commit))


async def test_a_ref_must_be_the_commit_in_the_pack(liar: Liar):
    """Not a tree, not an object that is not there."""
    other = _only_a_tree(liar)

    assert "is not a commit" in await refusal(other, other.bundle(other.last.hex()))
    assert "is not a commit" in await refusal(other, other.bundle("9" * 40))


def _only_a_tree(liar: Liar) -> Liar:
    other = Liar(liar.mirror, liar.base)
    other.with_base(("100644", b"new", other.store("blob", b"x")))
    return other


async def test_a_ref_at_the_base_itself_is_refused(liar: Liar):
    """Nothing new is not a result."""
    other = _only_a_tree(liar)

    assert "has parents" in await refusal(liar, other.bundle(liar.base))


async def test_packs_that_are_damaged_are_refused(liar: Liar):
    """Truncated, changed, extended, empty, or something else."""
    bundle = liar.bundle(liar.commit(liar.with_base(("100644", b"new", liar.store("blob", b"x" * 100)))))
    flipped = bytearray(bundle)
    flipped[-40] ^= 1

    for damaged in (bundle[:-1], bundle[:-21], bytes(flipped), bundle.partition(b"\n\n")[0] + b"\n\n", bundle.replace(b"PACK", b"PUCK")):
        await refusal(liar, damaged)


@pytest.mark.abuse("I09")
async def test_a_bomb_of_paths_is_refused_in_time(liar: Liar):
    """Ten levels of ten entries: a few hundred bytes, ten thousand million paths."""
    bundle = liar.bundle(liar.commit(liar.with_base(("40000", b"bomb", paths_without_end(liar)))))
    started = time.monotonic()

    assert len(bundle) < 3_000
    assert "more than 20000 new files and directories" in await refusal(liar, bundle)
    assert time.monotonic() - started < 10


@pytest.mark.abuse("I09")
async def test_a_bomb_of_empty_directories_is_refused_in_time(liar: Liar):
    """The same without a single file: nothing to list, everything to walk."""
    tree = liar.tree()
    for _ in range(12):
        tree = liar.tree(*(("40000", b"%d" % n, tree) for n in range(10)))
    started = time.monotonic()

    await refusal(liar, liar.bundle(liar.commit(liar.with_base(("40000", b"bomb", tree)))))
    assert time.monotonic() - started < 10


@pytest.mark.abuse("I09")
async def test_a_bomb_of_levels_is_refused_in_time(liar: Liar):
    """A hundred thousand directories in one another."""
    tree = liar.tree(("100644", b"f", liar.store("blob", b"")))
    for _ in range(100_000):
        tree = liar.tree(("40000", b"d", tree))
    started = time.monotonic()

    await refusal(liar, liar.bundle(liar.commit(liar.with_base(("40000", b"deep", tree)))))
    assert time.monotonic() - started < 30


@pytest.mark.abuse("I10")
async def test_a_bomb_of_bytes_is_seen_by_its_size(liar: Liar):
    """A quarter of a gigabyte of zeros in a quarter of a megabyte."""
    commit = liar.commit(liar.with_base(("100644", b"zeros", liar.store("blob", bytes(256 << 20)))))
    bundle = liar.bundle(commit)

    assert len(bundle) < 2 << 20
    assert "zeros has 268435456 bytes; at most 67108864" in await refusal(liar, bundle)


@pytest.mark.abuse("I10")
async def test_too_many_bytes_or_files_together_are_refused(liar: Liar):
    """Each of them is small enough."""
    blobs = [liar.store("blob", b"%d" % n) for n in range(10)]
    commit = liar.commit(liar.with_base(*(("100644", b"new%d" % n, blob) for n, blob in enumerate(blobs))))

    assert "10 changed files; at most 9" in await refusal(liar, liar.bundle(commit), TreeLimits(changed_files_max=9))
    assert "10 bytes of changed files; at most 9" in await refusal(liar, liar.bundle(commit), TreeLimits(changed_bytes_max=9))
    assert await liar.mirror.receive(liar.bundle(commit), liar.base, TreeLimits(changed_files_max=10, changed_bytes_max=10)) == commit


@pytest.mark.abuse("G13", "G17")
@pytest.mark.parametrize(
    "header",
    [
        "# v2 git bundle\n-{base}\n{commit} refs/heads/main\n\n",
        "# v2 git bundle\n-{base}\n{commit} HEAD\n\n",
        "# v2 git bundle\n-{base}\n{commit} refs/andon/result/../../heads/x\n\n",
        "# v2 git bundle\n-{base}\n{commit} -x\n\n",
        "# v2 git bundle\n-{base}\n{commit} refs/replace/{base}\n\n",
        "# v2 git bundle\n-{base}\n{commit} refs/andon/result\n{commit} refs/heads/main\n\n",
        "# v2 git bundle\n-{base}\n-{commit}\n{commit} refs/andon/result\n\n",
        "# v2 git bundle\n-{base} comment\n{commit} refs/andon/result\n\n",
        "# v2 git bundle\n{commit} refs/andon/result\n\n",
        "# v2 git bundle\n-{commit}\n{commit} refs/andon/result\n\n",
        "# v3 git bundle\n@object-format=sha1\n-{base}\n{commit} refs/andon/result\n\n",
        "# v3 git bundle\n@filter=blob:none\n-{base}\n{commit} refs/andon/result\n\n",
        "# v2 git bundle\n-{base}\n{commit} refs/andon/result\n",
        "# v2 git bundle\r\n-{base}\r\n{commit} refs/andon/result\r\n\r\n",
        "",
        "\n\n",
        "# v2 git bundle\n" + "-" * 10_000,
    ],
)
async def test_a_header_that_is_not_ours_to_the_letter_is_refused(liar: Liar, header: str):
    """We parse it ourselves; git would take most of these."""
    commit = liar.commit(liar.with_base(("100644", b"new", liar.store("blob", b"x"))))

    message = await refusal(liar, header.format(base=liar.base, commit=commit).encode() + liar.pack())

    assert "header is not" in message or "is based on" in message


@pytest.mark.abuse("G17")
@pytest.mark.parametrize("ref", ["refs/heads/main", "HEAD", "refs/heads/../../x", "-x", "refs/replace/{base}"])
def test_control_plain_git_takes_any_name_of_a_ref(liar: Liar, tmp_path: Path, ref: str):
    """It verifies the git bundle and unpacks it."""
    commit = liar.commit(liar.with_base(("100644", b"new", liar.store("blob", b"x"))))
    name = ref.format(base=liar.base)

    naive = taken_by_plain_git(liar, f"# v2 git bundle\n-{liar.base}\n{commit} {name}\n\n".encode() + liar.pack(), tmp_path)

    assert naive_git(naive, "bundle", "list-heads", str(tmp_path / "bundle")).decode().split() == [commit, name]


@pytest.mark.abuse("G13")
def test_control_a_fetch_of_all_refs_brings_replacements(liar: Liar, tmp_path: Path):
    """And from then on plain git shows another content for the same name."""
    commit = liar.commit(liar.with_base(("100644", b"new", liar.store("blob", b"x"))))
    bundle = tmp_path / "replacing"
    bundle.write_bytes(f"# v2 git bundle\n-{liar.base}\n{commit} refs/replace/{liar.base}\n\n".encode() + liar.pack())
    shutil.copytree(liar.mirror.path, tmp_path / "naive")

    naive_git(tmp_path / "naive", "fetch", "--quiet", str(bundle), "+refs/*:refs/*")

    assert b"new" in naive_git(tmp_path / "naive", "ls-tree", "--name-only", liar.base)


def test_a_header_is_parsed_without_a_byte_lost():
    """The pack begins after the empty line, whatever it holds."""
    base, commit = "a" * 40, "b" * 40
    bundle = BUNDLE_HEADER + f"-{base}\n{commit} {RESULT_REF}\n\n".encode() + b"\n\nPACK\n\n"

    assert parse_bundle(bundle, base) == (commit, b"\n\nPACK\n\n")


@pytest.mark.abuse("G13")
async def test_replace_refs_and_grafts_of_the_store_are_not_honoured(liar: Liar):
    """A replaced base would make another difference."""
    commit = liar.commit(liar.with_base(("100644", b"new", liar.store("blob", b"x"))))
    await liar.mirror.receive(liar.bundle(commit), liar.base, TreeLimits())
    subprocess.run(["git", "replace", liar.base, commit], cwd=liar.mirror.path, check=True, env={"PATH": "/usr/bin:/bin"})

    assert [change.path for change in await liar.mirror.changes(liar.base, commit)] == ["new"]
    assert b"new" in naive_git(liar.mirror.path, "ls-tree", "--name-only", liar.base), "the control: plain git shows the replacement"


async def test_nothing_of_a_quarantine_is_left_behind(liar: Liar, tmp_path_factory: pytest.TempPathFactory):
    """Neither after a good bundle nor after a bad one."""
    before = {path.name for path in Path("/tmp").glob("andon-quarantine-*") if path.stat().st_uid == os.geteuid()}
    commit = liar.commit(liar.with_base(("100644", b"new", liar.store("blob", b"x"))))

    await refusal(liar, liar.bundle(commit)[:-1])
    await liar.mirror.receive(liar.bundle(commit), liar.base, TreeLimits())

    assert {path.name for path in Path("/tmp").glob("andon-quarantine-*") if path.stat().st_uid == os.geteuid()} <= before
    assert ANDON.name == "andon"
