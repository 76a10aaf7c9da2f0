"""`--record FILE`: put the recordings that came back with a run's results into one cassette, and tell which request it answers."""

import hashlib
import unicodedata
from pathlib import Path

from sandbox.contract.cassette import Cassette, CassetteHeader, CassetteRecord, load_recording
from supervisor.cli.client import Client
from supervisor.config import write_atomically
from supervisor.errors import UsageError
from supervisor.pipeline.run import RunState


def normalised(request: str) -> str:
    """Return what two requests must share to be the same: words, whatever their spacing, case and final stop (DECISIONS G11)."""
    return " ".join(unicodedata.normalize("NFC", request).casefold().split()).rstrip(".!")


def digest_of(request: str) -> str:
    """Return the digest of a normalised request, as a cassette's header holds it."""
    return hashlib.sha256(normalised(request).encode("utf-8", "surrogatepass")).hexdigest()


def check_answers(cassette: Cassette, request: str, source: str) -> None:
    """See that a cassette answers this request; pipeline, agents and tree are compared call by call at the gateway.

    Raises:
        UsageError: It was recorded for another one.
    """
    if cassette.header.matches.get("request", digest_of(request)) != digest_of(request):
        raise UsageError(f"{source} answers another request than this one; record one for it with --record FILE")


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
    header = CassetteHeader(
        made_by="live",
        note=f"Recorded from run {run.run_id}, feature {run.intent.feature}.",
        matches={"request": digest_of(run.intent.request)},
    )
    write_atomically(path, Cassette(header=header, records=tuple(records)).dump())
