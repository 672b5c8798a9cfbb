"""A running Stripe sandbox, and a small company that both the database and the sandbox know."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from psycopg import sql

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.payments import StripeGateway, link_subscriptions
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox, running_stripe_server

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
def stripe_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeSandbox]:
    """One sandbox for the whole run."""
    with running_stripe_server(tmp_path_factory.mktemp("stripe")) as running:
        yield running


@pytest.fixture
def stripe(stripe_server: StripeSandbox) -> StripeSandbox:
    """An empty account at NOW in which every payment succeeds."""
    stripe_server.control("clear")
    stripe_server.clear_faults()
    stripe_server.set_decline_rate(0)
    stripe_server.set_rate_limit(10_000)
    stripe_server.set_clock(NOW)
    return stripe_server


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock(NOW)


@pytest.fixture
def gateway(stripe: StripeSandbox) -> StripeGateway:
    """The gateway without the SDK's own repetitions, so that each fault is seen, and in a hurry."""
    return StripeGateway(
        stripe.api_key, stripe.api_base, timeout_seconds=2, max_network_retries=0, requests_per_second=10_000
    )


@pytest.fixture
def company(billing: Connection, stripe: StripeSandbox, gateway: StripeGateway) -> Connection:
    """Twenty subscriptions, s1 to s20, of every frequency, active, known to Stripe and linked."""
    fill(billing)
    stripe.seed_from_billing(billing)
    link_subscriptions(billing, gateway, progress=quiet)
    return billing


def quiet(_sentence: str) -> None:
    """Progress that nobody follows."""


def fill(billing: Connection, number: int = 20) -> None:
    """A company whose next payments lie one to twenty days ahead."""
    billing.execute("INSERT INTO billing.plans VALUES ('basic', 'Basic'), ('pro', 'Pro')")
    billing.execute(
        """
        INSERT INTO billing.plan_prices (plan, payment_frequency, currency, amount_minor)
        SELECT plan, frequency, currency, base * number
        FROM (VALUES ('basic', 1000), ('pro', 3000)) AS p (plan, base)
        CROSS JOIN (VALUES ('WEEKLY', 1), ('BIWEEKLY', 2), ('MONTHLY', 4), ('QUARTERLY', 12), ('YEARLY', 40))
            AS f (frequency, number)
        CROSS JOIN (VALUES ('EUR'), ('USD')) AS c (currency)
        """
    )
    billing.execute(
        """
        INSERT INTO billing.customers (customer_ref, currency, email)
        SELECT 'c' || n, CASE n %% 2 WHEN 0 THEN 'EUR' ELSE 'USD' END, 'c' || n || '@example.com'
        FROM generate_series(1, %(number)s) AS n
        """,
        {"number": number},
    )
    billing.execute(
        """
        INSERT INTO billing.subscriptions
            (subscription_ref, customer_id, plan, status, amount_minor, currency, payment_frequency, started_at,
             billing_anchor, next_payment_at, changed_at)
        SELECT 's' || n, c.customer_id, p.plan, 'active', p.amount_minor, c.currency, p.payment_frequency,
               %(now)s, due, due, %(now)s
        FROM generate_series(1, %(number)s) AS n
        JOIN billing.customers AS c ON c.customer_ref = 'c' || n
        JOIN billing.plan_prices AS p
            ON p.plan = CASE n %% 3 WHEN 0 THEN 'pro' ELSE 'basic' END
            AND p.currency = c.currency
            AND p.payment_frequency = (ARRAY['WEEKLY', 'BIWEEKLY', 'MONTHLY', 'QUARTERLY', 'YEARLY'])[n %% 5 + 1]
        CROSS JOIN LATERAL (SELECT %(now)s::timestamptz + make_interval(days => 1 + n %% 20)) AS d (due)
        """,
        {"number": number, "now": NOW},
    )


def command(billing: Connection, ref: str, operation: str, parameters: str = "{}", version: int = 1) -> int:
    """Write one command to the outbox, created NOW; returns its id."""
    row = billing.execute(
        """
        INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters, created_at)
        SELECT subscription_id || ':' || %(operation)s::text || ':' || %(version)s::text, subscription_id,
               %(operation)s, %(parameters)s::jsonb, %(now)s
        FROM billing.subscriptions WHERE subscription_ref = %(ref)s
        RETURNING command_id
        """,
        {"ref": ref, "operation": operation, "parameters": parameters, "version": version, "now": NOW},
    ).fetchone()
    assert row is not None
    return int(row["command_id"])


def stripe_id(billing: Connection, ref: str) -> str:
    row = billing.execute(
        "SELECT stripe_subscription_id FROM billing.subscriptions WHERE subscription_ref = %s", (ref,)
    ).fetchone()
    assert row is not None
    return str(row["stripe_subscription_id"])


def change(billing: Connection, ref: str, assignments: str) -> None:
    """Change a subscription by hand, such as `change(billing, "s1", "quantity = 2")`."""
    billing.execute(
        sql.SQL("UPDATE billing.subscriptions SET {} WHERE subscription_ref = {}").format(
            sql.SQL(assignments),  # a test's own words
            ref,
        )
    )


def outbox(billing: Connection) -> dict[int, str]:
    """The state of each command."""
    rows = billing.execute("SELECT command_id, state FROM billing.stripe_commands ORDER BY 1")
    return {row["command_id"]: row["state"] for row in rows}
