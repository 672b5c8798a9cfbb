"""What the daily report and the UI show of payments won back, reward credit, and deferred and paused revenue.

What belongs here: choosing, wording, drawing of these. What does not: their figures (`stored_balances`,
`payment_figures`), the rest of the page (`report_page`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from flexpay_pipelines.analytics import plots
from flexpay_pipelines.analytics.report_cards import money, percent
from flexpay_pipelines.analytics.stored import Row
from flexpay_pipelines.money import minor_digits

AGES = (
    ("overdue", "before today"),
    ("within_30_days", "within 30 days"),
    ("within_90_days", "within 90 days"),
    ("within_365_days", "within a year"),
    ("later", "later"),
    ("never", "never"),
)
PAUSES = (("up_to_30_days", "up to 30 days"), ("up_to_90_days", "up to 90 days"), ("longer", "longer"))
_STYLE = (
    "<style>.grid{stroke:#8884;stroke-width:1}.axis{font:11px sans-serif;fill:#888}.line{fill:none;stroke:#4f46e5;"
    "stroke-width:2}.dot{fill:#4f46e5}.area{fill:#4f46e5;opacity:.12}.down{stroke:#d6455d}.dot.down{fill:#d6455d}</style>"
)


def balance_lines(balances: Mapping[str, list[Row]], day: date) -> list[dict[str, Any]]:
    """A block for each currency that owes or pauses anything at the end of the day, ready for the page."""
    last = {
        name: {row["currency"]: row for row in rows if row["period"] == day.isoformat()}
        for name, rows in balances.items()
    }
    currencies = sorted({currency for rows in last.values() for currency in rows})
    return [_block(currency, {name: rows.get(currency) for name, rows in last.items()}) for currency in currencies]


def _block(currency: str, rows: Mapping[str, Row | None]) -> dict[str, Any]:
    deferred, rewards, paused = rows["deferred-revenue"], rows["rewards-liability"], rows["paused-revenue"]
    return {
        "currency": currency,
        "deferred": _shown(deferred, currency, ("closing", "closing_paused", "received", "recognised")),
        "rewards": _shown(rewards, currency, ("closing", "earned", "spent", "expired")),
        "owners": rewards["customers"] if rewards else 0,
        "ages": _shares(rewards, AGES, "closing", currency, 1),
        "paused": _shown(paused, currency, ("annualised_minor",), 12),
        "paused_subscriptions": paused["subscriptions"] if paused else 0,
        "pauses": _shares(paused, PAUSES, "annualised_minor", currency, 12),
    }


def _shown(row: Row | None, currency: str, names: Sequence[str], divisor: int = 1) -> dict[str, str]:
    return {name: money(Decimal(row[name] if row else 0) / divisor, currency) for name in names}


def _shares(
    row: Row | None, parts: Sequence[tuple[str, str]], whole: str, currency: str, divisor: int
) -> list[dict[str, str]]:
    """The parts that are not 0, with their share of the whole."""
    if row is None or not row[whole]:
        return []
    return [
        {
            "name": words,
            "amount": money(Decimal(row[name]) / divisor, currency),
            "width": f"{Decimal(row[name]) / Decimal(row[whole]) * 100:.1f}",
        }
        for name, words in parts
        if row[name]
    ]


def recovery_words(row: Row | None) -> str:
    """How many failed payments were won back, and how soon, in a sentence or two."""
    if row is None:
        return "No payment failed."
    rate = percent(row["recovery_rate"])
    won = f"{row['recovered']:,} of {row['episodes']:,} failed payments were won back so far ({rate})."
    if not row["recovered"]:
        return won
    return f"{won} Half of these within {_days(row['median_days'])}, nine tenths within {_days(row['p90_days'])}."


def _days(value: Decimal) -> str:
    return f"{value:.1f} day" + ("" if f"{value:.1f}" == "1.0" else "s")


def failure_trend(payments: Sequence[Row], first: date, last: date, width: int = plots.WIDTH) -> str:
    """The share of attempts that failed, by day, as SVG."""
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    counts: dict[str, list[int]] = {}
    for row in payments:
        sums = counts.setdefault(row["period"], [0, 0])
        sums[0] += row["attempts"]
        sums[1] += row["failed"]
    values = [None if (c := counts.get(d.isoformat())) is None else c[1] / c[0] for d in days]
    return plots.line_chart(
        "Failed attempts",
        [f"{d:%d %b}" for d in days],
        [plots.Line("failed attempts", "down", values)],
        percent=True,
        from_zero=True,
        width=width,
        height=170,
    )


def failure_svg(payments: Sequence[Row], first: date, last: date) -> str:
    """`failure_trend` with its own colours, for metadata in a UI."""
    return standalone(failure_trend(payments, first, last))


def balance_svg(rows: Sequence[Row], first: date, last: date) -> str:
    """What a balance closed with, day by day, in the currency with the largest one; with its own colours."""
    if not rows:
        return "nothing"
    currency = max(rows, key=lambda row: row["closing"])["currency"]
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    closing = {row["period"]: row["closing"] for row in rows if row["currency"] == currency}
    values = [float(Decimal(closing.get(d.isoformat(), 0)).scaleb(-minor_digits(currency))) for d in days]
    line = plots.Line(currency, "accent", values)
    chart = plots.line_chart(
        f"Closing, {currency}", [f"{d:%d %b}" for d in days], [line], area=True, from_zero=True, width=plots.HALF_WIDTH
    )
    return standalone(chart)


def standalone(svg: str) -> str:
    """A chart that carries its own colours."""
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{_STYLE}", 1)
