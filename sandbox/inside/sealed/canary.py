"""Tests that must fail, added last to every run: a run that calls one anything but failed judges nothing (SANDBOX.md §6.3).

There is one for each directory of tests: a conftest has a say in the tests below it only.

They are left out of pytest's own count and summary, so that exit code and output are those of the repository's tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

NODE_ID = "andon/canary.py::test_that_must_fail"
"""With a number after it; `andon.canary::test_that_must_fail[0]` in a report."""
DIRECTORIES_MAX = 200


class Canary(pytest.Item):
    """One of them."""

    def runtest(self) -> None:
        """Fail."""
        raise AssertionError("this test has to fail")

    def reportinfo(self) -> tuple[str, int, str]:
        """Say where it is."""
        return "andon/canary.py", 0, self.name


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Add the canaries after all others, when whatever deselects tests is done."""
    yield
    if items and not config.option.collectonly:
        one_of_each = {item.path.parent: item.path for item in items}
        for number, path in enumerate(list(one_of_each.values())[:DIRECTORIES_MAX]):
            name = f"test_that_must_fail[{number}]"
            items.append(Canary.from_parent(session, name=name, nodeid=f"{NODE_ID}[{number}]", path=path))


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> Iterator[None]:
    """Keep their failures out of the exit code."""
    yield
    if report.nodeid.startswith(NODE_ID) and report.failed and _session is not None:
        _session.testsfailed -= 1


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: Any) -> tuple[str, str, str] | None:
    """Keep them out of the summary."""
    return ("", "", "") if report.nodeid.startswith(NODE_ID) else None


_session: pytest.Session | None = None


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember whose count it is."""
    global _session
    _session = session
