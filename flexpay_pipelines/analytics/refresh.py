"""The stored figures brought up to date: intervals of touched subscriptions, then the days asked for and those touched.

What belongs here: what is recomputed and kept. What does not: how a figure is computed (`workspace`, the SQL).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from flexpay_pipelines.analytics.figures import build_cohorts
from flexpay_pipelines.analytics.policy import (
    DEFINITION,
    ROLLING_DAYS,
    STRIPE_DEFINITION,
    MetricPolicy,
    Span,
    next_month,
    span,
)
from flexpay_pipelines.analytics.workspace import STORED_KINDS, Workspace, lead_in, stored_workspace
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection, advisory_lock
from flexpay_pipelines.sql import queries

LOCK = "flexpay analytics refresh"


@dataclass(frozen=True, slots=True)
class RefreshResult:
    """What a refresh did: days computed (of these `restated` changed after they were first stored), rows, seconds."""

    days: int
    movements: int
    seconds: float
    restated: int = 0
    subscriptions: int = 0


def silent(_: str) -> None:
    """Tell nobody."""


def refresh(
    connection: Connection,
    *,
    start: date,
    end: date,
    clock: Clock,
    policy: MetricPolicy | None = None,
    progress: Callable[[str], None] = silent,
) -> RefreshResult:
    """Compute and store the days from start to end, both included, and restate stored days that late events touched.

    One transaction: readers see all of it or nothing. Running it again changes no figure. Under another policy or
    definition than before, what was stored is forgotten.

    Raises:
        BadInput: the range makes no sense.
        TransientError: another refresh is running on this database.
    """
    asked = span("day", start, end)
    policy = policy or MetricPolicy()
    began = time.monotonic()
    with advisory_lock(connection, LOCK), stored_workspace(connection, policy) as work:
        _forget_other_policies(connection, policy)
        touched = _bring_intervals_up_to_date(connection, progress)
        wanted = _days(connection, asked, touched.since)
        whole = Span("day", wanted[0], wanted[-1])
        progress(f"Computing {len(wanted)} days, {whole.first} to {whole.last}.")
        _compute(connection, work, whole)
        movements, changed = _keep(connection, wanted)
        progress("Computing rates.")
        _keep_rates(connection, work, wanted, whole)
        progress("Computing cohorts.")
        _keep_cohorts(connection, work, whole, touched.since)
        restated = [day for day in changed if _is_stored(connection, day)]
        queries("analytics_refresh").keep_snapshots(
            connection,
            days=wanted,
            restated=restated,
            definition=DEFINITION,
            paused=policy.paused,
            paused_churn_days=policy.paused_churn_days,
            reporting_currency=policy.reporting_currency,
            now=clock.now(),
            event_high_water=touched.event_high_water,
        )
    seconds = time.monotonic() - began
    progress(f"Stored {len(wanted)} days in {seconds:.1f} s; {len(restated)} of them were restated.")
    return RefreshResult(len(wanted), movements, seconds, len(restated), touched.subscriptions)


@dataclass(frozen=True, slots=True)
class _Touched:
    subscriptions: int
    since: datetime | None
    event_high_water: int


def _forget_other_policies(connection: Connection, policy: MetricPolicy) -> None:
    named = queries("analytics_refresh")
    stored = named.stored_policy(connection)
    wanted = {
        "definition": DEFINITION,
        "paused": policy.paused,
        "paused_churn_days": policy.paused_churn_days,
        "reporting_currency": policy.reporting_currency,
    }
    if stored is not None and stored != wanted:
        for table in ("mrr_movements", "mrr_summary", "churn", "cohorts"):
            _empty(connection, table)
        named.forget_days(connection)


def _empty(connection: Connection, table: str) -> None:
    from psycopg import sql  # noqa: PLC0415 - the code location loads without it

    # DELETE, not TRUNCATE: a reader with an older snapshot still sees the old figures.
    connection.execute(sql.SQL("DELETE FROM analytics.{}").format(sql.Identifier(table)))


def _bring_intervals_up_to_date(connection: Connection, progress: Callable[[str], None]) -> _Touched:
    named = queries("analytics_intervals")
    extent = named.ledger_extent(connection)
    known = named.interval_progress(connection)
    if known is None or known["events"] != known["events_now"]:
        named.touch_every_subscription(connection)
    else:
        named.touch_new_events(connection, event_high_water=known["event_high_water"])
    named.touch_moved_customers(connection)
    connection.execute("ANALYZE pg_temp.metric_subscriptions")
    subscriptions = connection.execute("SELECT count(*) AS n FROM metric_subscriptions").fetchone()
    count = subscriptions["n"] if subscriptions else 0
    progress(f"Replaying the history of {count} subscriptions that have new events.")
    since = named.touched_from(connection)
    if count:
        named.forget_touched_intervals(connection)
        named.insert_intervals(connection)
    if known is None:
        connection.execute("ANALYZE analytics.run_rate_intervals")
    named.keep_progress(connection, event_high_water=extent["event_high_water"], events=extent["events"])
    return _Touched(count, since, extent["event_high_water"])


def _days(connection: Connection, asked: Span, touched_since: datetime | None) -> list[date]:
    """The days asked for, and the stored ones from the first touched on."""
    days = {asked.first + timedelta(days=n) for n in range((asked.last - asked.first).days + 1)}
    if touched_since is not None:
        first = touched_since.astimezone(UTC).date()
        days |= {row["day"] for row in queries("analytics_refresh").stored_from(connection, day=first)}
    return sorted(days)


def _compute(connection: Connection, work: Workspace, whole: Span) -> None:
    """Movements and summaries of all days, and of the 30 before them, which the rates look back on."""
    covered = lead_in(whole, ROLLING_DAYS)
    work.choose_customers(covered.since, covered.until)
    work.class_changes("day", covered.until)
    work.movements()
    before = covered.first - timedelta(days=1)
    # A stored day that lies before all that was touched still stands; anything else is counted from the intervals.
    work.summarise(covered, STORED_KINDS, before if _is_stored(connection, before) else None)


def _is_stored(connection: Connection, day: date) -> bool:
    return bool(queries("analytics_refresh").is_stored(connection, day=day))


def _keep(connection: Connection, days: list[date]) -> tuple[int, set[date]]:
    """Write what differs; gives the number of movements written and the days that had other figures before."""
    named = queries("analytics_refresh")
    changed = {row["day"] for row in named.drop_stale_movements(connection, days=days)}
    changed |= {row["day"] for row in named.drop_stale_summary(connection, days=days)}
    movements: int = named.keep_movements(connection, days=days)
    changed |= {row["day"] for row in named.keep_summary(connection, days=days)}
    return movements, changed


def _keep_rates(connection: Connection, work: Workspace, days: list[date], whole: Span) -> None:
    named = queries("analytics_rates")
    work.windows(whole, days=ROLLING_DAYS)
    work.window_changes(ROLLING_DAYS)
    work.reporting_rates(work.policy.reporting_currency)
    if work.missing_rate(rolling=True) is not None:
        connection.execute("TRUNCATE pg_temp.metric_rates")
        if len(work.currencies()) == 1:
            work.native_rates()
        else:
            work.unknown_rates()
    named.insert_rate_rows(connection, definition=DEFINITION)
    named.insert_stripe_rate_rows(connection, definition=STRIPE_DEFINITION)
    queries("analytics_refresh").drop_rates(connection, days=days)
    named.keep_rates(connection, days=days)


def _keep_cohorts(connection: Connection, work: Workspace, whole: Span, touched_since: datetime | None) -> None:
    """Cohorts of every month from the first computed or touched on, built on the stored month before."""
    named = queries("analytics_cohorts")
    work.clear()
    last = whole.last.replace(day=1)
    first = whole.first if touched_since is None else min(whole.first, touched_since.astimezone(UTC).date())
    first = min(first, last).replace(day=1)
    base = named.cohort_base(connection, before=first)
    if base is None:
        first = min(queries("analytics_cohorts").first_month(connection) or first, last)
    else:
        # Months between were never stored; what happened in them is counted on the way.
        first = next_month(base)
        named.load_cohort_base(connection, period=base)
    months = Span("month", first, last)
    work.choose_customers(months.since if base is not None else None, months.until)
    build_cohorts(work, months, since=first)
    named.keep_cohorts(connection)
