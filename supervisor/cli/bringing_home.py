"""A landed run of a fleet elsewhere, brought into the person's own repository on this host (DECISIONS D1); not how it landed."""

from pathlib import Path

from sandbox.mirror import Mirror
from supervisor import delivery
from supervisor.api.run_files import RunFiles
from supervisor.api.submitted import remembered
from supervisor.cli.client import Client
from supervisor.errors import AndonError, InfrastructureError, UsageError, error_for
from supervisor.pipeline.run import RunState
from supervisor.pipeline.submit import DeliveredRequest


async def bring_home(client: Client, run: RunState, repository: Path) -> None:
    """Make the run's branch in `repository` and tell the supervisor how that went; a branch that is there already is left as it is.

    Raises:
        AndonError: Why the supervisor did not take the news; a delivery that failed is told to it, not raised.
    """
    problem: AndonError | None = None
    try:
        await delivered_from_store(client, run, repository)
    except AndonError as error:
        problem = error
    await told(client, report_of(run, problem))


def repository_for(files: RunFiles, run: RunState, named: Path | None) -> Path:
    """Return the repository on this host that a run belongs to: the one that was named, else the one it was submitted for.

    Raises:
        UsageError: The run was submitted on another host, whose paths mean nothing here.
    """
    if named is not None:
        return named.absolute()
    if remembered(files.directory) is None and run.intent.delivery == "client":
        raise UsageError(f"run {run.run_id} was submitted on another host; name its repository here: andon apply {run.run_id} --repo PATH")
    return Path(run.intent.repository)


async def delivered_from_store(client: Client, run: RunState, repository: Path) -> None:
    """Deliver what the fleet's object store holds of a landed run.

    Raises:
        AndonError: Why it could not be delivered.
    """
    if run.landed_bundle is None:
        raise InfrastructureError(f"the fleet keeps no git bundle of run {run.run_id}: only its supervisor's mirror holds the commit")
    await _deliver(run, repository, await client.get_blob(run.landed_bundle))


async def delivered_from_mirror(mirror: Path, run: RunState, repository: Path) -> None:
    """Deliver what the supervisor's mirror on this host holds of a landed run.

    Raises:
        AndonError: Why it could not be delivered.
    """
    opened = await Mirror.open(mirror)
    await _deliver(run, repository, await opened.bundle_of(_commit(run), run.intent.base_commit))


def report_of(run: RunState, problem: AndonError | None) -> DeliveredRequest:
    """Return how a delivery went, for the supervisor."""
    if problem is None:
        return DeliveredRequest(run_id=run.run_id, commit=_commit(run), ok=True)
    return DeliveredRequest(run_id=run.run_id, commit=_commit(run), ok=False, exit_code=problem.exit_code, reason=str(problem)[:4_000])


async def told(client: Client, report: DeliveredRequest) -> None:
    """Tell the supervisor.

    Raises:
        AndonError: It did not take it; the message says what to do.
    """
    answer = await client.delivered(report)
    if not answer.ok:
        raise error_for(answer.exit_code, f"the supervisor did not note the delivery: {answer.error}; again: andon apply {report.run_id}")


async def _deliver(run: RunState, repository: Path, bundle: bytes) -> None:
    await delivery.deliver(repository, run.branch, _commit(run), run.intent.base_commit, bundle)


def _commit(run: RunState) -> str:
    if run.landed_commit is None:
        raise UsageError(f"run {run.run_id} has not landed, it is {run.state}")
    return run.landed_commit
