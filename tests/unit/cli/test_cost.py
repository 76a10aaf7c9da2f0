"""`andon cost`: from the event files of real runs."""

from decimal import Decimal
from typing import Any

import pytest

from supervisor.api.run_files import files_of
from supervisor.pipeline.events import AnyEvent, BudgetSettled
from supervisor.store.history.projection import Projection
from supervisor.store.log.event_log import Head
from tests.fakes.command_line import CommandLine
from tests.fakes.run_events import AT, RUN, Story, happy, rework

OTHER = "01jd8m6zzz"
DAY_S = 86_400


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def keep(andon: CommandLine, log: list[AnyEvent], run: str = RUN) -> list[AnyEvent]:
    """Let a run's log be on this host and in its history."""
    files_of(andon.state, run).append(log)
    with Projection.at(andon.state.history) as projection:
        after = projection.prepare(Head("log", 10_000), 0)
        projection.apply([event.model_copy(update={"seq": after + place}) for place, event in enumerate(log, start=1)], after, "log")
    return log


def spent(log: list[AnyEvent]) -> int:
    """Return the sum of the gateway's records."""
    return sum(event.nano_usd for event in log if isinstance(event, BudgetSettled))


def two_models(run: str = OTHER) -> Story:
    """Return a run of two models, a second of whose calls lost its usage, an odd nano-dollar each."""
    story = Story(run=run, at=AT + DAY_S).accepted().dispatched("spec").started("spec")
    story.paid("spec", 7, tokens=10, model="claude-haiku-5-5").paid(
        "spec", 1_000_000_001, tokens=20, model="claude-opus-5-5", unsettled=True
    )
    return story.paid("spec", 3, tokens=30, model="claude-haiku-5-5")


def test_a_run_is_summed_by_stage_dearest_first(andon: CommandLine) -> None:
    """A rework's calls count to the stage; the last line is the whole."""
    log = keep(andon, rework())

    ended = andon("cost", RUN[:6])

    lines = [line.split() for line in ended.out.splitlines()]
    assert ended.code == 0
    assert lines[0] == ["stage", "calls", "tokens", "cost"]
    assert [line[0] for line in lines[1:]] == ["implement", "test", "interface", "spec", "total"]
    assert lines[1] == ["implement", "2", "23,100", "$0.4000"]
    assert lines[-1][-1] == f"${spent(log) / 1e9:.4f}"


def test_every_figure_is_the_sum_of_the_records_to_the_nano_dollar(andon: CommandLine) -> None:
    """Decimal text, not a float; a repeated record counts once, as in the ledger."""
    story = two_models()
    log = keep(andon, story.log, OTHER)
    files_of(andon.state, OTHER).append([log[-1].model_copy(update={"seq": log[-1].seq + 1})])

    told: dict[str, Any] = andon("cost", OTHER, "--by", "model", "--json").json

    assert [(row["name"], row["calls"], row["nano_usd"]) for row in told["rows"]] == [
        ("claude-opus-5-5", 1, 1_000_000_001),
        ("claude-haiku-5-5", 2, 10),
    ]
    assert told["total"]["nano_usd"] == spent(log) == 1_000_000_011
    assert Decimal(told["total"]["cost_usd"]) * 10**9 == 1_000_000_011
    assert told["total"]["unsettled_calls"] == 1


def test_all_runs_are_summed_by_feature_or_day(andon: CommandLine) -> None:
    """Days are local ones, in their order; `--since` is about the call, not the run."""
    both = spent(keep(andon, happy())) + spent(keep(andon, two_models().log, OTHER))

    features: dict[str, Any] = andon("cost", "--json").json
    days: dict[str, Any] = andon("cost", "--by", "day", "--json").json
    late: dict[str, Any] = andon("cost", "--by", "day", "--since", "2025-01-02", "--json").json

    assert [(row["name"], row["nano_usd"]) for row in features["rows"]] == [("add-rate-limiting", both)]
    assert [row["name"] for row in days["rows"]] == ["2025-01-01", "2025-01-02"]
    assert days["total"]["nano_usd"] == both
    assert [row["name"] for row in late["rows"]] == ["2025-01-02"]


def test_what_was_charged_in_full_is_said(andon: CommandLine) -> None:
    """A person has to know that the provider's own figure may be lower."""
    keep(andon, two_models().log, OTHER)

    assert andon("cost", OTHER).out.splitlines()[-1] == "1 call charged in full: the usage was lost"


def test_nothing_paid_is_one_line(andon: CommandLine) -> None:
    """Also on a host without any run; an unknown run is exit 2."""
    none = andon("cost")

    assert (none.code, none.out, none.err.strip()) == (0, "", "no model call was paid for")
    assert andon("cost", "zzzz").code == 2
