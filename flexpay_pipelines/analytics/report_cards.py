"""The figures of the daily report as series of days, and the headline cards made of them.

What belongs here: values, changes against yesterday and 30 days ago, their wording. What does not: charts and tables
(`report_page`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from flexpay_pipelines.analytics import plots
from flexpay_pipelines.analytics.policy import DEFINITION, ROLLING_DAYS
from flexpay_pipelines.analytics.stored import StoredFigures
from flexpay_pipelines.money import minor_digits


@dataclass(frozen=True, slots=True)
class Card:
    """One headline figure with its change against yesterday and 30 days ago (good: whether the change is welcome)."""

    name: str
    value: str
    hint: str
    yesterday: str
    month: str
    yesterday_good: bool | None
    month_good: bool | None
    spark: str


@dataclass(frozen=True, slots=True)
class Headline:
    """What a card is about. kind: money (annualised), arpa (minor units a month), int, share or ratio."""

    name: str
    hint: str
    kind: str
    rising_is_good: bool


class Series:
    """The days of the report in one currency; a day without a row is a day on which nothing stood."""

    def __init__(self, day: date, figures: StoredFigures, currency: str) -> None:
        self.day, self.figures, self.currency = day, figures, currency
        self.days = [figures.first + timedelta(days=n) for n in range((day - figures.first).days + 1)]
        self.rows = {row["period"]: row for row in figures.total if row["currency"] == currency}
        self.rates = {row["period"]: row for row in figures.churn if row["definition"] == DEFINITION}

    def total(self, name: str, at: date) -> Any:
        return self.rows.get(at.isoformat(), {}).get(name, 0)

    def rate(self, name: str, at: date) -> Any:
        return self.rates.get(at.isoformat(), {}).get(name)

    def month_to_date(self, name: str) -> Decimal:
        return Decimal(sum(self.total(name, each) for each in self.days if self._this_month(each)))

    def month_start(self) -> date:
        return next(each for each in self.days if self._this_month(each))

    def _this_month(self, each: date) -> bool:
        return (each.year, each.month) == (self.day.year, self.day.month)

    def money(self, annualised: Any, *, sign: bool = False) -> str:
        return money(Decimal(annualised) / 12, self.currency, sign=sign)

    def units(self, annualised: Any) -> float:
        """Whole units of the currency a month, for drawing."""
        return float((Decimal(annualised) / 12).scaleb(-minor_digits(self.currency)))


def money(minor: Decimal, currency: str, *, sign: bool = False) -> str:
    """Minor units as whole units: a headline has no use for cents."""
    whole = minor.scaleb(-minor_digits(currency)).quantize(Decimal(1), rounding=ROUND_HALF_UP)
    return f"{whole:{'+' if sign and whole else ''},}".replace("-", "\N{MINUS SIGN}") if whole else "0"


def percent(value: Any, *, sign: bool = False) -> str:
    """A share as a percentage with one decimal."""
    if value is None:
        return "n/a"
    return f"{value * 100:{'+' if sign else ''}.1f} %".replace("-", "\N{MINUS SIGN}")


def cards(series: Series) -> list[Card]:
    """The headline figures of the day."""
    share = "share"
    return [
        _card(
            series,
            Headline("MRR", "monthly recurring revenue", "money", True),
            lambda d: series.total("end", d),
        ),
        _card(
            series,
            Headline("Customers", "with counted or paused run rate", "int", True),
            lambda d: series.total("customers", d),
        ),
        _card(
            series,
            Headline("Customer churn", "of customers, 30 days", share, False),
            lambda d: series.rate("customer_churn_rate", d),
        ),
        _card(series, Headline("Net retention", "of MRR, 30 days", share, True), lambda d: series.rate("nrr", d)),
        _card(
            series,
            Headline("Quick ratio", "gained / lost, 30 days", "ratio", True),
            lambda d: series.rate("quick_ratio", d),
        ),
        _card(series, Headline("ARPA", "a month, per paying customer", "arpa", True), lambda d: series.rate("arpa", d)),
        _card(
            series, Headline("Paused", "subscriptions", "int", False), lambda d: series.total("paused_subscriptions", d)
        ),
        _card(
            series,
            Headline("Gross MRR churn", "of MRR, 30 days", share, False),
            lambda d: series.rate("gross_mrr_churn", d),
        ),
    ]


def _card(series: Series, headline: Headline, value: Callable[[date], Any]) -> Card:
    now = value(series.day)
    deltas = []
    for days in (1, ROLLING_DAYS):
        then_day = series.day - timedelta(days=days)
        then = value(then_day) if then_day >= series.figures.first else None
        change = None if now is None or then is None else now - then
        good = None if not change else (change > 0) == headline.rising_is_good
        deltas.append((_change(change, then, headline.kind), good))
    values = [value(each) for each in series.days]
    spark = plots.sparkline([None if v is None else float(v) for v in values])
    return Card(
        headline.name,
        _value(series, now, headline.kind),
        headline.hint,
        deltas[0][0],
        deltas[1][0],
        deltas[0][1],
        deltas[1][1],
        spark,
    )


def _value(series: Series, value: Any, kind: str) -> str:
    if value is None:
        return "n/a"
    if kind == "money":
        return series.money(value)
    if kind == "arpa":
        return f"{Decimal(value).scaleb(-minor_digits(series.currency)):,.2f}"
    if kind == "share":
        return percent(value)
    return f"{value:.2f}" if kind == "ratio" else f"{value:,}"


def _change(change: Any, then: Any, kind: str) -> str:
    if change is None:
        return "n/a"
    if kind in ("money", "arpa", "int"):
        return percent(Decimal(change) / Decimal(then), sign=True) if then else f"{change:+,}"
    if kind == "share":
        return f"{change * 100:+.2f} pp".replace("-", "\N{MINUS SIGN}")
    return f"{change:+.2f}".replace("-", "\N{MINUS SIGN}")
