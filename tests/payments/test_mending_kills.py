"""A mending process is killed around messages and requests: the next run finishes, and nothing is done twice."""

from __future__ import annotations

from typing import Any

import pytest

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.payments import StripeGateway, link_subscriptions
from flexpay_pipelines.payments import mending as engine
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox
from tests.killing import KILLED, kill, points_of, wait_until_gone
from tests.payments.books import Books
from tests.payments.conftest import NOW, change, fill, quiet, stripe_id


def mend_all(url: str, key: str, base: str, purpose: str = KILLED) -> None:
    """The work that is killed: a plan, its mends in batches of two subscriptions, their delivery, another look."""
    engine.BATCH = 2
    gateway = StripeGateway(key, base, max_network_retries=0, requests_per_second=10_000)
    with opened(url, purpose=purpose) as connection:
        books = Books(connection, gateway, FixedClock(NOW), StripeSandbox(base, key))
        books.mend()
        books.compare(incremental=True)


def _drift(billing: Connection, stripe: StripeSandbox, gateway: StripeGateway) -> None:
    billing.execute("TRUNCATE billing.stripe_commands, billing.reconciliations, billing.stripe_events CASCADE")
    stripe.seed_from_billing(billing)
    link_subscriptions(billing, gateway, progress=quiet)
    change(billing, "s1", "quantity = quantity + 1")
    change(billing, "s2", "amount_minor = amount_minor + 7, quantity = quantity + 2")
    change(billing, "s3", "status = 'paused'")
    change(billing, "s4", "next_payment_at = next_payment_at + interval '2 days'")
    change(billing, "s5", "status = 'canceled'")
    gateway.pause(stripe_id(billing, "s6"), mode="collection", resumes_at=None, key="portal 6")
    gateway.cancel(stripe_id(billing, "s7"), key="portal 7")


def _done(billing: Connection, stripe: StripeSandbox) -> dict[str, Any]:
    """What was told and what was written, however often it was begun."""
    commands = billing.execute(
        "SELECT subscription_id, operation, state FROM billing.stripe_commands ORDER BY subscription_id, operation"
    ).fetchall()
    events = {name: number for name, number in stripe.counts().items() if name.startswith("events.")}
    canceled = billing.execute(
        "SELECT subscription_id FROM billing.subscription_events WHERE event = 'canceled' ORDER BY 1"
    ).fetchall()
    return {"commands": commands, "events": events, "canceled": canceled}


@pytest.mark.parametrize("how_many", [5, pytest.param(10_000, marks=pytest.mark.soak)])
def test_a_mend_that_is_killed_is_finished_by_the_next(
    billing: Connection, billing_url: str, stripe: StripeSandbox, gateway: StripeGateway, how_many: int
) -> None:
    fill(billing, 7)
    untouched = billing.execute("SELECT * FROM billing.subscriptions ORDER BY 1").fetchall()
    work = (mend_all, billing_url, stripe.api_key, stripe.api_base)

    def begin() -> None:
        for row in untouched:
            billing.execute(
                "UPDATE billing.subscriptions SET status = %(status)s, amount_minor = %(amount_minor)s,"
                " quantity = %(quantity)s, next_payment_at = %(next_payment_at)s, canceled_at = NULL,"
                " stripe_subscription_id = NULL WHERE subscription_id = %(subscription_id)s",
                row,
            )
        billing.execute("ALTER TABLE billing.subscription_events DISABLE TRIGGER USER")
        billing.execute("DELETE FROM billing.subscription_events WHERE event <> 'started'")
        billing.execute("ALTER TABLE billing.subscription_events ENABLE TRIGGER USER")
        _drift(billing, stripe, gateway)

    begin()
    points = points_of(*work)
    expected = _done(billing, stripe)
    assert {row["state"] for row in expected["commands"]} == {"delivered"}
    for at in range(3, len(points) + 1, max(len(points) // how_many, 1)):
        begin()
        kill(*work, at=at)
        wait_until_gone(billing_url)
        mend_all(billing_url, stripe.api_key, stripe.api_base, "test")
        assert _done(billing, stripe) == expected, f"killed at point {at} of {len(points)}: {points[at - 1]}"
        books = Books(billing, gateway, FixedClock(NOW), stripe)
        assert books.compare().by_kind == {}
