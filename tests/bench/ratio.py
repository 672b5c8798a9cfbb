"""What a measurement is: ours, the floor, and how many times the floor we may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """Ours and the floor, in seconds unless `unit` says otherwise, measured in one run."""

    what: str
    ours: float
    floor_is: str
    floor: float
    limit: float
    unit: str = "s"

    @property
    def times(self) -> float:
        """How many times the floor."""
        return self.ours / self.floor

    @property
    def holds(self) -> bool:
        """Whether the promise is kept."""
        return self.times <= self.limit
