"""What the checks of one job left, as later gates and the next agent's feedback read it; not what it is worth (`checks`, `baseline`)."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, ValidationError

from sandbox.contract.job import Check, ReportFormat
from sandbox.contract.model import Frozen
from sandbox.contract.result import CheckReport
from sandbox.contract.signatures import REPORT_BYTES_MAX, SignatureReport
from supervisor.gates.junit import BadReport, Case, CaseOutcome, parse_junit, tail_of
from supervisor.gates.sarif import BadSarif, parse_sarif
from supervisor.pipeline.events import TestCounts

RED_MAX = 2_000
"""Red cases of one check that are kept beyond their outcome."""
TAILS_MAX = 60
"""Red cases of one check whose tracebacks are kept."""


CANARY_ID = "andon.canary::test_that_must_fail["
"""Begins the ids of the tests `sandbox/inside/sealed/canary.py` adds to a run."""

Canary = Literal["not owed", "failed", "passed", "missing"]


class CheckEvidence(Frozen):
    """One check of one job."""

    name: str
    argv: tuple[str, ...]
    report: ReportFormat
    is_tests: bool = False
    blocking: bool = True
    said: bool = True
    """False: the runner never said how the command ended; the sandbox was ended before it."""
    exit_code: int | None = None
    """None with `said`: killed at its timeout."""
    duration_s: float = 0
    output_tail: str = ""
    problem: str = ""
    """Why there is no believable report although one is due."""
    outcomes: dict[str, CaseOutcome] = Field(default_factory=dict)
    """Every test id and how it ended."""
    red: dict[str, Case] = Field(default_factory=dict)
    """Red cases, at most 2,000, with tracebacks for the first 60."""
    results: dict[str, int] = Field(default_factory=dict)
    """What a scanner found, with counts."""
    suppressed: int = 0
    signatures: SignatureReport | None = None
    """What the locked modules declare after their import, of the check that imports them."""
    canary: Canary = "not owed"
    """How the test that must fail ended."""
    sealed: bool = False
    """The tests ran in another process than the product."""
    why_not_sealed: str = ""
    """Why not, although `quality.toml` asks for it."""

    @property
    def collected(self) -> dict[str, CaseOutcome]:
        """Return the outcomes of tests, without files that could not be collected."""
        return {id_: outcome for id_, outcome in self.outcomes.items() if not is_file(id_)}

    @property
    def is_missing_command(self) -> bool:
        """Return whether the command, or the module it names, is not in the image."""
        no_module = self.exit_code == 1 and not self.outcomes and "No module named" in self.output_tail[-2_000:]
        return self.said and (self.exit_code in {126, 127} or no_module)


class Evidence(Frozen):
    """All checks of one job, by name."""

    version: int = 1
    checks: dict[str, CheckEvidence] = Field(default_factory=dict)

    @property
    def counts(self) -> TestCounts:
        """Return how many tests passed, failed or broke, and were skipped."""
        outcomes = [outcome for check in self.checks.values() for outcome in check.outcomes.values()]
        return TestCounts(
            passed=outcomes.count("passed"),
            failed=outcomes.count("failed") + outcomes.count("error"),
            skipped=outcomes.count("skipped"),
        )

    def tests(self) -> list[CheckEvidence]:
        """Return the checks that report test ids."""
        return [check for check in self.checks.values() if check.is_tests]


def is_file(id_: str) -> bool:
    """Return whether an id names a file pytest could not collect or skipped whole, not a test."""
    return id_.startswith("::")


def read_evidence(checks: Sequence[Check], reports: Sequence[CheckReport], blobs: Mapping[str, bytes]) -> Evidence:
    """Return the evidence of a job.

    Args:
        checks: What the job was told to run.
        reports: What the executor says of each; a check without one left nothing.
        blobs: The reports' bytes by check name.
    """
    by_name = {report.name: report for report in reports}
    return Evidence(checks={check.name: _of_check(check, by_name.get(check.name), blobs.get(check.name)) for check in checks})


def _of_check(check: Check, report: CheckReport | None, data: bytes | None) -> CheckEvidence:
    end = report.exit if report is not None else None
    base = CheckEvidence(
        name=check.name,
        argv=check.argv,
        report=check.report,
        is_tests=check.is_tests,
        blocking=check.blocking,
        said=end is not None,
        exit_code=end.exit_code if end else None,
        duration_s=end.duration_s if end else 0,
        output_tail=tail_of(end.output_tail) if end else "",
        sealed=bool(end and end.sealed and check.tests_scope is not None),
        why_not_sealed=end.why_not_sealed if end else "",
    )
    if check.report == "none":
        return base
    if data is None:
        problem = (report.problem if report else None) or f"no report at /out/{check.report_path}"
        return base.model_copy(update={"problem": problem})
    if end is not None and end.report_sha256 not in {None, hashlib.sha256(data).hexdigest()}:
        return base.model_copy(update={"problem": f"the report at /out/{check.report_path} was changed after the command had ended"})
    if check.report == "signatures":
        return base.model_copy(update=_of_signatures(data, is_as_it_was=end is not None and end.report_sha256 is not None))
    try:
        if check.report == "junit":
            return base.model_copy(update=_of_junit(data, is_canary_owed=check.canary))
        scan = parse_sarif(data)
    except (BadReport, BadSarif) as error:
        return base.model_copy(update={"problem": f"the report {error}"})
    return base.model_copy(update={"results": scan.results, "suppressed": scan.suppressed, "problem": "; ".join(scan.problems)})


def _of_junit(data: bytes, *, is_canary_owed: bool) -> dict[str, object]:
    found = parse_junit(data)
    cases = {id_: case for id_, case in found.items() if not id_.startswith(CANARY_ID)}
    canary, problem = _canary([case for id_, case in found.items() if id_ not in cases], cases, is_owed=is_canary_owed)
    red = [case for case in cases.values() if case.is_red][:RED_MAX]
    kept = [case if at < TAILS_MAX else case.model_copy(update={"tail": ""}) for at, case in enumerate(red)]
    return {
        "outcomes": {case.id: case.outcome for case in cases.values()},
        "red": {case.id: case for case in kept},
        "canary": canary,
        "problem": problem,
    }


def _of_signatures(data: bytes, *, is_as_it_was: bool) -> dict[str, object]:
    """Return what was read; a report whose digest the runner never said was written by somebody else."""
    if not is_as_it_was:
        return {"problem": "the report is not the runner's"}
    if len(data) > REPORT_BYTES_MAX:
        return {"problem": f"the report has {len(data)} bytes; at most {REPORT_BYTES_MAX}"}
    try:
        return {"signatures": SignatureReport.model_validate_json(data)}
    except ValidationError as error:
        return {"problem": f"the report cannot be read: {error.error_count()} errors"}


def _canary(canaries: Sequence[Case], others: Mapping[str, Case], *, is_owed: bool) -> tuple[Canary, str]:
    """Return how the tests that must fail ended, and what is wrong with the run if one did not fail."""
    if not is_owed:
        return "not owed", ""
    wrong = [case.outcome for case in canaries if case.outcome != "failed"]
    if wrong:
        return "passed", f"a test that must fail is reported as {wrong[0]}: the repository's configuration of pytest rewrites results"
    if canaries:
        return "failed", ""
    # It runs last: a run that ends at its first failure does not reach it, and one that collected nothing has none.
    if any(case.is_red for case in others.values()) or all(is_file(id_) for id_ in others):
        return "missing", ""
    return "missing", "a test that must fail was added to the run and is not in its report: tests are taken out of it"
