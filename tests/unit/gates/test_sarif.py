"""SARIF logs: findings, suppressions, and whether anything was scanned; within bounds."""

import json
from typing import Any

import pytest

from supervisor.gates.sarif import BadSarif, parse_sarif


def a_result(rule: str = "E1", path: str = "a.py", text: str = "bad", **more: Any) -> dict[str, Any]:
    location = {"physicalLocation": {"artifactLocation": {"uri": path}, "region": {"startLine": 3}}}
    return {"ruleId": rule, "message": {"text": text}, "locations": [location]} | more


def a_log(*results: dict[str, Any], **run: Any) -> bytes:
    return json.dumps({"version": "2.1.0", "runs": [{"results": list(results)} | run]}).encode()


def test_findings_are_counted_by_rule_path_and_text():
    """Line numbers move; what was found does not."""
    scan = parse_sarif(a_log(a_result(), a_result(), a_result("E2", level="error"), a_result("N", level="note")))

    assert scan.results == {"E1 a.py: bad": 2, "E2 a.py: bad": 1}


def test_suppressed_findings_are_counted_apart():
    """`# nosec` silences a scanner, not the report."""
    scan = parse_sarif(a_log(a_result(suppressions=[{"kind": "inSource"}])))

    assert (scan.results, scan.suppressed) == ({}, 1)


@pytest.mark.parametrize(
    ("run", "told"),
    [
        ({"artifacts": []}, "looked at no file"),
        ({"invocations": [{"executionSuccessful": False}]}, "did not finish"),
        (
            {
                "invocations": [
                    {"executionSuccessful": True, "toolExecutionNotifications": [{"level": "error", "message": {"text": "a.py: syntax"}}]}
                ]
            },
            "a.py: syntax",
        ),
    ],
)
def test_a_scan_that_did_not_scan_is_a_problem(run: dict[str, Any], told: str):
    """Floors of evidence: no file, no end, or errors of its own."""
    assert told in parse_sarif(a_log(**run)).problems[0]


def test_a_clean_scan_has_neither_findings_nor_problems():
    """The companion."""
    scan = parse_sarif(a_log(artifacts=[{"location": {"uri": "a.py"}}], invocations=[{"executionSuccessful": True}]))

    assert (scan.results, scan.problems, scan.suppressed) == ({}, (), 0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"runs": []}',
        b'{"runs": [{}], "runs": [{}]}',
        b'{"runs": [{"x": NaN}]}',
        b'{"runs": [{"x": Infinity}]}',
        b"[" * 200_000,
        b'{"runs":' * 100_000,
        b'{"runs": ["\xff"]}',
        b'{"runs": [{"x": ' + b"9" * 10_000 + b"}]}",
        b" " * (17 << 20),
    ],
)
def test_what_is_no_log_is_refused(data: bytes):
    """Strict JSON, bounded in size and depth."""
    with pytest.raises(BadSarif):
        parse_sarif(data)


@pytest.mark.parametrize("run", [3, "x", None, {"results": 3}, {"results": [3, None, {"locations": "x", "message": 3}]}])
def test_odd_shapes_are_no_crash(run: object):
    """A scanner's mistake is not ours."""
    assert parse_sarif(json.dumps({"runs": [run]}).encode()).problems == ()
