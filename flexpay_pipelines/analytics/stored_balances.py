"""The stored daily balances: rewards liability, deferred and paused revenue.

What belongs here: computing them for a range of days, again for days that late entries touched, and reading them. What
does not: how a balance is computed (`balances`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from flexpay_pipelines.analytics.balances import deferred_rows, liability_rows, paused_rows, rewards_deployed
from flexpay_pipelines.analytics.days import time_zone
from flexpay_pipelines.analytics.policy import MetricPolicy, Span, span
from flexpay_pipelines.analytics.workspace import stored_workspace
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection, advisory_lock
from flexpay_pipelines.sql import queries

# An entry is known when it is written and seen when its transaction ends: looked for that much longer.
LONGEST_TRANSACTION = timedelta(hours=1)
BALANCES = ("rewards-liability", "deferred-revenue", "paused-revenue")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BalanceResult:
    """What was stored: the days asked for, earlier days computed again because of late entries, rows, who may read."""

    days: int
    days_again: int
    rows: int
    rewards: bool
    analysts: str


def refresh_balances(
    connection: Connection,
    *,
    start: date,
    end: date,
    clock: Clock,
    progress: Callable[[str], None] = lambda _: None,
) -> BalanceResult:
    """Store the balances of these days, from the stored intervals; earlier stored days again where entries came late.

    All in one transaction; running it again replaces the days.

    Raises:
        BadInput: the range makes no sense.
        TransientError: another process is at it.
    """
    asked = span("day", start, end)
    named = queries("analytics_balances")
    with advisory_lock(connection, "flexpay analytics balances"), connection.transaction():
        if named.stored_time_zone(connection) not in (None, time_zone(connection).key):
            named.forget_days(connection)
        rewards = rewards_deployed(connection)
        days = Span("day", _from(connection, asked, rewards), asked.last)
        if days.first < asked.first:
            progress(f"Late entries: the balances since {days.first} are computed again.")
        progress("Computing what is deferred and what is paused.")
        with stored_workspace(connection, MetricPolicy()):
            deferred, paused = deferred_rows(connection, days, None), paused_rows(connection, days)
        progress("Computing what customers could spend.")
        computed = {"deferred": deferred, "paused": paused}
        if rewards:  # while they are rolled back, what was stored of them stays
            computed["liability"] = liability_rows(connection, days, None)
        now = clock.now()
        kept = named.keep_days(connection, first=days.first, last=days.last, asked=asked.first, now=now)
        stored = {row["day"].isoformat() for row in named.stored_days(connection, first=days.first, last=days.last)}
        rows = 0
        for table, found in computed.items():
            mine = [row for row in found if row["period"] in stored]
            getattr(named, f"drop_{table}")(connection, first=days.first, last=days.last)
            rows += getattr(named, f"keep_{table}")(connection, rows=json.dumps(mine, default=int), now=now)
        analysts = named.admit_analysts(connection)
    wanted = (asked.last - asked.first).days + 1
    return BalanceResult(wanted, kept - wanted, rows, rewards, analysts)


def _from(connection: Connection, asked: Span, rewards: bool) -> date:
    """The first day to compute: the first one asked for, or an earlier stored one that a late entry lies before."""
    late: date | None = queries("analytics_balances").first_late_day(
        connection, before=asked.first, margin=LONGEST_TRANSACTION
    )
    if rewards:
        credit: date | None = queries("analytics_balances").first_late_credit_day(
            connection, before=asked.first, margin=LONGEST_TRANSACTION
        )
        late = min((day for day in (late, credit) if day is not None), default=None)
    if late is None:
        return asked.first
    stored: date | None = queries("analytics_balances").first_stored_day(connection, since=late)
    return asked.first if stored is None else min(stored, asked.first)


def stored_balances(connection: Connection, *, first: date, last: date) -> dict[str, list[Row]]:
    """The stored rows of these days by dataset (`BALANCES`), with the columns of the data contract."""
    named = queries("analytics_balances")
    return {
        "rewards-liability": list(named.stored_liability(connection, first=first, last=last)),
        "deferred-revenue": list(named.stored_deferred(connection, first=first, last=last)),
        "paused-revenue": list(named.stored_paused(connection, first=first, last=last)),
    }


def balance_breaks(connection: Connection, *, start: date, end: date) -> list[Row]:
    """Stored balances of these days that do not add up, to the minor unit; empty is good.

    Opening + what came - what went = closing; opening = the closing of the day before; ages sum to the closing.
    Columns: `day, balance, currency, problem, expected, found`.

    Raises:
        BadInput: the range makes no sense.
    """
    days = span("day", start, end)
    return list(queries("analytics_balances").balance_breaks(connection, first=days.first, last=days.last))
