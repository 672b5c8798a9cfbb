"""A made-up company of which it is known why customers leave: failed payments and a dull plan, or no reason at all."""

from __future__ import annotations

import random
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from flexpay_pipelines.analytics import refresh
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection

FIRST = datetime(2025, 5, 1, 9, tzinfo=UTC)
LAST = date(2026, 6, 30)
CLOCK = FixedClock(datetime(2026, 7, 1, 2, tzinfo=UTC))
MONTH = timedelta(days=30)
FAILS = 0.08
LEAVES_ANYHOW = {"basic": 0.08, "pro": 0.01}
LEAVES_AT_RANDOM = 0.06
PLANS = ("basic", "pro")


def found(connection: Connection, *, driven: bool, customers: int = 3_000, seed: int = 1) -> None:
    """Write the company and its intervals.

    `driven`: two in three leave after a failed payment, more leave the plan `basic`; else everybody leaves by chance.
    """
    rng = random.Random(seed)  # noqa: S311 - a made-up company
    events: list[tuple[Any, ...]] = []
    payments: list[tuple[Any, ...]] = []
    starts = []
    until = datetime(LAST.year, LAST.month, LAST.day, tzinfo=UTC) + timedelta(days=1)
    for customer in range(1, customers + 1):
        plan = rng.choice(PLANS)
        at = FIRST + timedelta(days=rng.randrange(330), seconds=rng.randrange(86_400))
        starts.append((customer, plan, at))
        events.append((customer, "started", at, plan))
        while at < until:
            if not rng.random() < FAILS:
                payments.append((customer, at, "succeeded"))
            else:
                payments.append((customer, at, "failed"))
                events.append((customer, "past_due", at, plan))
                decided = at + timedelta(days=rng.randint(8, 20))
                if rng.random() < (0.66 if driven else LEAVES_AT_RANDOM):
                    events.append((customer, "canceled", decided, plan))
                    break
                payments.append((customer, decided, "succeeded"))
                events.append((customer, "recovered", decided, plan))
            if rng.random() < (LEAVES_ANYHOW[plan] if driven else LEAVES_AT_RANDOM):
                events.append((customer, "canceled", at + timedelta(days=rng.randint(21, 29)), plan))
                break
            at += MONTH
    _write(connection, starts, [e for e in events if e[2] < until], [p for p in payments if p[1] < until])


def _write(
    connection: Connection, starts: Iterable[tuple[Any, ...]], events: list[tuple[Any, ...]], payments: list[Any]
) -> None:
    starts = list(starts)
    with connection.transaction():
        connection.execute("SELECT set_config('flexpay.ledger', 'import', true)")
        connection.execute("INSERT INTO billing.plans SELECT n, n FROM unnest(%s::text[]) AS n", (list(PLANS),))
        _copy(
            connection,
            "billing.customers (customer_id, customer_ref, currency, country)",
            [(customer, f"cus-{customer}", "EUR", "DE") for customer, *_ in starts],
        )
        _copy(
            connection,
            "billing.subscriptions (subscription_id, subscription_ref, customer_id, plan, status, amount_minor,"
            " currency, started_at, billing_anchor, payment_frequency)",
            [(c, f"sub-{c}", c, plan, "active", 1000, "EUR", at, at, "MONTHLY") for c, plan, at in starts],
        )
    add_events(connection, events)
    add_payments(connection, payments)
    refresh(connection, start=LAST, end=LAST, clock=CLOCK)


def add_events(connection: Connection, events: list[tuple[Any, ...]]) -> None:
    """Append (customer, event, occurred_at, plan), known at once."""
    _copy(
        connection,
        "billing.subscription_events (subscription_id, customer_id, event, occurred_at, recorded_at, plan,"
        " payment_frequency, amount_minor, quantity, currency, source)",
        [(c, c, event, at, at, plan, "MONTHLY", 1000, 1, "EUR", "import") for c, event, at, plan in events],
    )


def add_payments(connection: Connection, payments: list[tuple[Any, ...]]) -> None:
    """Append (customer, occurred_at, outcome), known at once."""
    counted = connection.execute("SELECT count(*) AS n FROM billing.payments").fetchone()
    first = counted["n"] if counted else 0
    _copy(
        connection,
        "billing.payments (payment_ref, subscription_id, occurred_at, recorded_at, amount_minor, currency, outcome,"
        " failure_class)",
        [
            (f"pay-{number}", c, at, at, 1000, "EUR", outcome, "issuer_decline" if outcome == "failed" else None)
            for number, (c, at, outcome) in enumerate(payments, first)
        ],
    )


def _copy(connection: Connection, into: str, rows: Iterable[tuple[Any, ...]]) -> None:
    with connection.cursor() as cursor, cursor.copy(f"COPY {into} FROM STDIN".encode()) as copy:
        for row in rows:
            copy.write_row(row)
