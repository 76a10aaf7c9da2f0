"""What the report says of packages."""

import pytest

from sandbox.contract.packages import Fetched
from supervisor.api.report import PACKAGES_SHOWN_MAX, markdown
from supervisor.pipeline.events import AttemptEnded
from supervisor.pipeline.fold import fold
from tests.fakes.run_events import happy


def report_of(fetched: Fetched) -> str:
    events = happy()
    first = next(number for number, event in enumerate(events) if isinstance(event, AttemptEnded))
    events[first] = events[first].model_copy(update={"fetched": fetched})
    run = fold(events)
    assert run is not None
    return markdown(run)


def test_what_was_fetched_and_refused_is_said_with_its_rule():
    """A person sees what came in, and what to add to the list."""
    text = report_of(Fetched(requests=3, files=("pip six-1.0.whl",), refused=("pip attrs: rule packages: not on the list",)))

    assert "fetched `pip six-1.0.whl`" in text
    assert "was refused `pip attrs: rule packages: not on the list`" in text


def test_nothing_is_said_where_nothing_was_installed():
    """The usual case."""
    text = report_of(Fetched())

    assert "fetched" not in text
    assert "was refused" not in text


@pytest.mark.parametrize(("count", "says"), [(PACKAGES_SHOWN_MAX, ""), (PACKAGES_SHOWN_MAX + 1, "and 1 more")])
def test_long_lists_are_cut_and_counted(count: int, says: str):
    """At the bound all are there, beyond it the number of the others is."""
    text = report_of(Fetched(files=tuple(f"pip f{number}.zip" for number in range(count))))

    assert says in text
    assert ("more" in text.split("fetched", 1)[1].splitlines()[0]) is bool(says)
