"""A small fleet for tests of one executor: a real broker, a desk that grants what a test says, a scripted model, real jobs."""

import asyncio
import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker

from sandbox.bus import NatsExecutorLink, NatsSupervisorLink
from sandbox.contract.agent_spec import AgentSpec
from sandbox.contract.blob import BlobRef, input_bucket
from sandbox.contract.credentials import ExecutorCredentials, write_credentials
from sandbox.contract.job import JobSpec
from sandbox.contract.result import AttemptResult
from sandbox.contract.scope import WriteScope
from sandbox.contract.wire import BudgetReply, BudgetRequest, ClaimReply, ClaimRequest, JoinReply, JoinRequest
from sandbox.executor.config import ExecutorConfig, Host, Pace
from sandbox.executor.daemon import Daemon
from sandbox.executor.slots import SlotPool
from sandbox.gateway.registries.source import PackageSource
from sandbox.gateway.upstream import Upstream
from sandbox.mirror import Mirror
from sandbox.runtime.docker import DockerRuntime
from sandbox.telemetry import Spans
from supervisor.delivery import snapshot
from supervisor.store.broker.embedded import EmbeddedBroker
from tests.fakes.repositories import sample_repository
from tests.fakes.script import Script
from tests.fakes.scripted_model import ScriptedModel
from tests.fakes.wire_data import RUN, take

AGENT = AgentSpec(name="implement", model="claude-sonnet-5-5", system="the rules", prompt="the task", output_tokens_max=2_000)
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
INSTANCE = "ex1-integration"


