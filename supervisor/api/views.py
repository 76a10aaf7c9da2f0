"""What a person or a program is shown of a run, computed from its state alone; not how it is drawn, nor any file or socket.

`result_of` is the object that `run`, `resume` and `status` print with `--json` (DECISIONS G12); `board` is what the live display,
`status` and later the dashboard draw, one row a stage, each with the reason why it does not move.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from sandbox.contract.model import Frozen
from sandbox.contract.result import Usage
from sandbox.contract.wire import Progress
from supervisor.errors import UnknownRun
from supervisor.pipeline.events import Assurance, TestCounts, Verdict
from supervisor.pipeline.run import AttemptState, JobState, RunState, State

RUN_PREFIX_CHARS_MIN = 4
_MATCHES_SHOWN_MAX = 10


class AttemptView(Frozen):
    """One try at a job."""

    attempt: int
    outcome: str | None
    """None while it runs."""
    executor: str
    container_id: str | None
    missing: tuple[str, ...]
    """Protections its sandbox did without, one line each."""
    started_at: str
    """UTC, ISO 8601 with milliseconds."""
    ended_at: str | None
    cost_usd: float


class StageView(Frozen):
    """One job: a stage in one round."""

    stage: str
    job: str
    round: int
    verdict: Verdict | None
    """None while no gate has spoken."""
    assurance: Assurance
    """What a verdict of tests rests on; empty for others."""
    attempts: tuple[AttemptView, ...]


class FilesView(Frozen):
    """What the landed commit changes against the base."""

    created: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()


class RunResult(Frozen):
    """One run as a program reads it; the keys are a promise."""

    run_id: str | None
    feature: str | None
    state: State
    exit_code: int | None
    """None while the run goes on."""
    repo: str | None
    base: str | None
    """The base commit."""
    branch: str | None
    commit: str | None
    """The landed commit."""
    trace_id: str | None
    trace_url: str | None
    """The page that shows the run's trace; None: `andon trace` does."""
    cost_usd: float
    usage: Usage
    replay: bool
    stages: tuple[StageView, ...]
    files: FilesView
    tests: TestCounts
    """Of the last validate."""
    report: str | None
    """Path of the Markdown report."""


class Refusal(RunResult):
    """The same object when there is no run, with the reason."""

    error: str


class ListRow(Frozen):
    """One line of `andon list`."""

    run_id: str
    feature: str
    state: State
    exit_code: int | None
    accepted_at: str
    cost_usd: float
    branch: str
    commit: str | None
    replay: bool
    repo: str
    request: str
    """The first line, at most 200 characters."""


class Probe(Frozen):
    """One thing `andon doctor` looked at; made in `bootstrap.doctor_probes`."""

    name: str
    status: Literal["ok", "warn", "fail"]
    """warn: it works with less (a protection this host cannot give); fail: `andon run` would not work."""
    detail: str
    advice: str = ""
    """What to do about it, one line."""


RowState = Literal["waiting", "queued", "running", "judging", "passed", "failed", "held", "stopped"]


class BoardRow(Frozen):
    """One stage as it is now."""

    stage: str
    state: RowState
    round: int = 1
    attempt: int = 0
    is_parallel: bool = False
    """Another stage is under way at the same time."""
    elapsed_s: float = 0.0
    phase: str = ""
    turn: int = 0
    tool: str = ""
    tokens: int = 0
    cost_nano_usd: int = 0
    why: str = ""
    """Why it does not move, or what the verdict rests on; one line, not yet inert."""


def usd(nano_usd: int) -> float:
    """Return US dollars for a JSON number, rounded to a millionth: the one place where money is rounded."""
    return round(nano_usd / 1e9, 6)


