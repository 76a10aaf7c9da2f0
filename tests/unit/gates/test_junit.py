"""JUnit reports: what real pytest writes, what other writers write, and bombs."""

import time
from pathlib import Path

import pytest

from supervisor.gates.junit import CASES_MAX, TAIL_LINES, BadReport, Case, parse_junit, tail_of
from tests.fakes.real_checks import run_pytest

EVERY_END = """
    import pytest

    def stub():
        raise NotImplementedError

    @pytest.fixture
    def broken():
        stub()

    @pytest.fixture
    def breaks_later():
        yield
        raise ValueError("later")

    class Mine(Exception):
        pass

    def test_passed(): pass
    def test_stub(): stub()
    def test_assert(): assert 1 == 2
    def test_assert_with_message(): assert False, "why: because"
    def test_fixture_stub(broken): pass
    def test_no_fixture(nowhere): pass
    def test_key(): {}["x"]
    def test_not_raised():
        with pytest.raises(ValueError):
            pass
    @pytest.mark.xfail
    def test_xfail(): assert 0
    @pytest.mark.xfail(strict=True)
    def test_xpass_strict(): pass
    @pytest.mark.skip
    def test_skip(): pass
    def test_none(): None.x
    def test_chained():
        try:
            stub()
        except NotImplementedError as error:
            raise RuntimeError("boom") from error
    def test_teardown(breaks_later): pass
    def test_failed_and_teardown(breaks_later): assert 0
    def test_import(): import nowhere_at_all
    def test_mine(): raise Mine("a: b")
    def test_name(): undefined_name
    def test_deep():
        import json
        json.loads("{")
    @pytest.mark.parametrize("x", [1, "a::b"])
    def test_many(x): pass
"""


