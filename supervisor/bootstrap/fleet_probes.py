"""What `andon doctor` looks at when the fleet is elsewhere: file, broker, certificate, key, supervisor, executors; starts nothing."""

from urllib.parse import urlsplit

from sandbox.contract.errors import BrokerError, BrokerRefused, UsageError
from sandbox.contract.wire import PROTOCOL_VERSION, Heartbeat
from supervisor.api.views import Probe
from supervisor.bootstrap.client import BusClient, fleet_credentials, look
from supervisor.config import Config
from supervisor.pipeline.submit import WhyRequest

NO_RUN = "0000000000"
"""An id no run has: asking for it is answered by any supervisor, and changes nothing."""


async def fleet_probes(config: Config) -> list[Probe]:
    """Return one probe for each part, up to the first that keeps the rest from being looked at."""
    try:
        credentials = fleet_credentials(config)
    except UsageError as error:
        return [Probe(name="fleet file", status="fail", detail=str(error), advice="on the broker's host: andon fleet add NAME --client")]
    who = f"client {credentials.client}" if credentials.client else "the supervisors' own key"
    probes = [Probe(name="fleet file", status="ok", detail=f"{who}, for {credentials.url}")]
    try:
        async with look(config) as client:
            if client is None:
                raise AssertionError("a fleet elsewhere is always looked at")
            probes.append(
                Probe(name="broker", status="ok", detail=f"reached at {credentials.url}{_secured(credentials.url)}, the key is accepted")
            )
            probes.append(await _supervisor(client))
            probes += _executors(await client.executors())
    except BrokerError as error:
        probes.append(Probe(name="broker", status="fail", detail=str(error), advice=_advice(error, credentials.url)))
    return probes


def _secured(url: str) -> str:
    return " with TLS" if url.startswith(("tls://", "wss://")) else ", without TLS"


def _advice(error: BrokerError, url: str) -> str:
    if "certificate" in str(error).lower():
        return "the file's authority is not this broker's, or the name is not in its certificate: have the file written anew"
    if isinstance(error, BrokerRefused):
        return "the key was revoked or never admitted; on the broker's host: andon fleet add NAME --client --force"
    where = urlsplit(url)
    return f"is the stack up (andon up --listen …), and may this host connect to {where.hostname}, port {where.port}?"


async def _supervisor(client: BusClient) -> Probe:
    try:
        await client.why(WhyRequest(run_id=NO_RUN))
    except BrokerError as error:
        advice = "start it on its host; runs that are submitted wait for nobody"
        return Probe(name="supervisor", status="fail", detail=f"does not answer: {error}", advice=advice)
    return Probe(name="supervisor", status="ok", detail="answers")


def _executors(beats: list[Heartbeat]) -> list[Probe]:
    if not beats:
        advice = "on another host: andon executor --creds NAME.andon.json"
        return [Probe(name="executors", status="fail", detail="none is connected: jobs would wait", advice=advice)]
    same = [beat for beat in beats if beat.version == PROTOCOL_VERSION]
    live = sum(beat.model == "live" for beat in same)
    free = sum(max(0, beat.slots - beat.busy) for beat in same if not beat.held)
    status = "ok" if live else "warn"
    advice = "" if live else "set ANTHROPIC_API_KEY where an executor runs"
    probes = [Probe(name="executors", status=status, detail=f"{len(beats)}, {live} with a key, {free} free slots", advice=advice)]
    others = ", ".join(f"{beat.executor} ({beat.version})" for beat in beats if beat.version != PROTOCOL_VERSION)
    if others:
        detail = f"this andon speaks {PROTOCOL_VERSION}, not so: {others}"
        probes.append(Probe(name="protocol", status="warn", detail=detail, advice="run one release everywhere"))
    return probes
