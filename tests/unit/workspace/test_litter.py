"""What is dropped from a workspace, and what never is."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pathspec import GitIgnoreSpec

from sandbox.workspace.litter import IGNORE_FILE_BYTES_MAX, Litter


@pytest.mark.parametrize(
    ("path", "is_directory", "expected"),
    [
        ("__pycache__", True, True),
        ("a/b/__pycache__", True, True),
        ("a/x.pyc", False, True),
        ("node_modules", True, True),
        ("thing.egg-info", True, True),
        (".coverage", False, True),
        (".coverage.host.123", False, True),
        ("node_modules", False, False),
        ("x.pyc", True, False),
        ("build", True, False),
        ("dist", True, False),
        (".gitignore", False, False),
        ("src/cache.py", False, False),
    ],
)
def test_the_shipped_list_is_short_and_knows_files_from_directories(path: str, is_directory: bool, expected: bool):
    """Names that projects use for real things are not on it."""
    assert Litter({}).drops(path, is_directory=is_directory) is expected


def test_the_base_s_ignore_files_decide_from_the_deepest_up():
    """As gitignore(5) says: the deeper file wins, within a file the last line."""
    litter = Litter({".gitignore": b"*.log\n/out/\ngenerated\n", "src/.gitignore": b"!keep.log\n*.tmp\n"})

    assert litter.drops("a.log", is_directory=False)
    assert litter.drops("src/a.log", is_directory=False)
    assert not litter.drops("src/keep.log", is_directory=False)
    assert not litter.drops("src/deep/keep.log", is_directory=False)
    assert litter.drops("src/deep/x.tmp", is_directory=False)
    assert not litter.drops("x.tmp", is_directory=False)
    assert litter.drops("out", is_directory=True)
    assert not litter.drops("out", is_directory=False)
    assert not litter.drops("src/out", is_directory=True)
    assert litter.drops("src/generated", is_directory=True)


def test_ignore_files_that_make_no_sense_ignore_nothing():
    """A broken line is skipped, the others hold; a huge file is not read."""
    litter = Litter({".gitignore": b"!\n\xff\xfe\n/\n*.log\n", "big/.gitignore": b"*\n" * IGNORE_FILE_BYTES_MAX})

    assert litter.drops("a.log", is_directory=False)
    assert not litter.drops("a.txt", is_directory=False)
    assert not litter.drops("big/a.txt", is_directory=False)


WORDS = st.sampled_from(
    ["a", "b.log", "*", "**", "*.log", "x?", "[ab]", "[!a]", "(?P<ps_d>", "[(?P<ps_d>]", "|", ")", "$", "\\#", "é", " "]
)
LINES = st.builds(
    lambda negated, rooted, parts, ending: f"{negated}{rooted}{'/'.join(parts)}{ending}",
    *(st.sampled_from(["", "!"]), st.sampled_from(["", "/"]), st.lists(WORDS, min_size=1, max_size=3), st.sampled_from(["", "/"])),
)
PATHS = st.lists(st.sampled_from(["a", "b.log", "xy", "P", "<", "(?P<ps_d>", "|", ")", "é", "c"]), min_size=1, max_size=4).map("/".join)


@example(["[(?P<ps_d>]"], ["P"], False)
@given(st.lists(LINES, max_size=6), st.lists(PATHS, min_size=1, max_size=8), st.booleans())
def test_the_quick_look_changes_no_verdict(lines: list[str], paths: list[str], is_directory: bool):
    """All lines in one expression, and only what that finds is asked for: the same as asking for every path."""
    spec = GitIgnoreSpec.from_lines(line for line in lines if is_pattern(line))
    litter = Litter({".gitignore": "\n".join(lines).encode()})

    for path in paths:
        expected = bool(spec.check_file(f"{path}/" if is_directory else path).include)
        assert litter.drops(path, is_directory=is_directory) is expected


def is_pattern(line: str) -> bool:
    try:
        GitIgnoreSpec.from_lines([line])
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("lines", [500, 501])
def test_long_ignore_files_hold_as_well(lines: int):
    """Beyond 500 lines there is no quick look."""
    litter = Litter({".gitignore": b"".join(b"made-%d\n" % number for number in range(lines))})

    assert litter.drops(f"made-{lines - 1}", is_directory=False)
    assert not litter.drops(f"made-{lines}", is_directory=False)
