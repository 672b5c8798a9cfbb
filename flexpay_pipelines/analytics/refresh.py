"""The stored figures brought up to date: intervals of touched subscriptions, then the days asked for and those touched.

What belongs here: what is recomputed and kept. What does not: how a figure is computed (`workspace`, the SQL).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any

from flexpay_pipelines.analytics.bulk import first_rows_of
from flexpay_pipelines.analytics.days import day_of, time_zone
from flexpay_pipelines.analytics.intervals import bring_intervals_up_to_date
from flexpay_pipelines.analytics.policy import DEFINITION, ROLLING_DAYS, STRIPE_DEFINITION, MetricPolicy, Span, span
from flexpay_pipelines.analytics.restatements import keep_earlier, record_restatement, remember_moves
from flexpay_pipelines.analytics.second_session import SecondSession, shared_out
from flexpay_pipelines.analytics.stored_cohorts import keep_cohorts
from flexpay_pipelines.analytics.workspace import STORED_KINDS, Workspace, lead_in, stored_workspace
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection, advisory_lock, in_transaction
from flexpay_pipelines.sql import queries

LOCK = "flexpay analytics refresh"


@dataclass(frozen=True, slots=True)
class RefreshResult:
    """What a refresh did: days computed, movements, seconds, stored days that are otherwise since, subscriptions."""

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
    ours = not in_transaction(connection)
    with (
        advisory_lock(connection, LOCK),
        stored_workspace(connection, policy) as whole_work,
        shared_out(whole_work, possible=ours) as (work, second),
    ):
        _forget_other_policies(connection, policy)
        remember_moves(connection)
        rates = list(queries("analytics_knowledge").unvalued_rates(connection))

        def compute(days: list[date]) -> date | None:
            progress(f"Computing {len(days)} days, {days[0]} to {days[-1]}.")
            return _sum_customers(work, Span("day", days[0], days[-1]))

        # Where there is a second session, nothing is stored: the days asked for are all.
        second.stage(partial(_stage_movements, whole=asked))
        second.start(partial(_sum_segments, whole=asked, base=None))
        touched = bring_intervals_up_to_date(work, asked, progress, second, partial(compute, asked.days))
        wanted = _days(connection, asked, touched.since)
        whole = Span("day", wanted[0], wanted[-1])
        base = compute(wanted) if second.there is None else None
        again = keep_earlier(connection, wanted, anew=touched.anew)
        movements, changed = _keep(work, second, whole, wanted, base, again=again)
        progress("Computing rates.")
        _compare_windows(work, second, whole, base)
        _keep_rates(connection, work, wanted)
        _keep_steps(work, whole, wanted, base)
        progress("Computing cohorts.")
        keep_cohorts(work, second, whole, touched)
        restated = [day for day in changed if _is_stored(connection, day)]
        revalued = _revalue(work, wanted, rates, clock.now())
        record_restatement(connection, restated, revalued, clock.now(), anew=touched.anew)
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
    progress(f"Stored {len(wanted)} days in {seconds:.1f} s; {len(restated) + len(revalued)} were restated.")
    return RefreshResult(len(wanted), movements, seconds, len(restated) + len(revalued), touched.subscriptions)


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
        for table in ("mrr_movements", "mrr_summary", "churn", "churn_amounts", "churn_steps", "cohorts"):
            _empty(connection, table)
        named.forget_days(connection)


def _empty(connection: Connection, table: str) -> None:
    from psycopg import sql  # noqa: PLC0415 - the code location loads without it

    # DELETE, not TRUNCATE: a reader with an older snapshot still sees the old figures.
    connection.execute(sql.SQL("DELETE FROM analytics.{}").format(sql.Identifier(table)))


def _days(connection: Connection, asked: Span, touched_since: datetime | None) -> list[date]:
    """The days asked for, and the stored ones from the first touched on."""
    days = set(asked.days)
    if touched_since is not None:
        first = day_of(connection, touched_since)
        days |= {row["day"] for row in queries("analytics_refresh").stored_from(connection, day=first)}
    return sorted(days)


def _sum_customers(work: Workspace, whole: Span) -> date | None:
    """What adds up over customers, by segment: the changes of all days, and what rates need of the 30 before.

    Gives the day before, where rates are stored that those of these days can be built on.
    """
    base = _class_changes(work, whole)
    _sum_segments(work, whole, base)
    return base


def _class_changes(work: Workspace, whole: Span) -> date | None:
    connection = work.connection
    before = whole.first - timedelta(days=1)
    earlier = lead_in(whole, ROLLING_DAYS)
    # Stored days before all that was touched still stand; anything else is counted from the intervals.
    if queries("analytics_refresh").rates_base(connection, day=before, days=ROLLING_DAYS):
        work.choose_customers(whole.since, whole.until)
        work.class_changes("day", whole.until, back_to=earlier.first)
        return before
    first = queries("analytics_intervals").first_instant(connection)
    everybody = first is None or earlier.since <= day_of(connection, first)
    work.choose_customers(None if everybody else earlier.since, earlier.until)
    work.class_changes("day", earlier.until)
    return None


def _sum_segments(work: Workspace, whole: Span, base: date | None) -> None:
    if base is not None:
        work.sum_changes(whole, STORED_KINDS, base)
        return
    earlier = lead_in(whole, ROLLING_DAYS)
    stored = earlier.first - timedelta(days=1)
    work.sum_changes(earlier, STORED_KINDS, stored if _is_stored(work.connection, stored) else None)


def _stage_movements(work: Workspace, whole: Span) -> None:
    """The changes of the second session's customers, and the movements that they are."""
    _class_changes(work, whole)
    queries("analytics_second_session").stage_movements(work.connection, days=whole.days)


