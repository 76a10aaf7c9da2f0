"""A run's files where another supervisor wrote its beginning: whole again, in order, and never in the way of an event."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sandbox.telemetry import Spans
from supervisor.api.run_files import files_of
from supervisor.api.traces.run_trace import RunTrace
from supervisor.api.traces.sink import TraceSink
from supervisor.bootstrap.witness import Witness
from supervisor.config import StateDirectory
from supervisor.pipeline import events as ev
from supervisor.pipeline.fold import fold
from tests.fakes.line_world import wait_until
from tests.fakes.memory_bus import MemoryBroker, MemorySupervisorLink
from tests.fakes.memory_log import MemoryEventLog
from tests.fakes.run_events import RUN, happy
from tests.fakes.traces import SeenTrace


@asynccontextmanager
async def a_witness(directory: Path, log: MemoryEventLog) -> AsyncIterator[tuple[Witness, StateDirectory]]:
    state = StateDirectory.open(directory / "state")
    sink = TraceSink(lambda run_id: state.run(run_id) / "trace.otlp.jsonl")
    async with MemorySupervisorLink.connect(MemoryBroker()) as link:
        witness = Witness(state, link, RunTrace(Spans("andon-sup", "1", {}), sink.store), log)
        mending = asyncio.create_task(witness.mend())
        try:
            yield witness, state
        finally:
            mending.cancel()
            await asyncio.gather(mending, return_exceptions=True)


async def stored(log: MemoryEventLog, events: list[ev.AnyEvent]) -> list[ev.AnyEvent]:
    """Append events and return them with their numbers."""
    done: list[ev.AnyEvent] = []
    for event in events:
        last = await log.read(event.run_id)
        seq = await log.append(event, last[-1].seq if last else 0)
        done.append(event.model_copy(update={"seq": seq}))
    return done


async def test_the_beginning_another_supervisor_wrote_is_written_here_too(tmp_path: Path):
    """Events and trace of a run that goes on; what happens meanwhile is behind them, once."""
    log = MemoryEventLog()
    story = happy()[:-2]
    begun = await stored(log, story[:-3])
    async with a_witness(tmp_path, log) as (witness, state):
        later = await stored(log, story[-3:])
        for at, event in enumerate(later):
            witness.observe(fold([*begun, *later[: at + 1]]), event)
        files = files_of(state, RUN)
        await wait_until(lambda: len(files.events()) == len(story) and files.trace_path.exists(), "the files are whole")

    assert [event.type for event in files.events()] == [event.type for event in story]
    assert files.trace_path.read_text().count("\n") > 0


async def test_a_new_run_is_written_at_once(tmp_path: Path):
    """Nobody else can have written anything of it."""
    log = MemoryEventLog()
    async with a_witness(tmp_path, log) as (witness, state):
        first = (await stored(log, happy()[:1]))[0]
        witness.observe(fold([first]), first)

        assert [event.type for event in files_of(state, RUN).events()] == ["run_accepted"]


async def test_files_that_are_final_are_left_as_they_are(tmp_path: Path):
    """A run that is over here is not written again by each new leader."""
    log = MemoryEventLog()
    events = await stored(log, happy())
    state = StateDirectory.open(tmp_path / "state")
    files = files_of(state, RUN)
    files.rewrite(events)
    files.write_result(fold(events))
    before = files.events_path.stat().st_mtime_ns
    other = await stored(log, happy(run="01jd8m6w2y")[:1])
    async with a_witness(tmp_path, log):
        await wait_until(lambda: len(files_of(state, other[0].run_id).events()) == 1, "the run after it is mended")

    assert files.events_path.stat().st_mtime_ns == before


async def test_the_end_that_a_killed_supervisor_did_not_write_is_in_the_trace(tmp_path: Path):
    """It died between the log and the file; the next one finds the run over, and makes the root all the same, and no span twice."""
    log = MemoryEventLog()
    events = await stored(log, happy())
    ended = next(at for at, event in enumerate(events) if event.type == "run_landed")
    async with a_witness(tmp_path, log) as (witness, state):
        for at in range(ended):
            witness.observe(fold(events[: at + 1]), events[at])
    files = files_of(state, RUN)
    assert SeenTrace.of_file(files.trace_path).roots == []

    async with a_witness(tmp_path, log):
        await wait_until(lambda: files.result() is not None, "the next one has mended the run")

    trace = SeenTrace.of_file(files.trace_path)
    assert [root.name for root in trace.roots] == ["RUN feature"]
    assert trace.faults() == []


async def test_of_a_run_that_ended_elsewhere_no_torn_trace_is_made(tmp_path: Path):
    """Its executors' spans are on the host that drove it."""
    log = MemoryEventLog()
    await stored(log, happy())
    async with a_witness(tmp_path, log) as (_, state):
        files = files_of(state, RUN)
        await wait_until(lambda: files.result() is not None, "its files are written here")

    assert not files.trace_path.exists()
