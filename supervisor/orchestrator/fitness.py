"""Whether the executors that are connected could do what a new run will ask of them; pure. Not when they are free (`dispatch`)."""

from collections.abc import Sequence

from sandbox.contract.wire import Heartbeat
from supervisor.pipeline.definition import Pipeline


def unfit(pipeline: Pipeline, mode: str, executors: Sequence[Heartbeat]) -> str:
    """Return in one line why no stage of some kind can ever run on what is connected; empty if all can, or nobody is there to ask.

    An executor that is yet to join may change the answer, so a pool without executors is no reason: its jobs wait, and say so.
    """
    if mode != "live":
        return ""
    for pool in sorted({stage.pool for stage in pipeline.stages if stage.agent is not None}):
        members = [beat for beat in executors if pool in beat.pools]
        if members and all(beat.model == "none" for beat in members):
            who = ", ".join(sorted(beat.executor for beat in members)[:5])
            return f"no executor of pool {pool} has a key for the model ({who}): start it with ANTHROPIC_API_KEY set"
    return ""
