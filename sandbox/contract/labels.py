"""What an executor's host is and what a job asks of it: labels, and whether they match; pure. Not pools, which are trust boundaries.

A label is what a host says of itself, so matching chooses among the executors of a pool and protects nothing.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import Field, StringConstraints

LABELS_MAX = 32
RESERVED = ("runtime.", "strict.")
"""How names begin that executors give themselves, and jobs by their runtime: nobody chooses them."""
RUNTIME_DEFAULT = "runc"
_YES = "yes"

LabelName = Annotated[str, StringConstraints(pattern=r"^[a-z](?:[a-z0-9._-]{0,38}[a-z0-9])?$")]
LabelValue = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9<>=][A-Za-z0-9._+:=-]{0,62}$")]
Labels = Annotated[dict[LabelName, LabelValue], Field(max_length=LABELS_MAX)]

_BOUND = re.compile(r"(>=|<=)([0-9]{1,15}(?:\.[0-9]{1,6})?)")
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,6})?")


def of_runtime(name: str) -> str:
    """Return the label of an executor whose engine has a runtime; none is needed for the default one."""
    return f"runtime.{name}"


def of_strict(name: str) -> str:
    """Return the label of an executor that gives a runtime's sandboxes every protection, as far as it knows."""
    return f"strict.{name}"


def needed(runtime: str, *, strict: bool) -> dict[str, str]:
    """Return the labels a job asks for by its runtime and its strictness."""
    labels = {} if runtime == RUNTIME_DEFAULT else {of_runtime(runtime): _YES}
    return {**labels, of_strict(runtime): _YES} if strict else labels


def offered(runtimes: Iterable[str], whole: Iterable[str]) -> dict[str, str]:
    """Return the labels of an executor with these runtimes, `whole` those of them that lack nothing."""
    return {of_runtime(name): _YES for name in runtimes if name != RUNTIME_DEFAULT} | {of_strict(name): _YES for name in whole}


def unmatched(wanted: Mapping[str, str], offered: Mapping[str, str]) -> list[str]:
    """Return the labels of `wanted` that `offered` does not match, as `name=value` or `name>=value`, sorted.

    A wanted value is equal to the offered one, or a bound, `>=16` or `<=16`, that the offered number is within.
    """
    return sorted(_told(name, value) for name, value in wanted.items() if not _matches(value, offered.get(name)))


def _matches(wanted: str, offered: str | None) -> bool:
    if offered is None:
        return False
    bound = _BOUND.fullmatch(wanted)
    if bound is None:
        return wanted == offered
    if not _NUMBER.fullmatch(offered):
        return False
    return float(offered) >= float(bound[2]) if bound[1] == ">=" else float(offered) <= float(bound[2])


def _told(name: str, value: str) -> str:
    return f"{name}{value}" if _BOUND.fullmatch(value) else f"{name}={value}"
