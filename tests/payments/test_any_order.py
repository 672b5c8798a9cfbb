"""One history, told in any order, in portions, twice, with gaps that are filled later: the same state in the end."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
import stripe as sdk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexpay_pipelines.billing import apply_payment_outcomes
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.payments import StripeGateway, apply_events, store_events
from flexpay_pipelines.payments.events import TYPES
from flexpay_pipelines.payments.stripe_gateway import Object
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox
from tests.payments.conftest import NOW, stripe_id

DAYS = 24
END = NOW + timedelta(days=DAYS)
FINAL = {
    "payments": """
        SELECT payment_ref, subscription_id, occurred_at, amount_minor, currency, outcome, failure_class, failure_code,
               attempt
        FROM billing.payments ORDER BY 1
    """,
    "subscriptions": """
        SELECT subscription_ref, status, canceled_at, next_payment_at, stripe_event_at
        FROM billing.subscriptions ORDER BY 1
    """,
    "grace periods": """
        SELECT pause_ref, subscription_id, starts_at, ends_at, kind, reason, state
        FROM billing.subscription_pauses WHERE state <> 'canceled' ORDER BY 1
    """,
    "cancellations": """
        SELECT subscription_id, occurred_at FROM billing.subscription_events WHERE event = 'canceled' ORDER BY 1
    """,
    "events": "SELECT stripe_event_id, applied_at IS NOT NULL AS applied FROM billing.stripe_events ORDER BY 1",
}
Told = tuple[Object, ...]


def _live(company: Connection, gateway: StripeGateway, sandbox: StripeSandbox, seed: int) -> Told:
    """Days of a company at Stripe: payments fail, are tried again and asked for; some pause, some cancel."""
    client = sdk.StripeClient(sandbox.api_key, base_addresses={"api": sandbox.api_base}, max_network_retries=0)
    chance = random.Random(seed)  # noqa: S311 - a history, not a secret
    sandbox.set_seed(seed)
    sandbox.set_decline_rate(0.6)
    alive = [f"s{number}" for number in range(1, 21)]
    for day in range(1, DAYS + 1):
        sandbox.advance(NOW + timedelta(days=day))
        living = {stripe_id(company, ref) for ref in alive}
        for invoice in client.v1.invoices.list({"status": "open", "limit": 100}).data:
            if chance.random() < 0.1 and _subscription_of(invoice) in living:
                _pay(client, str(invoice.id))
        if day % 6 == 0:
            gateway.cancel(stripe_id(company, alive.pop(chance.randrange(len(alive)))), key=f"cancel {day}")
        if day % 5 == 0:
            someone, mode = stripe_id(company, chance.choice(alive)), chance.choice(["collection", "subscription"])
            shown = gateway.subscription(someone)
            if shown["status"] != "paused" and shown["pause_collection"] is None:
                gateway.pause(someone, mode=mode, resumes_at=None, key=f"pause {day}")
    sandbox.set_clock(END)
    return tuple(event for page in gateway.events(since=None, types=TYPES) for event in page)[::-1]


def _subscription_of(invoice: sdk.Invoice) -> str:
    assert invoice.parent is not None
    assert invoice.parent.subscription_details is not None
    return str(invoice.parent.subscription_details.subscription)


def _pay(client: sdk.StripeClient, invoice: str) -> None:
    try:
        client.v1.invoices.pay(invoice)
    except sdk.CardError as declined:
        assert declined.code in ("card_declined", "expired_card")


def _tell(company: Connection, gateway: StripeGateway, portions: Sequence[Told]) -> dict[str, Any]:
    """What the database holds after these portions; afterwards it is as it was before."""
    clock = FixedClock(END)
    effects = partial(apply_payment_outcomes, clock=clock, grace_days=7)
    with company.transaction():
        for portion in portions:
            store_events(company, portion)
            apply_events(company, gateway, clock=clock, apply=effects)
        found = {name: company.execute(statement.encode()).fetchall() for name, statement in FINAL.items()}
        found["ledger"] = company.execute(
            """
            SELECT DISTINCT ON (e.subscription_id) s.status, e.event, e.occurred_at
            FROM billing.subscription_events AS e JOIN billing.subscriptions AS s USING (subscription_id)
            WHERE e.event <> 'started'
            ORDER BY e.subscription_id, e.occurred_at DESC, e.event_id DESC
            """
        ).fetchall()
        found["instants"] = company.execute(
            """
            SELECT event, occurred_at FROM billing.subscription_events WHERE event IN ('past_due', 'recovered')
            EXCEPT
            SELECT CASE outcome WHEN 'failed' THEN 'past_due' ELSE 'recovered' END, occurred_at FROM billing.payments
            """
        ).fetchall()
        raise psycopg.Rollback
    return found


def _check_ledger(found: dict[str, Any]) -> None:
    """The ledger, read by occurred_at, ends in today's status, and is dated by what happened at Stripe."""
    assert found.pop("instants") == []
    status_after = {"past_due": "past_due", "recovered": "active", "canceled": "canceled"}
    for row in found.pop("ledger"):
        assert status_after[row["event"]] == row["status"]


