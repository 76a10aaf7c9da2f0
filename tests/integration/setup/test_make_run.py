"""`make run` hands a person's text to the command as it was written (DECISIONS G16)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a directory with our Makefile, where set-up does nothing and `andon` prints its arguments."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    _script(tmp_path / "images" / "setup.sh", "")
    _script(tmp_path / ".venv" / "bin" / "andon", r"printf '%s\0' " + '"$@"')
    return tmp_path


def _script(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def _make_run(checkout: Path, *variables: str, **environment: str) -> list[str]:
    done = subprocess.run(
        ["make", "--no-print-directory", "run", *variables],
        cwd=checkout,
        env={"PATH": os.environ["PATH"], "HOME": "/home/nobody", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.removesuffix("\0").split("\0")


@pytest.mark.parametrize(
    "text",
    [
        "Add rate limiting: 100 requests/minute",
        "pay $HOME and $$ and ${HOME} and $(HOME)",
        "$(shell touch made-by-make)",
        "`touch made-by-shell` $(touch made-by-shell)",
        """both 'single' and "double" quotes""",
        "a # comment; echo no && false | true > file",
        "two\nlines",
        "-n starts like an option",
        "back\\slash and 100% äöü 測試",
    ],
)
def test_any_text_reaches_the_command_unchanged(checkout: Path, text: str):
    """Neither make nor the shell reads it, given as an argument or in the environment."""
    assert _make_run(checkout, f"FEATURE={text}") == ["run", "--", text]
    assert _make_run(checkout, FEATURE=text) == ["run", "--", text]

    assert sorted(path.name for path in checkout.iterdir()) == [".venv", "Makefile", "images"]


def test_other_variables_become_options(checkout: Path):
    """A path with blanks stays one argument; ARGS is a list of words."""
    arguments = _make_run(checkout, "FEATURE=x", "REPO=/a b/$c", "SLUG=s", "BUDGET=5", "ARGS=--json --yes *")

    assert arguments == ["run", "--json", "--yes", "*", "--repo", "/a b/$c", "--slug", "s", "--budget", "5", "--", "x"]


def test_without_a_request_the_command_decides(checkout: Path):
    """`make run` alone is `andon run`, which shows the shipped sample."""
    assert _make_run(checkout) == ["run"]


def test_a_refusal_of_the_command_is_makes_refusal(checkout: Path):
    """The exit code is not lost; make itself ends with 2 for any failure."""
    (checkout / ".venv" / "bin" / "andon").write_text("#!/bin/sh\nexit 6\n")

    done = subprocess.run(["make", "run"], cwd=checkout, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "Error 6" in done.stderr
