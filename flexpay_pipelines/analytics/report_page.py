"""The page of the daily report: what it shows, worded and drawn, as one HTML text.

What belongs here: choosing, wording, colouring. What does not: computing figures (`stored`, `figures`), geometry
(`plots`), files (`report`), markup (`report.html.j2`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from flexpay_pipelines.analytics import plots
from flexpay_pipelines.analytics.report_balances import balance_lines, failure_trend, recovery_words
from flexpay_pipelines.analytics.report_cards import Series, cards, money, percent
from flexpay_pipelines.analytics.restatements import Restatement
from flexpay_pipelines.analytics.stored import Row, StoredFigures

BAR_DAYS = 30
AT_RISK_ROWS = 20
NAMED_BREAKS = 10
COHORT_MONTHS = 12
HIGH = Decimal("0.7")
UPWARDS = ("new", "reactivation", "expansion", "resumed")
DOWNWARDS = ("contraction", "churn", "paused")
_PAYMENT_COUNTS = (
    "attempts",
    "succeeded",
    "issuer_decline",
    "block",
    "integration_error",
    "provider_error",
    "other_failure",
    "recovered",
)


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that the page shows: stored figures, payments of 30 days, balances, scores, what the checks found."""

    day: date
    made_at: datetime
    figures: StoredFigures
    payments: list[Row]
    recovery: Row | None
    balances: Mapping[str, list[Row]]
    risks: list[Row]
    scores: Row
    snapshot: Row
    breaks: list[Row]
    gaps: list[Row]
    fresh: Row
    restated: int
    restatements: list[Restatement]
    time_zone: ZoneInfo


