"""Reports of what ran in a sandbox: JUnit XML, SARIF, signatures, and the evidence made of them."""

import hashlib
import json
from contextlib import suppress

from sandbox.contract.interface_lock import lock_interface
from sandbox.contract.job import Check, CheckExit
from sandbox.contract.result import CheckReport
from sandbox.contract.signatures import ToImport
from supervisor.gates.evidence import Evidence, read_evidence
from supervisor.gates.junit import BadReport, parse_junit
from supervisor.gates.sarif import BadSarif, parse_sarif
from supervisor.gates.signatures import with_signatures
from supervisor.gates.verdict import Judgement
from tests.fuzz.target import Target

_JUNIT = b"""<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest" errors="0" failures="1" tests="3"><testcase classname="tests.test_app" name="test_a[1]" time="0.1"/>
<testcase classname="tests.test_app" name="test_b"><failure message="assert 1 == 2">def test_b():
&gt;   assert 1 == 2
E   assert 1 == 2

tests/test_app.py:3: AssertionError</failure><system-out>x</system-out></testcase>
<testcase classname="" name="tests.test_c"><error message="collection failure">E   KeyError: 'a'</error></testcase>
<testcase classname="t" name="s"><skipped type="pytest.xfail" message="r"/></testcase></testsuite></testsuites>
"""
_SARIF = {
    "version": "2.1.0",
    "runs": [
        {
            "tool": {"driver": {"name": "ruff"}},
            "artifacts": [{"location": {"uri": "a.py"}}],
            "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": [{"level": "note", "message": {"text": "m"}}]}],
            "results": [
                {
                    "ruleId": "F401",
                    "level": "error",
                    "message": {"text": "unused"},
                    "locations": [{"physicalLocation": {"artifactLocation": {"uri": "a.py"}}}],
                },
                {"ruleId": "S101", "suppressions": [{"kind": "inSource"}], "message": {"text": "assert"}},
            ],
        }
    ],
}


def _junit(data: bytes) -> None:
    with suppress(BadReport):
        for case in parse_junit(data).values():
            case.model_dump_json()


def _sarif(data: bytes) -> None:
    with suppress(BadSarif):
        parse_sarif(data).model_dump_json()


def _evidence(data: bytes) -> None:
    """Whatever a tool left, its evidence is stored and read again; a report that is not believed is a problem in words."""
    checks = [
        Check(name="tests", argv=("pytest",), report="junit", is_tests=True, path=None, timeout_s=1),
        Check(name="lint", argv=("ruff",), report="sarif", timeout_s=1),
    ]
    reports = [CheckReport(name=check.name, exit=CheckExit(name=check.name, exit_code=0, duration_s=1.0)) for check in checks]
    evidence = read_evidence(checks, reports, dict.fromkeys(("tests", "lint"), data))
    assert Evidence.model_validate_json(evidence.model_dump_json()) == evidence


def _signatures(data: bytes) -> None:
    """Whatever was read at an import, it is compared, told within bounds, stored and read again."""
    check = Check(name="signatures", argv=("python",), report="signatures", to_import=ToImport(locked=("limit.py",)), timeout_s=1)
    end = CheckExit(name="signatures", exit_code=0, duration_s=1.0, report_sha256=hashlib.sha256(data).hexdigest())
    evidence = read_evidence([check], [CheckReport(name="signatures", exit=end)], {"signatures": data})
    said = with_signatures(Judgement(), evidence, None, [_LOCK], is_wanted=True)
    assert all(len(each.message) <= 8_000 for each in said.findings)
    assert said.findings or evidence.checks["signatures"].problem or json.loads(data)["alone"]["modules"]["limit.py"]
    assert Evidence.model_validate_json(evidence.model_dump_json()) == evidence


_LIMIT = b"class Limit:\n    def allow(self, n: int = 1) -> bool: ...\n\ndef wait() -> None: ...\n"
_LOCK, _ = lock_interface({"limit.py": (None, _LIMIT)})
_FUNCTION = {
    "kind": "function",
    "parameters": [{"name": "self", "kind": "positional"}, {"name": "n", "kind": "positional", "default": "1"}],
}
_IMPORTED = {
    "names": {
        "wait": {"kind": "function", "returns": "None", "inner": [{"kind": "object", "type": "a.B", "claims": "c"}]},
        "Limit": {
            "kind": "class",
            "bases": ["object"],
            "members": {"allow": _FUNCTION, "size": {"kind": "property", "inner": [_FUNCTION]}},
        },
    }
}
_READ = {"alone": {"modules": {"limit.py": _IMPORTED}}, "with_others": {"modules": {"limit.py": _IMPORTED}, "failed": {"a.py": "no"}}}

TARGETS = (
    Target(
        "junit", _junit, lambda: [_JUNIT], (b"<testcase ", b"<!DOCTYPE a [<!ENTITY a 'b'>]>", b"&a;", b"&#0;", b"<![CDATA[", b"/>", b"E   ")
    ),
    Target("sarif", _sarif, lambda: [json.dumps(_SARIF).encode()]),
    Target("signatures", _signatures, lambda: [json.dumps(_READ).encode()], (b'"inner":[', b'"kind":"class",', b'"members":{"a":')),
    Target("evidence", _evidence, lambda: [_JUNIT, json.dumps(_SARIF).encode()]),
)
