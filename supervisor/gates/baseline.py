"""The baseline's gate: can the base commit be judged at all, before a cent is spent (DECISIONS G14); red tests are known, not refused."""

from sandbox.contract.result import Finding
from sandbox.contract.tree import Tree
from supervisor.gates.evidence import CheckEvidence, Evidence, is_file
from supervisor.gates.floors import unreliable
from supervisor.gates.remedy import dockerfile_for, missing_modules, paste, quality_toml_for
from supervisor.gates.verdict import Judgement, finding, judgement
from supervisor.stages.programs import is_programs_check

_PYTEST_NOT_FOUND = (4, "file or directory not found")
_PYTEST_BROKE = {3: "an internal error", 4: "a wrong command line or configuration"}


def judge_baseline(evidence: Evidence, tree: Tree) -> Judgement:
    """Return the verdict on the base commit; a failure is always the repository's or the set-up's (exit 2).

    Args:
        evidence: What the checks left on it.
        tree: The base commit, for what to paste.
    """
    findings: list[Finding] = []
    notes: list[str] = []
    for check in evidence.checks.values():
        found = _tests(check, tree) if check.is_tests else _other(check, tree)
        if found is not None and check.blocking:
            findings.append(found)
        elif found is not None:
            notes.append(f"{check.name} does not count: {found.message}"[:500])
        else:
            notes += _known(check)
    return judgement(findings, notes, tests=evidence.counts, evidence=evidence.model_dump_json().encode(), usage_error=True)


def _tests(check: CheckEvidence, tree: Tree) -> Finding | None:
    command = " ".join(check.argv)
    if check.is_missing_command:
        return finding(check.name, f"`{command}` is not in the image: {_last_line(check)}\n{_paste(check, tree)}")
    unfinished = _unfinished(check)
    if unfinished:
        return finding(check.name, f"`{command}` {unfinished}")
    if has_no_tests_yet(check):
        return None
    if check.exit_code in _PYTEST_BROKE and not check.collected:
        return finding(
            check.name, f"`{command}` ended with {_PYTEST_BROKE[check.exit_code]} on the base commit:\n{check.output_tail[-3_000:]}"
        )
    if check.problem:
        return finding(
            check.name,
            f"`{command}` left no evidence ({check.problem}); tests have to write a JUnit report, for example with this:\n"
            + paste(("quality.toml", quality_toml_for())),
        )
    uncollected = [id_ for id_, outcome in check.outcomes.items() if is_file(id_) and outcome == "error"]
    if uncollected and not check.collected:
        names = ", ".join(id_.removeprefix("::") for id_ in uncollected[:5])
        return finding(check.name, f"no test of the base commit can be collected ({names}): {_why(check)}\n{_paste(check, tree)}")
    return None


def _other(check: CheckEvidence, tree: Tree) -> Finding | None:
    command = " ".join(check.argv)
    if is_programs_check(check.argv) and check.is_missing_command:
        return finding(
            check.name,
            f"the program of an agent is not in the image: {', '.join(check.output_tail.split()[:5])[:300]}; install it in the "
            "repository's `.andon/Dockerfile` (docs/agents.md), or choose another `driver`",
        )
    if check.is_missing_command:
        return finding(check.name, f"`{command}` is not in the image: {_last_line(check)}\n{_paste(check, tree)}")
    unfinished = _unfinished(check)
    if unfinished:
        return finding(check.name, f"`{command}` {unfinished}")
    if check.problem:
        return finding(check.name, f"`{command}` left no evidence: {check.problem}")
    reason = unreliable(check)
    return finding(check.name, f"`{command}` {reason}") if reason else None


def has_no_tests_yet(check: CheckEvidence) -> bool:
    """Return whether the command named a directory of tests that does not exist yet, which is fine."""
    return check.exit_code == _PYTEST_NOT_FOUND[0] and not check.outcomes and _PYTEST_NOT_FOUND[1] in check.output_tail


def _unfinished(check: CheckEvidence) -> str:
    if not check.said:
        return "did not end before the stage did on the base commit; raise `timeout_s` or `memory_mib` of the validate stage"
    if check.exit_code is None:
        return f"was still running after {check.duration_s:.0f} s on the base commit; raise `timeout_s` of the validate stage"
    return ""


def _known(check: CheckEvidence) -> list[str]:
    red = [id_ for id_, outcome in check.outcomes.items() if outcome in {"failed", "error"}]
    notes = []
    if red:
        notes.append(f"{check.name}: {len(red)} red on the base commit, known from now on: {', '.join(red[:5])}")
        missing = missing_modules(case.tail for case in check.red.values())
        if missing:
            notes.append(
                f"{check.name}: modules missing in the image: {', '.join(missing[:10])}; see .andon/Dockerfile in the documentation"
            )
    if check.is_tests and not check.collected:
        notes.append(f"{check.name}: the base commit has no tests yet")
    if not check.is_tests and (check.results or (check.report == "none" and check.exit_code != 0)):
        notes.append(f"{check.name} is red on the base commit: only what gets worse counts")
    return notes


def _why(check: CheckEvidence) -> str:
    missing = missing_modules(case.tail for case in check.red.values())
    if missing:
        return f"modules that are not in the image: {', '.join(missing[:20])}"
    first = next(iter(check.red.values()), None)
    return (first.tail.splitlines() or [first.message])[-1][:300] if first else "no reason given"


def _paste(check: CheckEvidence, tree: Tree) -> str:
    missing = missing_modules([check.output_tail, *(case.tail for case in check.red.values())])
    text = paste((".andon/Dockerfile", dockerfile_for(tree, missing)), ("quality.toml", quality_toml_for()))
    return f"Commit these to the base branch (adapt them), then run again:\n{text}"


def _last_line(check: CheckEvidence) -> str:
    return (check.output_tail.strip().splitlines() or ["no output"])[-1][:300]
