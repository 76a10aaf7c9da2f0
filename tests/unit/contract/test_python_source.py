"""Source nobody trusts, parsed: also by several threads at once, as a supervisor with several runs does."""

import gc
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandbox.contract.python_source import parse

SOURCE = ("def f(x):\n    return [a * (b + c) / d for a in (b + (c * (d + (e - (f))))) for f in g]\n" * 300).encode()


@pytest.fixture
def hurried() -> Iterator[None]:
    """Let threads and the collector of garbage get in between as often as they can."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(5)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)


class _Litter:
    """Garbage in a circle, whose end runs Python code in whatever the collector interrupts."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        sum(range(50))


def _parsed(_number: int) -> int:
    _Litter()
    return len(parse(SOURCE).body)


def test_threads_may_parse_at_the_same_time(hurried: None) -> None:
    """CPython 3.11 fails with a `SystemError` of its own if they do; a run was parked by it."""
    with ThreadPoolExecutor(4) as threads:
        bodies = set(threads.map(_parsed, range(40)))

    assert bodies == {300}
