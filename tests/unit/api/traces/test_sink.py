"""A run's trace file holds each of its spans once, survives a kill at any byte, and takes nothing that is not its own."""

import gzip
import json
import os
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from sandbox.contract.ids import span_id, trace_id
from sandbox.telemetry import Context, Spans
from supervisor.api.traces.sink import USERS_FILL_MAX, TraceSink, trace_ids_of
from tests.fakes.traces import SeenTrace

RUN, OTHER = "01jd8m6w2x", "01jd8m6w2y"
ROOT = Context(trace_id(RUN), span_id(RUN))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / RUN / "trace.otlp.jsonl"


@pytest.fixture
def sink(path: Path) -> TraceSink:
    return TraceSink(lambda _: path)


def a_payload(*names: str, service: str = "andon-exec", parent: Context | None = ROOT, run: str = RUN, id_: str | None = None) -> bytes:
    spans = Spans(service, "1")
    for name in names:
        spans.start(name, trace_id=trace_id(run), parent=parent.span_id if parent else None, span_id=id_, start=1.0).end(2.0)
    (payload,) = spans.drain(trace_id(run))
    return payload


def names_in(path: Path) -> list[str]:
    return [span.name for span in SeenTrace.of_file(path).spans] if path.exists() else []


def test_a_line_is_otlp_json_with_hex_ids_and_numbers_for_enums(sink: TraceSink, path: Path):
    """As the specification wants it, and as Jaeger's upload reads it."""
    sink.store(RUN, a_payload("RUN feature", service="andon-sup", parent=None, id_=span_id(RUN)))

    (span,) = json.loads(path.read_text())["resourceSpans"][0]["scopeSpans"][0]["spans"]

    assert (span["traceId"], span["spanId"]) == (trace_id(RUN), span_id(RUN))
    assert span["kind"] == 1
    assert span["startTimeUnixNano"] == "1000000000"


def test_the_same_span_is_written_and_told_of_once(path: Path):
    """Telemetry comes again after a lost confirmation, and after a crash the supervisor makes its spans again."""
    expected: list[str] = []
    seen: list[ExportTraceServiceRequest] = []
    twice = a_payload("process")
    for sink in (TraceSink(lambda _: path, expected.append, seen.append), TraceSink(lambda _: path, expected.append, seen.append)):
        sink.store(RUN, twice)
        sink.store(RUN, twice)

    assert names_in(path) == ["process"]
    assert (expected, len(seen)) == ([RUN], 1)


def test_that_a_file_will_grow_is_told_before_it_does(path: Path):
    """So that a kill between the two costs the export nothing."""
    sizes: list[int] = []
    sink = TraceSink(lambda _: path, lambda _: sizes.append(path.stat().st_size if path.exists() else 0))

    sink.store(RUN, a_payload("process"))

    assert sizes == [0]


def test_of_a_run_that_is_not_sampled_nothing_is_kept(path: Path):
    """An executor of an older release sends spans all the same: they are counted, and go nowhere."""
    seen: list[ExportTraceServiceRequest] = []
    expected: list[str] = []
    sink = TraceSink(lambda _: path, expected.append, seen.append, is_sampled=lambda run_id: run_id != RUN)

    sink.store(RUN, a_payload("process", "container start"), from_executor=True)

    assert sink.rejected == 2
    assert not path.exists()
    assert seen == expected == []


def test_one_payload_may_hold_a_span_twice(sink: TraceSink, path: Path):
    """The first one is kept, whoever made the second."""
    sink.store(RUN, a_payload("process", "again", id_=span_id(f"{RUN}/spec/1/1")))

    assert names_in(path) == ["process"]


def test_a_link_to_a_span_does_not_stand_for_it(sink: TraceSink, path: Path):
    """A file with only a link to the stage must still take the stage."""
    stage = Context(trace_id(RUN), span_id(f"{RUN}/spec/1/1"))
    spans = Spans("andon-exec", "1")
    spans.start("process", trace_id=stage.trace_id, parent=stage.span_id, links=(stage,)).end()
    sink.store(RUN, spans.drain(stage.trace_id)[0], from_executor=True)

    TraceSink(lambda _: path).store(RUN, a_payload("stage spec", service="andon-sup", id_=stage.span_id))

    assert names_in(path) == ["process", "stage spec"]