def iso(at: float) -> str:
    """Return Unix seconds as UTC, ISO 8601 with milliseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def result_of(run: RunState, report: str | None) -> RunResult:
    """Return the result object of a run; `report` is the path of its report, None if there is none yet."""
    return RunResult(
        run_id=run.run_id,
        feature=run.intent.feature,
        state=run.state,
        exit_code=run.exit_code,
        repo=run.intent.repository,
        base=run.intent.base_commit,
        branch=run.branch,
        commit=run.landed_commit,
        trace_id=run.trace_id,
        trace_url=run.trace_url or None,
        cost_usd=usd(run.budget.settled_nano_usd),
        usage=run.budget.usage,
        replay=run.intent.mode == "replay",
        stages=tuple(_stage(job) for job in run.jobs.values()),
        files=FilesView(created=run.files_created, modified=run.files_modified, deleted=run.files_deleted),
        tests=counted_tests(run),
        report=report,
    )


def refusal(error: str, exit_code: int, repo: str | None = None) -> Refusal:
    """Return the object that says that no run came into being."""
    return Refusal(
        run_id=None,
        feature=None,
        state="failed",
        exit_code=exit_code,
        repo=repo,
        base=None,
        branch=None,
        commit=None,
        trace_id=None,
        trace_url=None,
        cost_usd=0.0,
        usage=Usage(),
        replay=False,
        stages=(),
        files=FilesView(),
        tests=TestCounts(),
        report=None,
        error=error,
    )


def row_of(run: RunState) -> ListRow:
    """Return the run's line in the list."""
    return ListRow(
        run_id=run.run_id,
        feature=run.intent.feature,
        state=run.state,
        exit_code=run.exit_code,
        accepted_at=iso(run.accepted_at),
        cost_usd=usd(run.budget.settled_nano_usd),
        branch=run.branch,
        commit=run.landed_commit,
        replay=run.intent.mode == "replay",
        repo=run.intent.repository,
        request=run.intent.request.strip().partition("\n")[0][:200],
    )


def counted_tests(run: RunState) -> TestCounts:
    """Return the counts of the last validate that was judged; zeros if none was."""
    judged = [job.tests for job in run.jobs.values() if job.role == "validate" and job.is_done]
    return judged[-1] if judged else TestCounts()


def cost_of(job: JobState) -> int:
    """Return what a job's attempts cost together, in nano-USD."""
    return sum(attempt.cost_nano_usd for attempt in job.attempts)


def usage_of(job: JobState) -> Usage:
    """Return the tokens of a job's attempts together."""
    return sum((attempt.usage for attempt in job.attempts), Usage())


def tokens_of(usage: Usage) -> int:
    """Return every token that was counted, cached ones included."""
    return usage.all_input_tokens + usage.output_tokens


def is_over(run: RunState) -> bool:
    """Return whether nothing more happens unless a person acts: (not) delivered, failed, cancelled, parked, or waiting for them."""
    if run.state == "landed":
        return run.delivered or run.delivery_failed or run.intent.delivery == "client"
    return run.state in {"failed", "cancelled", "parked"} or (run.state == "waiting" and run.exit_code is not None)


def last_at(run: RunState) -> float:
    """Return when the run ended or, if it has not, when something last happened to one of its jobs; Unix seconds."""
    if run.ended_at is not None:
        return run.ended_at
    seen = [run.accepted_at]
    for job in run.jobs.values():
        seen += [job.dispatched_at, job.judged_at or 0.0, *(each.ended.ended_at for each in job.attempts if each.ended)]
    return max(seen)


def resolve_run_id(given: str, known: Iterable[str]) -> str:
    """Return the one known run that is `given` or begins with it.

    Raises:
        UnknownRun: Too short, none, or several; the message lists the matches.
    """
    prefix = given.strip().lower()
    ids = sorted(known)
    if prefix in ids:
        return prefix
    if len(prefix) < RUN_PREFIX_CHARS_MIN:
        raise UnknownRun(f"run {given!r} is too short: give at least {RUN_PREFIX_CHARS_MIN} characters; `andon list` shows the runs")
    matches = [each for each in ids if each.startswith(prefix)]
    if not matches:
        raise UnknownRun(f"no run {given!r} is known here; `andon list` shows the runs")
    if len(matches) > 1:
        shown = ", ".join(matches[:_MATCHES_SHOWN_MAX]) + (", ..." if len(matches) > _MATCHES_SHOWN_MAX else "")
        raise UnknownRun(f"run {given!r} is not the only one of its kind: {shown}")
    return matches[0]


def stages_in_order(run: RunState) -> list[str]:
    """Return the names of the stages in the order a person expects: baseline first, red-check before validate."""
    names = [stage.name for stage in run.pipeline.stages]
    reserved = dict.fromkeys(job.stage for job in run.jobs.values() if job.stage not in names)
    validate = next((index for index, stage in enumerate(run.pipeline.stages) if stage.role == "validate"), len(names))
    before = [name for name in reserved if name == "baseline"]
    return before + names[:validate] + [name for name in reserved if name != "baseline"] + names[validate:]


