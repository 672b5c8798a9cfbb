"""The ledger is what the table came from: a write that leaves no event is noticed."""

from __future__ import annotations

from flexpay_pipelines.billing import history_breaks
from flexpay_pipelines.database import Connection


def _subscribe(billing: Connection) -> None:
    billing.execute("INSERT INTO billing.customers (customer_ref, currency) VALUES ('c', 'EUR')")
    billing.execute("INSERT INTO billing.plans VALUES ('p', 'P')")
    billing.execute(
        "INSERT INTO billing.subscriptions (subscription_ref, customer_id, plan, status, amount_minor, currency,"
        " started_at, billing_anchor) VALUES ('s', 1, 'p', 'active', 100, 'EUR', '2026-01-01Z', '2026-01-01Z')"
    )


def test_a_change_with_its_event_agrees(billing: Connection) -> None:
    _subscribe(billing)
    billing.execute("UPDATE billing.subscriptions SET quantity = 3, payment_frequency = 'WEEKLY'")
    assert history_breaks(billing) == ()


def test_a_change_behind_the_ledgers_back_is_named(billing: Connection) -> None:
    _subscribe(billing)
    billing.execute("SELECT set_config('flexpay.ledger', 'import', false)")
    billing.execute("UPDATE billing.subscriptions SET payment_frequency = 'WEEKLY'")
    found = history_breaks(billing)
    assert [(b.subscription_ref, b.in_database, b.in_ledger) for b in found] == [
        ("s", "p WEEKLY 100 EUR x 1", "p MONTHLY 100 EUR x 1")
    ]
