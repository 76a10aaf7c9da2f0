"""What a supervisor process is made of: bus, log, mirror, gates, files, trace, around one orchestrator; and its standing by."""

import asyncio
import os
import shutil
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

from sandbox.bus import NatsSupervisorLink
from sandbox.contract.credentials import SupervisorCredentials, read_credentials
from sandbox.contract.errors import BrokerError, BrokerRefused, UsageError
from sandbox.contract.price import shipped_prices
from sandbox.contract.release import RELEASE
from sandbox.log import Log
from sandbox.mirror import Mirror
from sandbox.telemetry import Spans
from supervisor import delivery, stack
from supervisor.api.metrics import Metrics
from supervisor.api.run_page import run_pages
from supervisor.api.said import say
from supervisor.api.traces.export import Exporter, exporting
from supervisor.api.traces.page import traces_at
from supervisor.api.traces.run_trace import RunTrace
from supervisor.bootstrap.history import keep_history
from supervisor.bootstrap.span_keeper import SpanKeeper, trace_file
from supervisor.bootstrap.witness import Witness
from supervisor.briefing import Bundler
from supervisor.config import Config, StateDirectory, is_sampled
from supervisor.dispatch import Dispatcher, JobQueue
from supervisor.gates.spec import parse_spec
from supervisor.intake import Intake
from supervisor.integrate import Integrator, Restorer
from supervisor.orchestrator import Orchestrator, Ports
from supervisor.pipeline.events import AnyEvent
from supervisor.pipeline.run import RunState
from supervisor.store.broker.listen import Listen
from supervisor.store.log.event_log import EventLog, StaleWriter
from supervisor.store.log.fenced import FencedLog
from supervisor.store.log.jetstream import JetStreamEventLog
from supervisor.store.log.lease import Leadership

log = Log(__name__)

PRESENCE_EVERY_S = 0.2
STAND_BY_S = 0.5
"""Before a supervisor that lost its lease, or its broker, stands by again."""


async def supervise(config: Config, *, embedded: bool) -> None:
    """Stand by, lead when nobody else does, and stand by again when the lease is lost; until cancelled.

    Raises:
        UsageError: No broker or credentials are configured.
        BrokerError: The broker does not answer at the start, refuses our key, or is gone for good.
    """
    if config.nats_url is None or config.nats_creds is None:
        raise UsageError("a supervisor needs NATS_URL and NATS_CREDS")
    credentials = read_credentials(config.nats_creds, SupervisorCredentials).model_copy(update={"url": config.nats_url})
    state = StateDirectory.open(config.state_directory)
    place = Place(config, state, await Mirror.open(state.mirror), embedded=embedded)
    has_led = False
    while True:
        try:
            # A connection for each term: whatever this process still serves, or is about to send, as a leader ends with it.
            async with NatsSupervisorLink.connect(credentials) as link, Leadership.hold(link.connection, place.owner) as lead:
                has_led = True
                await _lead(place, link, lead)
        except BrokerError as error:
            if not has_led or isinstance(error, BrokerRefused):
                raise
            log.warning("broker.away", "the broker does not answer; trying on", error=error)
        await asyncio.sleep(STAND_BY_S)


class Place:
    """What stays the same from term to term."""

    def __init__(self, config: Config, state: StateDirectory, mirror: Mirror, *, embedded: bool) -> None:
        self.config = config
        self.state = state
        self.mirror = mirror
        self.embedded = embedded
        self.owner = f"{socket.gethostname()}-{os.getpid()}"

    def hold(self) -> str:
        """Return why no new run is taken: the disk is below its floor; empty if it is not."""
        floor_mib = self.config.disk_floor_mib
        try:
            left_mib = shutil.disk_usage(self.state.root).free >> 20
        except OSError as error:
            return f"the supervisor's disk cannot be looked at: {error.strerror}"
        if left_mib >= floor_mib:
            return ""
        return f"the supervisor's disk has {left_mib} MiB left, below its floor of {floor_mib} MiB (ANDON_DISK_FLOOR_MIB); free some"


