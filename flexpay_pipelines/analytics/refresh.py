"""The stored figures brought up to date: intervals of touched subscriptions, then the days asked for and those touched.

What belongs here: what is recomputed and kept. What does not: how a figure is computed (`workspace`, the SQL).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from flexpay_pipelines.analytics.bulk import first_rows_of
from flexpay_pipelines.analytics.days import day_of, time_zone
from flexpay_pipelines.analytics.intervals import bring_intervals_up_to_date
from flexpay_pipelines.analytics.policy import DEFINITION, ROLLING_DAYS, STRIPE_DEFINITION, MetricPolicy, Span, span
from flexpay_pipelines.analytics.restatements import keep_earlier, record_restatement, remember_ledger
from flexpay_pipelines.analytics.stored_cohorts import keep_cohorts
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
        ledger = remember_ledger(connection)
        touched = bring_intervals_up_to_date(work, asked, progress)
        wanted = _days(connection, asked, touched.since)
        whole = Span("day", wanted[0], wanted[-1])
        progress(f"Computing {len(wanted)} days, {whole.first} to {whole.last}.")
        base = _compute(connection, work, whole)
        keep_earlier(connection, ledger, wanted)
        movements, changed = _keep(connection, wanted)
        progress("Computing rates.")
        _keep_rates(connection, work, wanted, base)
        progress("Computing cohorts.")
        keep_cohorts(work, whole, touched)
        restated = [day for day in changed if _is_stored(connection, day)]
        record_restatement(connection, ledger, restated, clock.now())
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


def _forget_other_policies(connection: Connection, policy: MetricPolicy) -> None:
    named = queries("analytics_refresh")
    stored = named.stored_policy(connection)
    wanted = {
        "definition": DEFINITION,
        "paused": policy.paused,
        "paused_churn_days": policy.paused_churn_days,
        "reporting_currency": policy.reporting_currency,
    }
    zone = queries("analytics_windows").stored_time_zone(connection)
    if stored is not None and (stored != wanted or zone != time_zone(connection).key):
        for table in ("mrr_movements", "mrr_summary", "churn", "churn_amounts", "cohorts"):
            _empty(connection, table)
        named.forget_days(connection)


def _empty(connection: Connection, table: str) -> None:
    from psycopg import sql  # noqa: PLC0415 - the code location loads without it

    # DELETE, not TRUNCATE: a reader with an older snapshot still sees the old figures.
    connection.execute(sql.SQL("DELETE FROM analytics.{}").format(sql.Identifier(table)))


def _days(connection: Connection, asked: Span, touched_since: datetime | None) -> list[date]:
    """The days asked for, and the stored ones from the first touched on."""
    days = {asked.first + timedelta(days=n) for n in range((asked.last - asked.first).days + 1)}
    if touched_since is not None:
        first = day_of(connection, touched_since)
        days |= {row["day"] for row in queries("analytics_refresh").stored_from(connection, day=first)}
    return sorted(days)


def _compute(connection: Connection, work: Workspace, whole: Span) -> date | None:
    """Movements and summaries of all days, and what the rates need of the 30 before them.

    Gives the day before, where rates are stored that those of these days can be built on.
    """
    before = whole.first - timedelta(days=1)
    earlier = lead_in(whole, ROLLING_DAYS)
    # Stored days before all that was touched still stand; anything else is counted from the intervals.
    if queries("analytics_refresh").rates_base(connection, day=before, days=ROLLING_DAYS):
        # A day that windows leave behind is looked at like one that they take in.
        left = Span("day", earlier.first, whole.last - timedelta(days=ROLLING_DAYS))
        work.choose_customers(left.since, left.until)
        work.choose_customers(whole.since, whole.until)
        work.class_changes("day", whole.until)
        work.summarise(whole, STORED_KINDS, before)
        queries("analytics_refresh").load_totals(connection, first=earlier.first, last=before)
        return before
    first = queries("analytics_intervals").first_instant(connection)
    work.choose_customers(
        None if first is None or earlier.since <= day_of(connection, first) else earlier.since, earlier.until
    )
    work.class_changes("day", earlier.until)
    stored = earlier.first - timedelta(days=1)
    work.summarise(earlier, STORED_KINDS, stored if _is_stored(connection, stored) else None)
    return None


def _is_stored(connection: Connection, day: date) -> bool:
    return bool(queries("analytics_refresh").is_stored(connection, day=day))


def _keep(connection: Connection, days: list[date]) -> tuple[int, set[date]]:
    """Write what differs; gives the number of movements written and the days that had other figures before."""
    named = queries("analytics_refresh")
    with first_rows_of(connection, "analytics.mrr_movements") as first:
        if first:
            changed: set[date] = set()
            movements: int = named.first_movements(connection, days=days)
        else:
            named.insert_movements(connection, days=days)
            changed = {row["day"] for row in named.drop_stale_movements(connection, days=days)}
            movements = named.keep_movements(connection, days=days)
    changed |= {row["day"] for row in named.drop_stale_summary(connection, days=days)}
    changed |= {row["day"] for row in named.keep_summary(connection, days=days)}
    return movements, changed


def _keep_rates(connection: Connection, work: Workspace, days: list[date], base: date | None) -> None:
    named = queries("analytics_rates")
    work.windows(Span("day", days[0], days[-1]), days=ROLLING_DAYS)
    work.window_changes(ROLLING_DAYS, base)
    work.reporting_rates(work.policy.reporting_currency)
    currencies = work.currencies()
    if work.missing_rate(rolling=True) is not None:
        connection.execute("TRUNCATE pg_temp.metric_rates")
        if len(currencies) == 1:
            work.native_rates()
        else:
            work.unknown_rates()
    named.insert_rate_rows(connection, definition=DEFINITION)
    named.insert_stripe_rate_rows(connection, definition=STRIPE_DEFINITION)
    queries("analytics_refresh").drop_rates(connection, days=days)
    queries("analytics_refresh").drop_amounts(connection, days=days)
    named.keep_rates(connection, days=days)
    named.keep_amounts(connection, days=days, currencies=currencies)
