"""Payments made to measure: so many first attempts an hour, so many of them failing, from when on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.monitoring import record_deploy

DEPLOYED = datetime(2026, 3, 10, 8, 0, tzinfo=UTC)


class Traffic:
    """Writes payments into the billing database: even subscriptions pay by the year, odd ones by the month."""

    def __init__(self, billing: Connection) -> None:
        self.billing = billing
        billing.execute("INSERT INTO billing.plans VALUES ('basic', 'Basic')")
        billing.execute(
            "INSERT INTO billing.customers (customer_ref, currency)"
            " SELECT 'c' || n, 'EUR' FROM generate_series(1, 40) AS n"
        )
        billing.execute(
            "INSERT INTO billing.subscriptions (subscription_ref, customer_id, plan, status, payment_frequency,"
            " amount_minor, currency, started_at, billing_anchor, next_payment_at)"
            " SELECT 's' || n, n, 'basic', 'active', CASE WHEN n % 2 = 0 THEN 'YEARLY' ELSE 'MONTHLY' END,"
            " 1000, 'EUR', '2025-01-01', '2025-01-01', '2026-09-01'"
            " FROM generate_series(1, 40) AS n"
        )

    def pay(
        self,
        start: datetime,
        length: timedelta,
        *,
        every: timedelta = timedelta(minutes=1),
        failing: str = "false",
        failure_class: str | None = "integration_error",
        attempt: int = 1,
    ) -> None:
        """A payment each `every` of `[start, start + length)`, subscriptions in turn; `failing` is a condition on n."""
        failing = failing.replace("%", "%%")
        statement = f"""
            INSERT INTO billing.payments (payment_ref, subscription_id, occurred_at, amount_minor, currency, outcome,
                failure_class, attempt)
            SELECT gen_random_uuid()::text, 1 + n %% 40, %(start)s::timestamptz + n * %(every)s::interval, 1000, 'EUR',
                CASE WHEN {failing} THEN 'failed' ELSE 'succeeded' END,
                CASE WHEN {failing} THEN %(class)s::text END, %(attempt)s
            FROM generate_series(0, %(count)s::integer - 1) AS n"""  # noqa: S608 - conditions are the tests' own
        self.billing.execute(
            statement.encode(),
            {"start": start, "every": every, "count": length // every, "class": failure_class, "attempt": attempt},
        )


@pytest.fixture
def traffic(billing: Connection) -> Traffic:
    """A company that paid without trouble in the day before the deploy."""
    made = Traffic(billing)
    made.pay(DEPLOYED - timedelta(days=1), timedelta(days=1), every=timedelta(minutes=5), failing="n % 50 = 0")
    return made


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock(DEPLOYED)


@pytest.fixture
def deploy_id(control: Connection, clock: FixedClock) -> int:
    return record_deploy(control, release="r1", actor="ada", run_id="run-1", revisions={"core": "0003"}, clock=clock)
