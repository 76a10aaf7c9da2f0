"""What a person reads when a run ends: the Markdown report and the closing lines on the terminal; pure text from a run's state.

Everything an agent, a model or a repository wrote goes through `inert`, and in Markdown into code spans or blocks that it cannot close.
"""

import re
from collections.abc import Iterable, Sequence

from sandbox.contract.packages import Fetched
from sandbox.contract.result import Finding
from supervisor.api.inert import inert, inert_line
from supervisor.api.views import cost_of, counted_tests, is_over, iso, last_at, tokens_of, usage_of
from supervisor.errors import ExitCode
from supervisor.pipeline.run import JobState, RunState

FILES_SHOWN_MAX = 20
PACKAGES_SHOWN_MAX = 10
"""Paths of one kind in the closing lines; the report and the result object hold all."""
TRACE_FILE = "trace.otlp.jsonl"
_LABEL_CHARS = 9

_HEADLINES = {
    "landed": "Landed",
    "failed": "Failed, nothing landed",
    "cancelled": "Cancelled, nothing landed",
    "parked": "Parked",
    "waiting": "Waiting for approval",
}


def money(nano_usd: int) -> str:
    """Return dollars for a person: cents from one dollar on, a hundredth of a cent below."""
    return f"${nano_usd / 1e9:,.2f}" if nano_usd == 0 or nano_usd >= 10**9 else f"${nano_usd / 1e9:.4f}"


def duration(seconds: float) -> str:
    """Return a span of time for a person."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def summary(run: RunState, report_path: str | None, mirror: str | None = None) -> str:
    """Return the closing lines of a run, without a final line end; `mirror` is the path that holds the salvage refs, if known."""
    lines = [headline(run), ""]
    lines += _facts(run)
    lines += [*cost_table(run), ""]
    lines += _labelled("trace", trace_words(run))
    if report_path:
        lines += _labelled("report", report_path)
    refs = salvage_refs(run)
    if refs and run.state != "landed":
        lines += _labelled("salvage", refs)
    steps = next_steps(run, mirror)
    if steps:
        lines += ["", *_labelled("next", steps)]
    return "\n".join(line.rstrip() for line in lines)


def trace_words(run: RunState) -> str:
    """Return where a run's trace is to be looked at."""
    if not run.sampled:
        return "none: this run was not sampled (OTEL_TRACES_SAMPLER)"
    if run.trace_url:
        return inert_line(run.trace_url, 300)
    return f"andon trace {run.run_id}   (or open {TRACE_FILE}, beside the report, in Jaeger)"


def headline(run: RunState) -> str:
    """Return one line: how the run ended and of what feature."""
    replay = " (replay)" if run.intent.mode == "replay" else ""
    ended = _HEADLINES.get(run.state, run.state.capitalize())
    if run.delivery_failed:
        ended += " in the mirror, not delivered"
    elif run.state == "landed" and not run.delivered and run.intent.delivery == "client":
        ended += " in the fleet's mirror, not yet delivered"
    return f"{ended}: {run.intent.feature}{replay}"


def next_steps(run: RunState, mirror: str | None = None) -> list[str]:
    """Return the commands that go on from here, most useful first; empty while the run goes on."""
    if run.state == "landed" and not run.delivered and run.intent.delivery == "client":
        return [f"andon apply {run.run_id}   (brings {run.branch} into your repository)"]
    if run.delivery_failed:
        return [f"andon resume {run.run_id}   (delivers once more)"]
    if run.state == "landed":
        return [f"git -C {_quoted(run.intent.repository)} diff {run.intent.base_commit[:12]}..{run.branch}"] if run.delivered else []
    if run.state == "parked":
        budget = " --budget USD   (more than was spent)" if run.exit_code == ExitCode.BUDGET else ""
        return [f"andon resume {run.run_id}{budget}", *_look_at_salvage(run, mirror)]
    if not is_over(run):
        return [f"andon status {run.run_id}"]
    stage = f" --stage {run.end_stage}" if any(job.stage == run.end_stage for job in run.jobs.values()) else ""
    wrote = any(job.kind == "agent" and job.commit not in {None, run.intent.base_commit} for job in run.jobs.values())
    diff = [f"andon diff {run.run_id}   (what was written last)"] if wrote else []
    return [f"andon logs {run.run_id}{stage}", *diff, *_look_at_salvage(run, mirror)]


