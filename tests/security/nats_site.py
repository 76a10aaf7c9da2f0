"""A real broker with a supervisor, two executors and an attacker who holds one's key; not what the attacker tries."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sandbox.bus import Connection, NatsExecutorLink, NatsSupervisorLink
from sandbox.contract.credentials import ExecutorCredentials
from supervisor.store.broker.embedded import EmbeddedBroker
from supervisor.store.broker.listen import Listen


@dataclass
class Site:
    """A broker with a supervisor, two pools and an executor in each; `attacker` is a raw connection with ex1's key."""

    broker: EmbeddedBroker
    supervisor: NatsSupervisorLink
    ex1: NatsExecutorLink
    ex2: NatsExecutorLink
    attacker: Connection
    attacker_credentials: ExecutorCredentials

    @property
    def fleet(self) -> Connection:
        """The supervisor's own connection, to look behind the walls."""
        return self.supervisor.connection


@asynccontextmanager
async def open_site(directory: Path) -> AsyncIterator[Site]:
    """Run one, over TLS as for executors on other hosts."""
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(
            EmbeddedBroker.run(directory / "nats", listen=Listen(host="0.0.0.0", advertise="localhost"))
        )
        supervisor = await stack.enter_async_context(NatsSupervisorLink.connect(broker.supervisor, pools=("default", "gpu")))
        for name, pools in (("ex1", ("default",)), ("ex2", ("gpu",))):
            await supervisor.admit(name, pools)
        own = await broker.add_executor("ex1", ("default",))
        ex1 = await stack.enter_async_context(NatsExecutorLink.connect(own))
        ex2 = await stack.enter_async_context(NatsExecutorLink.connect(await broker.add_executor("ex2", ("gpu",))))
        attacker = await stack.enter_async_context(Connection.open(own, name="attacker", inbox="ex1"))
        yield Site(broker, supervisor, ex1, ex2, attacker, own)
