"""The files of one run (`runs/<id>/`, DECISIONS G10): a readable copy of what the event log says; never the truth.

The supervisor writes them; `status`, `list`, `logs` and `diff` read them and so start nothing. Every writer may be killed at any byte:
whole files are replaced in one step, `events.jsonl` only grows and a torn last line is ignored and cut off by the next writer.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from supervisor.api import report as reporting
from supervisor.api.submitted import remembered
from supervisor.api.views import ListRow, RunResult, result_of, row_of
from supervisor.config import StateDirectory, write_atomically
from supervisor.errors import AndonError, InfrastructureError, UnknownRun, UsageError
from supervisor.pipeline.events import AnyEvent
from supervisor.pipeline.fold import fold
from supervisor.pipeline.run import FINAL, RunState

LOG_BYTES_MAX = 10 << 20

_event: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)


class RunFiles:
    """One run's directory. Reading makes nothing; the first write makes the directory (0700)."""

    def __init__(self, directory: Path, state: StateDirectory, *, is_afar: bool = False) -> None:
        """Take the run's directory, the state directory it lies in and whether another host's supervisor drives it; `files_of` does."""
        self.directory = directory
        self.is_afar = is_afar
        self._state = state
        self._last_seq: int | None = None

    @property
    def events_path(self) -> Path:
        """Return the path of the events, one JSON object a line, `seq` included."""
        return self.directory / "events.jsonl"

    @property
    def result_path(self) -> Path:
        """Return the path of the result object."""
        return self.directory / "result.json"

    @property
    def report_path(self) -> Path:
        """Return the path of the Markdown report."""
        return self.directory / "report.md"

    @property
    def trace_path(self) -> Path:
        """Return the path of the run's spans, OTLP as JSON lines."""
        return self.directory / "trace.otlp.jsonl"

    def log_path(self, stage: str, round_: int, attempt: int) -> Path:
        """Return the path of one attempt's container log."""
        return self.directory / "logs" / f"{stage}-{round_}-{attempt}.log"

    def append(self, events: Iterable[AnyEvent]) -> None:
        """Add the events that are not in the file yet; to add one twice, or a whole log again after a crash, is harmless."""
        self._make()
        if self._last_seq is None:
            self._last_seq = self._cut_torn_line()
        fresh = [event for event in events if event.seq > self._last_seq]
        if not fresh:
            return
        self.events_path.touch(mode=0o600)
        with self.events_path.open("ab") as file:
            file.write(b"".join(event.model_dump_json().encode() + b"\n" for event in fresh))
        self._last_seq = max(event.seq for event in fresh)

    def rewrite(self, events: Iterable[AnyEvent]) -> None:
        """Replace the events by the log's; for a supervisor that takes over, since the last one may have died before it wrote its last."""
        self._make()
        log = list(events)
        write_atomically(self.events_path, b"".join(event.model_dump_json().encode() + b"\n" for event in log))
        self._last_seq = max((event.seq for event in log), default=0)

    def write_log(self, stage: str, round_: int, attempt: int, data: bytes) -> Path:
        """Store one attempt's container log, cut in the middle if it is larger than `LOG_BYTES_MAX`."""
        self._make()
        path = self.log_path(stage, round_, attempt)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(path, _head_and_tail(data))
        return path

    @property
    def mirror(self) -> str | None:
        """Return the path of the mirror that holds the run's commits, None if it is not on this host."""
        return str(self._state.mirror) if not self.is_afar and self._state.mirror.is_dir() else None

    def write_result(self, run: RunState) -> RunResult:
        """Write `report.md`, then `result.json`, from a run's state, final or not; the same state writes the same bytes."""
        self._make()
        result = result_of(run, str(self.report_path))
        write_atomically(self.report_path, reporting.markdown(run, self.mirror).encode("utf-8", "backslashreplace"))
        write_atomically(self.result_path, result.model_dump_json(indent=2).encode() + b"\n")
        return result

    def events(self) -> list[AnyEvent]:
        """Return the events in order; empty if there are none.

        Raises:
            UsageError: A whole line is not one of ours (another release wrote it).
        """
        return list(self.read_from(0)[0])

    def read_from(self, offset: int) -> tuple[list[AnyEvent], int]:
        """Return the events that begin at or after a byte offset, and the offset to go on from."""
        try:
            with self.events_path.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], offset
        whole = data[: data.rfind(b"\n") + 1]
        try:
            return [_event.validate_json(line) for line in whole.splitlines() if line], offset + len(whole)
        except ValidationError as error:
            raise UsageError(f"{self.events_path} holds an event this andon does not know; a newer one wrote it") from error

    def run(self) -> RunState:
        """Return the run as its events say.

        Raises:
            UnknownRun: There are no events.
            InfrastructureError: Some are missing.
        """
        events = self.events()
        if not events:
            raise UnknownRun(f"run {self.directory.name} has no events on this host")
        try:
            return fold(events)
        except (ValueError, KeyError) as error:
            hint = f"the supervisor writes it anew: andon resume {self.directory.name}"
            raise InfrastructureError(f"{self.events_path} is not whole ({error}); {hint}") from error

    @property
    def is_sampled(self) -> bool:
        """Return whether the run's spans are kept, by its first event; True while there is none that can be read."""
        try:
            with self.events_path.open("rb") as file:
                first = _event.validate_json(file.readline())
        except (FileNotFoundError, ValidationError):
            return True
        return first.type != "run_accepted" or first.sampled

    def result(self) -> RunResult | None:
        """Return the stored result object, None if there is none that can be read."""
        try:
            return RunResult.model_validate_json(self.result_path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _make(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _cut_torn_line(self) -> int:
        """Drop what follows the last line end and return the last event's `seq`, 0 if there is none."""
        events, whole = self.read_from(0)
        if self.events_path.exists() and self.events_path.stat().st_size > whole:
            with self.events_path.open("r+b") as file:
                file.truncate(whole)
        return events[-1].seq if events else 0


def files_of(state: StateDirectory, run_id: str) -> RunFiles:
    """Return the files of one run."""
    directory = state.run(run_id)
    submitted = remembered(directory)
    return RunFiles(directory, state, is_afar=submitted is not None and bool(submitted.fleet))


def seen_files_of(state: StateDirectory, run_id: str) -> RunFiles:
    """Return the files of a run that another host submitted, as this one has looked at it."""
    return RunFiles(state.seen / run_id, state, is_afar=True)


def rows(state: StateDirectory, limit: int) -> Iterator[ListRow]:
    """Yield the newest runs first, at most `limit`; a run whose events cannot be read is left out."""
    for run_id in reversed(state.run_ids()[-limit:]):
        files = files_of(state, run_id)
        row = _quick_row(files)
        if row is not None:
            yield row


def _quick_row(files: RunFiles) -> ListRow | None:
    """Return the row from the first event and the result object if the run is final, else by folding every event."""
    result = files.result()
    if result is not None and result.state in FINAL:
        try:
            with files.events_path.open("rb") as file:
                first = _event.validate_json(file.readline())
        except (FileNotFoundError, ValidationError):
            return None
        update = {"state": result.state, "exit_code": result.exit_code, "cost_usd": result.cost_usd, "branch": result.branch}
        return row_of(fold([first])).model_copy(update={**update, "commit": result.commit})
    try:
        return row_of(files.run())
    except AndonError:
        return None


def _head_and_tail(data: bytes) -> bytes:
    if len(data) <= LOG_BYTES_MAX:
        return data
    half = LOG_BYTES_MAX // 2 - 64
    marker = f"\n... {len(data) - 2 * half} bytes omitted ...\n".encode()
    return data[:half] + marker + data[-half:]
