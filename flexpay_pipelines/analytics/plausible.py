"""Whether figures agree with what they were made of, as functions that give the rows for which they do not.

What belongs here: months against days, intervals against events, payments against run rate, freshness. What does not:
sums of stored figures (`checks`), blocking on them. Every function names customers and events: at most `NAMED` rows,
each with the `total` of all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal

from flexpay_pipelines.analytics.checks import NAMED
from flexpay_pipelines.analytics.days import day_of, midnight
from flexpay_pipelines.analytics.policy import MetricPolicy, Span
from flexpay_pipelines.analytics.stored import require_stored
from flexpay_pipelines.analytics.workspace import STORED_KINDS, stored_workspace
from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import queries

MONTHS = 3
GRACE_DAYS = 21
# A payment for more than a year at the present price was taken in another unit, or from somebody else.
MOST_YEARS_PAID = 3
TOLERATED_SHARE = 0.01
TOLERATED_ROWS = 3

Row = dict[str, Any]


def month_breaks(connection: Connection, *, last: date, months: int = MONTHS) -> list[Row]:
    """Of the newest whole months up to `last`: what does not add up, or does not end as the stored last day does.

    End = start + movements in every segment; segments sum to the total; run rate and counts at the end of the month are
    those of its last day. (Movements of a month are not the sums of its days: docs/metrics.md.) Columns: `period,
    problem, segment_kind, segment, currency, figure, expected, found`.

    Raises:
        BadInput: `last` is not stored.
    """
    snapshot = require_stored(connection, last)
    whole = queries("analytics_plausible").whole_months(
        connection, first=last - timedelta(days=31 * (months + 1)), last=last
    )
    wanted = [row["month"] for row in whole][:months]
    if not wanted:
        return []
    paused: Literal["excluded", "included"] = snapshot["paused"]
    policy = MetricPolicy(paused, snapshot["paused_churn_days"], snapshot["reporting_currency"])
    found: list[Row] = []
    with stored_workspace(connection, policy) as work:
        for month in wanted:
            period = Span("month", month, month)
            work.choose_customers(period.since, period.until)
            work.class_changes("month", period.until)
            work.summarise(period, STORED_KINDS)
            found += queries("analytics_plausible").month_breaks(connection)
            work.clear()
    return found


def event_breaks(connection: Connection) -> list[Row]:
    """Events up to the last refresh that no interval shows, that open two, and intervals that no event opens.

    Columns: `subscription_id, customer_id` (the outside world's), `event_id, occurred_at, problem, detail, total`.
    """
    return list(queries("analytics_plausible").event_breaks(connection, named=NAMED))


def payment_breaks(connection: Connection, *, day: date) -> list[Row]:
    """Subscriptions whose payments and run rate contradict each other at the end of a day.

    Counted and active for a whole period and three weeks, with payments known, and not paid; paid three weeks after the
    end; or paid more at once than three years cost. Columns: `subscription_id, customer_id, event_id, problem, detail,
    total, compared`.
    """
    return list(
        queries("analytics_plausible").payment_breaks(
            connection,
            until=midnight(connection, day + timedelta(days=1)),
            grace_days=GRACE_DAYS,
            factor=MOST_YEARS_PAID,
            named=NAMED,
        )
    )


def plausible(breaks: list[Row]) -> bool:
    """Whether so few contradictions are what any business has: 1 % of the subscriptions compared, or three."""
    if not breaks:
        return True
    return bool(breaks[0]["total"] <= max(TOLERATED_ROWS, TOLERATED_SHARE * breaks[0]["compared"]))


def events_behind(connection: Connection, days: Iterable[date]) -> list[Row]:
    """Customers and events of these days: `customer_id, subscription_id, event_id, event, occurred_at, …, total`."""
    return list(queries("analytics_plausible").events_behind(connection, days=sorted(set(days)), named=NAMED))


@dataclass(frozen=True, slots=True)
class Freshness:
    """How current the figures are. Overlooked: known an hour before the last refresh, and not in it."""

    newest_day: date | None
    computed_at: datetime | None
    unseen_events: int
    overlooked_events: int
    days_behind: int | None


def how_fresh(connection: Connection, *, now: datetime) -> Freshness:
    """How current the stored figures are at `now`; `days_behind` counts days that have ended and are not stored."""
    state: Row | None = queries("analytics_plausible").ledger_state(connection)
    if state is None or state["newest_day"] is None:
        return Freshness(None, None, 0, 0, None)
    behind = max((day_of(connection, now) - state["newest_day"]).days - 1, 0)
    return Freshness(
        state["newest_day"], state["computed_at"], state["unseen_events"], state["overlooked_events"], behind
    )
