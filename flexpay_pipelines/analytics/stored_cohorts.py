"""The stored cohorts brought up to date.

What belongs here: which months are computed, and the month that touched customers merely change. What does not:
retention (`figures`).
"""

from __future__ import annotations

from datetime import date
from functools import partial
from typing import TYPE_CHECKING

from flexpay_pipelines.analytics.days import day_of, midnight
from flexpay_pipelines.analytics.figures import build_cohorts
from flexpay_pipelines.analytics.policy import Span, next_month
from flexpay_pipelines.analytics.workspace import Workspace
from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    from flexpay_pipelines.analytics.intervals import Touched
    from flexpay_pipelines.analytics.second_session import SecondSession


def changed_month(work: Workspace, asked: Span, since: date) -> date | None:
    """Note by what touched customers change the cohorts of the newest stored month, in `metric_cohort_changes`.

    Gives the month, for `keep_cohorts`; None where something before it has changed, so that months are counted anew.
    """
    newest: date | None = queries("analytics_cohorts").newest_month(work.connection)
    if newest is None or asked.last.replace(day=1) != newest or min(since, asked.first) < newest:
        return None
    month_end = midnight(work.connection, next_month(newest))
    queries("analytics_cohorts").insert_cohort_changes(
        work.connection, month=newest, month_end=month_end, **work.pauses
    )
    return newest


def keep_cohorts(work: Workspace, second: SecondSession, whole: Span, touched: Touched) -> None:
    """Cohorts of every month from the first computed or touched on, built on the stored month before."""
    named = queries("analytics_cohorts")
    connection = work.connection
    if touched.cohorts is not None:
        named.shift_cohorts(connection, period=touched.cohorts)
        named.drop_empty_cohorts(connection, period=touched.cohorts)
        return
    last = whole.last.replace(day=1)
    if not touched.subscriptions and whole.first >= last and named.newest_month(connection) == last:
        return
    first = whole.first if touched.since is None else min(whole.first, day_of(connection, touched.since))
    first = min(first, last).replace(day=1)
    base = named.cohort_base(connection, before=first)
    # Months between were never stored; what happened in them is counted on the way.
    first = min(named.first_month(connection) or first, last) if base is None else next_month(base)
    step = partial(_build, months=Span("month", first, last), base=base)
    second.start(step)
    step(work)
    second.pour(connection, "metric_cohorts", "metric_cohorts")
    named.keep_cohorts(connection)


def _build(work: Workspace, months: Span, base: date | None) -> None:
    work.clear()
    if base is not None:
        queries("analytics_cohorts").load_cohort_base(work.connection, period=base)
    work.choose_customers(None if base is None else months.since, months.until)
    build_cohorts(work, months, since=months.first)
