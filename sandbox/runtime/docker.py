"""The runtime over a Docker engine: starts, freezes, kills and removes containers; not what hardens them (`hardening`).

The end of a container is seen by the end of its output stream, 6 ms after it; the engine's own wait call is up to 50 ms
late (PERFORMANCE.md). The stream may also end early, so the truth is always what the engine says of the container.
"""

import asyncio
import secrets
import socket
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, NotFound

from sandbox.contract.errors import EngineError
from sandbox.contract.job import Limits
from sandbox.runtime.container_spec import (
    LABEL_DEADLINE,
    LABEL_INSTANCE,
    LABEL_SLOT,
    LOG_BYTES_MAX,
    WORKSPACE,
    EngineFacts,
    Exit,
    FoundContainer,
    LastWords,
    OnStep,
    SlotSpec,
    unheard,
)
from sandbox.runtime.engine import CALL_S, Endpoint, Engine, find_endpoint
from sandbox.runtime.hardening import HOSTS, create_request, resources
from sandbox.runtime.output import AttachedOutput
from sandbox.runtime.protections import missing_under

_DEAD_S = 30.0
"""How long a killed container may take to be gone."""
_POLLS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_POLL_S_MAX = 1.0
_OOM_NOTICE_S = 0.3
"""How much later than the death the engine may note that memory was the reason."""
_SIGKILL_CODE = 137


class DockerRuntime:
    """Makes sandboxes with a Docker engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # Starting is CPU-bound: more at once than cores gains nothing (PERFORMANCE.md 3).
        self._starts = asyncio.Semaphore(engine.facts.cpus)

    @classmethod
    async def connect(
        cls, docker_host: str | None = None, docker_context: str | None = None, config: Path | None = None
    ) -> "DockerRuntime":
        """Find the engine (DECISIONS G15) and connect to it.

        Args:
            docker_host: Value of DOCKER_HOST, if set.
            docker_context: Value of DOCKER_CONTEXT, if set.
            config: Directory of the docker command's configuration, by default `~/.docker`.

        Raises:
            EngineError: There is none, or it may not be used; the message says which and what to do.
        """
        return cls(await Engine.connect(find_endpoint(docker_host, docker_context, config)))

    async def facts(self) -> EngineFacts:
        """Return what the engine is."""
        return self.engine.facts

    async def stand_by(self, slot: SlotSpec, image_id: str, on_step: OnStep = unheard) -> "DockerSandbox":
        """Start a container in a slot; when it raises or is cancelled, no container is left.

        Raises:
            EngineError: The engine refused; the message is its reason.
        """
        known = self.engine.facts.runtimes
        if slot.runtime not in known:
            raise EngineError(f"the engine has no runtime {slot.runtime!r}, only {', '.join(known)}; register it with the engine")
        box = DockerSandbox(self.engine, slot)
        try:
            async with self._starts:
                await box.start(image_id, on_step)
        except BaseException:
            # Whatever happened, also a cancellation: what was made is taken away before anybody hears of it.
            await asyncio.shield(box.remove())
            raise
        return box

    async def containers(self) -> list[FoundContainer]:
        """Return every container with our instance label, running or not, whoever's it is."""

        def found() -> list[FoundContainer]:
            return [_found(each) for each in self.engine.client.containers(all=True, filters={"label": LABEL_INSTANCE})]

        return await self.engine.call("cannot list containers", found)

    async def discard(self, container_id: str) -> None:
        """Kill and remove a container that was found; nothing if it is gone."""
        await self.engine.call(f"cannot remove container {container_id[:12]}", partial(remove, self.engine.client, container_id))

    async def has_container(self, container_id: str) -> bool:
        """Return whether the engine knows a container of this id, ours or not."""
        known = await self.engine.call(
            "cannot list containers", lambda: self.engine.client.containers(all=True, filters={"id": container_id})
        )
        return bool(known)

    def close(self) -> None:
        """Close idle connections to the engine; sandboxes live on."""
        self.engine.close()


