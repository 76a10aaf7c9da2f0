"""Write scopes: last match wins, anchoring, denials, safe paths, and globs that nobody can make slow."""

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sandbox.contract.errors import UnsafePath
from sandbox.contract.scope import PATTERN_CHARS_MAX, WriteScope, checked_path, matches, offending_paths

NAMES = st.text(alphabet="abA.-_", min_size=1, max_size=6).filter(lambda name: name not in {".", ".."} and ".git" not in name.lower())
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
GLOB_PARTS = st.one_of(NAMES, st.just("**"), st.text(alphabet="ab*?.", min_size=1, max_size=6).filter(lambda part: part not in {".", ".."}))
GLOBS = st.lists(GLOB_PARTS, min_size=1, max_size=4).map("/".join)
SCOPES = st.lists(st.tuples(st.booleans(), GLOBS).map(lambda pair: f"!{pair[1]}" if pair[0] else pair[1]), max_size=6).map(
    lambda patterns: WriteScope(patterns=tuple(patterns))
)


def a_scope(*patterns: str) -> WriteScope:
    return WriteScope(patterns=patterns)


@given(st.lists(PATHS, max_size=8), SCOPES)
def test_a_path_is_offending_exactly_when_it_is_not_allowed(paths: list[str], scope: WriteScope):
    """The list of offences and the answer for one path are the same rule."""
    offending = offending_paths(paths, scope)

    assert offending == sorted(path for path in paths if not scope.allows(path))


@given(PATHS, SCOPES, GLOBS)
def test_a_last_pattern_that_matches_decides(path: str, scope: WriteScope, glob: str):
    """Whatever came before, a final allowing pattern opens its paths and a final denial closes them."""
    opened = a_scope(*scope.patterns, glob)
    closed = a_scope(*scope.patterns, f"!{glob}")

    if matches(path, glob):
        assert opened.allows(path)
        assert not closed.allows(path)
    else:
        assert opened.allows(path) == scope.allows(path)


@given(PATHS, SCOPES)
def test_everything_minus_everything_is_nothing(path: str, scope: WriteScope):
    """A scope that ends by denying all allows nothing."""
    assert not a_scope(*scope.patterns, "!**").allows(path)


@given(st.text(alphabet="abc", min_size=1, max_size=8), st.text(alphabet="abc*?", min_size=1, max_size=8))
def test_one_component_matches_as_fnmatch_says(name: str, glob: str):
    """Inside a component `*` and `?` mean what they mean in a shell; `**` alone spans components instead."""
    if glob != "**":
        assert matches(name, glob) == fnmatch.fnmatchcase(name, glob)


def test_an_empty_scope_allows_nothing():
    """A checks job may write nothing but its reports."""
    assert offending_paths(["a.py"], a_scope()) == ["a.py"]


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("src/**", "src/a/b.py", "src"),
        ("src/**", "src/a.py", "lib/src/a.py"),
        ("src/*", "src/a.py", "src/a/b.py"),
        ("*.py", "a.py", "src/a.py"),
        ("**/*.py", "a.py", "a.pyc"),
        ("**/*.py", "x/y/z/a.py", "x/y.py/z"),
        ("a/**/**", "a/b", "a"),
        ("a/**/z", "a/z", "a/zz"),
        ("a/**/z", "a/b/c/z", "a/b/c"),
        ("a?c", "abc", "a/c"),
        ("[ab].py", "[ab].py", "a.py"),
        ("docs/**", "docs/guide.md", "docs.md"),
    ],
)
def test_a_pattern_is_anchored_at_the_root(pattern: str, inside: str, outside: str):
    """Patterns name whole paths from the repository root; brackets are ordinary characters."""
    assert matches(inside, pattern)
    assert not matches(outside, pattern)


def test_a_denial_inside_an_allowed_directory_holds_and_can_be_opened_again():
    """Order is the only priority there is."""
    scope = a_scope("src/**", "!src/secret/**", "src/secret/readme.md")

    assert offending_paths(["src/a.py", "src/secret/key", "src/secret/readme.md"], scope) == ["src/secret/key"]


def test_a_denial_ignores_case_and_a_permission_does_not():
    """`makefile` is the protected `Makefile` on some file systems; `SRC` is not the `src` that was opened."""
    scope = a_scope("src/**", "Makefile2", "!Makefile", "!**/AGENTS.md")

    assert offending_paths(["makefile", "src/agents.MD", "SRC/a.py"], scope) == ["SRC/a.py", "makefile", "src/agents.MD"]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "a/../b",
        "..",
        "./a",
        "a//b",
        "a/",
        ".git/config",
        "sub/.GIT/hooks/x",
        "a\0b",
        "a\\b",
        ".git./config",
        "GIT~1/config",
        ".git ",
    ],
)
def test_an_unsafe_path_is_refused_whatever_the_scope(path: str):
    """A scope that allows everything still allows no way out of the repository and no way into `.git`."""
    with pytest.raises(UnsafePath):
        offending_paths([path], a_scope("**"))


@pytest.mark.parametrize(
    "path", [".gitignore", ".github/workflows/ci.yml", ".gitattributes", "src/.gitkeep", "a b/ü.py", "...", "x/.git~/y"]
)
def test_ordinary_names_near_git_are_safe(path: str):
    """`.gitignore`, `.gitattributes` and `.github` are ordinary names (DECISIONS G1)."""
    assert checked_path(path) == path


@pytest.mark.parametrize("glob", ["", "!", "/abs/**", "docs/", "a//b", "./src/**", "../x", "a\\b", "a" * (PATTERN_CHARS_MAX + 1)])
def test_a_glob_that_can_match_nothing_is_refused_when_it_is_written(glob: str):
    """A pattern that silently never matches is a person's mistake, so it is said at once."""
    with pytest.raises(ValidationError):
        a_scope(glob)


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("a" * 255, "*a" * 199 + "*b"),
        ("a" * 255, "?*" * 199 + "b"),
        ("/".join("a" * 120), "/".join(["**", "a*"] * 66)),
        ("/".join(["aaaa"] * 60), "/".join(["**"] * 130)),
        ("a" * 255, "**a" * 130),
    ],
)
def test_no_glob_is_slow(path: str, pattern: str):
    """A hostile pattern takes time in the product of the lengths, not exponential in its stars."""
    started = time.perf_counter()

    matches(path, pattern[:PATTERN_CHARS_MAX])

    assert time.perf_counter() - started < 0.5
