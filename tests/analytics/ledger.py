"""Writing a history into the ledger, as an import does, and random histories."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from flexpay_pipelines.database import Connection
from tests.analytics.reference import Event

ORIGIN = datetime(2025, 1, 1, tzinfo=UTC)
DAYS = 150
EVENTS = (
    *("started", "started", "paused", "paused", "resumed", "changed", "canceled"),
    *("trial_started", "past_due", "recovered", "suspended"),
)
CURRENCY = {"ann": "EUR", "bob": "USD", "cid": "EUR", "dot": "JPY"}
COUNTRY = {"ann": "DE", "bob": "US", "cid": None, "dot": "JP"}


def write(connection: Connection, events: Iterable[Event]) -> None:
    """Append the events; customers, plans and subscriptions that are new come with them."""
    events = list(events)
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("SELECT set_config('flexpay.ledger', 'import', true)")
        cursor.executemany(
            "INSERT INTO billing.plans (plan, name) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            [(e.plan, e.plan.title()) for e in events],
        )
        cursor.executemany(
            "INSERT INTO billing.customers (customer_ref, currency, country, email) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (customer_ref) DO NOTHING",
            [(e.customer, e.currency, COUNTRY.get(e.customer, "FR"), f"{e.customer}@example.com") for e in events],
        )
        cursor.executemany(
            "INSERT INTO billing.subscriptions (subscription_ref, customer_id, plan, status, amount_minor, quantity,"
            " currency, started_at, billing_anchor, payment_frequency)"
            " SELECT %s, customer_id, %s, 'active', %s, %s, currency, %s, %s, %s FROM billing.customers"
            " WHERE customer_ref = %s ON CONFLICT (subscription_ref) DO NOTHING",
            [
                (
                    e.subscription,
                    e.plan,
                    e.amount_minor,
                    e.quantity,
                    e.occurred_at,
                    e.occurred_at,
                    e.payment_frequency,
                    e.customer,
                )
                for e in events
            ],
        )
        cursor.executemany(
            "INSERT INTO billing.subscription_events (subscription_id, customer_id, event, occurred_at, recorded_at,"
            " plan, payment_frequency, amount_minor, quantity, currency, source)"
            " SELECT subscription_id, customer_id, %s, %s, %s, %s, %s, %s, %s, %s, 'import' FROM billing.subscriptions"
            " WHERE subscription_ref = %s",
            [
                (
                    e.event,
                    e.occurred_at,
                    e.recorded_at,
                    e.plan,
                    e.payment_frequency,
                    e.amount_minor,
                    e.quantity,
                    e.currency,
                    e.subscription,
                )
                for e in events
            ],
        )


@st.composite
def histories(draw: st.DrawFn, max_events: int = 24) -> list[Event]:
    """Up to three customers with several subscriptions each; late, repeated and simultaneous events included."""
    events: list[Event] = []
    for _ in range(draw(st.integers(1, max_events))):
        if events and draw(st.integers(0, 9)) == 0:
            events.append(draw(st.sampled_from(events)))
            continue
        customer = draw(st.sampled_from(["ann", "bob", "cid"]))
        occurred = ORIGIN + timedelta(
            days=draw(st.one_of(st.integers(0, 40), st.integers(0, DAYS))),
            hours=draw(st.sampled_from([0, 0, 1, 12])),
        )
        if events and draw(st.integers(0, 4)) == 0:
            occurred = draw(st.sampled_from(events)).occurred_at
        events.append(
            Event(
                subscription=f"{customer}-{draw(st.integers(1, 2))}",
                customer=customer,
                event=draw(st.sampled_from(EVENTS)),
                occurred_at=occurred,
                recorded_at=occurred + timedelta(days=draw(st.sampled_from([0, 0, 0, 1, 30]))),
                plan=draw(st.sampled_from(["basic", "pro", "team"])),
                payment_frequency=draw(st.sampled_from(["WEEKLY", "BIWEEKLY", "MONTHLY", "QUARTERLY", "YEARLY"])),
                amount_minor=draw(st.sampled_from([0, 100, 1000, 1999, 12345])),
                quantity=draw(st.sampled_from([1, 1, 3])),
                currency=CURRENCY[customer],
            )
        )
    return events
