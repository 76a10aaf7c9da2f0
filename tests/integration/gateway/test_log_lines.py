"""What a gateway logs says whose attempt it is, although its connections are served by tasks of the event loop's making."""

from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from sandbox.contract.ids import trace_id
from sandbox.log import about, of_attempt
from tests.fakes.gateway import open_gateway
from tests.fakes.log_lines import Lines, listening
from tests.fakes.upstream import a_reply, fake_upstream, refusing, replying, then
from tests.fakes.wire_data import RUN

JOB = f"{RUN}-implement-1"


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What the gateway says."""
    with listening("sandbox.gateway", "andon-exec") as heard:
        yield heard


def whose(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line.get(name) for name in ("service.name", "run_id", "stage", "attempt", "trace_id"))


async def test_a_call_that_is_made_again_is_said_of_its_attempt(tmp_path: Path, lines: Lines):
    """The socket's listener keeps what was said where it was opened; two attempts at once are told apart."""
    again = then(refusing(529), replying(a_reply()), refusing(529), replying(a_reply()))
    async with fake_upstream(again) as upstream, AsyncExitStack() as stack:
        gateways = []
        for attempt in (1, 2):
            directory = tmp_path / str(attempt)
            directory.mkdir()
            with about(**of_attempt(JOB, attempt)):
                gateways.append(await stack.enter_async_context(open_gateway(directory, upstream.base_url)))

        for gateway in gateways:  # asked from outside any block
            await gateway.ask()

    assert [line["event"] for line in lines.said] == ["call.retried", "call.retried"]
    assert [whose(line) for line in lines.said] == [("andon-gw", RUN, "implement", attempt, trace_id(RUN)) for attempt in (1, 2)]
