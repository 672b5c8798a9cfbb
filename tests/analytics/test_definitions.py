"""The worked example of docs/metrics.md, and the known defects of peers, which our figures must not have."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Literal

import pytest

from flexpay_pipelines.analytics import MetricPolicy, churn, cohorts, key_figures, movements, refresh, summary
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from tests.analytics.ledger import write
from tests.analytics.reference import PER_YEAR, Event

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
START = datetime(2026, 1, 1, 12, tzinfo=UTC)


def table(name: str) -> list[dict[str, str]]:
    text = DOCUMENT.read_text(encoding="utf-8").split(f"<!-- example: {name} -->\n")[1]
    lines = re.match(r"(\|.*\n)+", text)
    assert lines is not None
    header, _, *rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in lines[0].splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def event(name: str, day: int, subscription: str = "ann-1", **changes: object) -> Event:
    at = START + timedelta(days=day)
    return replace(Event(subscription, subscription.partition("-")[0], name, at, at), **changes)  # type: ignore[arg-type]


def moved(connection: Connection, events: list[Event], days: int = 400, **options: object) -> list[tuple[str, int]]:
    write(connection, events)
    first = START.date()
    rows = movements(connection, start=first, end=first + timedelta(days=days), grain="day", **options)  # type: ignore[arg-type]
    return [(row["movement"], int(row["annualised_minor"])) for row in rows]


def at(day: str) -> datetime:
    return datetime.fromisoformat(day).replace(tzinfo=UTC)


def shown(rows: list[dict[str, object]], like: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows in the columns of a table of the document, written as it writes them."""

    def written(value: object) -> str:
        if isinstance(value, Decimal):
            return f"{value.normalize():f}"
        return "null" if value is None else str(value)

    return [{name: written(row[name]) for name in like[0]} for row in rows]


def test_the_worked_example_of_rates_and_cohorts(billing: Connection) -> None:
    write(
        billing,
        [
            Event(
                subscription=f"{row['customer']}-1",
                customer=row["customer"],
                event=row["event"],
                occurred_at=at(row["when"]),
                recorded_at=at(row["when"]),
                payment_frequency=row["payment_frequency"],
                amount_minor=int(row["amount_minor"]),
            )
            for row in table("customers")
        ],
    )
    rates = [
        row
        for row in churn(billing, start=date(2026, 2, 1), end=date(2026, 4, 30), grain="month")
        if row["definition"] != "stripe"
    ]
    assert shown(rates, table("rates")) == table("rates")
    found = cohorts(billing, start=date(2026, 1, 1), end=date(2026, 4, 30))
    assert shown(found, table("cohorts")) == table("cohorts")


@pytest.mark.parametrize("grain", ["day", "month"])
def test_the_worked_example(billing: Connection, grain: Literal["day", "month"]) -> None:
    write(
        billing,
        [
            Event(
                row["subscription"],
                "ada",
                row["event"],
                at(row["when"]),
                at(row["when"]),
                row["plan"],
                row["payment_frequency"],
                int(row["amount_minor"]),
            )
            for row in table("events")
        ],
    )
    rows = movements(billing, start=date(2026, 1, 1), end=date(2026, 5, 31), grain=grain)
    found = [
        {
            "period": row["period"],
            "movement": row["movement"],
            "annualised_minor": str(row["annualised_minor"]),
            "mrr": str(row["mrr"]),
        }
        for row in rows
    ]
    assert found == table(grain)


def test_coming_back_is_reactivation_not_expansion(billing: Connection) -> None:
    found = moved(billing, [event("started", 0), event("canceled", 5), event("started", 9, amount_minor=3000)])
    assert found == [("new", 12_000), ("churn", -12_000), ("reactivation", 36_000)]


@pytest.mark.parametrize("frequency", list(PER_YEAR))
def test_every_frequency_is_annualised_exactly(billing: Connection, frequency: str) -> None:
    found = moved(billing, [event("started", 0, payment_frequency=frequency, amount_minor=1999, quantity=3)])
    assert found == [("new", 1999 * 3 * PER_YEAR[frequency])]


def test_a_weekly_discount_counts_52_times_like_its_price(billing: Connection) -> None:
    """A recurring discount is a lower price: 3.00 off 10.00 a week are 156.00 a year, not 3.00 / 52 x 12."""
    events = [
        event("started", 0, payment_frequency="WEEKLY"),
        event("changed", 5, payment_frequency="WEEKLY", amount_minor=700),
    ]
    assert moved(billing, events) == [("new", 52_000), ("contraction", -15_600)]


def test_a_pause_is_seen_and_only_while_it_lasted(billing: Connection) -> None:
    """Today's state is not applied to history: the days before and after the pause are counted."""
    write(billing, [event("started", 0), event("paused", 5), event("resumed", 9)])
    rows = summary(billing, start=START.date(), end=START.date() + timedelta(days=12), grain="day")
    assert [int(row["end"]) for row in rows] == [12_000] * 5 + [0] * 4 + [12_000] * 4
    assert [row["paused_subscriptions"] for row in rows] == [0] * 5 + [1] * 4 + [0] * 4


