"""One measured figure beside its goal; not how it is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A figure; smaller is better, unless it is a rate."""

    name: str
    value: float
    limit: float
    unit: str
    note: str = ""
    """What it was measured against, for a reader."""
    is_rate: bool = False
    """Larger is better: the limit is the least that is wanted."""

    @property
    def is_within(self) -> bool:
        """Return whether the goal is reached."""
        return self.value >= self.limit if self.is_rate else self.value <= self.limit

    def line(self) -> str:
        """Return the figure as one line of the table."""
        mark = "ok  " if self.is_within else "OVER"
        goal = f"goal {'≥' if self.is_rate else '≤'} {self.limit:g}"
        return f"{mark}  {self.name:<52} {self.value:>8.3f} {self.unit:<12} {goal}  {self.note}"
