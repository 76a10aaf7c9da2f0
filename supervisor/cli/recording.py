"""`--record FILE`: put the recordings that came back with a run's results into one cassette."""

from pathlib import Path

from sandbox.contract.cassette import Cassette, CassetteHeader, CassetteRecord, load_recording
from supervisor.cli.client import Client
from supervisor.config import write_atomically
from supervisor.pipeline.run import RunState


async def keep(client: Client, run: RunState, path: Path) -> None:
    """Write the cassette of a run: for each job what its last recorded attempt was answered.

    Raises:
        UsageError: A recording cannot be read.
    """
    records: list[CassetteRecord] = []
    for job in run.jobs.values():
        recordings = [attempt.ended.recording for attempt in job.attempts if attempt.ended and attempt.ended.recording]
        if recordings:
            records += load_recording(await client.get_blob(recordings[-1]), f"recording of {job.job_id}")
    header = CassetteHeader(made_by="live", note=f"Recorded from run {run.run_id}, feature {run.intent.feature}.")
    write_atomically(path, Cassette(header=header, records=tuple(records)).dump())
