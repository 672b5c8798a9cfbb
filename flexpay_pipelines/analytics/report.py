"""The daily report: one page that opens offline, and the same figures as CSV and Parquet.

What belongs here: choosing and wording what the page shows. What does not: computing figures (`stored`, `figures`),
drawing (`plots`), marking up (`report.html.j2`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from flexpay_pipelines.analytics import plots
from flexpay_pipelines.analytics.checks import freshness, identity_breaks, interval_breaks
from flexpay_pipelines.analytics.export import DATASETS, FORMATS, write_rows
from flexpay_pipelines.analytics.figures import payments_health
from flexpay_pipelines.analytics.policy import DEFINITION, ROLLING_DAYS
from flexpay_pipelines.analytics.stored import Row, StoredFigures, read_stored, require_stored, risk_rows
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import disk_errors
from flexpay_pipelines.money import minor_digits
from flexpay_pipelines.sql import queries

TREND_DAYS = 90
BAR_DAYS = 30
AT_RISK_ROWS = 20
COHORT_MONTHS = 12
HIGH = Decimal("0.7")
UPWARDS = ("new", "reactivation", "expansion", "resumed")
DOWNWARDS = ("contraction", "churn", "paused")
RISK_COLUMNS = {
    "period": "text",
    "customer_id": "text",
    "score": "rate",
    "reasons": "text",
    "currency": "text",
    "annualised_minor": "minor",
    "mrr": "money",
}


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where the report lies; `parquet` and `csv` by dataset."""

    html: Path
    parquet: dict[str, Path]
    csv: dict[str, Path]


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


def daily_report(
    connection: Connection, *, day: date, folder: Path, clock: Clock, reporting_currency: str
) -> ReportFiles:
    """Write report.html and each dataset as CSV and Parquet into `folder`, which is made where it is missing.

    The figures are the stored ones of the 90 days to `day`; payment health comes from the payments.

    Raises:
        BadInput: the day is not stored.
        PermanentError, TransientError: a file cannot be written.
    """
    snapshot = require_stored(connection, day)
    first = max(
        queries("analytics_report").first_stored_day(connection, since=day - timedelta(days=TREND_DAYS)) or day,
        day - timedelta(days=TREND_DAYS),
    )
    figures = read_stored(connection, first=first, last=day, reporting_currency=reporting_currency)
    payments = payments_health(connection, start=day - timedelta(days=BAR_DAYS - 1), end=day, grain="day")
    risks = risk_rows(connection, day=day)
    with disk_errors("making the folder of the report"):
        folder.mkdir(parents=True, exist_ok=True)
    html = folder / "report.html"
    page = _render(connection, day, figures, payments, risks, snapshot, clock)
    _write_page(page, html)
    written: dict[str, dict[str, Path]] = {kind: {} for kind in FORMATS}
    for name, rows, columns in _datasets(figures, payments, risks):
        for kind in FORMATS:
            written[kind][name] = folder / f"{name}.{kind}"
            native = name != "cohorts" or figures.shown is None
            write_rows(rows, columns, format=kind, out=written[kind][name], native=native)
    return ReportFiles(html, written["parquet"], written["csv"])


def _datasets(figures: StoredFigures, payments: list[Row], risks: list[Row]) -> Iterable[tuple[str, list[Row], Any]]:
    yield "mrr-summary", figures.native_total, DATASETS["mrr-summary"].columns
    yield "mrr-movements", figures.movements, DATASETS["mrr-movements"].columns
    yield "churn", figures.churn, DATASETS["churn"].columns
    yield "cohorts", figures.cohorts, DATASETS["cohorts"].columns
    yield "payments-health", payments, DATASETS["payments-health"].columns
    yield "churn-risk", risks, RISK_COLUMNS


def _write_page(page: str, html: Path) -> None:
    with disk_errors("writing the report"):
        part = html.with_name(f".{html.name}.part")
        part.write_text(page, encoding="utf-8")
        part.replace(html)


