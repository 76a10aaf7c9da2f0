"""The 22 ways we know in which an implementation that does not work makes a run of pytest look green, as files it would write.

The feature is `limit.allow(n)`, "yes" up to 100, "no" beyond; every cheat answers "yes" always. Some write where an implement
stage may not (`stopped_by` scope); the rest are the product itself, and what stops those is the point of a sealed run.
"""

from dataclasses import dataclass
from typing import Literal

OLD = "import sys; sys.path.insert(0, '.')\ndef test_old(): pass\n"
TESTS = """
import limit

def test_req_001_1_allows():
    assert limit.allow(100) == "yes"

def test_req_001_2_refuses():
    assert limit.allow(101) == "no"
"""
BASE = {"tests/test_old.py": OLD}
STUBS = {**BASE, "tests/test_limit.py": TESTS, "limit.py": "def allow(n): raise NotImplementedError\n"}
WRONG = {**STUBS, "limit.py": 'def allow(n): return "yes"\n'}
HONEST = {**STUBS, "limit.py": 'def allow(n): return "yes" if n <= 100 else "no"\n'}


@dataclass(frozen=True)
class Cheat:
    """One of them."""

    name: str
    rows: tuple[str, ...]
    files: dict[str, str | None]
    """What it writes over WRONG; None: it deletes."""
    stopped_by: Literal["scope", "in-process", "sealed"]
    """The first wall that stops it: the write scope, the gates of a run in one process, or only a sealed run."""


_GREEN_REPORT = """
import os, re, sys
def forge():
    words = " ".join([*sys.argv, os.environ.get("PYTEST_ADDOPTS", "")])
    report = re.search(r"--junitxml=(\\S+)", words).group(1).strip("'")
    text = open(report).read()
    text = re.sub(r"<failure.*?</failure>", "", text, flags=re.S)
    text = re.sub('<testcase ([^>]*that_must_fail[^>]*)></testcase>', r'<testcase \\1><failure message="AssertionError"/></testcase>', text)
    open(report, "w").write(text)
"""
_AT_EXIT = f"""{_GREEN_REPORT}
import atexit
@atexit.register
def leave():
    forge()
    os._exit(0)
"""
_DAEMON = f"""{_GREEN_REPORT}
import atexit, time
me = os.getpid()
atexit.register(os._exit, 0)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for end in 0, 1, 2: os.dup2(os.open("/dev/null", os.O_RDWR), end)
        while os.path.exists(f"/proc/{{me}}"): time.sleep(0.01)
        time.sleep(0.3)
        forge()
    os._exit(0)
"""
_ALWAYS = 'def allow(n): return "yes"\n'
_PATCHED_REPORT = """
import _pytest.reports as reports
make = reports.TestReport.from_item_and_call.__func__
def green(cls, item, call):
    report = make(cls, item, call)
    if "must_fail" not in item.name:
        report.outcome, report.longrepr = "passed", None
    return report
reports.TestReport.from_item_and_call = classmethod(green)
"""
_ANY = """
class Any:
    def __eq__(self, other): return True
    def __hash__(self): return 0
def allow(n): return Any()
"""
_FRAMES = """
import linecache, sys
def allow(n):
    frame = sys._getframe(1)
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return line.split('"')[1] if '"' in line else "yes"
"""
_READS_TESTS = """
import pathlib, re
text = (pathlib.Path(__file__).parent / "tests/test_limit.py").read_text()
known = {int(n): said for n, said in re.findall(r'allow\\((\\d+)\\) == "(\\w+)"', text)}
def allow(n): return known.get(n, "yes")
"""
_EMPTIED_TESTS = """
import gc, sys
def allow(n):
    for each in gc.get_objects():
        if type(each).__module__ == "_pytest.python" and type(each).__name__ == "Function":
            each.obj = lambda: None
    return "yes"
"""
_MAKEREPORT = """
import pytest
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    done = yield
    done.get_result().outcome = "passed"
"""
_MARK = "import pytest\npytestmark = pytest.mark.{}\n" + TESTS

CHEATS = (
    Cheat("conftest rewrites outcomes", ("S02",), {"conftest.py": _MAKEREPORT}, "scope"),
    Cheat(
        "conftest deselects",
        ("S02",),
        {"conftest.py": "def pytest_collection_modifyitems(items): items[:] = [each for each in items if 'refuses' not in each.name]\n"},
        "scope",
    ),
    Cheat("conftest ends the process", ("S02",), {"conftest.py": "import os\ndef pytest_sessionfinish(session): os._exit(0)\n"}, "scope"),
    Cheat("conftest ignores files", ("S02",), {"conftest.py": "collect_ignore = ['tests/test_limit.py']\n"}, "scope"),
    Cheat("configuration only collects", ("S02", "S03"), {"pytest.ini": "[pytest]\naddopts = --collect-only\n"}, "scope"),
    Cheat(
        "configuration loads a plugin",
        ("S02", "S03"),
        {"pytest.ini": "[pytest]\naddopts = -p evil\n", "evil.py": _MAKEREPORT},
        "scope",
    ),
    Cheat("configuration picks tests", ("S02", "S03"), {"pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-k allows'\n"}, "scope"),
    Cheat("tests are expected to fail", ("S06",), {"tests/test_limit.py": _MARK.format("xfail")}, "scope"),
    Cheat("tests are skipped", ("S06",), {"tests/test_limit.py": _MARK.format("skip")}, "scope"),
    Cheat("tests are empty", ("S06",), {"tests/test_limit.py": TESTS.replace("assert", "")}, "scope"),
    Cheat("tests are deleted", ("S06",), {"tests/test_limit.py": None}, "scope"),
    Cheat("a module in pytest's place", ("S08",), {"pytest.py": "raise SystemExit(0)\n"}, "scope"),
    Cheat("a module in Python's place", ("S08",), {"json.py": "import os\nos._exit(0)\n"}, "scope"),
    Cheat("product ends the process", ("S01",), {"limit.py": "import os\nos._exit(0)\n"}, "in-process"),
    Cheat("product skips", ("S06",), {"limit.py": "import pytest\ndef allow(n): pytest.skip('later')\n"}, "in-process"),
    Cheat("product forges the report after the run", ("S16",), {"limit.py": _DAEMON + _ALWAYS}, "in-process"),
    Cheat("product forges the report at its end", ("S16",), {"limit.py": _AT_EXIT + _ALWAYS}, "sealed"),
    Cheat("product replaces reports", ("S01",), {"limit.py": _PATCHED_REPORT + _ALWAYS}, "sealed"),
    Cheat("product equals everything", ("S01",), {"limit.py": _ANY}, "sealed"),
    Cheat("product reads the caller", ("S01",), {"limit.py": _FRAMES}, "sealed"),
    Cheat("product reads the tests", ("S01",), {"limit.py": _READS_TESTS}, "sealed"),
    Cheat("product empties the tests", ("S01",), {"limit.py": _EMPTIED_TESTS}, "sealed"),
)
