"""Whether the hosts that are there can run a pipeline at all; pure. Not which of them does, nor when (`dispatch`)."""

from collections.abc import Sequence

from sandbox.contract.labels import RUNTIME_DEFAULT, needed, of_runtime, unmatched
from sandbox.contract.wire import Heartbeat
from supervisor.pipeline.definition import Pipeline, Stage

NAMED_MAX = 5
"""Hosts, and protections of one, that a message names."""


def asks_of_hosts(pipeline: Pipeline) -> set[str]:
    """Return the pools whose hosts must have something that not every host has."""
    return {stage.pool for stage in _with_jobs(pipeline) if needed(stage.runtime, strict=stage.strict)}


def unserved(pipeline: Pipeline, executors: Sequence[Heartbeat]) -> str:
    """Return in one line why a stage could run on none of the executors of its pool; empty: each could, or nobody is there to tell."""
    for stage in _with_jobs(pipeline):
        members = [beat for beat in executors if stage.pool in beat.pools]
        wanted = needed(stage.runtime, strict=stage.strict)
        if members and wanted and all(unmatched(wanted, beat.labels) for beat in members):
            return _why(stage, members)
    return ""


def _with_jobs(pipeline: Pipeline) -> list[Stage]:
    return [stage for stage in pipeline.stages if stage.role != "land"]


def _why(stage: Stage, members: Sequence[Heartbeat]) -> str:
    having = [beat for beat in members if not unmatched(needed(stage.runtime, strict=False), beat.labels)]
    if not having:
        there = "; ".join(f"{beat.executor} has {', '.join(_runtimes(beat))}" for beat in members[:NAMED_MAX])
        return (
            f"stage {stage.name}: no executor of pool {stage.pool} has runtime {stage.runtime!r} ({there}): "
            "register it with an engine (docs/engines.md), or name another"
        )
    lacks = "; ".join(f"{beat.executor}: {_missing(beat, stage.runtime)}" for beat in having[:NAMED_MAX])
    return (
        f"stage {stage.name} is strict, and no executor of pool {stage.pool} gives every protection under {stage.runtime} ({lacks}): "
        "see SECURITY.md, or leave `strict` out"
    )


def _runtimes(beat: Heartbeat) -> list[str]:
    prefix = of_runtime("")
    return [RUNTIME_DEFAULT, *sorted(name.removeprefix(prefix) for name in beat.labels if name.startswith(prefix))]


def _missing(beat: Heartbeat, runtime: str) -> str:
    """Return what an executor says of its default runtime's sandboxes; of another runtime it says only that something is missing."""
    if runtime != RUNTIME_DEFAULT or not beat.missing:
        return f"{runtime} cannot give one"
    more = len(beat.missing) - NAMED_MAX
    return " · ".join(beat.missing[:NAMED_MAX]) + (f" · {more} more" if more > 0 else "")
