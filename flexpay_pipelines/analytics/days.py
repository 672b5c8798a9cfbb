"""When a day begins: at midnight in the time zone of the connection, which is the reporting time zone.

What belongs here: choosing that time zone, days as instants. What does not: periods (`policy`), any figure. Statements
make a day of an instant by the same time zone (`cast(… AS date)`, `current_setting('TimeZone')`). A connection is
opened in UTC.
"""

from __future__ import annotations

from datetime import date, datetime
from zoneinfo import ZoneInfo

from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import queries


def use_time_zone(connection: Connection, name: str) -> None:
    """Let days begin at midnight in this time zone (IANA name) from now on, for everything computed here."""
    queries("analytics_windows").use_time_zone(connection, time_zone=name)


def time_zone(connection: Connection) -> ZoneInfo:
    """The time zone whose midnights part the days."""
    return ZoneInfo(connection.info.parameter_status("TimeZone") or "UTC")


def midnight(connection: Connection, day: date) -> datetime:
    """The first instant of a day, also where clocks leave its midnight out, or have it twice."""
    return datetime(day.year, day.month, day.day, tzinfo=time_zone(connection))


def day_of(connection: Connection, instant: datetime) -> date:
    """The day that an instant belongs to."""
    return instant.astimezone(time_zone(connection)).date()
