"""The lease of one attempt: renewals, doubt, and claiming again; with a broker whose answers the test chooses."""

import asyncio
from collections.abc import Callable

import pytest

from sandbox.contract.errors import BrokerError, EngineError
from sandbox.contract.wire import ClaimReply, ClaimRequest
from sandbox.executor.lease import Lease

REQUEST = ClaimRequest(executor="one", job_id="0123456789-spec-1", ack_subject="ack", token="t" * 32, goes_on=True)


class Broker:
    """Answers renewals until `away`, and claims with `decision`."""

    def __init__(self) -> None:
        self.away = False
        self.decision = "granted"
        self.renewed = 0
        self.claimed: list[str | None] = []

    async def in_progress(self, ack_subject: str) -> None:
        if self.away:
            raise BrokerError("no answer")
        self.renewed += 1

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        if self.away:
            raise BrokerError("no answer")
        self.claimed.append(request.token)
        return ClaimReply.model_validate({"decision": self.decision})


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Container:
    def __init__(self) -> None:
        self.paused = False

    async def pause(self) -> None:
        self.paused = True

    async def resume(self) -> None:
        self.paused = False


async def until(predicate: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(5):
            while not predicate():
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"never: {what}")


def a_lease(broker: Broker, container: Container, clock: Clock) -> Lease:
    return Lease(broker, REQUEST, pause=container.pause, resume=container.resume, clock=clock, every_s=0.01, doubt_s=48.0)


async def test_a_confirmed_lease_is_renewed_and_pauses_nothing():
    """As long as the broker confirms, the container runs."""
    broker, container, clock = Broker(), Container(), Clock()

    async with a_lease(broker, container, clock).held() as lease:
        await until(lambda: broker.renewed >= 3, "three renewals")

    assert not container.paused
    assert not lease.lost.is_set()


@pytest.mark.parametrize(("age_s", "paused"), [(48.0, False), (48.1, True)])
async def test_doubt_begins_just_after_48_seconds_without_a_confirmation(age_s: float, paused: bool):
    """The edge of D2: at 48 s the container still runs, beyond it it is paused."""
    broker, container, clock = Broker(), Container(), Clock()
    async with a_lease(broker, container, clock).held():
        await until(lambda: broker.renewed >= 1, "a first renewal")

        broker.away = True
        clock.now = age_s
        await asyncio.sleep(0.1)

        assert container.paused is paused


async def test_a_paused_attempt_goes_on_when_the_same_token_is_granted_again():
    """Back from a cut, the executor claims with its token before it does anything."""
    broker, container, clock = Broker(), Container(), Clock()
    async with a_lease(broker, container, clock).held() as lease:
        broker.away, clock.now = True, 60.0
        await until(lambda: container.paused, "the pause")

        broker.away = False
        await until(lambda: not container.paused, "the resumption")

        assert broker.claimed == [REQUEST.token]
        assert not lease.lost.is_set()


async def test_a_paused_attempt_whose_token_is_not_granted_is_lost_and_stays_paused():
    """Somebody else may work: the container must not run on."""
    broker, container, clock = Broker(), Container(), Clock()
    async with a_lease(broker, container, clock).held() as lease:
        broker.away, clock.now = True, 60.0
        await until(lambda: container.paused, "the pause")

        broker.decision, broker.away = "busy", False
        await until(lease.lost.is_set, "the loss")

        assert container.paused


async def test_a_call_that_hangs_does_not_put_the_doubt_off():
    """The broker is stopped, not gone: no error comes, only time passes."""
    broker, container = Hanging(), Container()
    lease = Lease(broker, REQUEST, pause=container.pause, resume=container.resume, every_s=0.01, doubt_s=0.3)
    began = asyncio.get_running_loop().time()

    async with lease.held():
        await until(lambda: container.paused, "the pause")

    assert asyncio.get_running_loop().time() - began < 1.0


async def test_a_machine_that_slept_claims_again_although_the_broker_answers():
    """Renewing would succeed, and prove nothing: another executor may have the job by now."""
    broker, container, clock = Broker(), Container(), Clock()
    broker.decision = "busy"
    async with a_lease(broker, container, clock).held() as lease:
        await until(lambda: broker.renewed >= 1, "a first renewal")

        clock.now += 3_600
        await until(lease.lost.is_set, "the loss")

        assert container.paused
        assert broker.claimed == [REQUEST.token]


async def test_an_engine_that_cannot_pause_is_asked_again_and_nothing_is_claimed_before():
    """What runs on must not be called ours."""
    broker, container, clock = Broker(), Stubborn(), Clock()
    async with a_lease(broker, container, clock).held() as lease:
        await until(lambda: broker.renewed >= 1, "a first renewal")

        clock.now += 60
        await until(lambda: container.tries >= 3, "the third try")
        assert broker.claimed == []
        container.is_stubborn = False
        await until(lambda: broker.claimed == [REQUEST.token], "the claim")

        assert not lease.lost.is_set()


class Hanging(Broker):
    """Takes a call and never answers."""

    async def in_progress(self, ack_subject: str) -> None:
        await asyncio.Event().wait()


class Stubborn(Container):
    """An engine that refuses to pause, until it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.tries = 0
        self.is_stubborn = True

    async def pause(self) -> None:
        self.tries += 1
        if self.is_stubborn:
            raise EngineError("no")
        await super().pause()
