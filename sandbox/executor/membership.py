"""Being a member of the fleet: the executor introduces itself before it takes a job, and again whenever it may have been forgotten."""

import asyncio

from sandbox.contract.errors import BrokerError
from sandbox.contract.wire import PROTOCOL_VERSION, ExecutorLink, JoinReply, JoinRequest
from sandbox.executor.config import ExecutorConfig
from sandbox.executor.readiness import Readiness
from sandbox.log import Log

log = Log(__name__)

_WAITS = "waiting for a supervisor to let it join"


class Membership:
    """Asks to join, as often as it takes."""

    def __init__(self, config: ExecutorConfig, link: ExecutorLink, ready: Readiness) -> None:
        """Prepare; until the first answer no job is taken."""
        self._link = link
        self._again_s = config.pace.join_s
        self._ready = ready
        self._request = JoinRequest(
            executor=config.name, release=config.release, pools=config.pools, labels=config.labels, slots=config.slots
        )
        self._is_due = asyncio.Event()
        self._is_due.set()
        self.has_joined = False
        """Whether a supervisor has let it in, once."""
        ready.hold("join", _WAITS)

    def renew(self) -> None:
        """Introduce this executor again soon: the connection was cut, or a claim was refused."""
        self._is_due.set()

    async def wait_refused(self) -> str:
        """Keep the membership; return only when the supervisor refuses it, with what a person should read."""
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            reply = await self._answer()
            if not reply.accepted:
                return refusal(self._request, reply)
            self._ready.free("join")
            self._say_joined(reply)

    async def _answer(self) -> JoinReply:
        is_said = False
        while True:
            try:
                return await self._link.join(self._request)
            except BrokerError as error:
                self._ready.hold("join", _WAITS)
                if not is_said:
                    log.info("fleet.awaited", "no supervisor answers yet; waiting for one", error=error)
                is_said = True
            await asyncio.sleep(self._again_s)

    def _say_joined(self, reply: JoinReply) -> None:
        if self.has_joined:
            log.info("fleet.rejoined", "joined the fleet again")
            return
        self.has_joined = True
        mine = self._request
        log.info(
            "fleet.joined",
            f"joined the fleet as {mine.executor}",
            slots=mine.slots,
            pools=",".join(mine.pools),
            labels=" ".join(f"{name}={value}" for name, value in sorted(mine.labels.items())),
            supervisor=reply.release,
        )


def refusal(request: JoinRequest, reply: JoinReply) -> str:
    """Return the one line that says why this executor cannot be a member, and what to do."""
    versions = f"this is release {request.release} (protocol {PROTOCOL_VERSION})"
    theirs = f", the supervisor is release {reply.release}" if reply.release else ""
    return f"the supervisor refuses this executor: {reply.reason or 'no reason given'}; {versions}{theirs}"