def board(run: RunState, progress: Mapping[str, Progress], now: float) -> list[BoardRow]:
    """Return one row a stage, in the order of the line.

    Args:
        run: The run.
        progress: The last progress of each job, by job id.
        now: Unix seconds, for what has no end yet.
    """
    is_parallel = not is_over(run) and sum(not job.is_done for job in run.jobs.values()) > 1
    rows = []
    for name in stages_in_order(run):
        job = run.latest(name)
        rows.append(_row(run, job, progress.get(job.job_id), now, is_parallel) if job else _row_before(run, name))
    return rows


def _stage(job: JobState) -> StageView:
    return StageView(
        stage=job.stage,
        job=job.job_id,
        round=job.round,
        verdict=job.verdict,
        assurance=job.assurance,
        attempts=tuple(_attempt(each) for each in job.attempts),
    )


def _attempt(attempt: AttemptState) -> AttemptView:
    ended = attempt.ended
    return AttemptView(
        attempt=attempt.attempt,
        outcome=ended.outcome.value if ended else None,
        executor=attempt.executor,
        container_id=(ended.container_id or None) if ended else None,
        missing=ended.missing if ended else (),
        started_at=iso(attempt.started_at),
        ended_at=iso(ended.ended_at) if ended else None,
        cost_usd=usd(attempt.cost_nano_usd),
    )


def _row(run: RunState, job: JobState, progress: Progress | None, now: float, is_parallel: bool) -> BoardRow:
    last = job.attempts[-1] if job.attempts else None
    is_live = last is not None and last.ended is None and not is_over(run)
    if progress is not None and (last is None or progress.attempt != last.attempt):
        progress = None
    settled = cost_of(job)
    return BoardRow(
        stage=job.stage,
        state=_state_of(run, job, last),
        round=job.round,
        attempt=last.attempt if last else 0,
        is_parallel=is_parallel and not job.is_done,
        elapsed_s=max(0.0, _end_of(run, job, now) - job.dispatched_at),
        phase=progress.phase if progress and is_live else "",
        turn=progress.turn if progress else 0,
        tool=progress.tool if progress and is_live else "",
        tokens=max(tokens_of(usage_of(job)), progress.tokens if progress else 0),
        # The ledger is the truth; the gateway's own figure only runs ahead of it within one attempt.
        cost_nano_usd=max(settled, progress.cost_nano_usd if progress else 0),
        why=_why(job, last),
    )


def _state_of(run: RunState, job: JobState, last: AttemptState | None) -> RowState:
    verdicts: dict[Verdict, RowState] = {"pass": "passed", "fail": "failed", "hold": "held"}
    if job.verdict is not None:
        return verdicts[job.verdict]
    if is_over(run):
        return "stopped"
    if last is None:
        return "queued"
    return "running" if last.ended is None else "judging"


def _end_of(run: RunState, job: JobState, now: float) -> float:
    if job.judged_at is not None:
        return job.judged_at
    return last_at(run) if is_over(run) else now


def _why(job: JobState, last: AttemptState | None) -> str:
    if job.verdict in {"fail", "hold"} and job.findings:
        return f"{job.findings[0].check}: {job.findings[0].message}"
    if job.verdict is None and last is None:
        return "no executor has taken it yet"
    if job.verdict is None and last is not None and last.ended is not None:
        return f"attempt {last.attempt} ended: {last.ended.outcome.value}" + (f": {last.ended.reason}" if last.ended.reason else "")
    return ""


def _row_before(run: RunState, name: str) -> BoardRow:
    """Return the row of a stage that has no job: it waits, or (land) it is what the end of the run says."""
    stage = next(each for each in run.pipeline.stages if each.name == name)
    if stage.role == "spec" and run.intent.given_spec is not None:
        return BoardRow(stage=name, state="passed", why="given")
    if stage.role == "land" and run.landed_commit:
        return BoardRow(stage=name, state="passed", why=f"{run.branch} is {run.landed_commit[:12]}")
    if run.end_stage == name:
        return BoardRow(stage=name, state="failed", why=run.end_reason)
    return BoardRow(stage=name, state="stopped" if is_over(run) else "waiting", why=_waits_for(run, stage.depends_on))


def _waits_for(run: RunState, stages: Sequence[str]) -> str:
    open_stages = []
    for name in stages:
        job = run.latest(name)
        is_given = run.intent.given_spec is not None and any(each.name == name and each.role == "spec" for each in run.pipeline.stages)
        if not is_given and (job is None or job.verdict != "pass"):
            open_stages.append(name)
    beside = [] if open_stages or is_over(run) else [job.stage for job in run.jobs.values() if not job.is_done]  # such as the red-check
    return f"after {', '.join(open_stages or dict.fromkeys(beside))}" if open_stages or beside else ""
