"""The checks pass on what a refresh stores, whatever the history, and name what is wrong with what it did not."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from flexpay_pipelines.analytics import (
    churn,
    event_breaks,
    events_behind,
    how_fresh,
    month_breaks,
    payment_breaks,
    payments_health,
    plausible,
    refresh,
    summary,
    unexpected,
)
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from tests.analytics.ledger import DAYS, ORIGIN, histories, write
from tests.analytics.money import DAY, Payment, pay, started
from tests.analytics.reference import Event

AT = datetime(2026, 1, 1, 9, tzinfo=UTC)
FIRST, LAST = date(2026, 1, 1), date(2026, 3, 31)
CLOCK = FixedClock(datetime(2026, 4, 1, 2, tzinfo=UTC))


@pytest.fixture
def company(billing: Connection) -> Connection:
    """Forty customers who pay each month, one of whom left in February."""
    left = AT + 40 * DAY
    write(billing, [started(f"c{n}-1", AT, plan=("pro", "basic")[n % 2]) for n in range(40)])
    write(billing, [Event("c0-1", "c0", "canceled", left, left)])
    pay(billing, [Payment(f"c{n}-1", AT + days * DAY) for n in range(40) for days in (0, 31, 59) if n or days < 40])
    refresh(billing, start=FIRST, end=LAST, clock=CLOCK)
    return billing


def test_nothing_is_wrong_with_what_a_refresh_stores(company: Connection) -> None:
    assert month_breaks(company, last=LAST) == []
    assert event_breaks(company) == []
    assert payment_breaks(company, day=LAST) == []
    assert plausible([])


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(events=histories())
def test_months_and_events_agree_whatever_the_history(billing: Connection, events: list[Event]) -> None:
    last = (ORIGIN + DAYS * DAY).date()
    with billing.transaction(force_rollback=True):
        write(billing, events)
        refresh(billing, start=ORIGIN.date(), end=last, clock=CLOCK)
        assert month_breaks(billing, last=last) == []
        assert event_breaks(billing) == []


def test_a_month_that_its_days_do_not_lead_to_is_named(company: Connection) -> None:
    company.execute(
        "UPDATE analytics.mrr_summary SET end_minor = end_minor - 12, customers = customers + 1"
        " WHERE day = '2026-02-28' AND segment = 'pro'"
    )
    found = {
        (row["period"], row["segment_kind"], row["segment"], row["figure"]) for row in month_breaks(company, last=LAST)
    }
    assert found == {("2026-02", "plan", "pro", "end"), ("2026-02", "plan", "pro", "customers")}
    assert {row["problem"] for row in month_breaks(company, last=LAST)} == {
        "the month does not end as its last day does"
    }


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("DELETE FROM analytics.run_rate_intervals WHERE valid_to IS NOT NULL", "the event is not used"),
        ("UPDATE analytics.run_rate_intervals SET plan = 'team' WHERE valid_to IS NOT NULL", "the event is not used"),
        (
            "UPDATE analytics.run_rate_intervals SET"
            " event_id = (SELECT min(event_id) FROM billing.subscription_events)",
            "the event is used more than once",
        ),
        (
            "UPDATE analytics.run_rate_intervals SET event_id = 0 WHERE status = 'canceled'",
            "the interval is opened by no event of its own",
        ),
    ],
)
def test_events_that_are_not_used_once_are_named(company: Connection, damage: str, problem: str) -> None:
    company.execute(damage.encode())
    found = [row for row in event_breaks(company) if row["problem"] == problem]
    assert found
    assert found[0]["customer_id"] == "c0"
    assert found[0]["total"] == len(event_breaks(company))


def test_payments_that_contradict_run_rate_are_named(company: Connection) -> None:
    company.execute("DELETE FROM billing.payments WHERE payment_ref IN (SELECT max(payment_ref) FROM billing.payments)")
    later = date(2026, 4, 25)
    refresh(company, start=later, end=later, clock=CLOCK)
    pay_late = [Payment("c1-1", AT + 89 * DAY, 40_000), Payment("c0-1", AT + 100 * DAY)]
    for number, payment in enumerate(pay_late):
        company.execute(
            "INSERT INTO billing.payments (payment_ref, subscription_id, occurred_at, amount_minor, currency, outcome)"
            " SELECT %s, subscription_id, %s, %s, 'EUR', 'succeeded' FROM billing.subscriptions"
            " WHERE subscription_ref = %s",
            (f"late{number}", payment.occurred_at, payment.amount, payment.subscription),
        )
    found = payment_breaks(company, day=later)
    by_problem = {
        problem: sorted(row["customer_id"] for row in found if row["problem"] == problem)
        for problem in ("amount out of proportion", "paid and not counted", "counted and not paid")
    }
    assert by_problem["amount out of proportion"] == ["c1"]
    assert by_problem["paid and not counted"] == ["c0"]
    assert len(by_problem["counted and not paid"]) == 38
    assert (found[0]["total"], found[0]["compared"]) == (40, 39)
    assert not plausible(found)
    assert plausible([{"total": 3, "compared": 39}])
    assert not plausible([{"total": 11, "compared": 1000}])


def test_the_events_behind_a_day_are_named(company: Connection) -> None:
    (row,) = events_behind(company, [date(2026, 2, 10), date(2026, 2, 11)])
    assert (row["customer_id"], row["subscription_id"], row["event"], row["total"]) == ("c0", "c0-1", "canceled", 1)


def test_freshness(company: Connection) -> None:
    fresh = how_fresh(company, now=CLOCK.now())
    assert (fresh.newest_day, fresh.days_behind, fresh.overlooked_events) == (LAST, 0, 0)
    at = CLOCK.now()
    write(company, [Event("c1-1", "c1", "paused", at, at - timedelta(hours=2))])
    fresh = how_fresh(company, now=at + 3 * DAY)
    assert (fresh.days_behind, fresh.unseen_events, fresh.overlooked_events) == (3, 1, 1)


def test_nothing_is_stored_yet(billing: Connection) -> None:
    assert how_fresh(billing, now=CLOCK.now()).days_behind is None
    assert event_breaks(billing) == []


def test_expectations_of_rows(company: Connection) -> None:
    asked: dict[str, Any] = {"start": FIRST, "end": LAST, "grain": "month"}
    figures = {
        "churn": churn(company, **asked),
        "mrr-summary": summary(company, **asked),
        "payments-health": payments_health(company, **asked),
    }
    assert unexpected(figures) == []
    figures["churn"][0]["pause_rate"] = 1.5
    figures["mrr-summary"][1]["paying_customers"] = 99
    found = [(row["dataset"], row["expectation"], row["rows"], row["periods"]) for row in unexpected(figures)]
    assert found == [
        ("churn", "pause_rate is a share", 1, "2026-01"),
        ("mrr-summary", "paying_customers is not above customers", 1, "2026-02"),
    ]