async def _lead(place: Place, link: NatsSupervisorLink, lead: Leadership) -> None:
    """Serve as the leader until the lease is lost or another supervisor wrote; everything begun here has ended when it returns.

    Raises:
        BrokerError: The connection is gone for good.
    """
    state = place.state
    async with exporting(place.config.telemetry, link.connection, lambda run_id: trace_file(state, run_id), state.run_ids) as export:
        await _serve(place, link, lead, export)


async def _serve(place: Place, link: NatsSupervisorLink, lead: Leadership, export: Exporter | None) -> None:
    state, metrics = place.state, Metrics()
    spans = SpanKeeper(state, link, metrics, export)
    events = FencedLog(JetStreamEventLog(link.connection), lambda: lead.is_held)
    trace = RunTrace(Spans("andon-sup", RELEASE, {"host.name": socket.gethostname()}), spans.sink.store, spans.sink.container_below)
    witness = Witness(state, link, trace, events)

    def observe(run: RunState, event: AnyEvent) -> None:
        witness.observe(run, event)
        metrics.follow(run, event)
        say(run, event)

    async def figures() -> bytes:
        return metrics.text(orchestrator.open_runs, await link.executors(), spans.sink.rejected, export.dropped if export else {})

    orchestrator = Orchestrator(_ports(place, events, link, observe))
    try:
        async with asyncio.TaskGroup() as tasks:
            serving = [
                tasks.create_task(orchestrator.run()),
                tasks.create_task(_once_ready(orchestrator, witness.mend)),
                tasks.create_task(witness.write_logs()),
                tasks.create_task(spans.keep()),
                tasks.create_task(_once_ready(orchestrator, lambda: keep_history(place.config, link.connection))),
                tasks.create_task(_be_present(state, orchestrator) if place.embedded else asyncio.sleep(0)),
                tasks.create_task(_serve_pages(place, figures)),
            ]
            reason = await lead.wait_lost()
            log.warning("leadership.lost", "leadership is lost, standing by", reason=reason)
            for task in serving:
                task.cancel()
    except* StaleWriter as stale:
        log.warning("leadership.overtaken", "another supervisor writes the log, standing by", error=_first(stale))
    except* BrokerError as away:
        raise BrokerError(str(_first(away))) from away


async def _once_ready(orchestrator: Orchestrator, work: Callable[[], Awaitable[None]]) -> None:
    """Do what reads the whole log too, after the runs are taken up: executors and people wait for that, nobody for this."""
    await orchestrator.ready.wait()
    await work()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


async def _serve_pages(place: Place, figures: Callable[[], Awaitable[bytes]]) -> None:
    """Serve the pages, if an address is configured; without them runs go on all the same."""
    if place.config.http is None:
        return
    from supervisor.api import http  # 20 MiB, for whoever wants pages only

    listen = Listen.parse(place.config.http)
    try:
        await http.serve(listen.host, listen.port, figures, run_pages(place.state))
    except OSError as error:
        log.warning("pages.unserved", "no pages are served", error=error, address=place.config.http)


def _ports(place: Place, events: EventLog, link: NatsSupervisorLink, observe: Callable[[RunState, AnyEvent], None]) -> Ports:
    mirror, models = place.mirror, place.config.models

    async def deliver(run: RunState) -> None:
        if run.landed_commit is None:
            return
        bundle = await mirror.bundle_of(run.landed_commit, run.intent.base_commit)
        await delivery.deliver(Path(run.intent.repository), run.branch, run.landed_commit, run.intent.base_commit, bundle)

    integrator = Integrator(mirror, link)
    return Ports(
        log=events,
        link=link,
        intake=Intake(
            mirror,
            link,
            shipped_prices(),
            models=models,
            strict=place.config.strict,
            check_spec=parse_spec,
            is_sampled=lambda trace: is_sampled(trace, place.config.telemetry),
            traces_at=traces_at(place.config),
        ),
        dispatcher=Dispatcher(mirror, link, Bundler(mirror, link), models=models),
        queue=JobQueue(link),
        integrator=integrator,
        deliver=deliver if place.embedded else None,
        observe=observe,
        restore=Restorer(mirror, link, integrator, events.read).ensure,
        hold=place.hold,
    )


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