def _look_at_salvage(run: RunState, mirror: str | None) -> list[str]:
    refs = salvage_refs(run)
    of_stage = [ref for ref in refs if f"/{run.end_stage}-" in ref] if run.end_stage else []
    return [f"git --git-dir {_quoted(mirror)} log -p -1 {(of_stage or refs)[-1]}"] if refs and mirror else []


def salvage_refs(run: RunState) -> list[str]:
    """Return the refs of the mirror that hold work which did not land, oldest first."""
    named = [each.ended.salvage_ref for job in run.jobs.values() for each in job.attempts if each.ended and each.ended.salvage_ref]
    return list(dict.fromkeys(named))


def first_finding(run: RunState) -> Finding | None:
    """Return the first reason of the verdict that stopped the run, None if no gate did."""
    failed = [job for job in run.jobs.values() if job.verdict == "fail" and job.findings]
    of_stage = [job for job in failed if job.stage == run.end_stage]
    jobs = of_stage or ([] if run.end_stage else failed)
    if not jobs:
        return None
    findings = jobs[-1].findings
    return next((each for each in findings if each.check == run.end_check), findings[0])


def markdown(run: RunState, mirror: str | None = None) -> str:
    """Return the report: metadata, execution, results, files, cost, warnings, next steps (S4-22)."""
    sections = [
        [f"# {headline(run)}", "", *_quote(run.intent.request)],
        ["## Run", "", *_metadata(run)],
        ["## Stages", "", *_execution(run)],
        ["## Results", "", *_results(run)],
        ["## Files", "", *_files(run)],
        ["## Cost", "", *_cost(run)],
        ["## Warnings", "", *_warnings(run)],
        ["## Next steps", "", *_steps(run, mirror)],
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


# ---- the closing lines ------------------------------------------------------------------------------------------------------------


def _facts(run: RunState) -> list[str]:
    lines = _labelled("run", run.run_id)
    if run.landed_commit:
        is_home = run.delivered or (run.intent.delivery == "supervisor" and not run.delivery_failed)
        where = "the mirror only" if not is_home else inert_line(run.intent.repository, 300)
        lines += _labelled("branch", f"{run.branch}  in {where}")
        lines += _labelled("commit", f"{run.landed_commit}  on {inert_line(run.intent.base_name)} ({run.intent.base_commit[:12]})")
        for label, paths in (("created", run.files_created), ("modified", run.files_modified), ("deleted", run.files_deleted)):
            lines += _labelled(label, _shortened(paths))
        counts = counted_tests(run)
        lines += _labelled("tests", f"{counts.passed} passed, {counts.failed} failed, {counts.skipped} skipped")
        lines += _labelled("reason", inert_line(run.end_reason, 400)) if run.end_reason else []
    else:
        lines += _end_facts(run)
    return [*lines, *_labelled("time", duration(last_at(run) - run.accepted_at)), ""]


def _end_facts(run: RunState) -> list[str]:
    lines = []
    if run.end_stage:
        lines += _labelled("stage", run.end_stage)
    if run.end_check:
        lines += _labelled("check", inert_line(run.end_check))
    finding = first_finding(run)
    if finding:
        # What is ready to paste (exit 2: the repository lacks something) is no use when it is cut.
        chars_max, lines_max = (8_000, 200) if run.exit_code == ExitCode.USAGE else (200, 8)
        told = [line.rstrip()[:chars_max] for line in inert(finding.told).splitlines() if line.strip()][:lines_max]
        lines += _labelled("finding", told or "without a word")
    reason = inert_line(run.end_reason, 400)
    if reason and not (finding and inert_line(finding.told, 400) == reason):
        lines += _labelled("reason", reason)
    return lines


def _labelled(label: str, value: str | Sequence[str]) -> list[str]:
    values = [value] if isinstance(value, str) else list(value)
    return [f"  {label if index == 0 else '':<{_LABEL_CHARS}} {each}" for index, each in enumerate(values)]


def _shortened(paths: Sequence[str]) -> list[str]:
    shown = [inert_line(path) for path in paths[:FILES_SHOWN_MAX]]
    return [*shown, f"... and {len(paths) - FILES_SHOWN_MAX} more (see the report)"] if len(paths) > FILES_SHOWN_MAX else shown


def cost_table(run: RunState) -> list[str]:
    """Return lines of each job's verdict, tokens and cost, and of all together."""
    width = max([len(job.stage) for job in run.jobs.values()] + [len("stage")])
    lines = [f"  {'stage':<{width}}  round  verdict  {'tokens':>10}  {'cost':>9}"]
    for job in run.jobs.values():
        verdict = job.verdict or "-"
        tokens, cost = _spent(job)
        lines.append(f"  {job.stage:<{width}}  {job.round:>5}  {verdict:<7}  {tokens:>10}  {cost:>9}")
    spent = money(run.budget.settled_nano_usd)
    total = f"  {'total':<{width}}  {'':>5}  {'':<7}  {tokens_of(run.budget.usage):>10,}  {spent:>9}  of {money(run.budget.limit_nano_usd)}"
    return [*lines, total + ("  (replay: recorded figures, nothing was billed)" if run.intent.mode == "replay" else "")]


def _spent(job: JobState) -> tuple[str, str]:
    """Return tokens and cost of a job; a checks job has no model, which is not the same as nothing spent."""
    return ("-", "-") if job.kind == "checks" else (f"{tokens_of(usage_of(job)):,}", money(cost_of(job)))


# ---- the report -------------------------------------------------------------------------------------------------------------------


def _metadata(run: RunState) -> list[str]:
    rows = [
        ("run", code(run.run_id)),
        ("feature", code(run.intent.feature)),
        ("state", run.state + (f", exit code {run.exit_code}" if run.exit_code is not None else "")),
        ("model", "replay of a recorded cassette" if run.intent.mode == "replay" else "live"),
        ("repository", code(run.intent.repository)),
        ("base", f"{code(run.intent.base_name)} at {code(run.intent.base_commit)}"),
        ("branch", code(run.branch)),
        ("commit", code(run.landed_commit) if run.landed_commit else "none"),
        ("accepted", iso(run.accepted_at)),
        ("ended", iso(run.ended_at) if run.ended_at else "not yet"),
        ("trace", code(run.trace_id)),
        ("shown by", code(trace_words(run))),
    ]
    return _table(("", ""), rows)


def _execution(run: RunState) -> list[str]:
    rows = []
    for job in run.jobs.values():
        outcomes = ", ".join(each.ended.outcome.value if each.ended else "under way" for each in job.attempts) or "not started"
        took = duration(job.judged_at - job.dispatched_at) if job.judged_at else "-"
        rows.append((job.stage, str(job.round), job.verdict or "-", outcomes, took, *_spent(job)))
    return _table(("stage", "round", "verdict", "attempts", "time", "tokens", "cost"), rows)


def _results(run: RunState) -> list[str]:
    counts = counted_tests(run)
    validated = any(job.role == "validate" and job.is_done for job in run.jobs.values())
    counted = f"{counts.passed} passed, {counts.failed} failed, {counts.skipped} skipped"
    lines = [f"Tests: {counted if validated else 'the line did not get to validate'}."]
    if run.end_stage or run.end_reason:
        where = " ".join(part for part in (f"Stopped at stage {code(run.end_stage)}," if run.end_stage else "Stopped:",) if part)
        check = f" check {code(run.end_check)}:" if run.end_check else ""
        lines += ["", f"{where}{check}", "", *_quote(run.end_reason)]
    for job in run.jobs.values():
        if job.findings or job.notes:
            lines += [
                "",
                f"### {job.stage}, round {job.round}: {job.verdict or 'not judged'}{f' ({job.assurance})' if job.assurance else ''}",
                "",
            ]
            lines += [line for finding in job.findings for line in _finding(finding)]
            lines += [f"- note: {code(note)}" for note in job.notes]
    return lines


def _finding(finding: Finding) -> list[str]:
    where = f" {code(finding.path)}" if finding.path and not finding.message.startswith(finding.path) else ""
    if len(finding.message) <= 200 and "\n" not in finding.message.strip():
        return [f"- {code(finding.check)}{where}: {code(finding.message)}"]
    return [f"- {code(finding.check)}{where}:", "", *_block(finding.message), ""]


def _files(run: RunState) -> list[str]:
    lines: list[str] = []
    for label, paths in (("Created", run.files_created), ("Modified", run.files_modified), ("Deleted", run.files_deleted)):
        if paths:
            lines += [f"{label}:", "", *(f"- {code(path)}" for path in paths), ""]
    return lines[:-1] or ["None: nothing landed."]


def _cost(run: RunState) -> list[str]:
    usage, budget = run.budget.usage, run.budget
    lines = [f"{money(budget.settled_nano_usd)} of {money(budget.limit_nano_usd)}."]
    if run.intent.mode == "replay":
        lines[0] += " This is a replay: the figures are the recorded ones, nothing was billed."
    if budget.held_nano_usd:
        lines += ["", f"{money(budget.held_nano_usd)} is reserved by calls that are not settled."]
    if budget.unsettled_calls:
        lines += ["", f"{budget.unsettled_calls} call(s) were charged their whole reservation, because the provider's figure was lost."]
    rows = [
        ("input", f"{usage.input_tokens:,}"),
        ("output", f"{usage.output_tokens:,}"),
        ("cache read", f"{usage.cache_read_input_tokens:,}"),
        ("cache write", f"{usage.cache_write_input_tokens:,}"),
    ]
    return [*lines, "", *_table(("tokens", "number"), rows)]


def _warnings(run: RunState) -> list[str]:
    lines = [f"- {code(run.intent.image_note)}"] if run.intent.image_note else []
    if run.budget.warned:
        lines.append("- spending passed the warning threshold")
    for job in run.jobs.values():
        lines += _warnings_of(job)
    return list(dict.fromkeys(lines)) or ["None."]


def _warnings_of(job: JobState) -> list[str]:
    lines = []
    for attempt in job.attempts:
        ended = attempt.ended
        if ended is None:
            continue
        where = f"{job.stage}, round {job.round}, attempt {attempt.attempt}"
        lines += [f"- this host cannot give: {code(each)}" for each in ended.missing]
        if ended.dropped.count:
            names = ", ".join(code(each) for each in ended.dropped.examples[:5])
            lines.append(f"- {where}: {ended.dropped.count} file(s) of build litter were not committed, e.g. {names}")
        lines += _packages(where, ended.fetched)
        if ended.divergences:
            lines.append(f"- {where}: {ended.divergences} tool output(s) differed from the recording")
        if ended.reason:
            lines.append(f"- {where} ended as {ended.outcome.value}: {code(ended.reason)}")
    return lines


def _packages(where: str, fetched: Fetched) -> list[str]:
    """Return what an attempt installed and was refused: names of files and rules, as its gateway saw them."""
    lines = []
    if fetched.files:
        more = len(fetched.files) + fetched.files_dropped - PACKAGES_SHOWN_MAX
        names = ", ".join(code(each) for each in fetched.files[:PACKAGES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"- {where} fetched {names}")
    if fetched.refused:
        more = len(fetched.refused) + fetched.refused_dropped - PACKAGES_SHOWN_MAX
        lines += [f"- {where} was refused {code(each)}" for each in fetched.refused[:PACKAGES_SHOWN_MAX]]
        lines += [f"- {where} was refused {more} more request(s) for packages"] if more > 0 else []
    return lines


def _steps(run: RunState, mirror: str | None) -> list[str]:
    lines = [f"- {code(step)}" for step in next_steps(run, mirror)]
    refs = salvage_refs(run)
    if refs and run.state != "landed":
        lines.append("- what was written and did not land, in the mirror: " + ", ".join(code(ref) for ref in refs))
    return lines or ["None."]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def code(text: str) -> str:
    """Return one line of text as a Markdown code span that the text itself cannot close."""
    line = inert_line(text, 400)
    if not line:
        return "``"
    fence = "`" * (max((len(run) for run in re.findall(r"`+", line)), default=0) + 1)
    pad = " " if "`" in line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _block(text: str) -> list[str]:
    safe = inert(text)
    fence = "`" * max(3, max((len(run) for run in re.findall(r"`+", safe)), default=0) + 1)
    return [f"{fence}text", *safe.splitlines(), fence]


def _quote(text: str) -> list[str]:
    return _block(text[:8_000]) if text.strip() else []


def _quoted(path: str) -> str:
    """Return a path as a shell word."""
    safe = inert_line(path, 400)
    return safe if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", safe) else "'" + safe.replace("'", "'\"'\"'") + "'"
