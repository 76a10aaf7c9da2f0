"""A run's `trace.otlp.jsonl`: what its supervisor and its executors told, each span once; where else spans go is `export`.

Each line of the file is one OTLP/JSON request, which Jaeger's upload tab reads (TRACING.md §0.10).
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sandbox.contract.ids import trace_id
from sandbox.log import Log
from supervisor.api.traces.otlp import is_of_user, line_of, request_in, spans_in
from supervisor.api.traces.span_lines import spans_of

log = Log(__name__)

RUN_SPANS_MAX = 100_000
USERS_FILL_MAX = RUN_SPANS_MAX // 2
"""Once a run has so many, no more of its users' own are taken: what a sandbox makes crowds out nothing of ours."""
RUNS_REMEMBERED_MAX = 64
EXECUTOR_SERVICES = frozenset({"andon-exec", "andon-gw", "andon-agent", "andon-user"})


class TraceSink:
    """Appends payloads to runs' files, each span once."""

    def __init__(
        self,
        file_of: Callable[[str], Path],
        expect: Callable[[str], None] | None = None,
        see: Callable[[ExportTraceServiceRequest], None] | None = None,
        is_sampled: Callable[[str], bool] = lambda _run_id: True,
    ) -> None:
        """Make a sink; whatever it is given to call returns at once.

        Args:
            file_of: Names each run's trace file.
            expect: Is told the id of a run whose file is about to grow.
            see: Is told what is new.
            is_sampled: Whether a run's spans are kept at all.
        """
        self._file_of = file_of
        self._expect = expect
        self._see = see
        self._is_sampled = is_sampled
        self._stored: OrderedDict[str, set[str]] = OrderedDict()
        """Span ids in the files of the runs written to last."""
        self.rejected = 0
        """Payloads that could not be read, and spans that were not taken."""

    def store(self, run_id: str, payload: bytes, *, from_executor: bool = False) -> None:
        """Keep one gzip OTLP payload of a run; what cannot be read, or written, is counted and dropped: a trace stops no run.

        Executors speak for themselves only: their spans are never roots, nor the supervisor's, nor another run's. A span that is
        in the file already (sent again, or made again after a crash) is left out.
        """
        try:
            request = request_in(payload)
        except ValueError as error:
            self.rejected += 1
            log.warning("spans.unreadable", error=error)
            return
        is_sampled = self._is_sampled(run_id)
        self.rejected += _keep(request, lambda service, span: is_sampled and _is_due(service, span, run_id, from_executor=from_executor))
        try:
            is_new = self._append(run_id, request)
        except OSError as error:
            self.rejected += 1
            log.warning("spans.unwritten", error=error, run_id=run_id)
            return
        if is_new and self._see:
            self._see(request)

    def container_below(self, run_id: str, parent_id: str) -> str | None:
        """Return the `container.id` of the stored spans below a span, empty if they name none, None if there are no such spans."""
        found: str | None = None
        for span in _spans_in_file(self._file_of(run_id)):
            if span.get("parentSpanId") == parent_id:
                named = [each["value"].get("stringValue", "") for each in span.get("attributes", ()) if each["key"] == "container.id"]
                found = found or (named[0] if named else "")
        return found

    def _append(self, run_id: str, request: ExportTraceServiceRequest) -> bool:
        """Write what is new of a request to the run's file; return whether there was anything."""
        path = self._file_of(run_id)
        stored = self._spans_of(run_id, path)
        ids: set[str] = set()
        _keep(request, lambda _, span: _is_first(span.span_id.hex(), stored, ids))
        # Of a user's, none after the first that is refused: a child never comes before its parent.
        is_full = len(stored) >= USERS_FILL_MAX if any(map(is_of_user, request.resource_spans)) else len(stored) + len(ids) > RUN_SPANS_MAX
        if not ids or is_full:
            self.rejected += len(ids)
            return False
        if self._expect:
            self._expect(run_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(line_of(request) + "\n")
        stored.update(ids)
        return True

    def _spans_of(self, run_id: str, path: Path) -> set[str]:
        """Return the ids in a run's file; at the first look a torn last line is cut off, and the rest is read."""
        if run_id not in self._stored:
            self._stored[run_id] = _ids_in_file(path)
        self._stored.move_to_end(run_id)
        while len(self._stored) > RUNS_REMEMBERED_MAX:
            self._stored.popitem(last=False)
        return self._stored[run_id]


def _is_due(service: str, span: Span, run_id: str, *, from_executor: bool) -> bool:
    is_ours = span.trace_id.hex() == trace_id(run_id)
    return is_ours and not (from_executor and (service not in EXECUTOR_SERVICES or not span.parent_span_id))


def _is_first(span_id: str, stored: set[str], ids: set[str]) -> bool:
    """Return whether a span is neither stored nor among `ids`, and add it to them: one request may hold it twice, too."""
    if span_id in stored or span_id in ids:
        return False
    ids.add(span_id)
    return True


def _keep(request: ExportTraceServiceRequest, wanted: Callable[[str, Span], bool]) -> int:
    """Remove the spans that are not wanted, and what is empty then; return how many."""
    removed = 0
    for resource in request.resource_spans:
        service = next((each.value.string_value for each in resource.resource.attributes if each.key == "service.name"), "")
        for scope in resource.scope_spans:
            kept = [span for span in scope.spans if wanted(service, span)]
            removed += len(scope.spans) - len(kept)
            if len(kept) < len(scope.spans):
                del scope.spans[:]
                scope.spans.extend(kept)
    full = [resource for resource in request.resource_spans if any(scope.spans for scope in resource.scope_spans)]
    if len(full) < len(request.resource_spans):
        del request.resource_spans[:]
        request.resource_spans.extend(full)
    return removed


def _ids_in_file(path: Path) -> set[str]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return set()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return {str(span["spanId"]) for span in spans_of(data[:whole])}


def _spans_in_file(path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from spans_of(path.read_bytes())
    except FileNotFoundError:
        return


def trace_ids_of(payload: bytes) -> set[str]:
    """Return the trace ids (hex) in a gzip OTLP payload; empty if it cannot be read."""
    try:
        request = request_in(payload)
    except ValueError:
        return set()
    return {span.trace_id.hex() for span in spans_in(request)}
