"""A test that must fail, added last to every run: a run that calls it anything but failed judges nothing (SANDBOX.md §6.3).

It is left out of pytest's own count and summary, so that exit code and output are those of the repository's tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

NODE_ID = "andon/canary.py::test_that_must_fail"
"""`andon.canary::test_that_must_fail` in a report."""


class Canary(pytest.Item):
    """The test itself."""

    def runtest(self) -> None:
        """Fail."""
        raise AssertionError("this test has to fail")

    def reportinfo(self) -> tuple[str, int, str]:
        """Say where it is."""
        return "andon/canary.py", 0, self.name


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Add the canary after all others, when whatever deselects tests is done."""
    yield
    if items and not config.option.collectonly:
        items.append(Canary.from_parent(session, name="test_that_must_fail", nodeid=NODE_ID))


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> Iterator[None]:
    """Keep its failure out of the exit code."""
    yield
    if report.nodeid == NODE_ID and report.failed and _session is not None:
        _session.testsfailed -= 1


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: Any) -> tuple[str, str, str] | None:
    """Keep it out of the summary."""
    return ("", "", "") if report.nodeid == NODE_ID else None


_session: pytest.Session | None = None


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember whose count it is."""
    global _session
    _session = session
