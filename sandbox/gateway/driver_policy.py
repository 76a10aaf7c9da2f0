"""What the program of one driver may send beyond our own agent, a file for each; not how a request is judged (`policy`).

The vocabulary is closed: a file can only switch on what the code here knows and bounds.
"""

import re
import tomllib
from functools import cache
from importlib.resources import files
from typing import Literal

from pydantic import Field, field_validator

from sandbox.contract.agent_spec import DriverKind
from sandbox.contract.model import Frozen


class DriverPolicy(Frozen):
    """The permissions of one driver; the default is our own agent's: none."""

    targets: tuple[Literal["?beta=true"], ...] = ()
    """Queries with which it asks the model routes; they are not sent on."""
    betas: frozenset[str] = frozenset()
    """Values of `anthropic-beta` that may go out."""
    fields: frozenset[Literal["metadata"]] = frozenset()
    """Keys of a request it may send besides."""
    whole_replies: bool = False
    """It may ask without `stream`."""
    volatile: tuple[str, ...] = Field((), max_length=16)
    """Patterns in system, tools and assistant turns that differ between equal runs: not compared in a replay."""

    @field_validator("volatile")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no pattern: {error}") from error
        return patterns


@cache
def driver_policy(kind: DriverKind) -> DriverPolicy:
    """Return the permissions of a driver, as its file has them."""
    text = files("sandbox.gateway").joinpath("policies", f"{kind}.toml").read_text(encoding="utf-8")
    return DriverPolicy.model_validate(tomllib.loads(text))
