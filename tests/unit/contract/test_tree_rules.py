"""The rules of trees: names, links, private files, collisions, sums."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.contract.tree import Change, Entry
from sandbox.contract.tree_rules import (
    LINK_TARGET_BYTES_MAX,
    TreeLimits,
    collision,
    is_private,
    refused_change,
    shown,
    too_much,
    unsafe_link,
    unsafe_name,
    unsafe_path,
    withheld,
)

LIMITS = TreeLimits()


def an_entry(mode: str = "100644", size_bytes: int | None = 1) -> Entry:
    return Entry(mode=mode, sha="a" * 40, size_bytes=size_bytes)


def an_addition(path: str, mode: str = "100644", size_bytes: int = 1) -> Change:
    return Change(path=path, old=None, new=an_entry(mode, size_bytes))


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "a b",
        ".gitignore",
        ".gitattributes",
        ".github",
        ".gitmodules",
        "git",
        "日本語",
        "ملف",
        "emoji🦊",
        "a:b",
        "-x",
        "--output=x",
        "'\"",
        "…",
    ],
)
def test_ordinary_names_of_any_script_are_safe(name: str):
    """Nobody has to write English."""
    assert unsafe_name(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "a/b", "a\\b", "a\nb", "a\x1b[2Jb", "a\x7f", "\u202egnp.exe", "a\u200bb", "a\u2028b", "\udcff", "\x00",
        ".git", ".GIT", ".Git", ".git.", ".git ", ".git. .", "git~1", "GIT~1", ".git::$INDEX_ALLOCATION", ".g\u200cit",
    ],
)  # fmt: skip
def test_names_that_trick_a_reader_or_a_file_system_are_not(name: str):
    """Control and invisible characters, bytes that are not UTF-8, and everything another platform takes for `.git`."""
    assert unsafe_name(name) is not None


def test_depth_and_length_of_paths_are_bounded():
    """At the limit is fine, one more is not."""
    assert unsafe_path("/".join(["d"] * 64), LIMITS) is None
    assert unsafe_path("/".join(["d"] * 65), LIMITS) == "is 65 levels deep; at most 64"
    assert unsafe_path("é" * 127 + "x", LIMITS) is None
    assert "more than 255 bytes" in str(unsafe_path("é" * 128, LIMITS))
    assert unsafe_path("/".join(["n" * 127] * 8), LIMITS) is None
    assert "longer than 1024 bytes" in str(unsafe_path("/".join(["n" * 128] * 8), LIMITS))


@pytest.mark.parametrize(
    ("path", "target"),
    [("l", "a"), ("l", "a/b/"), ("l", "."), ("d/l", "../a"), ("d/e/l", "../../a"), ("d/l", ".."), ("l", "./a"), ("l", "a//b"), ("l", "é")],
)
def test_links_within_the_tree_are_safe(path: str, target: str):
    """Steps up are counted from the directory the link is in."""
    assert unsafe_link(path, target.encode()) is None


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("l", ".."), ("l", "../a"), ("d/l", "../../a"), ("l", "/etc/passwd"), ("l", ""), ("l", "a/../../b"), ("l", "self/../etc"),
        ("l", ".git/config"), ("d/l", "../.GIT"), ("l", "a\nb"), ("l", "a" * (LINK_TARGET_BYTES_MAX + 1)),
    ],
)  # fmt: skip
def test_links_that_could_leave_the_tree_are_not(path: str, target: str):
    """`self/../etc` leaves if `self` is a link to `.`, so a step up after a name is refused whatever the name is."""
    assert unsafe_link(path, target.encode()) is not None


@given(
    st.lists(st.sampled_from(["a", "b", "..", "."]), min_size=1, max_size=8),
    st.integers(0, 3),
)
def test_a_safe_link_never_leaves_the_tree_by_its_text(parts: list[str], depth: int):
    """Whatever passes resolves below the root."""
    path = "/".join(["d"] * depth + ["link"])

    if unsafe_link(path, "/".join(parts).encode()) is None:
        level = depth
        for part in parts:
            level += {"..": -1, ".": 0}.get(part, 1)
            assert level >= 0


@pytest.mark.parametrize(("path", "expected"), [
    (".env", True), ("a/b/.env", True), (".env.local", True), (".env.production", True), (".env.example", False),
    (".env.sample", False), ("x/.env.template", False), (".env.local.example", False), ("env", False), (".envrc", False), ("x.env", False),
])  # fmt: skip
def test_env_files_are_private_and_their_templates_are_not(path: str, expected: bool):
    """DECISIONS G1."""
    assert is_private(path) is expected


@pytest.mark.parametrize(
    ("path", "entry", "target", "reason"),
    [
        ("lib", an_entry("160000", None), None, "is a submodule"),
        (".env", an_entry(), None, "is a .env file"),
        ("l", an_entry("120000"), b"/etc", "is a link to an absolute path"),
        ("l", an_entry("120000"), b"a", None),
        ("a\nb", an_entry(), None, "has a name that holds a control or invisible character"),
        ("a", an_entry("100755"), None, None),
        ("a", an_entry("100644", 1 << 40), None, None),
    ],
)
def test_what_is_withheld_says_why(path: str, entry: Entry, target: bytes | None, reason: str | None):
    """The reason is shown to the person; size alone withholds nothing."""
    assert withheld(path, entry, target, LIMITS) == reason


@pytest.mark.parametrize(
    ("final", "changed", "pair"),
    [
        ({"a", "b"}, {"b"}, None),
        ({"a.py", "A.py"}, {"A.py"}, ("A.py", "a.py")),
        ({"src/a", "SRC/b"}, {"SRC/b"}, ("SRC", "src")),
        ({"caf\u00e9", "cafe\u0301"}, {"cafe\u0301"}, ("cafe\u0301", "caf\u00e9")),
        ({"stra\u00dfe", "STRASSE"}, {"STRASSE"}, ("STRASSE", "stra\u00dfe")),
        ({"a.py", "A.py", "new"}, {"new"}, None),
        ({"src/a", "SRC/b", "src/new"}, {"src/new"}, None),
        ({"dir/x", "Dir"}, {"Dir"}, ("Dir", "dir")),
    ],
)
def test_new_names_may_not_collide_and_old_ones_are_not_judged(final: set[str], changed: set[str], pair: tuple[str, str] | None):
    """Case and Unicode form, at every level of the path."""
    assert collision(final, changed) == pair


def test_changes_of_submodules_private_files_and_other_modes_are_refused():
    """Nothing an agent may do leads to one of these."""
    submodule = an_entry("160000", None)

    assert refused_change(Change(path="lib", old=submodule, new=None), None, LIMITS) == "is a submodule, which no stage may change"
    assert refused_change(Change(path="lib", old=None, new=submodule), None, LIMITS) == "is a submodule, which no stage may add"
    assert refused_change(an_addition("a/.env"), None, LIMITS) == "is a .env file, which no stage may change"
    assert refused_change(an_addition("a", "100664"), None, LIMITS) == "has mode 100664"
    assert "at most" in str(refused_change(an_addition("a", size_bytes=LIMITS.file_bytes_max + 1), None, LIMITS))
    assert refused_change(an_addition("a", "120000"), b"../b", LIMITS) == "is a link that leaves the tree"
    assert refused_change(an_addition("a", size_bytes=LIMITS.file_bytes_max), None, LIMITS) is None
    assert refused_change(Change(path="a", old=an_entry(), new=None), None, LIMITS) is None


def test_the_sum_of_changes_is_bounded():
    """By number and by bytes; deletions cost no bytes."""
    limits = TreeLimits(changed_files_max=2, changed_bytes_max=10)

    assert too_much([an_addition("a", size_bytes=5), an_addition("b", size_bytes=5)], limits) is None
    assert too_much([an_addition("a", size_bytes=5), an_addition("b", size_bytes=6)], limits) == "11 bytes of changed files; at most 10"
    assert too_much([an_addition(name, size_bytes=0) for name in string.ascii_lowercase], limits) == "26 changed files; at most 2"
    assert too_much([Change(path="a", old=an_entry(size_bytes=99), new=None)], limits) is None


def test_paths_are_shown_without_tricks():
    """A message is safe to print on a terminal."""
    assert shown("src/日本語.py") == "src/日本語.py"
    assert shown("a\x1b[2Jb\u202e") == r"'a\x1b[2Jb\u202e'"
    assert len(shown("x" * 5_000)) == 200
