"""Churn, retention, cohorts and converted figures against the reference."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexpay_pipelines.analytics import churn, cohorts, movements, summary
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from tests.analytics.ledger import DAYS, ORIGIN, histories, write
from tests.analytics.reference import Event, History, day_ends, month_ends, rates, run, share, with_us

FIRST = ORIGIN.date()
RATE = {"USD": (2, 3), "JPY": (1, 150)}


def one_currency(events: list[Event]) -> list[Event]:
    return [Event(**{**vars(e), "currency": "EUR"}) for e in events]


def close(found: Decimal | None, wanted: Fraction | None, places: int = 6) -> None:
    if wanted is None:
        assert found is None
    else:
        assert found is not None
        assert abs(Fraction(found) - wanted) <= Fraction(1, 10**places)


@pytest.mark.parametrize("grain", ["day", "month"])
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(events=histories().map(one_currency))
def test_rates(billing: Connection, grain: str, events: list[Event]) -> None:
    first, last = FIRST + timedelta(days=20), FIRST + timedelta(days=DAYS + 100)
    with billing.transaction(force_rollback=True):
        write(billing, events)
        rows = churn(billing, start=first, end=last, grain="day" if grain == "day" else "month")
    history = History(events)
    found = {(row["period"], row["definition"]): row for row in rows}
    thirty = timedelta(days=30)
    periods = list(day_ends(first, last) if grain == "day" else month_ends(first, last))
    for label, start, end in periods[:: 7 if grain == "day" else 1]:
        if grain == "day":
            start, earlier = end - thirty, [e for _, _, e in day_ends(FIRST, last) if e <= end - thirty]  # noqa: PLW2901
        else:
            earlier = [e for _, _, e in month_ends(FIRST, last) if e <= start]
        wanted = rates(history, start, end, earlier)
        amounts = {name: abs(amount) for name, amount in wanted.amounts.items()}
        new, up = amounts.get("new", 0), amounts.get("expansion", 0)
        back, down, gone = (amounts.get(name, 0) for name in ("reactivation", "contraction", "churn"))
        row = found[label, "flexpay-1"]
        assert row["customers_start"] == wanted.customers_start
        assert row["customers_churned"] == wanted.customers_churned
        rate = share(wanted.customers_churned, wanted.customers_start)
        close(row["customer_churn_rate"], rate)
        close(row["gross_mrr_churn"], share(gone + down, wanted.start))
        close(row["net_mrr_churn"], share(gone + down - up - back, wanted.start))
        close(row["nrr"], share(wanted.start + up - down - gone, wanted.start))
        close(row["grr"], share(wanted.start - wanted.lost, wanted.start))
        close(row["quick_ratio"], share(new + up + back, down + gone))
        arpa = Fraction(wanted.end, 12 * wanted.paying) if wanted.paying else None
        close(row["arpa"], arpa, 4)
        close(row["ltv"], arpa / rate if arpa is not None and rate else None, 4)
        close(row["pause_rate"], share(wanted.paused, wanted.counted + wanted.paused))
        stripe = rates(history, end - thirty, end, [])
        row = found[label, "stripe"]
        assert row["customers_start"] == stripe.stripe_start
        assert row["customers_churned"] == stripe.stripe_churned
        close(row["customer_churn_rate"], share(stripe.stripe_churned, stripe.stripe_start))


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(events=histories())
def test_cohorts(billing: Connection, events: list[Event]) -> None:
    last = FIRST + timedelta(days=DAYS + 100)
    with billing.transaction(force_rollback=True):
        write(billing, events)
        rows = cohorts(billing, start=FIRST, end=last)
    history = History(events)
    months = list(month_ends(FIRST, last))
    wanted: dict[tuple[str, str, str], list[int]] = {}
    for customer in history.customers():
        paying = [label for label, _, end in months if run(history.of(customer, end)) > 0]
        if not paying:
            continue
        cohort = paying[0]
        currency = next(e.currency for e in events if e.customer == customer)
        start = next(run(history.of(customer, end)) for label, _, end in months if label == cohort)
        for label, _, end in months:
            if label >= cohort:
                standings = history.of(customer, end)
                figures = wanted.setdefault((cohort, label, currency), [0, 0, 0, 0, 0])
                for n, part in enumerate((1, with_us(standings), run(standings) > 0, start, run(standings))):
                    figures[n] += part
    found = {
        (r["cohort"], r["period"], r["currency"]): [
            int(r[c]) for c in ("customers_start", "customers", "paying_customers", "start", "end")
        ]
        for r in rows
    }
    assert found == wanted
    for row in rows:
        close(row["customer_retention"], Fraction(row["customers"], row["customers_start"]))
        close(row["run_rate_retention"], Fraction(row["end"]) / Fraction(row["start"]))


def import_rates(connection: Connection, days: int, moves: list[int]) -> dict[date, dict[str, Decimal]]:
    """A rate a day that moves by thousandths, from the first day on; returns the rates of each day."""
    known = {}
    with connection.cursor() as cursor:
        for n in range(-40, days):
            rate = Decimal(600 + moves[n % len(moves)]) / 1000
            known[FIRST + timedelta(days=n)] = {"USD": rate, "EUR": Decimal(1)}
            cursor.execute(
                "INSERT INTO billing.fx_rates VALUES (%s, 'USD', 'EUR', %s)", (FIRST + timedelta(days=n), rate)
            )
    return known


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(events=histories(), moves=st.lists(st.integers(0, 90), min_size=1, max_size=5))
def test_the_effect_of_rates_is_kept_apart(billing: Connection, events: list[Event], moves: list[int]) -> None:
    last = FIRST + timedelta(days=DAYS)
    with billing.transaction(force_rollback=True):
        write(billing, events)
        known = import_rates(billing, DAYS + 1, moves)
        native = summary(billing, start=FIRST, end=last, grain="day", by="currency")
        moved = movements(billing, start=FIRST, end=last, grain="day", reporting_currency="EUR")
        converted = [
            summary(billing, start=FIRST, end=last, grain="day", by=by, reporting_currency="EUR")
            for by in (None, "plan", "currency", "country", "customer")
        ]
    ends: dict[str, Decimal] = {}
    for row in native:
        rate = known[date.fromisoformat(row["period"])][row["currency"]]
        ends[row["period"]] = ends.get(row["period"], Decimal(0)) + row["end"] * rate
    names = ("new", "reactivation", "expansion", "contraction", "churn", "paused", "resumed", "transfer", "fx")
    of_customers: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for row in moved:
        of_customers[row["period"], row["movement"]] += row["annualised_minor"]
    for rows in converted:
        for row in rows:
            assert row["currency"] == "EUR"
            assert row["end"] == row["start"] + sum(row[name] for name in names)
        for period, end in ends.items():
            day = [row for row in rows if row["period"] == period]
            assert sum(row["end"] for row in day) == end
            for name in (*names[:-2], "fx"):
                assert sum(row[name] for row in day) == of_customers[period, name]


def test_minor_units_of_two_currencies_differ_by_their_decimals(billing: Connection) -> None:
    at = datetime(2025, 3, 1, tzinfo=UTC)
    write(billing, [Event("dot-1", "dot", "started", at, at, amount_minor=1500, currency="JPY")])
    billing.execute("INSERT INTO billing.fx_rates VALUES ('2025-02-01', 'JPY', 'EUR', 0.006)")
    row = summary(billing, start=date(2025, 3, 1), end=date(2025, 3, 1), grain="day", reporting_currency="EUR")[0]
    assert row["end"] == 1500 * 12 * Decimal("0.6")  # 1,500 JPY are 9.00 EUR: 900 cents


def test_a_missing_rate_is_named(billing: Connection) -> None:
    at = datetime(2025, 3, 1, tzinfo=UTC)
    write(billing, [Event("bob-1", "bob", "started", at, at, currency="USD")])
    with pytest.raises(BadInput, match="No rate from USD to EUR is known for 2025-03-02 or before"):
        summary(billing, start=date(2025, 3, 2), end=date(2025, 3, 2), grain="day", reporting_currency="EUR")


def test_churn_over_several_currencies_needs_one_to_report_in(billing: Connection) -> None:
    at = datetime(2025, 3, 1, tzinfo=UTC)
    write(billing, [Event("bob-1", "bob", "started", at, at, currency="USD"), Event("ann-1", "ann", "started", at, at)])
    with pytest.raises(BadInput, match="EUR, USD"):
        churn(billing, start=date(2025, 3, 2), end=date(2025, 3, 2), grain="day")