@dataclass
class Desk:
    """Grants every claim, and one with the token it gave again unless told otherwise."""

    link: NatsSupervisorLink | None = None
    claims: list[ClaimRequest] = field(default_factory=list)
    token: str = ""
    attempts: int = 0
    knows_tokens: bool = True
    refusal: str = ""
    """Why nobody may join."""
    wall_left_s: float = 300

    async def join(self, request: JoinRequest) -> JoinReply:
        """Let everybody in, or nobody."""
        assert self.link is not None
        if self.refusal:
            return JoinReply(accepted=False, reason=self.refusal, release="9.9")
        await self.link.admit(request.executor, request.pools)
        return JoinReply(accepted=True, release="test")

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Answer a claim."""
        self.claims.append(request)
        if request.goes_on or request.token == self.token:
            known = self.knows_tokens and request.token == self.token
            return self._granted() if known else ClaimReply(decision="busy", reason="another has it")
        self.attempts += 1
        self.token = request.token
        return self._granted()

    async def budget(self, request: BudgetRequest) -> BudgetReply:
        """Pay for everything."""
        return BudgetReply(granted=True, remaining_nano_usd=10**12)

    def _granted(self) -> ClaimReply:
        return ClaimReply(decision="granted", attempt=self.attempts, token=self.token, traceparent=PARENT, wall_left_s=self.wall_left_s)


@dataclass
class Fleet:
    """What a test has."""

    broker: EmbeddedBroker
    link: NatsSupervisorLink
    desk: Desk
    model: ScriptedModel
    credentials: ExecutorCredentials
    directory: Path
    commit: str
    pack: BlobRef

    def job(self, **changes: Any) -> JobSpec:
        """Return an agent's job."""
        fields: dict[str, Any] = {
            "job_id": f"{RUN}-implement-1",
            "run_id": RUN,
            "feature": "feature",
            "stage": "implement",
            "role": "implement",
            "round": 1,
            "kind": "agent",
            "agent": AGENT,
            "scope": WriteScope(patterns=("**",)),
            "base_commit": self.commit,
            "input_pack": self.pack,
        }
        return JobSpec(**(fields | changes))

    async def result(self, within_s: float = 60) -> AttemptResult:
        """Return the next result, confirmed."""
        stored = (await take(self.link.results(), 1, within_s=within_s))[0]
        await stored.confirm()
        return stored.result

    @property
    def state(self) -> Path:
        """Return the executor's state directory."""
        return self.directory / "ex"

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of an executor process."""
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "NATS_SERVER_BIN") if name in os.environ}
        return keep | {"ANTHROPIC_API_KEY": self.model.api_key, "ANTHROPIC_BASE_URL": self.model.url, "ANDON_DISK_FLOOR_MIB": "0"}


@asynccontextmanager
async def a_fleet(directory: Path, script: Script) -> AsyncIterator[Fleet]:
    """Run broker, desk and model."""
    repository = sample_repository(directory / "repo")
    taken = await snapshot(repository, None)
    desk = Desk()
    async with (
        EmbeddedBroker.run(directory / "nats") as broker,
        ScriptedModel(script) as model,
        NatsSupervisorLink.connect(broker.supervisor) as link,
    ):
        desk.link = link
        await link.serve(desk, {})
        pack = await link.put_blob("base", taken.pack, bucket=input_bucket("default"))
        credentials = await broker.add_executor("ex1")
        yield Fleet(broker, link, desk, model, credentials, directory, taken.commit, pack)


@asynccontextmanager
async def an_executor(
    fleet: Fleet, runtime: DockerRuntime, image: str, pace: Pace, packages: PackageSource | None = None
) -> AsyncIterator[Daemon]:
    """Run a daemon in this process, with one slot; it is drained at the end."""
    state = fleet.state
    sockets = Path("/tmp") / f"andon-i-{os.getpid()}-{secrets.token_hex(3)}"
    sockets.mkdir(mode=0o711)
    state.mkdir(exist_ok=True, mode=0o700)

    async def image_of(_job: JobSpec) -> str:
        return image

    as_root = os.geteuid() == 0
    config = ExecutorConfig(
        name="ex1",
        state=state,
        sockets=sockets,
        uid_locks=Path("/run/lock/andon") if as_root else None,
        slots=1,
        disk_floor_mib=0,
        pace=pace,
    )
    slots = SlotPool.lease(1, state=state, sockets=sockets, locks=config.uid_locks)
    try:
        async with NatsExecutorLink.connect(fleet.credentials) as link:
            daemon = Daemon(
                Host(
                    config=config,
                    link=link,
                    mirror=await Mirror.open(state / "mirror.git"),
                    runtime=runtime,
                    upstream=Upstream.from_environment(fleet.environment),
                    slots=slots,
                    image_of=image_of,
                    exec_spans=Spans("andon-exec", "test"),
                    gateway_spans=Spans("andon-gw", "test"),
                    agent_spans=Spans("andon-agent", "test"),
                    user_spans=Spans("andon-user", "test"),
                    instance=f"{INSTANCE}-{os.getpid()}",
                    missing=(),
                    tool_environment={},
                    packages=packages,
                )
            )
            running = asyncio.create_task(daemon.run())
            try:
                yield daemon
            finally:
                daemon.cancel_all("the test is over")
                await asyncio.wait_for(running, 30)
    finally:
        slots.close()
        with contextlib.suppress(OSError):
            sockets.rmdir()


@asynccontextmanager
async def an_executor_process(fleet: Fleet, *arguments: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run `andon executor` as a process; killed at the end if it still lives."""
    path = fleet.directory / "ex1.andon.json"
    write_credentials(path, fleet.credentials)
    argv = [sys.executable, "-m", "sandbox.executor", "--creds", str(path), "--state", str(fleet.state), "--slots", "1", *arguments]
    with (fleet.directory / "ex.out").open("ab") as out, (fleet.directory / "ex.err").open("ab") as err:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=fleet.environment, start_new_session=True)
        try:
            yield process
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)


async def until(predicate: Callable[[], bool], what: str, within_s: float = 60) -> None:
    """Wait until something holds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while not predicate():
        assert loop.time() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.05)


def workspace_of(fleet: Fleet) -> Path | None:
    """Return the workspace of the slot that is at work."""
    return next((path for path in (fleet.state / "slots").glob("*/workspace") if any(path.iterdir())), None)


def has_made(fleet: Fleet, name: str) -> bool:
    """Return whether the agent has written a file."""
    workspace = workspace_of(fleet)
    return workspace is not None and (workspace / name).exists()


def go_on(fleet: Fleet) -> None:
    """Let a program go on that waits for the file `go`."""
    workspace = workspace_of(fleet)
    assert workspace is not None
    (workspace / "go").touch()


def states_of(fleet: Fleet, url: str) -> list[str]:
    """Return what the engine says of the containers that work in this fleet's slots: running, paused, exited."""
    with contextlib.closing(docker.APIClient(url)) as client:
        found = client.containers(all=True, filters={"label": "andon.instance"})
        return [
            each["State"] for each in found if any(str(mount.get("Source", "")).startswith(str(fleet.state)) for mount in each["Mounts"])
        ]
