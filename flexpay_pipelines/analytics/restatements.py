"""What a refresh changed in days that were stored already, and why: kept, and read for people.

What belongs here: the record of restatements. What does not: which days are computed again (`refresh`), what a figure
is (`workspace`). Figures of a day change only by events that occurred on it or before and were not known when it was
stored, or because a customer's country is another one; its rates in one currency by exchange rates, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from flexpay_pipelines.analytics.checks import NAMED
from flexpay_pipelines.analytics.policy import Span
from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import queries

NEWEST = 5

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Restatement:
    """What one refresh restated: its days and what was new, and as tables totals before and after, and the causes.

    `events` is None where the whole ledger was read anew. `totals`: `day, currency, end_before, end_after` (annualised
    minor units; None: the end is what it was), `changes` (of the other figures, in words), `total`. `causes`: `cause,
    customer_id, subscription_id, event_id, event, occurred_at, recorded_at, total`. Both name the first `NAMED`.
    """

    restated_at: datetime
    days: int
    first_day: date
    last_day: date
    events: int | None
    moved_customers: int
    first_events: str | None
    totals: list[Row]
    causes: list[Row]


def remember_moves(connection: Connection) -> None:
    """Keep who has moved to another country before a refresh takes note of it; within its transaction."""
    queries("analytics_restatements").remember_moves(connection)


def keep_earlier(connection: Connection, days: Collection[date], *, anew: bool) -> bool:
    """Keep the stored figures of these days while they are written again, and what was new; False where none are.

    `anew`: the whole ledger was read, and no event of it is named. To be called when the intervals are up to date and
    before the figures are.
    """
    named = queries("analytics_restatements")
    stored = [row["day"] for row in named.stored_among(connection, days=list(days))]
    named.create_causes(connection)
    if not stored:
        return False
    if not anew:
        named.insert_new_events(connection, last=stored[-1])
        named.insert_moves(connection)
    named.keep_earlier_summary(connection, days=stored)
    named.keep_earlier_movements(connection, days=stored)
    return True


def record_restatement(
    connection: Connection, days: Collection[date], revalued: Collection[date], now: datetime, *, anew: bool
) -> None:
    """Keep what `days` were before and why they are otherwise; nothing where there are none.

    `revalued`: days of which only rates are otherwise, because exchange rates are.
    """
    named = queries("analytics_restatements")
    if days or revalued:
        named.drop_later_causes(connection, last=max(days, default=date.min))
        restatement = named.insert_restatement(connection, restated_at=now, days=sorted({*days, *revalued}), anew=anew)
        named.insert_restatement_causes(connection, restatement_id=restatement)
        if days:
            named.insert_restated_figures(connection, restatement_id=restatement, days=sorted(days))
    named.forget_earlier(connection)


def iterate_restatements(connection: Connection, days: Span, *, known_at: datetime | None) -> Iterator[Row]:
    """Every figure of these days that a restatement changed, streamed, in the columns of the data contract.

    `segment_kind` customer: a movement of one customer, `segment` is his `customer_id`. `events`: how many that were
    new belong to the day or an earlier one (None: the whole ledger was read anew); `first_events`: up to twenty ids.
    """
    with connection.transaction(), connection.cursor("metric_rows") as cursor:
        cursor.itersize = 5_000
        cursor.execute(
            queries("analytics_restatements").restatement_rows.sql,
            {"first": days.first, "last": days.last, "known_at": known_at},
        )
        yield from cursor


def restatements(connection: Connection, *, first: date, last: date, newest: int = NEWEST) -> list[Restatement]:
    """The newest refreshes that restated any of these days, the newest first."""
    named = queries("analytics_restatements")
    return [
        Restatement(
            row["restated_at"],
            row["days"],
            row["first_day"],
            row["last_day"],
            row["events"],
            row["moved_customers"],
            row["first_events"],
            list(named.restated_totals(connection, restatement_id=row["restatement_id"], named=NAMED)),
            list(named.restatement_causes(connection, restatement_id=row["restatement_id"], named=NAMED)),
        )
        for row in named.restatements(connection, first=first, last=last, newest=newest)
    ]
