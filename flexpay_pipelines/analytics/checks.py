"""What must hold of the stored figures, as functions that give the rows for which it does not.

What belongs here: reconciliation of intervals and figures. What does not: blocking or alerting on it.
"""

from __future__ import annotations

from datetime import date
from typing import Any

from flexpay_pipelines.analytics.policy import span
from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import queries

# Enough to see what is wrong; a fault in every row of a large company would fill the memory and no reader.
NAMED = 50


def identity_breaks(connection: Connection, *, start: date, end: date) -> list[dict[str, Any]]:
    """Stored figures of these days that do not add up, to the minor unit; empty is good.

    End = start + movements in every segment; start = the end of the day before; segments sum to the total and transfers
    to 0; the customers' movements sum to the total.
    The first `NAMED`. Columns: `day, problem, segment_kind, segment, currency, figure, expected, found`
    (annualised minor units), `total` (of all).

    Raises:
        BadInput: the range makes no sense.
    """
    days = span("day", start, end)
    return list(queries("analytics_checks").identity_breaks(connection, first=days.first, last=days.last, named=NAMED))


def interval_breaks(connection: Connection) -> list[dict[str, Any]]:
    """Stored intervals with a gap, an overlap, a missing subscription, or a last state unlike the subscription's.

    The first `NAMED`. Columns: `subscription_id, customer_id` (the outside world's), `event_id, problem, detail,
    total` (of all). Subscriptions with
    events newer than the last refresh are not compared; `freshness` counts those events.
    """
    return list(queries("analytics_checks").interval_breaks(connection, named=NAMED))


def freshness(connection: Connection) -> dict[str, Any]:
    """`newest_day, computed_at, restated_days, unseen_events` (events that no refresh has seen yet)."""
    found: dict[str, Any] = queries("analytics_checks").freshness(connection)
    return found
