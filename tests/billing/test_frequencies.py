"""Changing how often a customer pays."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexpay_pipelines.billing import (
    apply_due_frequency_changes,
    change_frequency,
    quote_frequency_change,
    set_feature,
)
from flexpay_pipelines.billing.proration import across_intervals
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.money import PaymentFrequency
from tests.billing.helpers import DAY, NOON, clock_at, commands, events, make_company, subscription

ANCHOR = datetime(2026, 3, 1, 12, tzinfo=UTC)
END = datetime(2026, 4, 1, 12, tzinfo=UTC)
YEARLY = PaymentFrequency.YEARLY


@pytest.fixture
def company(billing: Connection) -> Connection:
    make_company(billing, anchor=ANCHOR, next_payment_at=END)
    return billing


def changes(connection: Connection) -> list[dict[str, Any]]:
    return connection.execute("SELECT * FROM billing.frequency_changes ORDER BY frequency_change_id").fetchall()


def test_a_quote_shows_price_proration_and_dates(company: Connection) -> None:
    quote = quote_frequency_change(company, subscription_ref="s1", to=YEARLY, clock=clock_at())
    # 22 of 31 days are left of 1,000: 709.677…, half up.
    assert (quote.credit_minor, quote.debit_minor, quote.amount_minor) == (710, 10001, 10001)
    assert quote.effective_at == NOON
    assert quote.next_payments == tuple(NOON.replace(year=year) for year in (2027, 2028, 2029))
    assert changes(company) == []


def test_a_change_is_one_row_one_event_and_one_command(company: Connection) -> None:
    quote = change_frequency(company, subscription_ref="s1", to=YEARLY, clock=clock_at())
    assert quote == quote_frequency_change(company, subscription_ref="s2", to=YEARLY, clock=clock_at()).__class__(
        "s1", PaymentFrequency.MONTHLY, YEARLY, 10001, "EUR", 710, 10001, NOON, quote.next_payments
    )
    row = subscription(company)
    assert (row["payment_frequency"], row["amount_minor"], row["billing_anchor"]) == ("YEARLY", 10001, NOON)
    assert (row["next_payment_at"], row["version"]) == (NOON.replace(year=2027), 2)
    assert events(company) == [("changed", NOON)]
    assert [(change["state"], change["credit_minor"], change["debit_minor"]) for change in changes(company)] == [
        ("applied", 710, 10001)
    ]
    terms = {"plan": "pro", "payment_frequency": "YEARLY", "currency": "EUR", "amount_minor": 10001}
    assert commands(company) == [("change_price", {**terms, "proration": "create_prorations"})]


def test_a_change_at_the_end_of_the_period(company: Connection) -> None:
    quote = change_frequency(
        company, subscription_ref="s1", to=PaymentFrequency.WEEKLY, clock=clock_at(), when="period_end"
    )
    assert (quote.credit_minor, quote.debit_minor, quote.effective_at) == (0, 0, END)
    assert quote.next_payments == (END, END + 7 * DAY, END + 14 * DAY)
    assert (events(company), commands(company)) == ([], [])
    for to in PaymentFrequency.YEARLY, PaymentFrequency.WEEKLY:
        with pytest.raises(BadInput, match="already has a change of frequency scheduled"):
            change_frequency(company, subscription_ref="s1", to=to, clock=clock_at(), when="period_end")
    assert apply_due_frequency_changes(company, clock=clock_at(END - timedelta(seconds=1))) == 0
    assert apply_due_frequency_changes(company, clock=clock_at(END + DAY)) == 1
    assert apply_due_frequency_changes(company, clock=clock_at(END + DAY)) == 0
    row = subscription(company)
    assert (row["payment_frequency"], row["next_payment_at"], row["billing_anchor"]) == ("WEEKLY", END, END)
    assert events(company) == [("changed", END)]
    assert [parameters["proration"] for _, parameters in commands(company)] == ["none"]
    assert changes(company)[0]["state"] == "applied"


def test_a_period_paid_before_its_change_is_not_asked_for_again(company: Connection) -> None:
    change_frequency(company, subscription_ref="s1", to=PaymentFrequency.WEEKLY, clock=clock_at(), when="period_end")
    company.execute(
        "UPDATE billing.subscriptions SET next_payment_at = '2026-05-01 12:00+00' WHERE subscription_ref = 's1'"
    )
    apply_due_frequency_changes(company, clock=clock_at(END + DAY))
    assert subscription(company)["next_payment_at"] == END + 7 * DAY


def test_a_scheduled_change_waits_for_a_pause_and_ends_with_the_subscription(company: Connection) -> None:
    for ref in ("s1", "s2"):
        change_frequency(company, subscription_ref=ref, to=YEARLY, clock=clock_at(), when="period_end")
    company.execute("UPDATE billing.subscriptions SET status = 'paused' WHERE subscription_ref = 's1'")
    company.execute("UPDATE billing.subscriptions SET status = 'canceled' WHERE subscription_ref = 's2'")
    assert apply_due_frequency_changes(company, clock=clock_at(END)) == 0
    assert [change["state"] for change in changes(company)] == ["scheduled", "canceled"]
    company.execute("UPDATE billing.subscriptions SET status = 'active' WHERE subscription_ref = 's1'")
    assert apply_due_frequency_changes(company, clock=clock_at(END + DAY)) == 1


@pytest.mark.parametrize("status", ["paused", "past_due", "suspended", "canceled"])
def test_refused_unless_active(company: Connection, status: str) -> None:
    company.execute("UPDATE billing.subscriptions SET status = %s", (status,))
    for act in (quote_frequency_change, change_frequency):
        with pytest.raises(BadInput, match=status.replace("_", " ")):
            act(company, subscription_ref="s1", to=YEARLY, clock=clock_at())
    assert (changes(company), commands(company)) == ([], [])


def test_refused_with_the_reason(company: Connection) -> None:
    company.execute("DELETE FROM billing.plan_prices WHERE payment_frequency = 'QUARTERLY'")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"to": PaymentFrequency.MONTHLY}, "already pays MONTHLY"),
        ({"to": PaymentFrequency.QUARTERLY}, "no QUARTERLY price in EUR"),
        ({"to": YEARLY, "subscription_ref": "s9"}, "no subscription 's9'"),
        ({"to": YEARLY, "at": NOON + DAY}, "ahead of time"),
        ({"to": YEARLY, "at": ANCHOR - DAY}, "has changed since"),
        ({"to": YEARLY, "clock": clock_at(END)}, "still to come"),
    ]
    for changed, reason in cases:
        with pytest.raises(BadInput, match=reason):
            change_frequency(company, **{"subscription_ref": "s1", "clock": clock_at(), **changed})
    set_feature(company, "frequencies", False, "incident", clock_at())
    with pytest.raises(BadInput, match="'frequencies' is off"):
        change_frequency(company, subscription_ref="s1", to=YEARLY, clock=clock_at())
    assert apply_due_frequency_changes(company, clock=clock_at(END)) == 0
    assert changes(company) == []


def test_on_trial_nothing_is_prorated_and_the_trial_stays(company: Connection) -> None:
    company.execute("UPDATE billing.subscriptions SET status = 'trialing'")
    quote = change_frequency(company, subscription_ref="s1", to=YEARLY, clock=clock_at())
    assert (quote.credit_minor, quote.debit_minor, quote.next_payments[0]) == (0, 0, END)
    assert (subscription(company)["next_payment_at"], subscription(company)["status"]) == (END, "trialing")


def test_days_are_the_customers_days_when_the_clock_changes(billing: Connection) -> None:
    # March 2026 in Berlin has an hour less; half of its 31 days is still half of the price.
    start = datetime(2026, 3, 1, 11, tzinfo=UTC)
    make_company(billing, zone="Europe/Berlin", anchor=start, next_payment_at=datetime(2026, 4, 1, 10, tzinfo=UTC))
    at = start + 15.5 * DAY
    quote = quote_frequency_change(billing, subscription_ref="s1", to=YEARLY, at=at, clock=clock_at())
    assert quote.credit_minor == 500


def test_a_date_moved_by_a_pause_gives_back_what_is_left(company: Connection) -> None:
    moved = END + 10 * DAY
    company.execute("UPDATE billing.subscriptions SET billing_anchor = %s, next_payment_at = %s", (moved, moved))
    quote = quote_frequency_change(company, subscription_ref="s1", to=YEARLY, at=NOON + 10 * DAY, clock=clock_at())
    assert quote.credit_minor == 710
    early = quote_frequency_change(company, subscription_ref="s1", to=YEARLY, at=NOON - 10 * DAY, clock=clock_at())
    assert early.credit_minor == 1000


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 10**6), st.data())
def test_proration_is_exact_and_half_up(old: int, new: int, period: int, data: st.DataObject) -> None:
    left = data.draw(st.integers(0, period))
    proration = across_intervals(old, new, Fraction(left, period))
    assert proration.debit_minor == new
    assert 2 * period * proration.credit_minor - period <= 2 * old * left < 2 * period * proration.credit_minor + period
    assert 0 <= proration.credit_minor <= old


def test_a_half_goes_up() -> None:
    assert across_intervals(25, 0, Fraction(1, 2)).credit_minor == 13
    with pytest.raises(ValueError, match="between 0 and 1"):
        across_intervals(25, 0, Fraction(3, 2))