class DockerSandbox:
    """One container, from before its start to after its removal."""

    def __init__(self, engine: Engine, slot: SlotSpec) -> None:
        self._engine = engine
        self._client = engine.client
        self._slot = slot
        # The name is known before the container is, so that a create whose answer was lost can still be undone.
        self._name = f"andon-{slot.instance}-{slot.slot}-{secrets.token_hex(4)}"
        self._output = AttachedOutput(LOG_BYTES_MAX)
        self._stream: socket.socket | None = None
        self._limits = slot.limits
        self._missing = (*missing_under(engine.facts, slot.runtime), *engine.facts.users.missing(slot.uid, slot.gid))
        self._id = ""
        self._exit: Exit | None = None
        self._we_killed = False
        self._removed = False

    @property
    def container_id(self) -> str:
        """Return the engine's full id."""
        return self._id

    @property
    def missing(self) -> tuple[str, ...]:
        """Return the protections this container does not have, one line each."""
        return self._missing

    async def start(self, image_id: str, on_step: OnStep) -> None:
        """Create, attach, start; called once, by the runtime."""
        on_step("create", "")
        what = f"cannot create a sandbox from {image_id[:19]}"
        stream = await self._engine.call(what, lambda: self._create_and_attach(image_id))
        # Reading begins before the start: not a byte of output is missed although the engine keeps none.
        await self._read_output(stream)
        on_step("start", self._id)
        await self._engine.call("cannot start the sandbox", lambda: self._client.start(self._id))

    async def assign(self, limits: Limits) -> None:
        """Change memory, cpu and pids limits of the running container to those of the job."""
        if limits == self._limits:
            return
        body = resources(self._slot.model_copy(update={"limits": limits}), self._engine.facts)
        body.pop("MemorySwappiness", None)
        await self._engine.call("cannot change the sandbox's limits", lambda: _post(self._client, f"/containers/{self._id}/update", body))
        self._limits = limits

    async def pause(self) -> None:
        """Freeze every process; a paused container stays paused when paused again."""
        await self._engine.call("cannot pause the sandbox", lambda: self._freeze(self._client.pause, paused=True))

    async def unpause(self) -> None:
        """Let a frozen container go on."""
        await self._engine.call("cannot unpause the sandbox", lambda: self._freeze(self._client.unpause, paused=False))

    async def kill(self) -> None:
        """Kill every process at once, frozen or not, and return when none is left; a dead container is left alone."""
        if self._exit is None:
            self._we_killed = True
            await self._engine.call("cannot kill the sandbox", partial(_kill, self._client, self._id))
            try:
                async with asyncio.timeout(_DEAD_S):
                    await self.wait()
            except TimeoutError as error:
                raise EngineError(
                    f"container {self._name} is still alive {_DEAD_S:.0f} s after it was killed; see the engine's log"
                ) from error

    async def wait(self) -> Exit:
        """Wait until the container is dead, without bound: the caller owns the deadline."""
        await self._output.ended.wait()
        polls = iter(_POLLS_S)
        while self._exit is None:
            state = await self._state()
            if not state.get("Running"):
                self._exit = await self._read_exit(state)
                break
            await asyncio.sleep(next(polls, _POLL_S_MAX))
        return self._exit

    async def log(self) -> bytes:
        """Return the first and last of what it printed, at most `LOG_BYTES_MAX` and a line that says what was dropped."""
        return self._output.kept.value()

    async def last_words(self) -> LastWords:
        """Return the last of what it printed on each stream, at most `LAST_WORDS_BYTES_MAX` of each."""
        return self._output.last_words

    async def remove(self) -> None:
        """Kill it if need be and remove it; idempotent, and safe in a `finally`."""
        if not self._removed:
            await self._engine.call(f"cannot remove container {self._name}", lambda: remove(self._client, self._name))
            self._removed = True
        self._output.close()
        if self._stream is not None:
            self._stream.close()

    def _create_and_attach(self, image_id: str) -> socket.socket:
        hosts = self._slot.task.parent / "hosts"
        _write_once(hosts, HOSTS)
        request = create_request(self._slot, image_id, self._engine.facts, hosts)
        created: dict[str, Any] = self._client.create_container_from_config(request, name=self._name)  # type: ignore[no-untyped-call]
        self._id = str(created["Id"])
        self._missing += tuple(str(line) for line in created.get("Warnings") or ())
        self._stream = attach(self._client, self._id)
        return self._stream

    async def _read_output(self, stream: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        connect = loop.create_unix_connection if stream.family == socket.AF_UNIX else loop.create_connection
        await connect(lambda: self._output, sock=stream)

    def _freeze(self, change: Callable[[str], None], *, paused: bool) -> None:
        try:
            change(self._id)
        except APIError:
            # Engines answer a change that changes nothing in different ways; a dead container is frozen enough.
            state = self._inspect()
            if state["Running"] and state["Paused"] != paused:
                raise

    def _inspect(self) -> dict[str, Any]:
        try:
            return dict(self._client.inspect_container(self._id)["State"])
        except NotFound:
            return {"Running": False, "Paused": False, "ExitCode": _SIGKILL_CODE, "OOMKilled": False}

    async def _state(self) -> dict[str, Any]:
        return await self._engine.call("cannot inspect the sandbox", self._inspect)

    async def _read_exit(self, state: dict[str, Any]) -> Exit:
        # Death and its reason are two events of the engine; one may come before the other.
        if state["ExitCode"] == _SIGKILL_CODE and not state["OOMKilled"] and not self._we_killed:
            await asyncio.sleep(_OOM_NOTICE_S)
            state = await self._state()
        return Exit(code=int(state["ExitCode"]), oom_killed=bool(state["OOMKilled"]))


def _found(container: Mapping[str, Any]) -> FoundContainer:
    labels = container.get("Labels") or {}
    slot, deadline = labels.get(LABEL_SLOT, ""), labels.get(LABEL_DEADLINE, "")
    workspaces = [str(mount.get("Source", "")) for mount in container.get("Mounts") or () if mount.get("Destination") == WORKSPACE]
    return FoundContainer(
        container_id=str(container["Id"]),
        instance=str(labels.get(LABEL_INSTANCE, "")),
        slot=int(slot) if slot.isascii() and slot.isdigit() else None,
        deadline=float(deadline) if deadline.isascii() and deadline.isdigit() else 0.0,
        workspace=Path(workspaces[0]) if workspaces and workspaces[0] else None,
    )


def attach(client: docker.APIClient, container: str, *, with_input: bool = False) -> socket.socket:
    """Return a socket of our own on the container's output, and its input if asked for: asyncio reads it, no thread waits."""
    # The SDK's attach keeps the whole response alive; here it is closed and the socket goes on. Before the start there is
    # no output yet, so nothing of it can lie in a buffer of the response.
    response = client.post(
        _url(client, f"/containers/{container}/attach"),
        params={"stream": "1", "stdout": "1", "stderr": "1", **({"stdin": "1"} if with_input else {})},
        headers={"Connection": "Upgrade", "Upgrade": "tcp"},
        stream=True,
        timeout=CALL_S,
    )
    try:
        response.raise_for_status()
        owned = socket.socket(fileno=socket.dup(response.raw.fileno()))
    finally:
        response.close()
    owned.setblocking(False)
    return owned


def _kill(client: docker.APIClient, container: str) -> None:
    try:
        client.kill(container, signal="KILL")
    except NotFound:
        return
    except APIError as error:
        if error.status_code != HTTPStatus.CONFLICT:  # it is not running
            raise


def remove(client: docker.APIClient, container: str) -> None:
    """Kill and remove a container with its unnamed volumes; nothing if it is gone."""
    try:
        client.remove_container(container, v=True, force=True)
    except NotFound:
        return
    except APIError as error:
        if error.status_code != HTTPStatus.CONFLICT:  # it is being removed
            raise


def _post(client: docker.APIClient, path: str, body: dict[str, Any]) -> None:
    """Post to an address the SDK has no full method for (it knows no pids limit in an update)."""
    client.post(_url(client, path), json=body, timeout=CALL_S).raise_for_status()


def _url(client: docker.APIClient, path: str) -> str:
    return f"{client.base_url}/v{client.api_version}{path}"


def _write_once(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
        path.chmod(0o644)


__all__ = ["DockerRuntime", "DockerSandbox", "Endpoint"]
