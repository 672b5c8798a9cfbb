"""Figures for any range, grain and moment of knowledge, computed from the ledger.

What belongs here: movements, summaries, rates, cohorts as rows. What does not: files (`export`), the stored daily
tables (`refresh`), payments (`payment_figures`), balances. Rows are dicts with the columns of the data contract;
periods are written `2026-01-31` or `2026-01`; amounts are annualised minor units as Decimal, whole numbers in native
currency.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

from flexpay_pipelines.analytics.policy import (
    DEFINITION,
    ROLLING_DAYS,
    STRIPE_DEFINITION,
    Grain,
    MetricPolicy,
    Span,
    check_currency,
    choice,
    span,
)
from flexpay_pipelines.analytics.workspace import Workspace, lead_in, ledger_workspace, no_rate
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.sql import queries

SEGMENTS = ("customer", "plan", "payment_frequency", "country", "currency")

Row = dict[str, Any]


def movements(
    connection: Connection,
    *,
    start: date,
    end: date,
    grain: Grain,
    known_at: datetime | None = None,
    reporting_currency: str | None = None,
    policy: MetricPolicy | None = None,
) -> list[Row]:
    """Why run rate changed: `period, customer_id, currency, movement, annualised_minor, mrr`, a row for each movement.

    Movements are new, reactivation, expansion, contraction, churn (also of 0), paused, resumed; in a reporting currency
    also fx. `customer_id` is the outside world's (customer_ref); `mrr` = annualised / 12, four decimals, half up.

    Raises:
        BadInput: the range or the grain makes no sense, or an exchange rate is missing.
    """
    return list(
        iterate_movements(
            connection, span(grain, start, end), known_at=known_at, reporting_currency=reporting_currency, policy=policy
        )
    )


def iterate_movements(
    connection: Connection,
    periods: Span,
    *,
    known_at: datetime | None,
    reporting_currency: str | None,
    policy: MetricPolicy | None,
) -> Iterator[Row]:
    """`movements`, streamed: the transaction stays open until the last row is taken."""
    with ledger_workspace(connection, policy or MetricPolicy(), known_at) as work:
        # The effect of rates falls on customers of whom nothing else changes.
        work.choose_customers(periods.since if reporting_currency is None else None, periods.until)
        work.class_changes(periods.grain, periods.until)
        work.movements()
        work.windows(periods)
        if reporting_currency is not None:
            work.summarise(periods, ("total",))
        _show_in(work, reporting_currency)
        yield from _stream(work, queries("analytics_movements").movement_rows)


def summary(
    connection: Connection,
    *,
    start: date,
    end: date,
    grain: Grain,
    by: str | None = None,
    known_at: datetime | None = None,
    reporting_currency: str | None = None,
    policy: MetricPolicy | None = None,
) -> list[Row]:
    """Start, movements and end by segment: `period, segment, currency, start, …, end, customers, …`.

    `by`: None for the total, or one of `SEGMENTS`. A segment in which nothing stands or moves has no row.

    Raises:
        BadInput: the range, the grain or the segment makes no sense, or an exchange rate is missing.
    """
    return list(
        iterate_summary(
            connection,
            span(grain, start, end),
            by=by,
            known_at=known_at,
            reporting_currency=reporting_currency,
            policy=policy,
        )
    )


def iterate_summary(
    connection: Connection,
    periods: Span,
    *,
    by: str | None,
    known_at: datetime | None,
    reporting_currency: str | None,
    policy: MetricPolicy | None,
) -> Iterator[Row]:
    """`summary`, streamed."""
    kind = by or "total"
    if by is not None:
        choice("segment", by, SEGMENTS)
    with ledger_workspace(connection, policy or MetricPolicy(), known_at) as work:
        work.choose_customers(periods.since, periods.until)
        work.class_changes(periods.grain, periods.until)
        work.summarise(periods, tuple({kind, "total"}))
        work.windows(periods)
        _show_in(work, reporting_currency)
        yield from _stream(work, queries("analytics_summary").summary_rows, kind=kind)


def churn(
    connection: Connection,
    *,
    start: date,
    end: date,
    grain: Grain,
    known_at: datetime | None = None,
    reporting_currency: str | None = None,
    policy: MetricPolicy | None = None,
) -> list[Row]:
    """Rates over the 30 days that end with each day, or over each calendar month; Stripe's definition beside ours.

    Raises:
        BadInput: the range or the grain makes no sense, an exchange rate is missing, or customers pay in several
            currencies and none to report in was chosen.
    """
    periods = span(grain, start, end)
    with ledger_workspace(connection, policy or MetricPolicy(), known_at) as work:
        currencies = work.currencies()
        if reporting_currency is None and len(currencies) > 1:
            raise BadInput(
                f"Customers pay in {', '.join(currencies)}: choose one to report churn in, such as --currency EUR."
            )
        days = ROLLING_DAYS if grain == "day" else 1
        _compare(work, periods, days=days)
        _show_in(work, reporting_currency, rolling=grain == "day")
        named = queries("analytics_rates")
        named.insert_rate_rows(connection, definition=DEFINITION)
        if grain == "month":
            work.clear()
            _compare(work, periods, days=ROLLING_DAYS, month_ends=True)
        named.insert_stripe_rate_rows(connection, definition=STRIPE_DEFINITION)
        return list(named.rate_rows(connection))


def _compare(work: Workspace, periods: Span, *, days: int, month_ends: bool = False) -> None:
    inner = Span("day", periods.first, periods.last_day) if month_ends else periods
    covered = lead_in(inner, days)
    work.choose_customers(covered.since, covered.until)
    work.class_changes(covered.grain, covered.until)
    work.summarise(covered, ("total",))
    work.windows(periods, days=days, month_ends=month_ends)
    work.window_steps(days)
    work.window_changes(days)


def cohorts(
    connection: Connection,
    *,
    start: date,
    end: date,
    known_at: datetime | None = None,
    reporting_currency: str | None = None,
    policy: MetricPolicy | None = None,
) -> list[Row]:
    """Retention by month: of those new in month `cohort`, what is left at the end of month `period`.

    `cohort, period, months, currency, customers_start, customers, paying_customers, customer_retention, start, end,
    run_rate_retention`; amounts of all periods at the rates of the cohort month.

    Raises:
        BadInput: the range makes no sense, or an exchange rate is missing.
    """
    periods = span("month", start, end)
    with ledger_workspace(connection, policy or MetricPolicy(), known_at) as work:
        first = queries("analytics_cohorts").first_month(connection)
        if first is None or first > periods.last:
            return []
        work.choose_customers(None, periods.until)
        build_cohorts(work, periods, since=first)
        work.windows(Span("month", first, periods.last))
        if reporting_currency is None:
            work.native_rates()
        else:
            check_currency(reporting_currency)
            work.reporting_rates(reporting_currency)
            missing = queries("analytics_cohorts").missing_cohort_rate(connection)
            if missing is not None:
                raise no_rate(missing["currency"], missing["day"], reporting_currency)
        return list(queries("analytics_cohorts").cohort_rows(connection))


def build_cohorts(work: Workspace, periods: Span, since: date) -> None:
    """Fill metric_cohorts for the months of `periods`, from the chosen customers' changes since the month `since`.

    What stood before `since` is in metric_cohort_base; customers that have not changed since need not be chosen.
    """
    work.class_changes("month", periods.until)
    queries("analytics_windows").insert_periods(work.connection, grain="month", first=periods.first, last=periods.last)
    queries("analytics_cohorts").insert_cohorts(work.connection, first=since, last=periods.last)


def _show_in(work: Workspace, reporting_currency: str | None, *, rolling: bool = False) -> None:
    if reporting_currency is None:
        work.native_rates()
        return
    check_currency(reporting_currency)
    work.reporting_rates(reporting_currency)
    missing = work.missing_rate(rolling=rolling)
    if missing is not None:
        raise no_rate(*missing, reporting_currency)


def _stream(work: Workspace, statement: Any, **parameters: object) -> Iterator[Row]:
    with work.connection.cursor("metric_rows") as cursor:
        cursor.itersize = 5_000
        cursor.execute(statement.sql, parameters)
        yield from cursor
