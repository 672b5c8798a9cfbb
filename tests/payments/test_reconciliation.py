"""Links and reconciliation: everything that is planted is found, nothing else."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.payments import (
    Reconciliation,
    StripeGateway,
    StripeTransient,
    deliver_commands,
    link_subscriptions,
    reconcile,
)
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox
from tests.payments.conftest import NOW, change, command, fill, quiet, stripe_id


def _compare(billing: Connection, gateway: StripeGateway, clock: FixedClock) -> Reconciliation:
    return reconcile(billing, gateway, clock=clock, progress=quiet)


def _kinds(found: Reconciliation) -> set[tuple[str, str]]:
    return {(difference.subscription_ref, difference.kind) for difference in found.differences}


def test_everything_is_linked_once(billing: Connection, stripe: StripeSandbox, gateway: StripeGateway) -> None:
    fill(billing, 250)
    stripe.seed_from_billing(billing)
    before = billing.execute("SELECT subscription_ref, changed_at FROM billing.subscriptions ORDER BY 1").fetchall()
    assert link_subscriptions(billing, gateway, progress=quiet) == 250
    assert link_subscriptions(billing, gateway, progress=quiet) == 0
    row = billing.execute(
        """
        SELECT (SELECT count(*) FROM billing.customers WHERE stripe_customer_id IS NULL) AS customers,
               (SELECT count(*) FROM billing.plan_prices WHERE stripe_price_id IS NULL) AS prices,
               (SELECT count(*) FROM billing.subscriptions WHERE stripe_subscription_id IS NULL) AS subscriptions,
               (SELECT count(*) FROM billing.subscription_events) AS events
        """
    ).fetchone()
    assert row == {"customers": 0, "prices": 0, "subscriptions": 0, "events": 250}, "a link is no history"
    after = billing.execute("SELECT subscription_ref, changed_at FROM billing.subscriptions ORDER BY 1").fetchall()
    assert after == before


def test_a_broken_reading_links_nothing(billing: Connection, stripe: StripeSandbox, gateway: StripeGateway) -> None:
    fill(billing, 150)
    stripe.seed_from_billing(billing)
    stripe.order_fault("reset_before", match="GET /v1/subscriptions")
    with pytest.raises(StripeTransient, match="does not answer"):
        link_subscriptions(billing, gateway, progress=quiet)
    row = billing.execute("SELECT count(stripe_customer_id) AS n FROM billing.customers").fetchone()
    assert row == {"n": 0}


def test_what_agrees_has_no_difference(company: Connection, gateway: StripeGateway, clock: FixedClock) -> None:
    found = _compare(company, gateway, clock)
    assert (found.compared, found.differences, found.in_flight) == (20, (), 0)
    assert found.compared_at == NOW


def test_every_state_is_seeded_so_that_it_agrees(
    billing: Connection, stripe: StripeSandbox, gateway: StripeGateway, clock: FixedClock
) -> None:
    fill(billing)
    states = ["trialing", "paused", "past_due", "suspended", "canceled"]
    for number, status in enumerate(states, start=1):
        billing.execute(
            "UPDATE billing.subscriptions SET status = %s WHERE subscription_ref = %s", (status, f"s{number}")
        )
    billing.execute("UPDATE billing.subscriptions SET next_payment_at = NULL WHERE status IN ('paused', 'suspended')")
    billing.execute("UPDATE billing.subscriptions SET amount_minor = 777, quantity = 3 WHERE subscription_ref = 's9'")
    billing.execute(
        """
        INSERT INTO billing.subscription_pauses (pause_ref, subscription_id, starts_at, ends_at, kind, state)
        SELECT 'p', subscription_id, %s, %s, 'customer', 'active' FROM billing.subscriptions WHERE status = 'paused'
        """,
        (NOW - timedelta(days=1), NOW + timedelta(days=9)),
    )
    stripe.seed_from_billing(billing)
    link_subscriptions(billing, gateway, progress=quiet)
    assert _compare(billing, gateway, clock).differences == ()
    paused = gateway.subscription(stripe_id(billing, "s2"))
    assert paused["pause_collection"]["resumes_at"] == int((NOW + timedelta(days=9)).timestamp())
    stripe.seed_from_billing(billing)
    assert _compare(billing, gateway, clock).differences == (), "the same database gives the same account"


def test_each_planted_difference_is_found(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    gateway.pause(stripe_id(company, "s1"), mode="collection", resumes_at=None, key="portal")
    change(company, "s2", "status = 'paused'")
    gateway.cancel(stripe_id(company, "s3"), key="portal 3")
    change(company, "s4", "status = 'canceled'")
    change(company, "s5", "amount_minor = amount_minor + 1")
    change(company, "s6", "payment_frequency = 'MONTHLY'")
    change(company, "s7", "quantity = 2")
    change(company, "s8", "next_payment_at = next_payment_at + interval '2 days'")
    change(company, "s9", "stripe_subscription_id = NULL")
    change(company, "s10", "status = 'past_due'")
    gateway.pause(stripe_id(company, "s11"), mode="subscription", resumes_at=None, key="portal 11")
    found = _compare(company, gateway, clock)
    row = company.execute(
        "SELECT payment_frequency FROM billing.subscriptions WHERE subscription_ref = 's6'"
    ).fetchone()
    assert row == {"payment_frequency": "MONTHLY"}
    assert _kinds(found) == {
        ("s1", "pause"), ("s2", "pause"), ("s3", "status"), ("s4", "status"), ("s5", "price"), ("s6", "price"),
        ("s7", "quantity"), ("s8", "next_payment"), ("s9", "missing_in_stripe"), ("s10", "status"), ("s11", "pause"),
    }  # fmt: skip
    mends = {(one.subscription_ref, one.kind): one.mend for one in found.differences}
    assert mends["s2", "pause"] == "pause at Stripe"
    assert mends["s4", "status"] == "cancel at Stripe"
    assert found.compared == 20


def test_what_is_on_its_way_is_no_difference(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    change(company, "s1", "status = 'paused'")
    change(company, "s2", "status = 'canceled'")
    command(company, "s1", "pause", json.dumps({"mode": "collection", "resumes_at": None}))
    command(company, "s2", "cancel")
    found = _compare(company, gateway, clock)
    assert (found.differences, found.in_flight) == ((), 2)
    deliver_commands(company, gateway, clock=clock, progress=quiet)
    found = _compare(company, gateway, clock)
    assert (found.differences, found.in_flight) == ((), 0)


def test_a_pause_that_is_due_to_be_swept_is_no_difference(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    """Stripe ends it by itself at the instant; the sweep comes within the hour."""
    ends = NOW + timedelta(hours=1)
    change(company, "s1", "status = 'paused'")
    company.execute(
        """
        INSERT INTO billing.subscription_pauses (pause_ref, subscription_id, starts_at, ends_at, kind, state)
        SELECT 'p', subscription_id, %s, %s, 'customer', 'active' FROM billing.subscriptions WHERE status = 'paused'
        """,
        (NOW - timedelta(days=1), ends),
    )
    gateway.pause(stripe_id(company, "s1"), mode="collection", resumes_at=int(ends.timestamp()), key="p")
    assert _compare(company, gateway, clock).in_flight == 0
    stripe.advance(ends)
    clock.advance(timedelta(hours=1))
    found = _compare(company, gateway, clock)
    assert (found.differences, found.in_flight) == ((), 1)


def test_a_date_that_was_kept_is_no_trial(company: Connection, gateway: StripeGateway, clock: FixedClock) -> None:
    terms = {"plan": "basic", "payment_frequency": "MONTHLY", "currency": "EUR", "amount_minor": 4_000}
    command(company, "s4", "change_price", json.dumps({**terms, "proration": "none"}))
    change(company, "s4", "payment_frequency = 'MONTHLY', amount_minor = 4000")
    deliver_commands(company, gateway, clock=clock, progress=quiet)
    assert gateway.subscription(stripe_id(company, "s4"))["status"] == "trialing"
    assert _compare(company, gateway, clock).differences == ()


def test_without_frequencies_and_pauses_everything_is_monthly(
    billing: Connection, stripe: StripeSandbox, gateway: StripeGateway, clock: FixedClock
) -> None:
    """The components can be rolled back; core must go on."""
    fill(billing)
    billing.execute(
        """
        UPDATE billing.subscriptions AS s SET payment_frequency = 'MONTHLY', amount_minor = p.amount_minor
        FROM billing.plan_prices AS p
        WHERE p.plan = s.plan AND p.currency = s.currency AND p.payment_frequency = 'MONTHLY'
        """
    )
    billing.execute("ALTER TABLE billing.subscriptions DROP COLUMN payment_frequency")
    billing.execute("ALTER TABLE billing.subscription_pauses SET SCHEMA archive")
    # The ledger's triggers of the core component, as they are once frequencies has been reverted, are not needed here.
    billing.execute("ALTER TABLE billing.subscriptions DISABLE TRIGGER USER")
    stripe.seed_from_billing(billing)
    assert link_subscriptions(billing, gateway, progress=quiet) == 20
    assert _compare(billing, gateway, clock).differences == ()
