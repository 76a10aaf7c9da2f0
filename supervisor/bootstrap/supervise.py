"""What a supervisor process is made of: bus, log, mirror, gates, files, trace, around one orchestrator; and its standing by."""

import asyncio
import logging
import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from sandbox.bus import NatsSupervisorLink
from sandbox.contract.credentials import SupervisorCredentials, read_credentials
from sandbox.contract.errors import AndonError, UsageError
from sandbox.contract.ids import trace_id
from sandbox.contract.price import shipped_prices
from sandbox.contract.release import RELEASE
from sandbox.contract.wire import SupervisorLink
from sandbox.mirror import Mirror
from sandbox.telemetry import Spans
from supervisor import delivery, stack
from supervisor.api.run_files import RunFiles, files_of
from supervisor.api.trace import RunTrace
from supervisor.api.trace_sink import TraceSink, exporter, trace_ids_of
from supervisor.briefing import Bundler
from supervisor.config import Config, StateDirectory
from supervisor.dispatch import Dispatcher, JobQueue
from supervisor.gates.spec import parse_spec
from supervisor.intake import Intake
from supervisor.integrate import Integrator
from supervisor.orchestrator import Orchestrator, Ports
from supervisor.pipeline.events import AnyEvent, AttemptEnded
from supervisor.pipeline.run import FINAL, RunState
from supervisor.store.event_log import EventLog
from supervisor.store.jetstream import JetStreamEventLog
from supervisor.store.lease import Leadership

log = logging.getLogger(__name__)

LOGS_QUEUE_MAX = 1_000
PRESENCE_EVERY_S = 0.2


async def supervise(config: Config, environment: Mapping[str, str], *, embedded: bool) -> None:
    """Lead when nobody else does, and serve until cancelled.

    Raises:
        UsageError: No broker or credentials are configured.
        BrokerError: The broker does not answer at the start, or is gone for good.
    """
    if config.nats_url is None or config.nats_creds is None:
        raise UsageError("a supervisor needs NATS_URL and NATS_CREDS")
    credentials = read_credentials(config.nats_creds, SupervisorCredentials).model_copy(update={"url": config.nats_url})
    state = StateDirectory.open(config.state_directory)
    mirror = await Mirror.open(state.mirror)
    owner = f"{socket.gethostname()}-{os.getpid()}"
    async with (
        NatsSupervisorLink.connect(credentials) as link,
        Leadership.hold(link.connection, owner) as lead,
        exporter(environment) as export,
    ):
        sink = TraceSink(lambda run_id: state.run(run_id) / "trace.otlp.jsonl", export)
        witness = Witness(state, link, RunTrace(Spans("andon-sup", RELEASE, {"host.name": socket.gethostname()}), sink.store))
        events = JetStreamEventLog(link.connection)
        await _mend_files(state, events)
        orchestrator = Orchestrator(_ports(config, events, link, mirror, witness, embedded=embedded))
        async with asyncio.TaskGroup() as tasks:
            serving = [
                tasks.create_task(orchestrator.run()),
                tasks.create_task(_keep_spans(state, link, sink)),
                tasks.create_task(witness.write_logs()),
                tasks.create_task(_be_present(state, orchestrator) if embedded else asyncio.sleep(0)),
            ]
            reason = await lead.wait_lost()
            log.warning("leadership is lost: %s", reason)
            for task in serving:
                task.cancel()


def _ports(config: Config, events: EventLog, link: NatsSupervisorLink, mirror: Mirror, witness: "Witness", *, embedded: bool) -> Ports:
    async def deliver(run: RunState) -> None:
        if run.landed_commit is None:
            return
        bundle = await mirror.bundle_of(run.landed_commit, run.intent.base_commit)
        await delivery.deliver(Path(run.intent.repository), run.branch, run.landed_commit, run.intent.base_commit, bundle)

    return Ports(
        log=events,
        link=link,
        intake=Intake(mirror, link, shipped_prices(), models=config.models, check_spec=parse_spec),
        dispatcher=Dispatcher(mirror, link, Bundler(mirror, link), models=config.models),
        queue=JobQueue(link),
        integrator=Integrator(mirror, link),
        deliver=deliver if embedded else None,
        observe=witness.observe,
    )


async def _mend_files(state: StateDirectory, events: EventLog) -> None:
    """Bring the files of runs that are not over up to the log: a supervisor may have died between the two."""
    for run_id in await events.runs():
        files = files_of(state, run_id)
        known = files.result()
        if known is None or known.state not in FINAL:
            files.rewrite(await events.read(run_id))


class Witness:
    """Writes what a run's events say to its files and its trace; told of every event after it is stored."""

    def __init__(self, state: StateDirectory, link: SupervisorLink, trace: RunTrace) -> None:
        self._state = state
        self._link = link
        self._trace = trace
        self._files: dict[str, RunFiles] = {}
        self._logs: asyncio.Queue[AttemptEnded] = asyncio.Queue(LOGS_QUEUE_MAX)

    def observe(self, run: RunState, event: AnyEvent) -> None:
        """Take one event; a disk that is full must not stop a run, which the log already holds."""
        try:
            files = self._files.setdefault(run.run_id, files_of(self._state, run.run_id))
            files.append([event])
            self._trace.follow(run, event)
            if run.exit_code is not None:
                files.write_result(run)
        except OSError as error:
            log.warning("files of run %s cannot be written: %s", run.run_id, error)
        if isinstance(event, AttemptEnded) and event.log is not None and not self._logs.full():
            self._logs.put_nowait(event)
        if run.state in FINAL and (run.state != "landed" or run.delivered):
            self._files.pop(run.run_id, None)

    async def write_logs(self) -> None:
        """Fetch containers' logs from the object store and write them, until cancelled."""
        while True:
            event = await self._logs.get()
            if event.log is None:
                continue
            stage, round_ = event.job_id.removeprefix(f"{event.run_id}-").rsplit("-", 1)
            try:
                data = await self._link.get_blob(event.log)
                await asyncio.to_thread(files_of(self._state, event.run_id).write_log, stage, int(round_), event.attempt, data)
            except (AndonError, OSError) as error:
                log.warning("the log of %s is not written: %s", event.job_id, error)


async def _keep_spans(state: StateDirectory, link: NatsSupervisorLink, sink: TraceSink) -> None:
    """Append executors' spans to the files of the runs they belong to; a trace id is derived from its run's id (DECISIONS D8)."""
    known: dict[str, str] = {}
    async for payload in link.telemetry():
        wanted = trace_ids_of(payload)
        if not wanted <= known.keys():
            known = {trace_id(run_id): run_id for run_id in state.run_ids()}
        for run_id in {known[each] for each in wanted & known.keys()}:
            sink.store(run_id, payload, from_executor=True)


async def _be_present(state: StateDirectory, orchestrator: Orchestrator) -> None:
    """Keep the embedded stack alive while runs go on by themselves, also when every CLI was killed."""
    with ExitStack() as held:
        present = False
        while True:
            if bool(orchestrator.busy_runs) is not present:
                present = not present
                if present:
                    held.enter_context(stack.presence(state))
                else:
                    held.pop_all().close()
            await asyncio.sleep(PRESENCE_EVERY_S)