def test_a_torn_last_line_is_cut_off_and_the_file_goes_on(sink: TraceSink, path: Path):
    """A supervisor killed in the middle of a write leaves a file every reader can read."""
    sink.store(RUN, a_payload("one"))
    whole = path.stat().st_size
    sink.store(RUN, a_payload("two"))
    os.truncate(path, path.stat().st_size - 7)

    TraceSink(lambda _: path).store(RUN, a_payload("three"))

    assert names_in(path) == ["one", "three"]
    assert path.stat().st_size > whole


def test_a_line_that_is_broken_in_itself_loses_no_more_than_itself(sink: TraceSink, path: Path):
    """A bad disk must not stop a supervisor."""
    path.parent.mkdir(parents=True)
    path.write_text('{"resourceSpans":\n[]\n')

    sink.store(RUN, a_payload("one"))

    assert '"name":"one"' in path.read_text()


@pytest.mark.parametrize(
    "payload",
    [
        a_payload("RUN feature", parent=None),
        a_payload("stage spec", service="andon-sup"),
        a_payload("process", run=OTHER),
        b"junk",
        gzip.compress(b"\xff\xff\xff"),
        gzip.compress(b"\0" * (17 << 20)),
        gzip.compress(b"x" * 1_000)[:-20],
    ],
    ids=["a root", "the supervisor's", "another run's", "junk", "not OTLP", "a bomb", "torn"],
)
def test_what_an_executor_may_not_say_is_counted_and_dropped(sink: TraceSink, path: Path, payload: bytes):
    """It speaks for its own part of the run it works for."""
    sink.store(RUN, payload, from_executor=True)

    assert not path.exists()
    assert sink.rejected == 1


def test_the_rest_of_a_payload_with_a_strangers_span_is_kept(sink: TraceSink, path: Path):
    """One bad span does not take the good ones with it."""
    spans = Spans("andon-exec", "1")
    for run, parent in ((RUN, ROOT.span_id), (RUN, None)):
        spans.start(f"of {parent}", trace_id=trace_id(run), parent=parent).end()
    sink.store(RUN, spans.drain(trace_id(RUN))[0], from_executor=True)

    assert names_in(path) == [f"of {ROOT.span_id}"]


def test_a_disk_that_takes_nothing_stops_nobody(tmp_path: Path):
    """The event log holds the run; its trace is a copy."""
    (tmp_path / "file").write_text("in the way")
    sink = TraceSink(lambda _: tmp_path / "file" / "trace.otlp.jsonl")

    sink.store(RUN, a_payload("one"))

    assert sink.rejected == 1


def test_the_traces_of_a_payload_are_known_without_storing_it():
    """The supervisor finds the run by it."""
    assert trace_ids_of(a_payload("one")) == {trace_id(RUN)}
    assert trace_ids_of(b"junk") == set()


@pytest.mark.parametrize(("there", "taken"), [(USERS_FILL_MAX - 1, ["process", "test_a"]), (USERS_FILL_MAX, ["process"])])
def test_a_users_own_spans_crowd_out_nothing_of_ours(sink: TraceSink, path: Path, there: int, taken: list[str]):
    """Of a run that has very many, no more of them are taken, and what an executor did still is."""
    path.parent.mkdir(parents=True)
    many = [{"spanId": f"{number:016x}"} for number in range(1, there)]
    path.write_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": many}]}]}) + "\n")

    for payload in (a_payload("process"), a_payload("test_a", service="andon-user"), a_payload("test_b", service="andon-user")):
        sink.store(RUN, payload, from_executor=True)

    new = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert [span["name"] for each in new for span in each["resourceSpans"][0]["scopeSpans"][0]["spans"]] == taken
    assert sink.rejected == 3 - len(taken)