def _render(
    connection: Connection,
    day: date,
    figures: StoredFigures,
    payments: list[Row],
    risks: list[Row],
    snapshot: Row,
    clock: Clock,
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape  # noqa: PLC0415 - heavy

    environment = Environment(
        loader=PackageLoader("flexpay_pipelines.analytics", "."),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    currency = figures.shown or _largest_currency(figures, day)
    series = _Series(day, figures, currency)
    breaks = identity_breaks(connection, start=figures.first, end=day)
    gaps = interval_breaks(connection)
    return environment.get_template("report.html.j2").render(
        day=day,
        currency=currency,
        partial=figures.shown is None,
        made_at=clock.now(),
        cards=_cards(series),
        bridge=_bridge(series),
        trend=_trend(series),
        movements=_movement_bars(series),
        month=_month_table(series),
        retention=_retention(series),
        frequencies=_mix(series, "payment_frequency"),
        plans=_mix(series, "plan"),
        cohorts=_heat_map(figures, currency),
        payments=_payment_table(payments),
        payment_trend=_payment_trend(payments, day),
        risks=[_risk(row) for row in risks[:AT_RISK_ROWS]],
        high=sum(row["score"] >= HIGH for row in risks),
        scored=len(risks),
        breaks=breaks[:10],
        break_count=len(breaks),
        gaps=gaps[:10],
        gap_count=len(gaps),
        fresh=freshness(connection),
        restated=queries("analytics_report").restated_days(connection, first=figures.first, last=day),
        snapshot=snapshot,
        first=figures.first,
    )


def _largest_currency(figures: StoredFigures, day: date) -> str:
    rows = [row for row in figures.native_total if row["period"] == day.isoformat()]
    return str(max(rows, key=lambda row: row["paying_customers"])["currency"]) if rows else ""


class _Series:
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


def _cards(series: _Series) -> list[Card]:
    cards = [
        _card(series, "MRR", "monthly recurring revenue", lambda d: series.total("end", d), "money", True),
        _card(
            series, "Customers", "with counted or paused run rate", lambda d: series.total("customers", d), "int", True
        ),
        _card(series, "Customer churn", "30 days", lambda d: series.rate("customer_churn_rate", d), "share", False),
        _card(series, "Net revenue retention", "30 days", lambda d: series.rate("nrr", d), "share", True),
        _card(series, "Quick ratio", "gained / lost, 30 days", lambda d: series.rate("quick_ratio", d), "ratio", True),
        _card(series, "ARPA", "a month, per paying customer", lambda d: series.rate("arpa", d), "arpa", True),
        _card(series, "Paused", "subscriptions", lambda d: series.total("paused_subscriptions", d), "int", False),
        _card(series, "Gross MRR churn", "30 days", lambda d: series.rate("gross_mrr_churn", d), "share", False),
    ]
    return cards


def _card(series: _Series, name: str, hint: str, value: Callable[[date], Any], kind: str, rising_is_good: bool) -> Card:
    now = value(series.day)
    deltas = []
    for days in (1, ROLLING_DAYS):
        then_day = series.day - timedelta(days=days)
        then = value(then_day) if then_day >= series.figures.first else None
        change = None if now is None or then is None else now - then
        good = None if not change else (change > 0) == rising_is_good
        deltas.append((_change(series, change, then, kind), good))
    values = [value(each) for each in series.days]
    spark = plots.sparkline([None if v is None else float(v) for v in values])
    return Card(name, _value(series, now, kind), hint, deltas[0][0], deltas[1][0], deltas[0][1], deltas[1][1], spark)


def _value(series: _Series, value: Any, kind: str) -> str:
    if value is None:
        return "n/a"
    if kind == "money":
        return series.money(value)
    if kind == "arpa":
        return f"{Decimal(value).scaleb(-minor_digits(series.currency)):,.2f}"
    if kind == "share":
        return percent(value)
    return f"{value:.2f}" if kind == "ratio" else f"{value:,}"


def _change(series: _Series, change: Any, then: Any, kind: str) -> str:
    if change is None:
        return "n/a"
    if kind in ("money", "arpa", "int"):
        return percent(Decimal(change) / Decimal(then), sign=True) if then else f"{change:+,}"
    if kind == "share":
        return f"{change * 100:+.2f} pp".replace("-", "\N{MINUS SIGN}")
    return f"{change:+.2f}".replace("-", "\N{MINUS SIGN}")


def _bridge(series: _Series) -> str:
    start = series.total("start", series.month_start())
    end = series.total("end", series.day)
    steps = [plots.Step("start", series.units(start), series.money(start), total=True)]
    for name in (*UPWARDS, *DOWNWARDS, "fx"):
        amount = series.month_to_date(name)
        if amount or name != "fx":
            steps.append(plots.Step(name, series.units(amount), series.money(amount, sign=True)))
    steps.append(plots.Step("now", series.units(end), series.money(end), total=True))
    return plots.waterfall("MRR bridge of the month to date", steps)


def _trend(series: _Series) -> str:
    values = [series.units(series.total("end", each)) for each in series.days]
    return plots.line_chart(
        "MRR",
        [f"{d:%d %b}" for d in series.days],
        [plots.Series("MRR", "accent", values)],
        area=True,
        width=plots.HALF_WIDTH,
    )


def _movement_bars(series: _Series) -> str:
    days = series.days[-BAR_DAYS:]
    return plots.stacked_bars(
        "Movements by day",
        [f"{d:%d %b}" for d in days],
        [
            plots.Series(name, name, [series.units(series.total(name, each)) for each in days])
            for name in (*UPWARDS, *DOWNWARDS)
        ],
    )


def _month_table(series: _Series) -> list[dict[str, str]]:
    rows = []
    for name in (*UPWARDS, *DOWNWARDS):
        rows.append(
            {
                "name": name,
                "today": series.money(series.total(name, series.day), sign=True),
                "month": series.money(series.month_to_date(name), sign=True),
                "days": series.money(sum(series.total(name, d) for d in series.days[-BAR_DAYS:]), sign=True),
            }
        )
    return rows


def _retention(series: _Series) -> str:
    lines = (("customer churn", "customer_churn_rate", "down"), ("gross MRR churn", "gross_mrr_churn", "paused"))
    return plots.line_chart(
        "Churn over 30 days",
        [f"{d:%d %b}" for d in series.days],
        [
            plots.Series(
                name, style, [None if (v := series.rate(column, d)) is None else float(v) for d in series.days]
            )
            for name, column, style in lines
        ],
        percent=True,
        from_zero=True,
        width=plots.HALF_WIDTH,
    )


def _mix(series: _Series, kind: str) -> list[dict[str, Any]]:
    rows = [
        row
        for row in series.figures.by_kind[kind]
        if row["period"] == series.day.isoformat() and row["currency"] == series.currency and row["end"]
    ]
    whole = sum(row["end"] for row in rows)
    rows.sort(key=lambda row: -row["end"])
    return [
        {
            "name": row["segment"].capitalize() if kind == "payment_frequency" else row["segment"],
            "mrr": series.money(row["end"]),
            "share": percent(row["end"] / whole),
            "width": f"{row['end'] / whole * 100:.1f}",
            "customers": row["customers"],
        }
        for row in rows
    ]


def _heat_map(figures: StoredFigures, currency: str) -> dict[str, Any]:
    rows = [row for row in figures.cohorts if row["currency"] == currency and row["months"] <= COHORT_MONTHS]
    names = sorted({row["cohort"] for row in rows})[-COHORT_MONTHS - 1 :]
    cells = {(row["cohort"], row["months"]): row for row in rows}
    lines = []
    for name in names:
        own = [cells.get((name, months)) for months in range(COHORT_MONTHS + 1)]
        lines.append(
            {
                "name": name,
                "size": cells[name, 0]["customers_start"] if (name, 0) in cells else _size(rows, name),
                "cells": [
                    None
                    if cell is None
                    else {
                        "share": f"{cell['customer_retention'] * 100:.0f}",
                        "heat": f"{_heat(cell['customer_retention']):.2f}",
                        "hint": f"{cell['customers']} of {cell['customers_start']} customers; run rate "
                        f"{percent(cell['run_rate_retention'])}",
                    }
                    for cell in own
                ],
            }
        )
    return {"months": list(range(COHORT_MONTHS + 1)), "lines": lines}


def _size(rows: list[Row], cohort: str) -> int:
    return int(next(row["customers_start"] for row in rows if row["cohort"] == cohort))


def _heat(share: Decimal) -> float:
    """How strongly a cell is painted: the range in which retention differs is spread over the whole scale."""
    return min(max((float(share) - 0.3) / 0.7, 0.04), 1.0)


def _payment_table(payments: list[Row]) -> list[dict[str, Any]]:
    lines = []
    for name in sorted({row["payment_frequency"] for row in payments}):
        rows = [row for row in payments if row["payment_frequency"] == name]
        counts = {
            column: sum(row[column] for row in rows)
            for column in ("attempts", "succeeded", "issuer_decline", "block", "integration_error", "provider_error")
            + ("other_failure", "recovered")
        }
        share = Decimal(counts["succeeded"]) / counts["attempts"]
        lines.append({"name": name.capitalize(), "share": percent(share), "width": f"{share * 100:.1f}", **counts})
    return lines


def _payment_trend(payments: list[Row], day: date) -> str:
    days = [day - timedelta(days=n) for n in range(BAR_DAYS - 1, -1, -1)]
    values: list[float | None] = []
    for each in days:
        rows = [row for row in payments if row["period"] == each.isoformat()]
        attempts = sum(row["attempts"] for row in rows)
        values.append(sum(row["failed"] for row in rows) / attempts if attempts else None)
    return plots.line_chart(
        "Failed attempts",
        [f"{d:%d %b}" for d in days],
        [plots.Series("failed attempts", "down", values)],
        percent=True,
        from_zero=True,
        height=170,
    )


def _risk(row: Row) -> dict[str, Any]:
    return {
        "customer": row["customer_id"],
        "email": row["email_masked"] or "",
        "score": f"{row['score']:.2f}",
        "width": f"{row['score'] * 100:.0f}",
        "high": row["score"] >= HIGH,
        "reasons": row["reasons"],
        "mrr": f"{money(row['mrr'], row['currency'])} {row['currency']}",
    }


def trend_svg(connection: Connection, *, day: date, reporting_currency: str, days: int = TREND_DAYS) -> str:
    """The MRR trend of the days to `day` as one small SVG that carries its own colours, for metadata in a UI.

    Raises:
        BadInput: the day is not stored.
    """
    require_stored(connection, day)
    since = queries("analytics_report").first_stored_day(connection, since=day - timedelta(days=days)) or day
    figures = read_stored(connection, first=since, last=day, reporting_currency=reporting_currency)
    svg = _trend(_Series(day, figures, figures.shown or _largest_currency(figures, day)))
    style = (
        "<style>.grid{stroke:#8884;stroke-width:1}.axis{font:11px sans-serif;fill:#888}.line{fill:none;stroke:#4f46e5;"
        "stroke-width:2}.dot{fill:#4f46e5}.area{fill:#4f46e5;opacity:.12}</style>"
    )
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{style}", 1)
