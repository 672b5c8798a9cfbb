"""Changing what a customer pays and how often."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flexpay_pipelines.billing import (
    AppliedChanges,
    FrequencyQuote,
    SweepPolicy,
    apply_due_frequency_changes,
    apply_payment_outcomes,
    cancel_frequency_change,
    change_frequency,
    end_pause_now,
    overdue_frequency_changes,
    quote_frequency_change,
    schedule_pause,
    scheduled_change,
    set_feature,
)
from flexpay_pipelines.billing.pauses import PausePolicy
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.money import PaymentFrequency
from flexpay_pipelines.sql import MIGRATIONS_ROOT
from tests.billing.helpers import DAY, NOON, add_payment, clock_at, commands, events, make_company, subscription, sweep

ANCHOR = datetime(2026, 3, 1, 12, tzinfo=UTC)
END = datetime(2026, 4, 1, 12, tzinfo=UTC)
MONTHLY, WEEKLY, YEARLY = PaymentFrequency.MONTHLY, PaymentFrequency.WEEKLY, PaymentFrequency.YEARLY
Act = Callable[..., Any]


@pytest.fixture
def company(billing: Connection) -> Connection:
    make_company(billing, anchor=ANCHOR, next_payment_at=END)
    billing.execute("INSERT INTO billing.plans VALUES ('max', 'Max')")
    billing.execute(
        "INSERT INTO billing.plan_prices (plan, payment_frequency, currency, amount_minor)"
        " VALUES ('max', 'MONTHLY', 'EUR', 2501), ('max', 'YEARLY', 'EUR', 25000)"
    )
    return billing


def changes(connection: Connection) -> list[dict[str, Any]]:
    return connection.execute("SELECT * FROM billing.frequency_changes ORDER BY frequency_change_id").fetchall()


def change(connection: Connection, ref: str = "s1", *, at: datetime = NOON, **wish: Any) -> FrequencyQuote:
    return change_frequency(connection, subscription_ref=ref, clock=clock_at(at), **wish)


def quote(connection: Connection, ref: str = "s1", *, at: datetime = NOON, **wish: Any) -> FrequencyQuote:
    return quote_frequency_change(connection, subscription_ref=ref, clock=clock_at(at), **wish)


def delivered(connection: Connection, at: datetime = NOON) -> None:
    connection.execute("UPDATE billing.stripe_commands SET state = 'delivered', delivered_at = %s", (at,))


def apply(connection: Connection, at: datetime) -> AppliedChanges:
    return apply_due_frequency_changes(connection, clock=clock_at(at))


def pay(connection: Connection, at: datetime, *, now: datetime | None = None) -> None:
    paid = add_payment(connection, "s1", at, "succeeded")
    apply_payment_outcomes(connection, [paid], clock=clock_at(now or at), grace_days=7)


def pause(connection: Connection, starts_at: datetime, ends_at: datetime) -> None:
    schedule_pause(
        connection, subscription_ref="s1", starts_at=starts_at, ends_at=ends_at, kind="customer", reason=None,
        policy=PausePolicy(), clock=clock_at(starts_at),
    )  # fmt: skip


def terms(connection: Connection, ref: str = "s1") -> tuple[Any, ...]:
    row = subscription(connection, ref)
    return tuple(
        row[name] for name in ("plan", "payment_frequency", "amount_minor", "billing_anchor", "next_payment_at")
    )


def test_a_quote_shows_price_proration_and_dates(company: Connection) -> None:
    company.execute("UPDATE billing.subscriptions SET quantity = 3")
    found = quote(company, to=YEARLY)
    # 22 of 31 days are left of 3 x 1,000: 2,129.03…; the new period is taken in full.
    assert (found.credit_minor, found.debit_minor, found.net_minor) == (2129, 30003, 27874)
    assert (found.from_amount_minor, found.amount_minor, found.effective_at) == (1000, 10001, NOON)
    assert found.next_payments == tuple(NOON.replace(year=year) for year in (2027, 2028, 2029))
    assert (changes(company), commands(company)) == ([], [])


def test_a_change_now_is_one_row_one_event_and_one_command(company: Connection) -> None:
    before = quote(company, to=YEARLY)
    assert change(company, to=YEARLY) == before
    assert terms(company) == ("pro", "YEARLY", 10001, NOON, NOON.replace(year=2027))
    assert subscription(company)["version"] == 2
    assert events(company) == [("changed", NOON)]
    (row,) = changes(company)
    assert (row["state"], row["credit_minor"], row["debit_minor"], row["from_amount_minor"]) == (
        "applied", 710, 10001, 1000,
    )  # fmt: skip
    assert (row["from_plan"], row["to_plan"]) == (None, None)
    told = {"plan": "pro", "payment_frequency": "YEARLY", "currency": "EUR", "amount_minor": 10001}
    assert commands(company) == [
        ("change_price", {**told, "proration": "create_prorations", "proration_date": "2026-03-10T12:00:00+00:00"})
    ]


def test_a_change_of_plan_keeps_period_and_dates(company: Connection) -> None:
    made = change(company, to_plan="max")
    # 22 of 31 days: 709.67… of the old price back, 1,774.90… of the new one taken.
    assert (made.credit_minor, made.debit_minor, made.net_minor) == (710, 1775, 1065)
    assert made.next_payments == (END, END.replace(month=5), END.replace(month=6))
    assert terms(company) == ("max", "MONTHLY", 2501, ANCHOR, END)
    (row,) = changes(company)
    assert (row["from_plan"], row["to_plan"], row["from_frequency"], row["to_frequency"]) == (
        "pro", "max", "MONTHLY", "MONTHLY",
    )  # fmt: skip
    both = change(company, "s2", to_plan="max", to=YEARLY)
    assert (both.debit_minor, terms(company, "s2")[:3]) == (25000, ("max", "YEARLY", 25000))


def test_a_change_to_the_list_price(company: Connection) -> None:
    with pytest.raises(BadInput, match="already pays MONTHLY for plan 'pro', at that price"):
        change(company)
    company.execute("UPDATE billing.plan_prices SET amount_minor = 1100 WHERE payment_frequency = 'MONTHLY'")
    made = change(company, when="period_end")
    assert (made.amount_minor, made.credit_minor, made.debit_minor) == (1100, 0, 0)
    delivered(company)
    assert apply(company, END) == AppliedChanges(1, 0, 0)
    assert terms(company) == ("pro", "MONTHLY", 1100, ANCHOR, END)


def test_a_change_at_the_end_of_the_period_is_told_when_it_is_scheduled(company: Connection) -> None:
    found = change(company, to=WEEKLY, when="period_end")
    assert (found.credit_minor, found.debit_minor, found.effective_at) == (0, 0, END)
    assert found.next_payments == (END, END + 7 * DAY, END + 14 * DAY)
    told = {"plan": "pro", "payment_frequency": "WEEKLY", "currency": "EUR", "amount_minor": 250, "proration": "none"}
    assert commands(company) == [("change_price", {**told, "next_payment_at": END.isoformat()})]
    assert events(company) == []
    for wish in ({"to": YEARLY}, {"to": WEEKLY, "when": "period_end"}, {"to_plan": "max"}):
        with pytest.raises(BadInput, match="already has a change scheduled for 2026-04-01"):
            change(company, **wish)
    delivered(company)
    assert apply(company, END - timedelta(seconds=1)) == AppliedChanges(0, 0, 0)
    assert apply(company, END + DAY) == AppliedChanges(1, 0, 0)
    assert apply(company, END + DAY) == AppliedChanges(0, 0, 0)
    assert terms(company) == ("pro", "WEEKLY", 250, END, END)
    assert (events(company), len(commands(company))) == ([("changed", END)], 1)
    assert changes(company)[0]["state"] == "applied"


@pytest.mark.parametrize("late", [True, False])
def test_the_payment_of_the_period_may_come_before_or_after(company: Connection, late: bool) -> None:
    change(company, to=WEEKLY, when="period_end")
    delivered(company)
    if late:
        apply(company, END + timedelta(minutes=5))
        pay(company, END + timedelta(minutes=1), now=END + timedelta(hours=1))
    else:
        pay(company, END + timedelta(minutes=1))
        assert apply(company, END + DAY).applied == 0
    assert terms(company) == ("pro", "WEEKLY", 250, END, END + 7 * DAY)
    assert [event for event, _ in events(company)] == ["changed"]


def test_a_change_that_was_held_up_counts_what_was_paid_meanwhile(company: Connection) -> None:
    change(company, to=WEEKLY, when="period_end")
    delivered(company)
    set_feature(company, "frequencies", False, "incident", clock_at())
    for week in range(3):
        pay(company, END + week * 7 * DAY + timedelta(minutes=1))
    assert (apply(company, END + 15 * DAY).applied, terms(company)[1]) == (0, "MONTHLY")
    set_feature(company, "frequencies", True, "over", clock_at())
    assert overdue_frequency_changes(company, up_to=END) == 1
    assert apply(company, END + 15 * DAY).applied == 1
    assert terms(company) == ("pro", "WEEKLY", 250, END, END + 21 * DAY)
    assert overdue_frequency_changes(company, up_to=END) == 0


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_change_moves_with_the_payment_that_a_pause_moves(company: Connection, moves: bool, earlier: bool) -> None:
    change(company, to=YEARLY, when="period_end")
    delivered(company)
    starts_at = END - (20 if earlier else 2) * DAY
    pause(company, starts_at, starts_at + 10 * DAY)
    delivered(company, starts_at)
    assert subscription(company)["status"] == "paused"
    assert apply(company, starts_at + 9 * DAY) == AppliedChanges(0, 0, 0)
    sweep(company, starts_at + 10 * DAY, policy=SweepPolicy(moves_next_payment=moves))
    wanted = END + 10 * DAY if moves else END if earlier else datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert subscription(company)["next_payment_at"] == wanted
    assert apply(company, wanted - timedelta(seconds=1)).applied == 0
    assert terms(company)[1] == "MONTHLY"
    assert apply(company, wanted).applied == 1
    assert terms(company) == ("pro", "YEARLY", 10001, wanted, wanted)
    # Stripe has heard the date that counts, by the resume or by a command of its own.
    assert [p["next_payment_at"] for _, p in commands(company) if "next_payment_at" in p][-1] == wanted.isoformat()


def test_a_pause_that_stripe_heard_of_too_late_holds_no_change_up(company: Connection) -> None:
    change(company, to=YEARLY, when="period_end")
    delivered(company)
    pause(company, END - timedelta(minutes=30), END + 10 * DAY)
    assert apply(company, END + timedelta(minutes=1)).applied == 1
    assert (subscription(company)["status"], terms(company)[1]) == ("paused", "YEARLY")


@pytest.mark.parametrize("command", ["pending", "parked", "late"])
def test_where_stripe_hears_of_it_too_late_it_comes_a_period_later(company: Connection, command: str) -> None:
    change(company, to=YEARLY, when="period_end")
    if command == "late":
        delivered(company, END + DAY)
    company.execute("UPDATE billing.stripe_commands SET state = %s WHERE state = 'pending'", (command,))
    pay(company, END + timedelta(minutes=1), now=END + DAY)
    assert apply(company, END + 2 * DAY).applied == 0
    next_period = END.replace(month=5)
    assert terms(company) == ("pro", "MONTHLY", 1000, ANCHOR, next_period)
    assert scheduled_change(company, subscription_ref="s1").effective_at == next_period
    delivered(company, END + 3 * DAY)
    assert apply(company, next_period).applied == 1


def test_who_does_not_pay_gets_the_new_terms_and_who_is_gone_does_not(company: Connection) -> None:
    for ref in ("s1", "s2", "s3"):
        change(company, ref, to=YEARLY, when="period_end")
    delivered(company)
    company.execute("UPDATE billing.subscriptions SET status = 'past_due' WHERE subscription_ref = 's1'")
    company.execute("UPDATE billing.subscriptions SET status = 'suspended' WHERE subscription_ref = 's2'")
    company.execute("UPDATE billing.subscriptions SET status = 'canceled' WHERE subscription_ref = 's3'")
    assert apply_due_frequency_changes(company, clock=clock_at(END), batch_size=1) == AppliedChanges(2, 0, 1)
    assert [row["state"] for row in changes(company)] == ["applied", "applied", "canceled"]
    assert subscription(company, "s3")["payment_frequency"] == "MONTHLY"


def test_a_scheduled_change_can_be_taken_back(company: Connection) -> None:
    with pytest.raises(BadInput, match="has no change scheduled"):
        cancel_frequency_change(company, subscription_ref="s1", clock=clock_at())
    change(company, to=YEARLY, when="period_end")
    shown = scheduled_change(company, subscription_ref="s1")
    assert cancel_frequency_change(company, subscription_ref="s1", clock=clock_at()) == shown
    back = {"plan": "pro", "payment_frequency": "MONTHLY", "currency": "EUR", "amount_minor": 1000, "proration": "none"}
    assert commands(company)[1:] == [("change_price", {**back, "next_payment_at": END.isoformat()})]
    # Stripe counts its periods from the date that was named: so do we.
    assert (terms(company), events(company)) == (("pro", "MONTHLY", 1000, END, END), [])
    assert changes(company)[0]["state"] == "canceled"
    assert apply(company, END).applied == 0
    with pytest.raises(BadInput, match="Stripe prorates no such period"):
        change(company, to=YEARLY)
    change(company, to=YEARLY, when="period_end")
    delivered(company)
    with pytest.raises(BadInput, match="and its change comes with that"):
        cancel_frequency_change(company, subscription_ref="s1", clock=clock_at(END))


def test_taking_back_a_change_of_plan_moves_no_date(company: Connection) -> None:
    change(company, to_plan="max", when="period_end")
    cancel_frequency_change(company, subscription_ref="s1", clock=clock_at())
    assert terms(company) == ("pro", "MONTHLY", 1000, ANCHOR, END)
    assert [parameters["plan"] for _, parameters in commands(company)] == ["max", "pro"]
    assert not any("next_payment_at" in parameters for _, parameters in commands(company))


def test_the_migration_sets_changes_of_plan_aside_and_brings_them_back(company: Connection) -> None:
    change(company, to=YEARLY)
    change(company, "s2", to_plan="max")
    change(company, "s3", to_plan="max", to=YEARLY)
    before = changes(company)
    for step, number in (("verify", 3), ("revert", 2), ("deploy", 3), ("verify", 3)):
        company.execute((MIGRATIONS_ROOT / "frequencies" / f"0002_plan_changes.{step}.sql").read_bytes())
        assert len(changes(company)) == number
    assert changes(company) == before


@pytest.mark.parametrize("status", ["paused", "past_due", "suspended", "canceled"])
def test_refused_unless_active(company: Connection, status: str) -> None:
    company.execute("UPDATE billing.subscriptions SET status = %s", (status,))
    for act in (quote, change):
        with pytest.raises(BadInput, match=status.replace("_", " ")):
            act(company, to=YEARLY)
    assert (changes(company), commands(company)) == ([], [])


def test_refused_with_the_reason(company: Connection) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"to": MONTHLY}, "already pays MONTHLY"),
        ({"to": WEEKLY, "to_plan": "max"}, "'max' has no WEEKLY price in EUR"),
        ({"to_plan": "min"}, "no plan 'min'"),
        ({"to": YEARLY, "ref": "s9"}, "no subscription 's9'"),
        ({"to": YEARLY, "at": END}, "still to come"),
        ({"to": YEARLY, "at": END, "when": "period_end"}, "still to come"),
    ]
    for wish, reason in cases:
        for act in (quote, change):
            with pytest.raises(BadInput, match=reason):
                act(company, **wish)
    set_feature(company, "frequencies", False, "incident", clock_at())
    refused: tuple[Act, ...] = (
        lambda: change(company, to=YEARLY),
        lambda: quote(company, to=YEARLY),
        lambda: cancel_frequency_change(company, subscription_ref="s1", clock=clock_at()),
    )
    for act in refused:
        with pytest.raises(BadInput, match="'frequencies' is off"):
            act()
    assert (changes(company), commands(company)) == ([], [])


@pytest.mark.parametrize("when", ["now", "period_end"])
def test_two_at_once_are_one_change(billing_url: str, company: Connection, when: Any) -> None:
    def run(_: int) -> bool:
        with opened(billing_url, purpose="test") as connection:
            try:
                change(connection, to=YEARLY, when=when)
            except BadInput as refusal:
                return "already" not in str(refusal)
            return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(run, range(4))) == 1
    assert (len(changes(company)), len(commands(company))) == (1, 1)


def test_on_trial_nothing_is_prorated_and_the_trial_stays(company: Connection) -> None:
    company.execute("UPDATE billing.subscriptions SET status = 'trialing'")
    found = change(company, to=YEARLY)
    assert (found.credit_minor, found.debit_minor, found.next_payments[0]) == (0, 0, END)
    assert (subscription(company)["next_payment_at"], subscription(company)["status"]) == (END, "trialing")


def test_days_are_the_customers_days_when_the_clock_changes(billing: Connection) -> None:
    # March 2026 in Berlin has an hour less; half of its 31 days is still half of the price.
    start = datetime(2026, 3, 1, 11, tzinfo=UTC)
    make_company(billing, zone="Europe/Berlin", anchor=start, next_payment_at=datetime(2026, 4, 1, 10, tzinfo=UTC))
    assert quote(billing, at=start + 15.5 * DAY, to=YEARLY).credit_minor == 500


def test_a_date_moved_by_a_pause_is_prorated_only_once_it_has_passed(company: Connection) -> None:
    pause(company, NOON, NOON + 5 * DAY)
    end_pause_now(company, subscription_ref="s1", clock=FixedClock(NOON + 3 * DAY))
    with pytest.raises(BadInput, match="Stripe prorates no such period"):
        quote(company, at=NOON + 4 * DAY, to=YEARLY)
    pay(company, END + 3 * DAY)
    with pytest.raises(BadInput, match="Stripe prorates no such period"):
        quote(company, at=END + 4 * DAY, to=YEARLY)  # Stripe has not been told: it would keep the date now.
    delivered(company, NOON + 3 * DAY)
    assert quote(company, at=END + 4 * DAY, to=YEARLY).credit_minor == 967


@pytest.mark.parametrize(
    ("told", "free_again"),
    [
        ({"proration": "none", "next_payment_at": None}, END),
        # Told of a date that had passed, Stripe keeps the moment after.
        ({"next_payment_at": (NOON - DAY).isoformat()}, NOON + timedelta(hours=1)),
    ],
)
def test_a_date_that_stripe_keeps_for_another_reason_holds_a_change_at_once_back(
    company: Connection, told: dict[str, str | None], free_again: datetime
) -> None:
    company.execute(
        "INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)"
        " SELECT 'one', subscription_id, 'change_price', %s::jsonb FROM billing.subscriptions"
        " WHERE subscription_ref = 's1'",
        (json.dumps(told),),
    )
    delivered(company, NOON)
    with pytest.raises(BadInput, match="Stripe prorates no such period"):
        quote(company, at=free_again - timedelta(seconds=1), to=YEARLY)
    if free_again == END:
        pay(company, END)
        free_again = END + 4 * DAY
    quote(company, at=free_again + timedelta(seconds=1), to=YEARLY)
