"""What a gate says of a piece of work, and how much of it is kept; not when a gate is asked (`supervisor/integrate.py`)."""

from collections.abc import Sequence

from sandbox.contract.model import Frozen
from sandbox.contract.result import Finding
from supervisor.pipeline.events import Assurance, TestCounts, Verdict

FINDINGS_MAX = 50
NOTES_MAX = 30
NOTE_CHARS_MAX = 500


class Judgement(Frozen):
    """A gate's answer; it fails if and only if it has a finding."""

    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    """What a person should know although it passed."""
    tests: TestCounts = TestCounts()
    assurance: Assurance = ""
    evidence: bytes | None = None
    """JSON that later gates and the next agent's feedback read."""
    usage_error: bool = False
    """The repository or the request is at fault, not the work: exit 2."""

    @property
    def verdict(self) -> Verdict:
        """Return pass or fail."""
        return "fail" if self.findings else "pass"


def finding(check: str, message: str, path: str | None = None) -> Finding:
    """Return a finding, its message cut to what an event holds."""
    return Finding(check=check, message=message if len(message) <= 8_000 else f"{message[:7_990]} […]", path=path)


def judgement(
    findings: Sequence[Finding],
    notes: Sequence[str] = (),
    *,
    tests: TestCounts | None = None,
    assurance: Assurance = "",
    evidence: bytes | None = None,
    usage_error: bool = False,
) -> Judgement:
    """Return a judgement with findings and notes bounded; what is left out is counted."""
    kept = list(findings[:FINDINGS_MAX])
    if len(findings) > FINDINGS_MAX:
        kept.append(finding(findings[FINDINGS_MAX].check, f"and {len(findings) - FINDINGS_MAX} more findings"))
    told = [note[:NOTE_CHARS_MAX] for note in notes[:NOTES_MAX]]
    if len(notes) > NOTES_MAX:
        told.append(f"and {len(notes) - NOTES_MAX} more notes")
    return Judgement(
        findings=tuple(kept),
        notes=tuple(told),
        tests=tests or TestCounts(),
        assurance=assurance,
        evidence=evidence,
        usage_error=usage_error and bool(kept),
    )
