"""What a person writes for a moment: a day in the customer's own time zone, or an instant.

What belongs here: turning that into exactly one instant. What does not: payment dates (`billing.payment_at`).

A day begins at midnight on the customer's clock. Where a clock change leaves that midnight out, it begins when the
clock has passed it; where midnight comes twice, at one of the two, always the same. So each day is one instant, later
days never come before earlier ones, and what ends on a day and what begins on it touch without a gap.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import TypeVar

from flexpay_pipelines.clock import parse_instant
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.sql import queries

NOW = "now"
MOST_DAYS = 36_500
# As the data contract has it.
YEARS = range(1900, 3000)
Moment = TypeVar("Moment", date, datetime)
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def instant_of(connection: Connection, given: datetime | str, *, zone: str, now: datetime) -> datetime:
    """The instant meant, UTC.

    Args:
        given: a day such as `2026-03-29`, an ISO-8601 time with offset, `now`, or an instant.
        zone: the customer's time zone, which days are of.

    Raises:
        BadInput: it is none of these.
    """
    if isinstance(given, datetime):
        if given.tzinfo is None:
            raise BadInput(f"'{given.isoformat()}' needs an offset from UTC, such as {given.isoformat()}+00:00.")
        return given.astimezone(UTC)
    if given == NOW:
        return now
    if not _DAY.fullmatch(given):
        return _in_our_time(parse_instant(given))
    try:
        day = _in_our_time(date.fromisoformat(given))
    except ValueError:
        raise BadInput(f"'{given}' is not a day of the calendar.") from None
    found: datetime = queries("billing").start_of_day(connection, day=day, zone=zone)
    return found.astimezone(UTC)


def _in_our_time(moment: Moment) -> Moment:
    if moment.year not in YEARS:
        raise BadInput(f"'{moment.isoformat()}' lies outside the years {YEARS[0]} to {YEARS[-1]}.")
    return moment


def days_after(connection: Connection, instant: datetime, days: int, *, zone: str) -> datetime:
    """The same time of day on the customer's clock, so many days later, UTC.

    Raises:
        BadInput: fewer than one day, or more than a century.
    """
    if not 1 <= days <= MOST_DAYS:
        raise BadInput(f"A number of days lies between 1 and {MOST_DAYS:,}, not {days:,}.")
    found: datetime = queries("billing").days_after(connection, instant=instant, days=days, zone=zone)
    return found.astimezone(UTC)
