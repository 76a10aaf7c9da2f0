"""The gates of checks jobs: new tests red on stubs for the right reason, and everything green at the end; read from reports.

Exit codes never decide alone, and a non-zero one beside an all-green report fails (DECISIONS G22). Ids are compared one by one
with the base commit's.
"""

from collections.abc import Iterable, Mapping, Sequence

from sandbox.contract.result import Finding
from supervisor.gates.evidence import CheckEvidence, Evidence, is_file
from supervisor.gates.floors import unreliable
from supervisor.gates.junit import Case, CaseOutcome
from supervisor.gates.spec import Criterion
from supervisor.gates.tests import criterion_of
from supervisor.gates.verdict import Judgement, finding, judgement
from supervisor.pipeline.events import Assurance
from supervisor.stages.quality import is_pytest

CHECK_RED = "red-check"

_RIGHT = frozenset({"NotImplementedError", "AssertionError", "Failed"})
"""The stub was reached, or what it returned is not what was promised."""
_BROKEN = frozenset(
    {"ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "TabError", "NameError", "FixtureLookupError", "UsageError"}
)
"""The test is at fault: no implementation makes it green."""
_NEVER_EXITS = {2: "was interrupted", 3: "had an internal error", 4: "had a wrong command line or configuration"}

_RED: frozenset[CaseOutcome] = frozenset({"failed", "error"})


def judge_red(evidence: Evidence, baseline: Evidence | None, criteria: Sequence[Criterion]) -> Judgement:
    """Return the verdict on new tests run on the stubs (DECISIONS G7, G14).

    Args:
        evidence: What the tests left on the test commit.
        baseline: What the checks left on the base commit; None if it was skipped: new is then what carries a criterion.
        criteria: Of the specification.
    """
    findings: list[Finding] = []
    new: dict[str, CaseOutcome] = {}
    red: dict[str, Case] = {}
    for check in evidence.tests():
        findings += [finding(CHECK_RED, message) for message in _incomplete(check)]
        before = _before(baseline, check.name)
        fresh = {id_: outcome for id_, outcome in check.outcomes.items() if _is_new(id_, before)}
        new |= fresh
        red |= {id_: case for id_, case in check.red.items() if id_ in fresh}
        if before is not None and not _incomplete(check):
            gone = sorted(set(before.collected) - set(check.outcomes))
            findings += [finding(CHECK_RED, f"{id_} existed on the base commit and is gone; put it back") for id_ in gone]
    findings += _broken(new, red)
    findings += _uncovered(new, red, criteria)
    guards = sorted(id_ for id_, outcome in new.items() if outcome == "passed")
    notes = [f"{len(red)} new tests are red on the stubs, {len(guards)} are green already (guards)"]
    notes += [f"guard: {id_}" for id_ in guards]
    notes += [f"red for an unclear reason: {id_}: {_what(case)}" for id_, case in red.items() if _colour(case) == "unclear"]
    return judgement(findings, notes, tests=evidence.counts, assurance=assurance_of(evidence), evidence=evidence.model_dump_json().encode())


def judge_validate(evidence: Evidence, baseline: Evidence | None, on_stubs: Evidence | None, criteria: Sequence[Criterion]) -> Judgement:
    """Return the verdict on the finished work.

    Args:
        evidence: What the checks left on it.
        baseline: What they left on the base commit; None if it was skipped: then no red test is known.
        on_stubs: What the red-check saw: those tests have to be there still.
        criteria: Of the specification; each needs a test that passed. Empty: none are owed.
    """
    findings: list[Finding] = []
    notes: list[str] = []
    for check in evidence.checks.values():
        before = _before(baseline, check.name)
        found = [*_incomplete(check), *([] if check.is_tests or check.report == "signatures" else _scanned(check, before))]
        if check.is_tests and not check.problem and check.said:
            found += [*_ids(check, before), *_vanished(check, on_stubs), *_exit(check, before)]
        told = [finding(check.name, message) for message in found]
        findings += told if check.blocking else []
        notes += [] if check.blocking else [f"{check.name} does not block: {each.message}" for each in told]
        notes += _worth_knowing(check, before)
    if not any(check.is_tests for check in evidence.checks.values()):
        findings.append(finding("tests", "no check ran tests; nothing shows that the feature works"))
    elif not any(check.problem or not check.said for check in evidence.tests()):
        findings += _unproven(evidence, baseline, criteria)
    return judgement(findings, notes, tests=evidence.counts, assurance=assurance_of(evidence), evidence=evidence.model_dump_json().encode())


def _before(baseline: Evidence | None, name: str) -> CheckEvidence | None:
    return baseline.checks.get(name) if baseline is not None else None


def _is_new(id_: str, before: CheckEvidence | None) -> bool:
    return id_ not in before.outcomes if before is not None else is_file(id_) or criterion_of(_name(id_)) is not None


def _name(id_: str) -> str:
    return id_.rpartition("::")[2].split("[")[0]


def _incomplete(check: CheckEvidence) -> list[str]:
    """Return why a check's run is no evidence at all."""
    command = " ".join(check.argv) + (" (importing the locked modules)" if check.report == "signatures" else "")
    if not check.said:
        return [f"`{command}` did not end before the stage did: it hangs, or the stage's wall clock or memory is too small"]
    if check.exit_code is None and check.report == "signatures":
        remedy = "what a file does when it is run belongs below `if __name__ == '__main__':`"
        return [f"`{command}` was still running after {check.duration_s:.0f} s and was killed; {remedy}"]
    if check.exit_code is None:
        return [f"`{command}` was still running after {check.duration_s:.0f} s and was killed; something in it hangs"]
    if check.is_missing_command:
        return [f"`{command}` could not be started: {check.output_tail.strip()[-300:]}"]
    if check.problem:
        return [
            f"`{command}` left no evidence: {check.problem}; exit code {check.exit_code}. Its last output:\n{check.output_tail[-2_000:]}"
        ]
    return []


# The red-check


def _broken(new: Mapping[str, CaseOutcome], red: Mapping[str, Case]) -> list[Finding]:
    findings = []
    for id_, outcome in new.items():
        case = red.get(id_)
        if is_file(id_) and outcome in _RED:
            findings.append(finding(CHECK_RED, f"{id_.removeprefix('::')} cannot be collected: {_what(case)}\n{_tail(case)}"))
        elif outcome == "skipped":
            findings.append(finding(CHECK_RED, f"{id_} is skipped or expected to fail; such a test decides nothing"))
        elif case is not None and _colour(case) == "broken":
            findings.append(finding(CHECK_RED, f"{id_} is broken, not red: {_what(case)}\n{_tail(case)}"))
    return findings


def _uncovered(new: Mapping[str, CaseOutcome], red: Mapping[str, Case], criteria: Sequence[Criterion]) -> list[Finding]:
    by_criterion: dict[str, list[str]] = {}
    for id_, outcome in new.items():
        criterion = criterion_of(_name(id_))
        if criterion is not None and outcome != "skipped" and not is_file(id_):
            by_criterion.setdefault(criterion, []).append(id_)
    findings = [
        finding(CHECK_RED, f"{criterion.id} has no collected test; name one `{criterion.test_prefix}_…`")
        for criterion in criteria
        if criterion.id not in by_criterion
    ]
    for requirement in dict.fromkeys(criterion.requirement for criterion in criteria):
        ids = [id_ for criterion in criteria if criterion.requirement == requirement for id_ in by_criterion.get(criterion.id, [])]
        if ids and not any(_colour(red[id_]) == "right" for id_ in ids if id_ in red):
            said = "; ".join(f"{_name(id_)}: {_what(red[id_]) if id_ in red else new[id_]}" for id_ in ids[:6])
            findings.append(
                finding(CHECK_RED, f"{requirement}: no test is red on the stubs for the right reason, so none shows that it works. {said}")
            )
    return findings


def _colour(case: Case) -> str:
    """Return `right` if the missing body made the test red, `broken` if the test itself did, else `unclear`."""
    if case.kind in _BROKEN or case.is_collection:
        return "broken"
    raised_by_test = case.kind == "NotImplementedError" and _is_test_file(case.crashed_in)
    if raised_by_test:
        return "broken"
    if case.kind in _RIGHT or case.hits_stub:
        return "right"
    # A stub that returns None instead of its result is what these two stumble over.
    if case.kind in {"TypeError", "AttributeError"} and "NoneType" in case.message:
        return "right"
    return "unclear"


def _is_test_file(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith("test_") or name.endswith("_test.py") or name == "conftest.py"


# Validate


def _ids(check: CheckEvidence, before: CheckEvidence | None) -> list[str]:
    """Compare every id with the base commit: new ones pass, old ones are there and no worse (DECISIONS G22)."""
    problems = []
    known = before.outcomes if before is not None else {}
    for id_, outcome in check.outcomes.items():
        was = known.get(id_)
        if (
            outcome == "passed"
            or (was is not None and was != "passed")
            or (before is None and outcome == "skipped" and not criterion_of(_name(id_)))
        ):
            continue
        case = check.red.get(id_)
        if is_file(id_) and outcome in _RED:
            problems.append(f"{id_.removeprefix('::')} cannot be collected: {_what(case)}\n{_tail(case)}")
        elif outcome == "skipped":
            problems.append(f"{id_} was skipped{' and passed on the base commit' if was else ''}; a skipped test is not a pass")
        else:
            problems.append(f"{id_} failed{' and passed on the base commit' if was else ''}: {_what(case)}")
    problems += [
        f"{id_} existed on the base commit and was not run" for id_ in sorted(set(known) - set(check.outcomes)) if not is_file(id_)
    ]
    return problems


def _vanished(check: CheckEvidence, on_stubs: Evidence | None) -> list[str]:
    seen = _before(on_stubs, check.name)
    if seen is None:
        return []
    names = {id_.split("[")[0] for id_ in check.outcomes}
    gone = sorted({id_.split("[")[0] for id_ in seen.collected} - names)
    return [f"{id_} was collected on the stubs and is gone" for id_ in gone]


def _exit(check: CheckEvidence, before: CheckEvidence | None) -> list[str]:
    code = check.exit_code
    if code in {0, None}:
        return []
    command = " ".join(check.argv)
    if code is not None and (code < 0 or code >= 128):
        return [f"`{command}` was killed by a signal (exit code {code}); its report may be incomplete"]
    if code in _NEVER_EXITS and is_pytest(check.argv):
        return [f"`{command}` {_NEVER_EXITS[code]} (exit code {code}):\n{check.output_tail[-2_000:]}"]
    if any(outcome in _RED for outcome in check.outcomes.values()) or not check.outcomes:
        return []  # the red ids, or their absence, are judged by themselves
    was_alike = before is not None and before.exit_code == code and not before.red
    return [] if was_alike else [f"`{command}` ended with exit code {code} although its report is all green:\n{check.output_tail[-2_000:]}"]


def _scanned(check: CheckEvidence, before: CheckEvidence | None) -> list[str]:
    """Judge a check without test ids: what it found beyond the base commit, and whether it looked at anything."""
    if check.problem or not check.said or check.exit_code is None or check.is_missing_command:
        return []
    command = " ".join(check.argv)
    reason = unreliable(check)
    if reason:
        return [f"`{command}` {reason}"]
    if check.report == "sarif":
        known = before.results if before is not None else {}
        worse = [f"{key}" for key, count in check.results.items() if count > known.get(key, 0)]
        if worse:
            return [f"`{command}` found: {each}" for each in worse]
        if check.exit_code == 0 or check.results:
            return []
    if check.exit_code == 0 or (before is not None and before.report == "none" and before.exit_code == check.exit_code):
        return []
    return [f"`{command}` ended with exit code {check.exit_code}:\n{check.output_tail[-3_000:]}"]


def _unproven(evidence: Evidence, baseline: Evidence | None, criteria: Sequence[Criterion]) -> list[Finding]:
    """Return what shows that the feature itself was not tested: no new test, or a criterion without one that passed."""
    passed = [
        id_
        for check in evidence.tests()
        for id_, outcome in check.outcomes.items()
        if outcome == "passed" and (_before(baseline, check.name) is None or id_ not in _known_ids(baseline, check.name))
    ]
    if not passed:
        return [finding("tests", "no new test passed: zero new tests are no evidence for a feature")]
    proven = {criterion_of(_name(id_)) for id_ in passed}
    return [finding("tests", f"{each.id} has no test that passed: {each.text[:300]}") for each in criteria if each.id not in proven]


def _known_ids(baseline: Evidence | None, name: str) -> Iterable[str]:
    before = _before(baseline, name)
    return before.outcomes if before is not None else ()


def _worth_knowing(check: CheckEvidence, before: CheckEvidence | None) -> list[str]:
    notes = []
    if before is not None:
        still = sorted(id_ for id_, outcome in check.outcomes.items() if outcome in _RED and before.outcomes.get(id_) in _RED)
        if still:
            notes.append(f"{check.name}: {len(still)} known red on the base commit, red still: {', '.join(still[:5])}")
        if not check.is_tests and check.exit_code not in {0, None} and before.exit_code == check.exit_code:
            notes.append(f"{check.name}: red on the base commit too")
    if check.suppressed:
        notes.append(f"{check.name}: {check.suppressed} findings are suppressed in the code")
    if check.is_tests and not check.sealed:
        why = f", not sealed: {check.why_not_sealed}" if check.why_not_sealed else ""
        notes.append(f"{check.name}: judged in one process with the product{why}")
    return notes


def assurance_of(evidence: Evidence) -> Assurance:
    """Return what the tests' reports are worth at most: `sealed` if all of them are; empty if there are none."""
    tests = evidence.tests()
    if not tests:
        return ""
    return "sealed" if all(check.sealed for check in tests) else "in-process"


def _what(case: Case | None) -> str:
    if case is None:
        return "no details were kept"
    message = " ".join(case.message.split())[:300]
    return message if case.kind in message or not case.kind else f"{case.kind}: {message}"


def _tail(case: Case | None) -> str:
    return case.tail[-2_000:] if case is not None else ""