@st.composite
def _tellings(draw: st.DrawFn, number: int) -> list[list[int]]:
    """Events by their number in an order, some twice, in portions."""
    how = draw(st.sampled_from(["any", "nearly", "backwards", "late"]))
    chance = random.Random(draw(st.integers(0, 2**32)))  # noqa: S311 - an order, not a secret
    order = list(range(number))
    if how == "any":
        chance.shuffle(order)
    elif how == "nearly":
        order.sort(key=lambda event: event + chance.uniform(0, 30))
    elif how == "backwards":
        order.reverse()
    else:
        # A gap: what came by webhook is there, what polling missed is filled in later.
        missed = {event for event in order if chance.random() < 0.3}
        order.sort(key=lambda event: event in missed)
    order += chance.sample(order, number // 5)
    ends = sorted({*draw(st.lists(st.integers(1, len(order)), max_size=12)), len(order)})
    return [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _in_any_order(
    company: Connection, gateway: StripeGateway, sandbox: StripeSandbox, *, seed: int, examples: int
) -> None:
    events = _live(company, gateway, sandbox, seed)
    kinds = {event["type"] for event in events}
    assert {"invoice.paid", "invoice.payment_failed", "customer.subscription.deleted"} <= kinds
    expected = _tell(company, gateway, [(event,) for event in events])
    assert {row["state"] for row in expected["grace periods"]} == {"active", "completed"}
    assert {row["status"] for row in expected["subscriptions"]} >= {"active", "past_due", "canceled"}
    _check_ledger(expected)

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(_tellings(len(events)))
    def told(portions: list[list[int]]) -> None:
        found = _tell(company, gateway, [tuple(events[one] for one in portion) for portion in portions])
        _check_ledger(found)
        for name, rows in expected.items():
            assert found[name] == rows, name

    told()


def test_one_history_told_in_any_order_ends_the_same(
    company: Connection, gateway: StripeGateway, stripe: StripeSandbox
) -> None:
    _in_any_order(company, gateway, stripe, seed=1, examples=12)


def test_an_invoice_that_is_tried_after_the_end_does_not_revive_a_subscription(
    company: Connection, gateway: StripeGateway, stripe: StripeSandbox
) -> None:
    client = sdk.StripeClient(stripe.api_key, base_addresses={"api": stripe.api_base}, max_network_retries=0)
    stripe.set_decline_rate(1)
    stripe.advance(NOW + timedelta(days=1, hours=1))
    (invoice,) = client.v1.invoices.list({"status": "open"}).data
    gateway.cancel(_subscription_of(invoice), key="end")
    stripe.advance(NOW + timedelta(days=1, hours=5))
    _pay(client, str(invoice.id))
    stripe.set_decline_rate(0)
    events = [event for page in gateway.events(since=None, types=TYPES) for event in page]
    in_order = _tell(company, gateway, [(event,) for event in reversed(events)])
    backwards = _tell(company, gateway, [(event,) for event in events])
    for found in (in_order, backwards):
        _check_ledger(found)
        assert [row["state"] for row in found["grace periods"]] == ["completed"]
        assert len(found["payments"]) == 2
    assert in_order["subscriptions"] == backwards["subscriptions"]
    assert in_order["grace periods"] == backwards["grace periods"]


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
def test_many_histories_told_in_any_order_end_the_same(
    company: Connection, gateway: StripeGateway, stripe: StripeSandbox, seed: int
) -> None:
    _in_any_order(company, gateway, stripe, seed=seed, examples=60)
