"""What is fuzzed: a parser of ours with inputs that are right and a check of what it makes of any; and one input run within bounds."""

import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Never

INPUT_BYTES_MAX = 64 << 10
HANG_CPU_S = 20.0
"""CPU seconds after which one input is given up; seconds of CPU, so that a busy machine finds nothing."""
CORPUS = Path(__file__).parent / "corpus"


class TooSlow(AssertionError):
    """An input took more CPU time than its size can be worth."""


class Hang(BaseException):
    """An input was given up; no `except Exception` of the code under test may swallow it."""


@dataclass(frozen=True)
class Target:
    """One parser of bytes that an agent, a repository or the network supplies."""

    name: str
    check: Callable[[bytes], None]
    """Returns for an input that is taken, or refused as the parser's docstring says; raises what is a find."""
    seeds: Callable[[], list[bytes]]
    """Inputs the parser takes, made by our own code where it makes such."""
    words: tuple[bytes, ...] = ()
    """What the format is made of, for mutations."""
    cpu_s_max: float = 2.0
    """For one input of at most 64 KiB."""
    hang_cpu_s: float = HANG_CPU_S

    def kept(self) -> list[bytes]:
        """Return the inputs of the corpus: earlier finds, and those that reached lines no other reached."""
        return [path.read_bytes() for path in sorted((CORPUS / self.name).glob("*"))]

    def run(self, data: bytes) -> None:
        """Run one input.

        Raises:
            TooSlow: It took more than `cpu_s_max` seconds of CPU.
            Hang: It did not end at all.
        """
        began = _cpu_s()
        with _given_up_after(self.hang_cpu_s):
            self.check(data)
        took_s = _cpu_s() - began
        if took_s > self.cpu_s_max:
            raise TooSlow(f"{took_s:.1f} s of CPU for {len(data)} bytes; at most {self.cpu_s_max}")


def _cpu_s() -> float:
    """Return the CPU seconds of this thread and of children that have ended: git works for us."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + children.ru_utime + children.ru_stime


@contextmanager
def _given_up_after(cpu_s: float) -> Iterator[None]:
    def give_up(_number: int, _frame: FrameType | None) -> Never:
        raise Hang(f"more than {cpu_s:.0f} s of CPU")

    before = signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
