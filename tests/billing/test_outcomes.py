"""What payments do to their subscriptions."""

from __future__ import annotations

from datetime import UTC, datetime

from flexpay_pipelines.billing import PaymentEffects, SweepPolicy, apply_payment_outcomes, set_feature
from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import MIGRATIONS_ROOT
from tests.billing.helpers import (
    DAY,
    HOUR,
    NOON,
    add_pause,
    add_payment,
    clock_at,
    commands,
    events,
    make_company,
    pauses,
    subscription,
    sweep,
)

DUE = datetime(2026, 3, 31, 10, tzinfo=UTC)


def apply(connection: Connection, *payment_ids: int, at: datetime = DUE + HOUR) -> PaymentEffects:
    return apply_payment_outcomes(connection, payment_ids, clock=clock_at(at), grace_days=7)


def test_a_payment_moves_the_next_date_on(billing: Connection) -> None:
    make_company(billing)
    paid = add_payment(billing, "s1", DUE, "succeeded")
    assert apply(billing, paid) == PaymentEffects(0, 0, 0)
    row = subscription(billing)
    assert (row["status"], row["next_payment_at"]) == ("active", datetime(2026, 4, 30, 10, tzinfo=UTC))
    apply(billing, paid)
    assert subscription(billing) == row
    assert events(billing) == []


def test_a_failed_payment_opens_a_grace_period_once(billing: Connection) -> None:
    make_company(billing)
    failed = add_payment(billing, "s1", DUE, "failed")
    assert apply(billing, failed) == PaymentEffects(1, 0, 1)
    assert apply(billing, failed) == PaymentEffects(0, 0, 0)
    again = add_payment(billing, "s1", DUE + DAY, "failed", attempt=2)
    assert apply(billing, failed, again) == PaymentEffects(0, 0, 0)
    assert events(billing) == [("past_due", DUE)]
    assert pauses(billing) == [("payment_failure", "active")]
    assert subscription(billing)["next_payment_at"] == DUE


def test_grace_then_suspended_then_paid_then_recovered(billing: Connection) -> None:
    make_company(billing)
    apply(billing, add_payment(billing, "s1", DUE, "failed"))
    assert sweep(billing, DUE + 7 * DAY, policy=SweepPolicy(pause_mode="subscription")).suspended == 1
    paid = add_payment(billing, "s1", DUE + 9 * DAY, "succeeded", attempt=2)
    assert apply(billing, paid, at=DUE + 9 * DAY) == PaymentEffects(0, 1, 0)
    assert apply(billing, paid, at=DUE + 9 * DAY) == PaymentEffects(0, 0, 0)
    assert events(billing) == [("past_due", DUE), ("suspended", DUE + 7 * DAY), ("recovered", DUE + 9 * DAY)]
    assert commands(billing) == [
        ("pause", {"mode": "subscription", "resumes_at": None}),
        ("resume", {"mode": "subscription"}),
    ]
    row = subscription(billing)
    assert (row["status"], row["next_payment_at"]) == ("active", datetime(2026, 4, 30, 10, tzinfo=UTC))


def test_a_payment_within_the_grace_period_ends_it_at_once(billing: Connection) -> None:
    make_company(billing)
    apply(billing, add_payment(billing, "s1", DUE, "failed"))
    assert apply(billing, add_payment(billing, "s1", DUE + 2 * DAY, "succeeded")) == PaymentEffects(0, 1, 0)
    assert pauses(billing) == [("payment_failure", "completed")]
    assert billing.execute("SELECT ends_at FROM billing.subscription_pauses").fetchone() == {"ends_at": DUE + 2 * DAY}
    assert sweep(billing, DUE + 8 * DAY).due == 0
    assert (subscription(billing)["status"], commands(billing)) == ("active", [])


def test_a_payment_heard_of_after_the_suspension_still_brings_it_back(billing: Connection) -> None:
    make_company(billing)
    apply(billing, add_payment(billing, "s1", DUE, "failed"))
    sweep(billing, DUE + 7 * DAY)
    assert apply(billing, add_payment(billing, "s1", DUE + 6 * DAY, "succeeded")).recovered == 1
    # The ledger is read by occurred_at: a return dated before the suspension would leave it suspended.
    assert events(billing)[-1] == ("recovered", DUE + 7 * DAY)


def test_the_latest_attempt_decides_in_whatever_order_they_come(billing: Connection) -> None:
    make_company(billing)
    failed, paid = add_payment(billing, "s1", DUE, "failed"), add_payment(billing, "s1", DUE + HOUR, "succeeded")
    assert apply(billing, failed, paid) == PaymentEffects(0, 0, 0)
    late = add_payment(billing, "s1", DUE - HOUR, "failed")
    assert apply(billing, late) == PaymentEffects(0, 0, 0)
    assert subscription(billing)["status"] == "active"


def test_a_next_failure_is_a_new_story(billing: Connection) -> None:
    make_company(billing)
    apply(billing, add_payment(billing, "s1", DUE, "failed"))
    apply(billing, add_payment(billing, "s1", DUE + DAY, "succeeded"))
    assert apply(billing, add_payment(billing, "s1", DUE + 30 * DAY, "failed")) == PaymentEffects(1, 0, 1)
    assert [event for event, _ in events(billing)] == ["past_due", "recovered", "past_due"]


def test_money_ends_a_trial_and_a_free_invoice_does_not(billing: Connection) -> None:
    make_company(billing, status="trialing")
    apply(billing, add_payment(billing, "s1", NOON, "succeeded", amount_minor=0))
    assert subscription(billing)["status"] == "trialing"
    apply(billing, add_payment(billing, "s1", DUE, "succeeded"))
    assert subscription(billing)["status"] == "active"


def test_canceled_stays_canceled(billing: Connection) -> None:
    make_company(billing, status="canceled")
    before = subscription(billing)
    ids = [add_payment(billing, "s1", DUE, "failed"), add_payment(billing, "s1", DUE + HOUR, "succeeded")]
    for payment_id in ids:
        assert apply(billing, payment_id) == PaymentEffects(0, 0, 0)
    assert subscription(billing) == before


def test_a_pause_on_the_calendar_stands_before_a_grace_period(billing: Connection) -> None:
    make_company(billing)
    add_pause(billing, "s1", DUE + DAY, DUE + 3 * DAY)
    assert apply(billing, add_payment(billing, "s1", DUE, "failed")) == PaymentEffects(1, 0, 0)
    assert pauses(billing) == [("customer", "scheduled")]


def test_without_pauses_there_is_no_grace_and_all_else_works(billing: Connection) -> None:
    make_company(billing)
    set_feature(billing, "pauses", False, "incident", clock_at())
    assert apply(billing, add_payment(billing, "s1", DUE, "failed")) == PaymentEffects(1, 0, 0)
    billing.execute((MIGRATIONS_ROOT / "pauses" / "0001_pauses.revert.sql").read_bytes())
    billing.execute((MIGRATIONS_ROOT / "frequencies" / "0001_payment_frequency.revert.sql").read_bytes())
    assert apply(billing, add_payment(billing, "s1", DUE + DAY, "succeeded")) == PaymentEffects(0, 1, 0)
    assert apply(billing) == PaymentEffects(0, 0, 0)
