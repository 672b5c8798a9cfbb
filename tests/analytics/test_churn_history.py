"""What the churn model learns from: nothing that lies later, was known later, or stands on both sides of the split."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexpay_pipelines.analytics import refresh
from flexpay_pipelines.analytics.churn_history import Rows, Snapshots, read_history, snapshots
from flexpay_pipelines.analytics.churn_terms import GROUPS, HORIZON_DAYS, TERMS, WORDS
from flexpay_pipelines.analytics.days import midnight
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from tests.analytics.ledger import ORIGIN, histories, write
from tests.analytics.reference import Event

CLOCK = FixedClock(datetime(2026, 1, 1, tzinfo=UTC))
HORIZON = timedelta(days=HORIZON_DAYS)


@given(day=st.dates(date(2020, 1, 1), date(2030, 1, 1)), age=st.integers(0, 900))
def test_no_period_stands_on_both_sides(day: date, age: int) -> None:
    first = day - timedelta(days=age)
    chosen = snapshots(day, first)
    assert list(chosen.all) == sorted(set(chosen.all))
    assert all(first + HORIZON <= each <= day - HORIZON for each in chosen.all)
    for before, after in ((chosen.training, chosen.calibration), (chosen.calibration, chosen.test)):
        assert not (before and after) or before[-1] + HORIZON <= after[0]


def test_every_term_has_words() -> None:
    assert set(WORDS) == set(TERMS)
    assert len(set(TERMS)) == len(TERMS) == sum(map(len, GROUPS.values()))


def rows_at(connection: Connection, day: date) -> Rows:
    refresh(connection, start=day, end=day, clock=CLOCK)
    with connection.transaction():
        return read_history(connection, Snapshots((day,), (), ()), paused_churn_days=90)


def judged(rows: Rows) -> list[object]:
    return [rows.customers.tolist(), rows.terms.tolist(), rows.plans.tolist(), rows.frequencies.tolist()]


def pay(connection: Connection, at: datetime, known: datetime, outcome: str, name: str) -> None:
    connection.execute(
        "INSERT INTO billing.payments (payment_ref, subscription_id, occurred_at, recorded_at, amount_minor, currency,"
        " outcome) SELECT subscription_ref || %s, subscription_id, %s, %s, 100, currency, %s"
        " FROM billing.subscriptions",
        (name, at, known, outcome),
    )


def earn(connection: Connection, at: datetime, known: datetime) -> None:
    connection.execute(
        "INSERT INTO billing.reward_entries (customer_id, occurred_at, recorded_at, kind, amount_minor)"
        " SELECT customer_id, %s, %s, 'earned', 100 FROM billing.customers",
        (at, known),
    )


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(events=histories(), offset=st.integers(5, 120))
def test_nothing_that_was_known_later_is_looked_at(billing: Connection, events: list[Event], offset: int) -> None:
    """The terms of a day are the same in a database that holds just what was known then."""
    day = ORIGIN.date() + timedelta(days=offset)
    end = midnight(billing, day + timedelta(days=1))
    known = [each for each in events if each.occurred_at < end and each.recorded_at < end]
    with billing.transaction(force_rollback=True):
        write(billing, known)
        pay(billing, end - timedelta(days=2), end - timedelta(days=2), "failed", "a")
        then = judged(rows_at(billing, day))
        write(billing, [each for each in events if each not in known])
        pay(billing, end, end, "failed", "b")
        pay(billing, end - timedelta(days=3), end, "failed", "c")
        pay(billing, end - timedelta(days=1), end + timedelta(days=9), "succeeded", "d")
        earn(billing, end - timedelta(days=3), end)
        earn(billing, end, end)
        assert judged(rows_at(billing, day)) == then


def event(name: str, day: int, subscription: str = "ann-1", **changes: object) -> Event:
    at = ORIGIN + timedelta(days=day, hours=9)
    return replace(Event(subscription, subscription.partition("-")[0], name, at, at), **changes)  # type: ignore[arg-type]


def term(rows: Rows, name: str) -> list[bool]:
    return [bool(value) for value in rows.terms[:, TERMS.index(name)]]


def test_a_late_cancellation_was_not_known_but_is_the_outcome(billing: Connection) -> None:
    late = ORIGIN + timedelta(days=80)
    write(billing, [event("started", 1), event("canceled", 50, recorded_at=late), event("started", 1, "bob-1")])
    rows = rows_at(billing, ORIGIN.date() + timedelta(days=60))
    assert rows.churned.tolist() == [True, False]
    assert len(rows_at(billing, late.date()).customers) == 1


def test_the_terms_say_what_happened(billing: Connection) -> None:
    write(
        billing,
        [
            event("started", 1, amount_minor=2000, payment_frequency="QUARTERLY"),
            event("changed", 100, amount_minor=1000, payment_frequency="QUARTERLY"),
            event("paused", 120, amount_minor=1000, payment_frequency="QUARTERLY"),
            event("started", 110, "bob-1", currency="USD"),
            event("canceled", 115, "bob-1"),
            event("started", 118, "bob-1"),
            event("past_due", 149, "bob-1"),
            event("started", 150, "bob-2"),
        ],
    )
    day = ORIGIN.date() + timedelta(days=151)
    rows = rows_at(billing, day)
    true = {
        customer: {name for name in TERMS if term(rows, name)[place]} for place, customer in enumerate(("ann", "bob"))
    }
    assert true["ann"] == {"is_paused", "paused_30", "pauses_1", "downgraded", "new_180", "renews"}
    assert true["bob"] == {"past_due", "new_90", "new_180", "came_back", "several"}


def test_a_history_loaded_from_files_counts_as_known_when_it_occurred(billing: Connection) -> None:
    loaded = ORIGIN + timedelta(days=200)
    write(billing, [event("started", n % 60, f"cus{n}-1", recorded_at=loaded) for n in range(120)])
    assert len(rows_at(billing, ORIGIN.date() + timedelta(days=90)).customers) == 120
    write(billing, [event("started", 5, "late-1", recorded_at=loaded + timedelta(days=1))])
    assert len(rows_at(billing, ORIGIN.date() + timedelta(days=90)).customers) == 120


@pytest.mark.parametrize(("outcome", "failed"), [("failed", True), ("succeeded", False)])
def test_failures_of_ours_say_nothing_about_the_customer(billing: Connection, outcome: str, failed: bool) -> None:
    write(billing, [event("started", 1)])
    day = ORIGIN.date() + timedelta(days=60)
    at = midnight(billing, day)
    pay(billing, at, at, outcome, "x")
    assert term(rows_at(billing, day), "failed_1") == [failed]
    if failed:
        billing.execute("UPDATE billing.payments SET failure_class = 'provider_error'")
        assert term(rows_at(billing, day), "failed_1") == [False]
