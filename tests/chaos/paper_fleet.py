"""A fleet of processes on this host for chaos on paper: a real broker, two supervisors, several executors over the process runtime.

Whoever dies is started again, as a service manager would. It lives in the process that makes the faults, on its main thread.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from sandbox.contract.credentials import FILE_SUFFIX, write_credentials
from supervisor.store.broker.child import bound_to_us
from supervisor.store.broker.embedded import EmbeddedBroker, supervisor_file

AGAIN_S = 0.2
STOP_S = 20.0


class Member:
    """One process that is kept running."""

    def __init__(self, name: str, argv: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.starts = 0
        self._argv = argv
        self._environment = dict(environment)
        self._log = log
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        self.starts += 1
        with self._log.open("ab") as log:
            return subprocess.Popen(
                bound_to_us(self._argv), env=self._environment, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def keep(self) -> None:
        """Start it again if it is dead."""
        if self.process.poll() is not None:
            self.process = self._start()

    def stop(self) -> None:
        """End it, by force after a while."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class PaperFleet:
    """The processes, by what they are."""

    def __init__(self, broker: EmbeddedBroker, state: Path, supervisors: list[Member], executors: list[Member]) -> None:
        self.broker = broker
        self.state = state
        self.supervisors = supervisors
        self.executors = executors

    @classmethod
    @asynccontextmanager
    async def running(
        cls, home: Path, provider: Mapping[str, str], *, supervisors: int = 2, executors: int = 3, slots: int = 2, is_kept: bool = True
    ) -> AsyncIterator["PaperFleet"]:
        """Run a fleet below `home` for as long as the context lasts.

        Args:
            home: Where everything lies.
            provider: The variables of a model provider.
            supervisors: How many; one of them leads.
            executors: How many.
            slots: Of each executor.
            is_kept: Whether who dies is started again.
        """
        state = home / "state" / "andon"
        state.mkdir(parents=True, mode=0o700)
        base = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}
        async with EmbeddedBroker.run(state / "nats") as broker:
            control = {**base, "NATS_URL": broker.url, "NATS_CREDS": str(supervisor_file(state / "nats"))}
            control |= {"ANDON_STATE_DIRECTORY": str(state)}
            argv = [sys.executable, "-m", "supervisor", "--embedded"]
            leaders = [Member(f"supervisor-{number}", argv, control, home / f"supervisor-{number}.log") for number in range(supervisors)]
            workers = [await _executor(broker, home, number, {**base, **provider}, slots) for number in range(executors)]
            fleet = cls(broker, state, leaders, workers)
            keeping = asyncio.create_task(fleet._keep() if is_kept else asyncio.sleep(0))
            try:
                yield fleet
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
                for member in (*workers, *leaders):
                    member.stop()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(AGAIN_S)
            for member in (*self.supervisors, *self.executors):
                member.keep()


async def _executor(broker: EmbeddedBroker, home: Path, number: int, environment: Mapping[str, str], slots: int) -> Member:
    name = f"paper-{number}"
    path = home / f"{name}{FILE_SUFFIX}"
    write_credentials(path, await broker.add_executor(name))
    argv = [sys.executable, "-m", "tests.fakes.paper_executor", "--creds", str(path)]
    argv += ["--state", str(home / name), "--slots", str(slots)]
    return Member(name, argv, environment, home / f"{name}.log")
