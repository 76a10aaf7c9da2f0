"""A command line's questions over the wire: what is asked again after a lost answer, and what never is; over the broker in memory."""

import pytest

from sandbox.bus import NoAnswer
from sandbox.contract import subjects
from sandbox.contract.errors import BrokerError
from supervisor.bootstrap.client import ASKED_TIMES_MAX, BusClient
from supervisor.pipeline.submit import Answer, DeliveredRequest, ResumeRequest, SubmitReply
from tests.fakes.line_world import a_submission
from tests.fakes.memory_bus import MemoryBroker
from tests.fakes.memory_fleet import MemoryFleetClient
from tests.fakes.memory_log import MemoryEventLog
from tests.fakes.run_events import RUN


class Forgetful:
    """A supervisor whose first answers are lost."""

    def __init__(self, lost: int, reply: SubmitReply | Answer) -> None:
        self.asked = 0
        self._lost = lost
        self._reply = reply

    async def answer(self, _data: bytes) -> bytes:
        """Lose an answer, or give it."""
        self.asked += 1
        if self.asked <= self._lost:
            raise BrokerError("standing down")
        return self._reply.model_dump_json().encode()


def a_client(subject: str, supervisor: Forgetful, first_answer_s: float = 0.0) -> BusClient:
    """Return a client of a broker on which this supervisor answers."""
    broker = MemoryBroker()
    broker.rpcs[subject] = supervisor.answer
    return BusClient(MemoryFleetClient(broker, MemoryEventLog()), first_answer_s=first_answer_s)


async def test_a_submission_with_an_id_is_made_again_until_it_is_answered() -> None:
    """The supervisor knows a repetition by its id, so the run is opened once."""
    supervisor = Forgetful(2, SubmitReply(run_id=RUN))

    reply = await a_client(subjects.RPC_INTENT, supervisor).submit(a_submission(request_id="r-1"))

    assert (reply.run_id, supervisor.asked) == (RUN, 3)


async def test_a_submission_without_an_id_is_made_once() -> None:
    """It may have been taken: a second one would cost twice."""
    supervisor = Forgetful(1, SubmitReply(run_id=RUN))

    with pytest.raises(BrokerError, match="standing down"):
        await a_client(subjects.RPC_INTENT, supervisor).submit(a_submission())

    assert supervisor.asked == 1


async def test_a_delivery_is_told_until_it_is_noted() -> None:
    """It is a fact: to say it twice is harmless."""
    supervisor = Forgetful(ASKED_TIMES_MAX - 1, Answer(ok=True))

    answer = await a_client(subjects.RPC_DELIVERED, supervisor).delivered(DeliveredRequest(run_id=RUN, commit="d" * 40, ok=True))

    assert (answer.ok, supervisor.asked) == (True, ASKED_TIMES_MAX)


async def test_asking_again_has_a_bound() -> None:
    """A supervisor that never answers is a failure to show."""
    supervisor = Forgetful(ASKED_TIMES_MAX, Answer(ok=True))

    with pytest.raises(BrokerError, match="standing down"):
        await a_client(subjects.RPC_DELIVERED, supervisor).delivered(DeliveredRequest(run_id=RUN, commit="d" * 40, ok=True))

    assert supervisor.asked == ASKED_TIMES_MAX


async def test_no_supervisor_is_said_with_what_to_do() -> None:
    """Nobody listens at all."""
    client = a_client("andon.rpc.other", Forgetful(0, Answer(ok=True)))

    with pytest.raises(NoAnswer, match=r"no supervisor answers .*andon doctor"):
        await client.resume(ResumeRequest(run_id=RUN))
