"""A small company made by SQL, and what tests ask about it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from flexpay_pipelines.billing import SweepPolicy, SweepResult, sweep_pauses
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
PRICES = {"WEEKLY": 250, "BIWEEKLY": 500, "MONTHLY": 1000, "QUARTERLY": 2800, "YEARLY": 10001}


def clock_at(instant: datetime = NOON) -> FixedClock:
    return FixedClock(instant)


def make_company(
    connection: Connection,
    subscriptions: int = 3,
    *,
    status: str = "active",
    zone: str = "UTC",
    anchor: datetime = datetime(2026, 1, 31, 10, tzinfo=UTC),
    next_payment_at: datetime | None = datetime(2026, 3, 31, 10, tzinfo=UTC),
    in_stripe: bool = True,
) -> None:
    """Customers `c1…`, each with one subscription `s1…` to plan `pro` at 1,000 EUR cents a month, begun at `anchor`."""
    connection.execute("INSERT INTO billing.plans (plan, name) VALUES ('pro', 'Pro') ON CONFLICT DO NOTHING")
    connection.execute(
        "INSERT INTO billing.plan_prices (plan, payment_frequency, currency, amount_minor)"
        " SELECT 'pro', f, 'EUR', a FROM unnest(%s::text[], %s::bigint[]) AS p (f, a) ON CONFLICT DO NOTHING",
        (list(PRICES), list(PRICES.values())),
    )
    connection.execute(
        "INSERT INTO billing.customers (customer_ref, currency, country, time_zone, created_at)"
        " SELECT 'c' || n, 'EUR', 'DE', %s, %s FROM generate_series(1, %s) AS n",
        (zone, anchor, subscriptions),
    )
    connection.execute(
        "INSERT INTO billing.subscriptions (subscription_ref, customer_id, plan, status,"
        " amount_minor, currency, started_at,"
        " billing_anchor, next_payment_at, stripe_subscription_id, changed_at)"
        " SELECT 's' || substr(customer_ref, 2), customer_id, 'pro', %(status)s, 1000,"
        " currency, %(anchor)s, %(anchor)s,"
        " %(next)s, CASE WHEN %(stripe)s THEN 'sub_' || customer_id END, %(anchor)s"
        " FROM billing.customers ORDER BY customer_id",
        {"status": status, "anchor": anchor, "next": next_payment_at, "stripe": in_stripe},
    )


def add_pause(
    connection: Connection,
    subscription_ref: str,
    starts_at: datetime,
    ends_at: datetime | None,
    *,
    kind: str = "customer",
    state: str = "scheduled",
) -> int:
    row = connection.execute(
        "INSERT INTO billing.subscription_pauses (pause_ref, subscription_id, starts_at, ends_at, kind, state)"
        " SELECT %s || '@' || %s, subscription_id, %s, %s, %s, %s FROM billing.subscriptions"
        " WHERE subscription_ref = %s"
        " RETURNING pause_id",
        (subscription_ref, str(starts_at), starts_at, ends_at, kind, state, subscription_ref),
    ).fetchone()
    assert row is not None
    return int(row["pause_id"])


def add_payment(
    connection: Connection,
    subscription_ref: str,
    at: datetime,
    outcome: str,
    *,
    amount_minor: int = 1000,
    attempt: int = 1,
) -> int:
    row = connection.execute(
        "INSERT INTO billing.payments (payment_ref, subscription_id, occurred_at,"
        " amount_minor, currency, outcome, failure_class,"
        " attempt) SELECT %s || '/' || %s || '/' || %s, subscription_id, %s, %s, currency, %s,"
        " CASE WHEN %s = 'failed' THEN 'issuer_decline' END, %s"
        " FROM billing.subscriptions WHERE subscription_ref = %s RETURNING payment_id",
        (subscription_ref, str(at), attempt, at, amount_minor, outcome, outcome, attempt, subscription_ref),
    ).fetchone()
    assert row is not None
    return int(row["payment_id"])


def subscription(connection: Connection, subscription_ref: str = "s1") -> dict[str, Any]:
    row = connection.execute(
        "SELECT * FROM billing.subscriptions WHERE subscription_ref = %s", (subscription_ref,)
    ).fetchone()
    assert row is not None
    return row


def events(connection: Connection, subscription_ref: str = "s1") -> list[tuple[str, datetime]]:
    """The ledger of one subscription after its start, in the order in which it was written."""
    return [
        (row["event"], row["occurred_at"])
        for row in connection.execute(
            "SELECT event, occurred_at FROM billing.subscription_events JOIN"
            " billing.subscriptions USING (subscription_id)"
            " WHERE subscription_ref = %s AND event <> 'started' ORDER BY event_id",
            (subscription_ref,),
        )
    ]


def commands(connection: Connection, subscription_ref: str = "s1") -> list[tuple[str, dict[str, Any]]]:
    return [
        (row["operation"], row["parameters"])
        for row in connection.execute(
            "SELECT operation, parameters FROM billing.stripe_commands JOIN billing.subscriptions"
            " USING (subscription_id)"
            " WHERE subscription_ref = %s ORDER BY command_id",
            (subscription_ref,),
        )
    ]


def pauses(connection: Connection, subscription_ref: str = "s1") -> list[tuple[str, str]]:
    return [
        (row["kind"], row["state"])
        for row in connection.execute(
            "SELECT p.kind, p.state FROM billing.subscription_pauses AS p JOIN"
            " billing.subscriptions USING (subscription_id)"
            " WHERE subscription_ref = %s ORDER BY p.starts_at, p.pause_id",
            (subscription_ref,),
        )
    ]


def sweep(connection: Connection, at: datetime = NOON, *, policy: SweepPolicy = SweepPolicy()) -> SweepResult:  # noqa: B008
    """A sweep at an instant, with its own sums checked."""
    result = sweep_pauses(connection, clock=clock_at(at), policy=policy, progress=lambda _: None)
    assert result.due == result.started + result.ended + result.suspended + sum(result.skipped.values())
    return result
