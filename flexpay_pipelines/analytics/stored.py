"""The stored daily figures as rows of the data contract, and the headline figures of a day.

What belongs here: reading what a refresh stored. What does not: computing it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from flexpay_pipelines.analytics.days import midnight
from flexpay_pipelines.analytics.policy import DEFINITION, MetricPolicy, Span
from flexpay_pipelines.analytics.workspace import STORED_KINDS, Workspace, stored_workspace
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.money import mrr
from flexpay_pipelines.sql import queries

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredFigures:
    """Rows of a range of stored days. `shown`: the currency that they were converted to; None: each in its own."""

    first: date
    last: date
    shown: str | None
    total: list[Row]
    native_total: list[Row]
    by_kind: dict[str, list[Row]]
    churn: list[Row]
    cohorts: list[Row]


def require_stored(connection: Connection, day: date) -> Row:
    """How the figures of `day` were computed.

    Raises:
        BadInput: they are not stored.
    """
    snapshot: Row | None = queries("analytics_report").stored_snapshot(connection, day=day)
    if snapshot is None:
        raise BadInput(f"No figures are stored for {day}: run the analytics for that day first.")
    return snapshot


def read_stored(connection: Connection, *, first: date, last: date, reporting_currency: str) -> StoredFigures:
    """Everything stored for these days, converted where all rates are known; with one currency only, native.

    Where rates are missing and there are several currencies, `shown` is None and `total` has a row for each currency.
    """
    named = queries("analytics_report")
    days = Span("day", first, last)
    with stored_workspace(connection, MetricPolicy()) as work:
        summaries = queries("analytics_summary")
        summaries.load_stored(connection, first=first, last=last, kinds=list(STORED_KINDS))
        work.windows(days)
        shown = _choose_currency(work, reporting_currency)
        with _rates(work, shown):
            total = list(summaries.summary_rows(connection, kind="total"))
            kinds = ("plan", "payment_frequency", "country")
            by_kind = {kind: list(summaries.summary_rows(connection, kind=kind)) for kind in kinds}
        with _rates(work, None):
            native_total = list(summaries.summary_rows(connection, kind="total"))
        churn = list(named.stored_churn_rows(connection, first=first, last=last))
        cohorts = _cohorts(connection, work, last, shown)
    return StoredFigures(first, last, shown, total, native_total, by_kind, churn, cohorts)


def _choose_currency(work: Workspace, reporting_currency: str) -> str | None:
    with _rates(work, reporting_currency):
        complete = work.missing_rate() is None
    if complete:
        return reporting_currency
    currencies = work.currencies()
    # One currency needs no rates: native figures are its own.
    return currencies[0] if len(currencies) == 1 else None


@contextmanager
def _rates(work: Workspace, currency: str | None) -> Iterator[None]:
    if currency is None or work.currencies() == [currency]:
        work.native_rates()
    else:
        work.reporting_rates(currency)
    yield
    work.connection.execute("TRUNCATE pg_temp.metric_rates")


def _cohorts(connection: Connection, work: Workspace, last: date, shown: str | None) -> list[Row]:
    first = queries("analytics_report").first_cohort(connection)
    if first is None:
        return []
    connection.execute("TRUNCATE pg_temp.metric_windows")
    queries("analytics_report").load_cohorts(connection, first=first, last=last)
    work.windows(Span("month", first, last.replace(day=1)))
    with _rates(work, shown):
        complete = queries("analytics_cohorts").missing_cohort_rate(connection) is None
        if complete:
            return list(queries("analytics_cohorts").cohort_rows(connection))
    with _rates(work, None):
        return list(queries("analytics_cohorts").cohort_rows(connection))


def key_figures(connection: Connection, *, day: date, reporting_currency: str) -> dict[str, Any]:
    """The headline of a stored day, ready for a summary or asset metadata.

    Keys: `day, definition, mrr` (currency -> Decimal minor units a month), `reporting_currency, reporting_mrr` (None
    where a rate is missing), `customers, paying_customers, subscriptions, paused_subscriptions, high_risk` (None where
    the day is not scored), and over 30 days, None where a denominator is 0: `churn_rate, gross_mrr_churn,
    net_mrr_churn, nrr, grr, quick_ratio, pause_rate` (float), `arpa, ltv` (Decimal minor units).

    Raises:
        BadInput: the day is not stored.
    """
    require_stored(connection, day)
    figures = read_stored(connection, first=day, last=day, reporting_currency=reporting_currency)
    rates = next((row for row in figures.churn if row["definition"] == DEFINITION), {})
    risk = queries("analytics_risk").score_counts(connection, day=day)
    counts = ("customers", "paying_customers", "subscriptions", "paused_subscriptions")
    shares = ("gross_mrr_churn", "net_mrr_churn", "nrr", "grr", "quick_ratio", "pause_rate")
    return {
        "day": day.isoformat(),
        "definition": DEFINITION,
        "mrr": {row["currency"]: mrr(int(row["end"])) for row in figures.native_total},
        "reporting_currency": reporting_currency,
        "reporting_mrr": _reporting_mrr(figures, reporting_currency),
        **{name: sum(row[name] for row in figures.native_total) for name in counts},
        "churn_rate": _float(rates.get("customer_churn_rate")),
        **{name: _float(rates.get(name)) for name in shares},
        "arpa": rates.get("arpa"),
        "ltv": rates.get("ltv"),
        "high_risk": risk["high"] if risk["scored"] else None,
    }


def _reporting_mrr(figures: StoredFigures, currency: str) -> Any:
    if figures.shown != currency:
        return None
    return sum((round(row["end"] / 12, 4) for row in figures.total), start=0)


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def risk_rows(connection: Connection, *, day: date, named: int, masked: bool = True) -> list[Row]:
    """The highest scores of a day, the address masked unless it is asked for."""
    at = midnight(connection, day + timedelta(days=1))
    return list(queries("analytics_risk").risk_rows(connection, day=day, at=at, masked=masked, named=named))
