"""What an executor tells of the spans of a run that is not sampled: durations and causes for metrics; no ids, no times, no trace."""

from typing import Final

from pydantic import Field

from sandbox.contract.model import Frozen

FIGURES_MAX: Final = 1_000
"""In one message, which then stays below 1 MiB."""
FIGURE_CHARS_MAX: Final = 80
"""Of a name and of a value, as in a metric's label."""
FIGURE_ATTRIBUTES: Final = (
    "error.type",
    "gen_ai.request.model",
    "gen_ai.response.time_to_first_chunk",
    "process.exit.code",
    "andon.container.oom_killed",
    "andon.gateway.verdict",
)
"""All that `supervisor.api.metrics` reads of a span besides its name and duration."""


class Figure(Frozen):
    """One span without its place in a trace."""

    name: str = Field(max_length=FIGURE_CHARS_MAX)
    seconds: float = Field(ge=0)
    attributes: dict[str, str | bool | int | float] = Field(default_factory=dict, max_length=len(FIGURE_ATTRIBUTES))


class Figures(Frozen):
    """One message: JSON on `andon.tel.<executor>`, where the spans of other runs are gzip."""

    figures: tuple[Figure, ...] = Field(max_length=FIGURES_MAX)
