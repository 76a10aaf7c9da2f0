"""What a person or a program is shown of a fleet: one row an executor, from life signs and from who is admitted; no file, no socket."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pydantic import Field

from sandbox.contract.model import Frozen
from sandbox.contract.wire import PROTOCOL_VERSION, Heartbeat
from supervisor.api.views import iso

ExecutorStanding = Literal["ready", "full", "held", "refused", "absent"]
"""ready: takes jobs. full: every slot is busy. held: takes none, `held` says why. refused: it speaks another protocol. absent: away."""


class ExecutorRow(Frozen):
    """One executor as a program reads it; the keys are a promise."""

    executor: str
    standing: ExecutorStanding
    pools: tuple[str, ...]
    labels: dict[str, str]
    slots: int | None
    """None while it is absent, as everything else that only a life sign says."""
    busy: int | None
    release: str | None
    protocol: int | None
    seen_at: str | None
    """When its last life sign was written, by the broker's clock; UTC, ISO 8601."""
    age_s: float | None
    host: str | None
    model: Literal["live", "none"] | None
    """Whether it has a key of the provider."""
    held: str
    missing: tuple[str, ...]
    """Protections its host cannot give."""


class Admitted(Frozen):
    """Who may join, as the broker's directory says."""

    name: str
    pools: tuple[str, ...]
    labels: dict[str, str] = Field(default_factory=dict)


def executor_rows(beats: Iterable[Heartbeat], admitted: Sequence[Admitted], now: float) -> list[ExecutorRow]:
    """Return the connected executors and the admitted ones that are not, by name.

    Args:
        beats: The life signs that have not expired.
        admitted: Who may join; empty if the broker's directory is not at hand.
        now: Unix seconds, for the ages.
    """
    rows = {beat.executor: _connected(beat, now) for beat in beats}
    absent = {each.name: _absent(each) for each in admitted if each.name not in rows}
    return [row for _, row in sorted({**rows, **absent}.items())]


def label_words(labels: Mapping[str, str]) -> str:
    """Return labels on one line, as they are given to `--label`."""
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))


def _connected(beat: Heartbeat, now: float) -> ExecutorRow:
    return ExecutorRow(
        executor=beat.executor,
        standing=_standing(beat),
        pools=beat.pools,
        labels=beat.labels,
        slots=beat.slots,
        busy=beat.busy,
        release=beat.release,
        protocol=beat.version,
        seen_at=iso(beat.seen_at) if beat.seen_at else None,
        age_s=round(max(0.0, now - beat.seen_at), 1) if beat.seen_at else None,
        host=beat.host,
        model=beat.model,
        held=beat.held,
        missing=beat.missing,
    )


def _standing(beat: Heartbeat) -> ExecutorStanding:
    if beat.version != PROTOCOL_VERSION:
        return "refused"
    if beat.held:
        return "held"
    return "full" if beat.busy >= beat.slots else "ready"


def _absent(each: Admitted) -> ExecutorRow:
    return ExecutorRow(
        executor=each.name,
        standing="absent",
        pools=each.pools,
        labels=each.labels,
        slots=None,
        busy=None,
        release=None,
        protocol=None,
        seen_at=None,
        age_s=None,
        host=None,
        model=None,
        held="",
        missing=(),
    )