def _compare_windows(work: Workspace, second: SecondSession, whole: Span, base: date | None) -> None:
    step = partial(Workspace.window_steps, days=ROLLING_DAYS, base=base)
    second.start(step)
    step(work)
    second.pour(work.connection, "metric_window_steps", "metric_window_steps")
    work.windows(whole, days=ROLLING_DAYS)
    work.window_changes(ROLLING_DAYS, base)


def _is_stored(connection: Connection, day: date) -> bool:
    return bool(queries("analytics_refresh").is_stored(connection, day=day))


def _keep(
    work: Workspace, second: SecondSession, whole: Span, days: list[date], base: date | None, *, again: bool
) -> tuple[int, set[date]]:
    """Write what differs; gives the number of movements written and the days that had other figures before.

    `again`: some of these days are stored already. Where there is a second session, none are.
    """
    connection = work.connection
    named = queries("analytics_refresh")
    changed: set[date] = set()
    if again:
        named.insert_movements(connection, days=days)
        changed |= {row["day"] for row in named.drop_stale_movements(connection, days=days)}
        movements: int = named.keep_movements(connection, days=days)
    else:
        with first_rows_of(connection, "analytics.mrr_movements"):
            movements = named.first_movements(connection, days=days)
            if second.there is not None:
                movements += queries("analytics_second_session").store_movements(connection)
    for relation in ("metric_segment_changes", "metric_baseline"):
        second.pour(connection, relation, relation)
    work.add_up()
    if base is not None:
        earlier = lead_in(whole, ROLLING_DAYS)
        queries("analytics_summary").load_stored(connection, first=earlier.first, last=base, kinds=["total"])
    changed |= {row["day"] for row in named.drop_stale_summary(connection, days=days)}
    changed |= {row["day"] for row in named.keep_summary(connection, days=days)}
    return movements, changed


def _keep_rates(connection: Connection, work: Workspace, days: list[date]) -> None:
    named = queries("analytics_rates")
    _value(work)
    named.insert_stripe_rate_rows(connection, definition=STRIPE_DEFINITION)
    queries("analytics_refresh").drop_rates(connection, days=days)
    queries("analytics_refresh").drop_amounts(connection, days=days)
    named.keep_rates(connection, days=days)
    named.keep_amounts(connection, days=days, currencies=work.currencies())


def _keep_steps(work: Workspace, whole: Span, days: list[date], base: date | None) -> None:
    """Keep by what the windows to come differ; without a base that is known of the stored days before, too."""
    connection = work.connection
    known = set(days)
    if base is None:
        earlier = lead_in(whole, ROLLING_DAYS)
        stored = queries("analytics_refresh").stored_from(connection, day=earlier.first)
        known |= {row["day"] for row in stored if row["day"] <= whole.last}
    queries("analytics_refresh").drop_steps(connection, days=list(known))
    queries("analytics_rates").keep_steps(connection, days=list(known), currencies=work.currencies())


def _value(work: Workspace) -> None:
    """The rates of the windows, at the exchange rates that are known; a window whose amounts are in one needs none."""
    work.reporting_rates(work.policy.reporting_currency)
    work.settle_unknown_rates()
    queries("analytics_rates").insert_rate_rows(work.connection, definition=DEFINITION)


def _revalue(work: Workspace, computed: list[date], changed: list[dict[str, Any]], now: datetime) -> list[date]:
    """Value the other stored days anew from their amounts; gives those that these changed exchange rates make others.

    A day whose window begins before the first stored day keeps its rates: where that window stood is not stored.
    """
    named, rates, connection = queries("analytics_refresh"), queries("analytics_rates"), work.connection
    if not changed:
        return []
    queries("analytics_knowledge").note_valued(
        connection, rates=[row["known_rate_id"] for row in changed], ended=[row["known_until"] for row in changed]
    )
    if work.currencies() == [work.policy.reporting_currency]:
        return []
    first = min(row["date"] for row in changed)
    days: list[date] | None = named.days_to_value(connection, first=first, computed=computed, span=ROLLING_DAYS)
    if not days:
        return []
    work.clear()
    connection.execute("TRUNCATE pg_temp.metric_rate_rows")
    whole = Span("day", days[0], days[-1])
    queries("analytics_summary").load_stored(
        connection, first=lead_in(whole, ROLLING_DAYS).first, last=whole.last, kinds=["total"]
    )
    rates.load_amounts(connection, days=days)
    work.windows(whole, days=ROLLING_DAYS)
    _value(work)
    revalued = [row["day"] for row in rates.keep_values(connection, days=days)]
    named.mark_restated(connection, days=revalued, now=now)
    return revalued
