"""Keeps what executors tell of their attempts, in the files of the runs it belongs to; the supervisor's own spans are `api.trace`'s."""

from collections import OrderedDict
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from sandbox.contract.figures import Figures
from sandbox.contract.ids import trace_id
from sandbox.contract.wire import SupervisorLink
from supervisor.api.metrics import Metrics
from supervisor.api.run_files import files_of
from supervisor.api.traces.export import Exporter
from supervisor.api.traces.sink import TraceSink, trace_ids_of
from supervisor.config import StateDirectory

RUNS_REMEMBERED_MAX: Final = 1_000


def trace_file(state: StateDirectory, run_id: str) -> Path:
    """Return where a run's spans lie, as `RunFiles` has it; without a look at the run."""
    return state.run(run_id) / "trace.otlp.jsonl"


class SpanKeeper:
    """Takes telemetry from the bus; `sink` has the files."""

    def __init__(self, state: StateDirectory, link: SupervisorLink, metrics: Metrics, export: Exporter | None) -> None:
        """Read from `link`, write below `state`, tell `metrics` what is new, and `export` which file grows."""
        self._state = state
        self._link = link
        self._metrics = metrics
        self._sampled: OrderedDict[str, bool] = OrderedDict()
        expect = export.expect if export else None
        self.sink = TraceSink(lambda run_id: trace_file(state, run_id), expect, metrics.see, self._is_sampled)

    async def keep(self) -> None:
        """Append executors' spans to the files of their runs, until cancelled; a trace id is derived from its run's id (DECISIONS D8)."""
        known: dict[str, str] = {}
        async for payload in self._link.telemetry():
            if payload.startswith(b"{"):
                self._measure(payload)
                continue
            wanted = trace_ids_of(payload)
            if not wanted <= known.keys():
                known = {trace_id(run_id): run_id for run_id in self._state.run_ids()}
            for run_id in {known[each] for each in wanted & known.keys()}:
                self.sink.store(run_id, payload, from_executor=True)

    def _measure(self, payload: bytes) -> None:
        try:
            self._metrics.measure(Figures.model_validate_json(payload))
        except ValidationError:
            self.sink.rejected += 1

    def _is_sampled(self, run_id: str) -> bool:
        """Return what the run's first event says; executors of another release may send spans all the same."""
        if run_id not in self._sampled:
            self._sampled[run_id] = files_of(self._state, run_id).is_sampled
            while len(self._sampled) > RUNS_REMEMBERED_MAX:
                self._sampled.popitem(last=False)
        return self._sampled[run_id]
