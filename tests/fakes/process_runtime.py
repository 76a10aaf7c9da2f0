"""A runtime of plain processes, for tests of everything around a sandbox: it has a sandbox's life, and none of its walls.

Each sandbox is one process group of the slot's uid that outlives its executor, as a container does; its environment is its label,
as an engine's labels are. It runs `paper_program`, never a repository's or an agent's own code, and says of itself what is missing.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

from sandbox.contract.errors import EngineError
from sandbox.contract.job import Limits
from sandbox.runtime.container_spec import LAST_WORDS_BYTES_MAX, EngineFacts, Exit, FoundContainer, LastWords, OnStep, SlotSpec, unheard

INSTANCE_VARIABLE = "ANDON_PAPER_INSTANCE"
ID_VARIABLE = "ANDON_PAPER_ID"
IMAGE_ID = "sha256:" + "0" * 64
NO_WALLS = "no walls at all: a process of this host, for tests"
_PROGRAM = Path(__file__).with_name("paper_program.py")
_PYTHON = (os.path.realpath(sys.executable), "-I", "-S", "-c")
_POLL_S = 0.02
_DEAD_S = 10.0


class ProcessRuntime:
    """Makes paper sandboxes."""

    async def facts(self) -> EngineFacts:
        """Return what this is."""
        return EngineFacts(
            endpoint="none",
            source="tests",
            version="0",
            api_version="0",
            architecture=os.uname().machine,
            kernel=os.uname().release,
            cgroup_version="none",
            storage_driver="none",
            default_runtime="runc",
            runtimes=("runc",),
            security_options=(),
            cpus=os.cpu_count() or 1,
            memory_bytes=1 << 30,
            missing=(NO_WALLS,),
        )

    async def stand_by(self, slot: SlotSpec, image_id: str, on_step: OnStep = unheard) -> "ProcessSandbox":
        """Start a process in a slot.

        Raises:
            EngineError: It could not be started.
        """
        on_step("create", "")
        box = ProcessSandbox(slot)
        on_step("start", box.container_id)
        # On the loop's thread and in one go: nobody can cancel between the start and its record.
        box.start()
        return box

    async def containers(self) -> list[FoundContainer]:
        """Return every living sandbox of this host."""
        return paper_containers()

    async def discard(self, container_id: str) -> None:
        """Kill every process of one sandbox."""
        async with asyncio.timeout(_DEAD_S):
            while pids := [pid for pid, name in paper_processes().items() if name == container_id]:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(_POLL_S)


class ProcessSandbox:
    """One process group, from its start to its end."""

    def __init__(self, slot: SlotSpec) -> None:
        self._slot = slot
        self._process: subprocess.Popen[bytes] | None = None
        self._log = slot.task.parent / "paper.log"
        self.container_id = secrets.token_hex(32)
        self.missing: tuple[str, ...] = (NO_WALLS,)

    def start(self) -> None:
        """Start the program with the workspace as its directory and the gateway's directory as a descriptor."""
        # By descriptor and by directory: the slot's uid may not walk through directories that are the executor's alone.
        gateway = os.open(self._slot.gateway, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [*_PYTHON, _PROGRAM.read_text(), str(gateway), str(self._slot.uid), str(self._slot.gid)],
                    cwd=self._slot.workspace,
                    env={
                        "PATH": "/usr/bin:/bin",
                        INSTANCE_VARIABLE: self._slot.instance,
                        ID_VARIABLE: self.container_id,
                        "PAPER_WORKSPACE": str(self._slot.workspace),
                    },
                    pass_fds=(gateway,),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            raise EngineError(f"a paper sandbox does not start: {error}") from error
        finally:
            os.close(gateway)

    async def assign(self, limits: Limits) -> None:
        """Do nothing: there are no limits."""

    async def pause(self) -> None:
        """Stop every process of the group."""
        self._signal(signal.SIGSTOP)

    async def unpause(self) -> None:
        """Let the group go on."""
        self._signal(signal.SIGCONT)

    async def kill(self) -> None:
        """Kill the group and wait for its end."""
        self._signal(signal.SIGKILL)
        async with asyncio.timeout(_DEAD_S):
            await self.wait()

    async def wait(self) -> Exit:
        """Wait for the end of the first process."""
        while (code := self._started.poll()) is None:
            await asyncio.sleep(_POLL_S)
        return Exit(code=128 - code if code < 0 else code, oom_killed=False)

    async def log(self) -> bytes:
        """Return what it printed."""
        return self._log.read_bytes()

    async def last_words(self) -> LastWords:
        """Return the last of what it printed; both streams are one file."""
        return {"stdout": self._log.read_bytes()[-LAST_WORDS_BYTES_MAX:]}

    async def remove(self) -> None:
        """Kill what is left of the group."""
        if self._started.poll() is None:
            await self.kill()
        await asyncio.to_thread(_kill_all, {self.container_id}, self._slot.instance)

    def _signal(self, number: signal.Signals) -> None:
        if self._started.poll() is None:  # not reaped, so its number is nobody else's
            os.killpg(self._started.pid, number)

    @property
    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise EngineError("this paper sandbox was never started")
        return self._process


def paper_processes(instance: str | None = None) -> dict[int, str]:
    """Return the processes of living paper sandboxes, their tools included, with their ids; None: of every executor on this host."""
    found: dict[int, str] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pairs = [each.partition(b"=") for each in (path / "environ").read_bytes().split(bytes(1))]
            values = {name.decode(): value.decode() for name, _, value in pairs if name.startswith(b"ANDON_PAPER_")}
            if ID_VARIABLE in values and instance in {None, values.get(INSTANCE_VARIABLE)}:
                found[int(path.name)] = values[ID_VARIABLE]
    return found


def paper_containers() -> list[FoundContainer]:
    """Return the living paper sandboxes as an engine would list its containers."""
    found: dict[str, FoundContainer] = {}
    for pid in paper_processes():
        with contextlib.suppress(OSError):
            pairs = [each.partition(b"=") for each in Path(f"/proc/{pid}/environ").read_bytes().split(bytes(1))]
            values = {name.decode(): value.decode() for name, _, value in pairs if name.startswith((b"ANDON_PAPER_", b"PAPER_"))}
            workspace = Path(values["PAPER_WORKSPACE"])
            name = values[ID_VARIABLE]
            found[name] = FoundContainer(
                container_id=name, instance=values[INSTANCE_VARIABLE], slot=int(workspace.parent.name), deadline=0, workspace=workspace
            )
    return list(found.values())


def _kill_all(names: set[str], instance: str) -> None:
    for pid, name in paper_processes(instance).items():
        if name in names:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