def test_a_long_pause_churns_although_nothing_touches_the_row(billing: Connection) -> None:
    found = moved(billing, [event("started", 0), event("paused", 5)])
    assert found == [("new", 12_000), ("paused", -12_000), ("churn", 0)]
    rows = movements(billing, start=date(2026, 1, 1), end=date(2026, 12, 31), grain="day")
    assert rows[-1]["period"] == (START + timedelta(days=95)).date().isoformat()


def test_a_long_pause_may_stay_by_policy(billing: Connection) -> None:
    found = moved(billing, [event("started", 0), event("paused", 5)], policy=MetricPolicy(paused_churn_days=None))
    assert found == [("new", 12_000), ("paused", -12_000)]


def test_an_included_pause_moves_nothing_until_it_ages_out(billing: Connection) -> None:
    found = moved(billing, [event("started", 0), event("paused", 5)], policy=MetricPolicy(paused="included"))
    assert found == [("new", 12_000), ("churn", -12_000)]


def test_a_canceled_subscription_churns_on_its_day(billing: Connection) -> None:
    """Although its row is never touched again, and the refresh comes much later."""
    write(billing, [event("started", 0), event("canceled", 5)])
    first = START.date()
    refresh(billing, start=first, end=first + timedelta(days=40), clock=FixedClock(START + timedelta(days=50)))
    row = billing.execute("SELECT day FROM analytics.mrr_movements WHERE movement = 'churn'").fetchone()
    assert row == {"day": first + timedelta(days=5)}


def test_more_than_a_thousand_customers(billing: Connection) -> None:
    write(billing, [event("started", 0, f"c{n}-1") for n in range(1_201)])
    assert len(movements(billing, start=START.date(), end=START.date(), grain="day")) == 1_201


def test_headline_and_series_agree(billing: Connection) -> None:
    write(billing, [event("started", 0), event("started", 1, "bob-1", currency="USD"), event("past_due", 3)])
    billing.execute(
        "INSERT INTO billing.fx_rates VALUES ('2026-01-01', 'USD', 'EUR', 0.9), ('2026-01-03', 'USD', 'EUR', 0.8)"
    )
    day = START.date() + timedelta(days=4)
    refresh(billing, start=START.date(), end=day, clock=FixedClock(START))
    figures = key_figures(billing, day=day, reporting_currency="EUR")
    series = summary(billing, start=day, end=day, grain="day", reporting_currency="EUR")
    assert figures["mrr"] == {"EUR": 1000, "USD": 1000}
    assert figures["reporting_mrr"] == series[0]["end"] / 12 == 1800
    assert figures["customers"] == series[0]["customers"] == 2
    with pytest.raises(BadInput, match="No figures are stored"):
        key_figures(billing, day=day + timedelta(days=1), reporting_currency="EUR")


def test_nothing_but_new_comes_first(billing: Connection) -> None:
    found = moved(billing, [event("started", 0), event("paused", 0), event("resumed", 5)])
    assert found == [("new", 12_000)]


def test_trials_count_from_their_start_as_customers(billing: Connection) -> None:
    events = [event("trial_started", 0), event("past_due", 2), event("paused", 3), event("resumed", 4)]
    assert moved(billing, [*events, event("started", 7)]) == [("new", 12_000)]


def test_past_due_counts_until_it_is_suspended(billing: Connection) -> None:
    found = moved(billing, [event("started", 0), event("past_due", 3), event("suspended", 10), event("recovered", 20)])
    assert found == [("new", 12_000), ("churn", -12_000), ("reactivation", 12_000)]


def test_one_of_two_subscriptions_is_contraction(billing: Connection) -> None:
    events = [event("started", 0), event("started", 1, "ann-2"), event("canceled", 5), event("paused", 6, "ann-2")]
    assert moved(billing, [*events, event("canceled", 9, "ann-2")]) == [
        ("new", 12_000),
        ("expansion", 12_000),
        ("contraction", -12_000),
        ("paused", -12_000),
        ("churn", 0),
    ]


def test_a_change_of_plan_is_transfer(billing: Connection) -> None:
    write(billing, [event("started", 0), event("changed", 5, plan="pro", amount_minor=1500)])
    day = START.date() + timedelta(days=5)
    rows = summary(billing, start=day, end=day, grain="day", by="plan")
    found = {row["segment"]: tuple(int(row[n]) for n in ("start", "transfer", "expansion", "end")) for row in rows}
    assert found == {"basic": (12_000, -12_000, 0, 0), "pro": (0, 12_000, 6_000, 18_000)}


def test_a_denominator_of_nothing_gives_null(billing: Connection) -> None:
    write(billing, [event("started", 0)])
    ours = churn(billing, start=START.date(), end=START.date(), grain="day")[0]
    for column in ("customer_churn_rate", "gross_mrr_churn", "net_mrr_churn", "nrr", "grr", "quick_ratio", "ltv"):
        assert ours[column] is None
    assert ours["arpa"] == 1000
