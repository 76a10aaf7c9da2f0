"""Executors of a benchmark, many in one process: they pull, claim, take `work_s` for each job, store its result, ack; no sandbox.

Usage: `python -m benchmarks.fleet_clients WORK_S FILE…`, each FILE a credentials file; ends with its standard input.
"""

import asyncio
import sys
import time
from contextlib import suppress
from pathlib import Path

from sandbox.bus import NatsExecutorLink
from sandbox.contract.credentials import ExecutorCredentials, read_credentials
from sandbox.contract.errors import BrokerError
from sandbox.contract.release import RELEASE
from sandbox.contract.result import AttemptResult, Outcome
from sandbox.contract.wire import ClaimReply, ClaimRequest, Delivery, Heartbeat, JoinRequest

FETCH_S = 15.0
BEAT_S = 5.0


async def _executor(path: Path, work_s: float) -> None:
    credentials = read_credentials(path, ExecutorCredentials)
    name = credentials.executor
    async with NatsExecutorLink.connect(credentials) as link:
        await link.join(JoinRequest(executor=name, release=RELEASE, pools=credentials.pools, slots=1))
        beating = asyncio.create_task(_beat(link, name, credentials.pools))
        try:
            while True:
                delivery = await link.next_job(FETCH_S)
                if delivery is not None:
                    await _work(link, name, delivery, work_s)
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)


async def _work(link: NatsExecutorLink, name: str, delivery: Delivery, work_s: float) -> None:
    grant = await link.claim(ClaimRequest(executor=name, job_id=delivery.job.job_id, ack_subject=delivery.ack_subject))
    if grant.decision == "granted":
        if work_s:
            await asyncio.sleep(work_s)
        await link.publish_result(_result(name, delivery, grant))
    await link.ack(delivery.ack_subject)


def _result(name: str, delivery: Delivery, grant: ClaimReply) -> AttemptResult:
    job, now = delivery.job, time.time()
    return AttemptResult(
        job_id=job.job_id,
        run_id=job.run_id,
        stage=job.stage,
        round=job.round,
        attempt=grant.attempt,
        token=grant.token,
        executor=name,
        outcome=Outcome.SUBMITTED,
        started_at=now,
        ended_at=now,
    )


async def _beat(link: NatsExecutorLink, name: str, pools: tuple[str, ...]) -> None:
    while True:
        with suppress(BrokerError):  # the next one tries again
            await link.heartbeat(Heartbeat(executor=name, release=RELEASE, pools=pools, slots=1, busy=0, model="none"))
        await asyncio.sleep(BEAT_S)


async def _main(arguments: list[str]) -> None:
    working = [asyncio.create_task(_executor(Path(path), float(arguments[0]))) for path in arguments[1:]]
    ending = asyncio.create_task(asyncio.to_thread(sys.stdin.buffer.read))
    done, _ = await asyncio.wait([*working, ending], return_when=asyncio.FIRST_COMPLETED)
    for task in working:
        task.cancel()
    await asyncio.gather(*working, return_exceptions=True)
    for task in done - {ending}:
        task.result()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