@pytest.fixture(scope="module")
def every_end(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    files = {
        "tests/test_ends.py": EVERY_END,
        "tests/test_import.py": "import nowhere_at_all\n",
        "tests/test_syntax.py": "def (\n",
        "tests/test_skipped.py": "import pytest\npytest.skip('no', allow_module_level=True)\n",
    }
    _, report = run_pytest(tmp_path_factory.mktemp("ends"), files)
    assert report is not None
    return parse_junit(report)


@pytest.mark.parametrize(
    ("name", "outcome", "kind"),
    [
        ("test_passed", "passed", ""),
        ("test_stub", "failed", "NotImplementedError"),
        ("test_assert", "failed", "AssertionError"),
        ("test_assert_with_message", "failed", "AssertionError"),
        ("test_fixture_stub", "error", "NotImplementedError"),
        ("test_no_fixture", "error", "FixtureLookupError"),
        ("test_key", "failed", "KeyError"),
        ("test_not_raised", "failed", "Failed"),
        ("test_xfail", "skipped", "xfail"),
        ("test_xpass_strict", "failed", ""),
        ("test_skip", "skipped", "skip"),
        ("test_none", "failed", "AttributeError"),
        ("test_chained", "failed", "RuntimeError"),
        ("test_teardown", "error", "ValueError"),
        ("test_failed_and_teardown", "failed", "AssertionError"),
        ("test_import", "failed", "ModuleNotFoundError"),
        ("test_mine", "failed", "Mine"),
        ("test_name", "failed", "NameError"),
        ("test_deep", "failed", "JSONDecodeError"),
        ("test_many[1]", "passed", ""),
    ],
)
def test_each_way_a_real_test_ends_is_read(every_end: dict[str, Case], name: str, outcome: str, kind: str):
    """Outcome and exception type come out as pytest meant them, whichever tag it used."""
    case = every_end[f"tests.test_ends::{name}"]

    assert (case.outcome, case.kind) == (outcome, kind)


def test_a_stub_hit_below_another_exception_is_seen(every_end: dict[str, Case]):
    """What a stub raised may be wrapped by the time it reaches the test."""
    assert every_end["tests.test_ends::test_chained"].hits_stub
    assert not every_end["tests.test_ends::test_key"].hits_stub


def test_a_file_that_cannot_be_collected_is_a_case_of_its_own(every_end: dict[str, Case]):
    """Collection errors have no class name; module-level skips neither."""
    assert (every_end["::tests.test_import"].kind, every_end["::tests.test_import"].is_collection) == ("ModuleNotFoundError", True)
    assert (every_end["::tests.test_syntax"].kind, every_end["::tests.test_syntax"].is_collection) == ("SyntaxError", True)
    assert every_end["::tests.test_skipped"].outcome == "skipped"


def test_the_file_that_raised_is_known(every_end: dict[str, Case]):
    """It tells a stub that was reached from a test that raises by itself."""
    assert every_end["tests.test_ends::test_stub"].crashed_in == "tests/test_ends.py"


def test_reports_of_other_writers_are_read():
    """Nested suites, a `type` attribute, flaky marks and output elements are ordinary."""
    data = b"""<?xml version="1.0" encoding="UTF-8"?>
    <testsuites name="jest" tests="3"><testsuite name="a"><testsuite name="b">
      <properties><property name="x" value="y"/></properties>
      <testcase classname="Limit" name="allows"><system-out><![CDATA[<failure/>]]></system-out></testcase>
      <testcase classname="Limit" name="refuses"><failure type="java.lang.AssertionError">at Limit.java:3</failure></testcase>
      <testcase classname="Limit" name="flaky"><flakyFailure type="x">again</flakyFailure></testcase>
      <testcase classname="Limit" name="later"><skipped/></testcase>
    </testsuite></testsuite></testsuites>"""

    cases = parse_junit(data)

    assert {case.name: (case.outcome, case.kind) for case in cases.values()} == {
        "allows": ("passed", ""),
        "refuses": ("failed", "AssertionError"),
        "flaky": ("passed", ""),
        "later": ("skipped", "skip"),
    }


def test_of_two_cases_with_one_id_the_worse_counts():
    """A second green entry does not hide a red one."""
    cases = parse_junit(b'<testsuite><testcase name="a"><failure/></testcase><testcase name="a"/></testsuite>')

    assert cases["::a"].outcome == "failed"


def test_an_empty_suite_is_a_report_without_cases():
    """Zero tests are for the gate to judge."""
    assert parse_junit(b'<testsuites><testsuite name="pytest" tests="0"/></testsuites>') == {}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not XML"),
        (b"<testsuites><testsuite>", "is not XML"),
        (b"<html/>", "without a test suite"),
        (b'<testsuite><testcase classname="x"/></testsuite>', "without a name"),
        (b'<testsuite><testcase name="' + b"x" * 2_000 + b'"/></testsuite>', "more than 1000 characters"),
        (b'<testsuite><testcase name="a"><testcase name="b"/></testcase></testsuite>', "inside a case"),
        (b"<testsuite>" * 100, "deeper"),
        (b"<testsuite " + b" ".join(b'a%d="1"' % n for n in range(100)) + b"/>", "attributes"),
        (b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><testsuite/>', "document type"),
        (b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><testsuite><testcase name="&a;"/></testsuite>', "document type"),
        (b"<testsuite>\xff</testsuite>", "is not XML"),
        (b"<testsuite>" + b'<testcase name="a"/>' * 2 + b"</testsuite>junk", "is not XML"),
        (b"x" * (17 << 20), "at most"),
    ],
)
def test_what_is_no_report_is_refused(data: bytes, message: str):
    """Strict, bounded, and without entities."""
    with pytest.raises(BadReport, match=message):
        parse_junit(data)


def test_a_billion_laughs_is_refused_at_once():
    """Entities are refused when they are declared, before one is expanded."""
    lol = b"".join(b'<!ENTITY l%d "%s">' % (n, b"&l%d;" % (n - 1) * 10) for n in range(1, 10))
    data = b'<!DOCTYPE l [<!ENTITY l0 "lol">' + lol + b']><testsuite><testcase name="&l9;"/></testsuite>'
    started = time.perf_counter()

    with pytest.raises(BadReport):
        parse_junit(data)

    assert time.perf_counter() - started < 0.5


def test_too_many_cases_are_refused():
    """A report of a hundred thousand tests is a bound, not a suite."""
    data = b"<testsuite>" + b"".join(b'<testcase name="t%d"/>' % n for n in range(CASES_MAX + 1)) + b"</testsuite>"

    with pytest.raises(BadReport, match="more than"):
        parse_junit(data)


def test_a_long_traceback_is_kept_by_its_end():
    """The last 60 lines are what a person reads."""
    text = "\n".join(f"line {n}" for n in range(5_000))
    data = f'<testsuite><testcase name="a"><failure message="m">{text}</failure></testcase></testsuite>'.encode()

    assert parse_junit(data)["::a"].tail.splitlines()[-1] == "line 4999"
    assert len(tail_of(text).splitlines()) == TAIL_LINES


def test_a_truncated_file_of_a_killed_run_is_no_report(tmp_path: Path):
    """`os._exit` in a test leaves no file; half a file is none either."""
    _, whole = run_pytest(tmp_path, {"tests/test_a.py": "def test_a(): pass\n"})
    assert whole is not None

    with pytest.raises(BadReport):
        parse_junit(whole[: len(whole) // 2])
