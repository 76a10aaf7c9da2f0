"""What is said while a run is watched, besides its events."""

import asyncio
from dataclasses import dataclass, field
from typing import Self

from supervisor.cli.follow import watch
from supervisor.errors import BrokerError
from supervisor.pipeline.submit import Reason, WhyReply, WhyRequest
from tests.fakes import run_events
from tests.fakes.run_events import RUN
from tests.fakes.scripted_client import Hang, ScriptedClient

NOBODY = "baseline waits: no executor of pool default is connected"
BUSY = "baseline waits: all 2 slots of pool default are busy"


@dataclass
class Notes:
    """A display that keeps what was said."""

    said: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put away."""

    def say(self, text: str) -> None:
        self.said.append(text)

    def event(self, *_: object) -> None:
        """Events are not what is looked at here."""

    def progress(self, *_: object) -> None:
        """Nor is progress."""

    def tick(self) -> None:
        """Nor time."""


@dataclass
class Answering(ScriptedClient):
    """Lets the script go on when every answer was given."""

    answers: list[WhyReply | BrokerError] = field(default_factory=list)

    async def why(self, request: WhyRequest) -> WhyReply:
        answer = self.answers.pop(0)
        if not self.answers:
            self.stopped.set()
        if isinstance(answer, BrokerError):
            raise answer
        return answer


def waits(text: str) -> WhyReply:
    """Return the supervisor's word of a job that waits, and of one that runs."""
    running = Reason(kind="running", text="spec runs")
    return WhyReply(run_id=RUN, state="running", reasons=(Reason(kind="queued", text=text), running))


async def test_a_job_that_nobody_takes_says_so_and_what_changes():
    """Silence would look like work. The same reason is said once, an answer that is lost says nothing."""
    story = run_events.happy()
    begun = next(index for index, event in enumerate(story) if event.type == "job_dispatched") + 1
    replies: list[WhyReply | BrokerError] = [waits(NOBODY), waits(NOBODY), BrokerError("away"), waits(BUSY)]
    client, notes = Answering(script=[*story[:begun], Hang(), *story[begun:]], answers=replies), Notes()

    async with asyncio.timeout(10):
        run = await watch(client, RUN, notes, seen=lambda _run: None, quiet_s=0.02)

    assert run.state == "landed"
    assert notes.said == [NOBODY, BUSY]


async def test_a_job_that_is_taken_soon_is_not_asked_about():
    """A look that finds it once is not enough."""
    client, notes = Answering(script=run_events.happy()), Notes()

    await watch(client, RUN, notes, seen=lambda _run: None, quiet_s=0.001)

    assert notes.said == []