def render(page: Page) -> str:
    """The page as one HTML text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape  # noqa: PLC0415 - heavy

    environment = Environment(
        loader=PackageLoader("flexpay_pipelines.analytics", "."),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    day, figures, payments, risks = page.day, page.figures, page.payments, page.risks
    series = series_of(day, figures)
    currency = series.currency
    steps = _bridge(series)
    widths = (plots.HALF_WIDTH, plots.PHONE_WIDTH)
    zone = page.time_zone
    return environment.get_template("report.html.j2").render(
        day=day,
        currency=currency,
        partial=figures.shown is None,
        made_at=page.made_at.astimezone(zone),
        computed_at=page.snapshot["computed_at"].astimezone(zone),
        zone=zone.key,
        cards=cards(series),
        bridge=plots.waterfall("MRR bridge of the month to date", steps),
        bridge_rows=plots.waterfall_rows(steps),
        trend=[trend(series, width) for width in widths],
        movements=[_movement_bars(series, width) for width in (plots.WIDTH, plots.PHONE_WIDTH)],
        month=_month_table(series),
        retention=[_retention(series, width) for width in widths],
        frequencies=_mix(series, "payment_frequency"),
        plans=_mix(series, "plan"),
        cohorts=_heat_map(figures, currency),
        payments=_payment_table(payments),
        payment_trend=[
            failure_trend(payments, day - timedelta(days=BAR_DAYS - 1), day, width)
            for width in (plots.WIDTH, plots.PHONE_WIDTH)
        ],
        recovery=recovery_words(page.recovery),
        balances=balance_lines(page.balances, day),
        risks=[_risk(row) for row in risks],
        high=page.scores["high"],
        scored=page.scores["scored"],
        score_means=_score_means(risks, page.scores),
        breaks=page.breaks[:NAMED_BREAKS],
        break_count=_total(page.breaks),
        gaps=page.gaps[:NAMED_BREAKS],
        gap_count=_total(page.gaps),
        fresh=page.fresh,
        restated=page.restated,
        restatements=[_restatement(each, zone) for each in page.restatements],
        snapshot=page.snapshot,
        first=figures.first,
    )


def series_of(day: date, figures: StoredFigures) -> Series:
    """The figures in the currency that the page shows."""
    return Series(day, figures, figures.shown or _largest_currency(figures, day))


def _largest_currency(figures: StoredFigures, day: date) -> str:
    rows = [row for row in figures.native_total if row["period"] == day.isoformat()]
    return str(max(rows, key=lambda row: row["paying_customers"])["currency"]) if rows else ""


def _total(rows: list[Row]) -> int:
    """How many there are in all: of many breaks only the first are here."""
    return int(rows[0]["total"]) if rows else 0


def _restatement(what: Restatement, zone: ZoneInfo) -> dict[str, str]:
    days = f"{what.first_day}" if what.days == 1 else f"{what.days} days, {what.first_day} to {what.last_day}"
    if what.events is None:
        why = "the whole ledger was read anew"
    else:
        rest = what.events - len((what.first_events or "").split(", "))
        named = f" (number {what.first_events}{f' and {rest:,} more' if rest > 0 else ''})" if what.events else ""
        parts = [f"{what.events:,} events that were new{named}" if what.events else ""]
        parts += [f"{what.moved_customers:,} customers in another country" if what.moved_customers else ""]
        why = "; ".join(part for part in parts if part) or "other exchange rates"
    ends = [row for row in what.totals if row["end_after"] is not None]
    last = [row for row in ends if row["day"] == ends[-1]["day"]]
    return {
        "when": f"{what.restated_at.astimezone(zone):%Y-%m-%d %H:%M}",
        "days": days,
        "mrr": "; ".join(
            f"{row['day']}: {money(Decimal(row['end_before']) / 12, row['currency'])} to "
            f"{money(Decimal(row['end_after']) / 12, row['currency'])} {row['currency']}"
            for row in last
        )
        or "as before at the end of every day",
        "why": why,
    }


def _bridge(series: Series) -> list[plots.Step]:
    start = series.total("start", series.month_start())
    end = series.total("end", series.day)
    steps = [plots.Step("start", series.units(start), series.money(start), total=True)]
    for name in (*UPWARDS, *DOWNWARDS, "fx"):
        amount = series.month_to_date(name)
        if amount or name != "fx":
            steps.append(plots.Step(name, series.units(amount), series.money(amount, sign=True)))
    steps.append(plots.Step("now", series.units(end), series.money(end), total=True))
    return steps


def trend(series: Series, width: int = plots.HALF_WIDTH) -> str:
    values = [series.units(series.total("end", each)) for each in series.days]
    return plots.line_chart(
        "MRR",
        [f"{d:%d %b}" for d in series.days],
        [plots.Line("MRR", "accent", values)],
        area=True,
        width=width,
    )


def _movement_bars(series: Series, width: int) -> str:
    days = series.days[-BAR_DAYS:]
    return plots.stacked_bars(
        "Movements by day",
        [f"{d:%d %b}" for d in days],
        [
            plots.Line(name, name, [series.units(series.total(name, each)) for each in days])
            for name in (*UPWARDS, *DOWNWARDS)
        ],
        width=width,
    )


def _month_table(series: Series) -> list[dict[str, str]]:
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


def _retention(series: Series, width: int) -> str:
    lines = (("customer churn", "customer_churn_rate", "down"), ("gross MRR churn", "gross_mrr_churn", "paused"))
    return plots.line_chart(
        "Churn over 30 days",
        [f"{d:%d %b}" for d in series.days],
        [
            plots.Line(name, style, [None if (v := series.rate(column, d)) is None else float(v) for d in series.days])
            for name, column, style in lines
        ],
        percent=True,
        from_zero=True,
        width=width,
    )


def _mix(series: Series, kind: str) -> list[dict[str, Any]]:
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
        counts = {column: sum(row[column] for row in rows) for column in _PAYMENT_COUNTS}
        share = Decimal(counts["succeeded"]) / counts["attempts"]
        lines.append({"name": name.capitalize(), "share": percent(share), "width": f"{share * 100:.1f}", **counts})
    return lines


def _score_means(risks: list[Row], scores: Row) -> str:
    if not risks:
        return ""
    model = risks[0]["model"]
    if model.startswith("rule"):
        return f"The score is a sum of points ({model})."
    expected = f"{scores['total']:,.0f} departures are expected"
    return f"The score is the probability of leaving within 30 days ({model}); {expected}."


def _risk(row: Row) -> dict[str, Any]:
    return {
        "customer": row["customer_id"],
        "email": row["email"] or "",
        "score": f"{row['score']:.2f}",
        "width": f"{row['score'] * 100:.0f}",
        "high": row["score"] >= HIGH,
        "reasons": row["reasons"],
        "mrr": f"{money(row['mrr'], row['currency'])} {row['currency']}",
    }
