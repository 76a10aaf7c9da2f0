"""What an executor's host is and what a job asks of it: labels, and whether they match; pure. Not pools, which are trust boundaries.

A label is what a host says of itself, so matching chooses among the executors of a pool and protects nothing.
"""

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, StringConstraints

LABELS_MAX = 32

LabelName = Annotated[str, StringConstraints(pattern=r"^[a-z](?:[a-z0-9._-]{0,38}[a-z0-9])?$")]
LabelValue = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9<>=][A-Za-z0-9._+:=-]{0,62}$")]
Labels = Annotated[dict[LabelName, LabelValue], Field(max_length=LABELS_MAX)]

_BOUND = re.compile(r"(>=|<=)([0-9]{1,15}(?:\.[0-9]{1,6})?)")
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,6})?")


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
