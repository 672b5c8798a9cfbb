"""Payment health: how many attempts succeed, by what, and how soon failed ones are won back.

What belongs here: attempts and dunning episodes as rows. What does not: run rate (`figures`), money that is owed
(`balances`). Counts of a month are the sums of its days.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from flexpay_pipelines.analytics.days import midnight
from flexpay_pipelines.analytics.policy import Grain, choice, span
from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import queries

ATTEMPT_SEGMENTS = ("payment_frequency", "plan", "attempt", "failure_class")
EPISODE_SEGMENTS = ("payment_frequency", "plan", "failure_class")
# Longer than any schedule of retries (Stripe's longest is two months of 30 days): what is paid later was not won back.
PATIENCE_DAYS = 60

Row = dict[str, Any]


def payments_health(
    connection: Connection,
    *,
    start: date,
    end: date,
    grain: Grain,
    by: str = "payment_frequency",
    known_at: datetime | None = None,
) -> list[Row]:
    """Attempts by period and segment: succeeded, failed by class, and recovered (won by a second or later attempt).

    `period`, the segment under the name of `by` (one of `ATTEMPT_SEGMENTS`), `attempts, succeeded, failed,
    success_rate`, the failures by class, `recovered`.

    Raises:
        BadInput: the range, the grain or the segment makes no sense.
    """
    choice("segment of payments", by, ATTEMPT_SEGMENTS)
    periods = span(grain, start, end)
    rows = queries("analytics_payments").payment_health_rows(
        connection,
        grain=grain,
        by=by,
        since=midnight(connection, periods.since),
        until=midnight(connection, periods.until),
        known_at=known_at,
    )
    return [_named(row, by) for row in rows]


def dunning(
    connection: Connection,
    *,
    start: date,
    end: date,
    grain: Grain,
    by: str = "payment_frequency",
    known_at: datetime | None = None,
) -> list[Row]:
    """Dunning episodes by the period in which they began: `episodes, recovered, recovery_rate, median_days, p90_days`.

    An episode of a subscription begins with a failed attempt after a success, or after 60 days without any attempt; it
    is recovered by the attempt that succeeds next, if no such silence lies between. `median_days` and `p90_days`: the
    time within which half and nine tenths of the recoveries came, from failure to success, in days of 24 hours. `by`:
    one of `EPISODE_SEGMENTS`, as of the first failure.

    Raises:
        BadInput: the range, the grain or the segment makes no sense.
    """
    choice("segment of dunning", by, EPISODE_SEGMENTS)
    periods = span(grain, start, end)
    rows = queries("analytics_payments").dunning_rows(
        connection,
        grain=grain,
        by=by,
        since=midnight(connection, periods.since),
        until=midnight(connection, periods.until),
        known_at=known_at,
        patience_days=PATIENCE_DAYS,
    )
    return [_named(row, by) for row in rows]


def recovery(connection: Connection, *, start: date, end: date) -> Row | None:
    """All episodes that began on these days as one row of `dunning`; None where there is none.

    Raises:
        BadInput: the range makes no sense.
    """
    days = span("day", start, end)
    found = list(
        queries("analytics_payments").dunning_rows(
            connection,
            grain="all",
            by="total",
            since=midnight(connection, days.since),
            until=midnight(connection, days.until),
            known_at=None,
            patience_days=PATIENCE_DAYS,
        )
    )
    return found[0] if found else None


def _named(row: Row, by: str) -> Row:
    return {(by if name == "segment" else name): value for name, value in row.items()}
