"""The clock that is passed in wherever time matters, so that any hour can be run again or in advance.

What belongs here: where "now" comes from. What does not: calendars and payment dates (`billing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from flexpay_pipelines.errors import BadInput


class Clock(Protocol):
    """Anything that knows what time it is, in UTC."""

    def now(self) -> datetime:
        """The present instant, timezone-aware, UTC."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)


@dataclass
class FixedClock:
    """A clock that stands still until it is told to move."""

    instant: datetime

    def now(self) -> datetime:
        return self.instant

    def advance(self, by: timedelta) -> None:
        self.instant += by


def parse_instant(text: str) -> datetime:
    """An ISO-8601 time with offset, as UTC.

    Raises:
        BadInput: not ISO-8601, or without an offset.
    """
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(f"'{text}' is not an ISO-8601 time such as 2026-01-31T09:00:00+00:00.") from None
    if instant.tzinfo is None:
        raise BadInput(f"'{text}' has no offset from UTC: write it as {instant.isoformat()}+00:00.")
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise BadInput(f"'{text}' lies outside the years 1 to 9999 in UTC.") from None
