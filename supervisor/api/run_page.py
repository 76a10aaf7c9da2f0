"""A run's page: what Jaeger's link of `andon.run.id` opens; text, from the run's files. Who serves it is `http`.

Whoever reaches the port reads it, so it says nothing that a repository, a model or a person wrote but the names of the feature and
its stages: no request, no finding, no path.
"""

import asyncio
from collections.abc import Awaitable, Callable

from supervisor.api.report import cost_table, duration, headline, money
from supervisor.api.run_files import files_of
from supervisor.api.views import is_over, iso, last_at
from supervisor.config import StateDirectory, is_run_id
from supervisor.errors import AndonError
from supervisor.pipeline.run import RunState


def run_pages(state: StateDirectory) -> Callable[[str], Awaitable[bytes | None]]:
    """Return what gives the page of a run by its id; None if it is no run here, or its files cannot be read."""

    def page(run_id: str) -> bytes | None:
        if not is_run_id(run_id):
            return None
        try:
            return run_page(files_of(state, run_id).run()).encode()
        except (AndonError, OSError):
            return None

    return lambda run_id: asyncio.to_thread(page, run_id)


def run_page(run: RunState) -> str:
    """Return the page of a run as it is now."""
    ended = "" if run.exit_code is None else f", exit code {run.exit_code}"
    took = duration(last_at(run) - run.accepted_at) if is_over(run) else "goes on"
    facts = [
        ("run", run.run_id),
        ("state", f"{run.state}{ended}"),
        ("accepted", iso(run.accepted_at)),
        ("time", took),
        ("spent", f"{money(run.budget.settled_nano_usd)} of {money(run.budget.limit_nano_usd)}"),
        ("trace", run.trace_url or run.trace_id),
    ]
    ask = [f"  andon {verb} {run.run_id}" for verb in ("status", "why", "logs", "diff", "trace")]
    lines = [headline(run), "", *(f"  {label:<9} {value}" for label, value in facts), "", *cost_table(run), "", "On its host:", "", *ask]
    return "\n".join(line.rstrip() for line in lines) + "\n"
