"""A small company in which every component is in use, made by SQL."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection

NOW = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)

COMPANY = """
INSERT INTO billing.plans VALUES ('basic', 'Basic'), ('bespoke', 'Bespoke');
INSERT INTO billing.plan_prices (plan, payment_frequency, currency, amount_minor) VALUES
    ('basic', 'WEEKLY', 'EUR', 300), ('basic', 'BIWEEKLY', 'EUR', 590), ('basic', 'MONTHLY', 'EUR', 1000),
    ('basic', 'QUARTERLY', 'EUR', 2900), ('basic', 'YEARLY', 'EUR', 11000), ('bespoke', 'YEARLY', 'EUR', 100003);
INSERT INTO billing.customers (customer_ref, currency, created_at)
SELECT 'c' || n, 'EUR', '2025-01-01' FROM generate_series(1, {n}) AS n;
INSERT INTO billing.subscriptions (
    subscription_ref, customer_id, plan, status, payment_frequency, amount_minor, currency, started_at, billing_anchor,
    next_payment_at, canceled_at, stripe_subscription_id, changed_at
)
SELECT
    's' || n, n, CASE WHEN n % 11 = 0 THEN 'bespoke' ELSE 'basic' END,
    CASE WHEN n % 13 = 0 THEN 'canceled' WHEN n % 7 = 0 THEN 'paused' WHEN n % 17 = 0 THEN 'past_due' ELSE 'active' END,
    CASE WHEN n % 11 = 0 THEN 'YEARLY'
        ELSE (ARRAY['WEEKLY', 'BIWEEKLY', 'MONTHLY', 'QUARTERLY', 'YEARLY'])[1 + n % 5] END,
    CASE WHEN n % 11 = 0 THEN 100003 ELSE 1000 + n END,
    'EUR', '2025-06-01', '2025-06-01', '2026-03-15'::timestamptz + n * interval '1 hour',
    CASE WHEN n % 13 = 0 THEN '2026-01-01'::timestamptz END,
    CASE WHEN n % 3 > 0 THEN 'sub_' || n END, '2026-02-01'
FROM generate_series(1, {n}) AS n;
INSERT INTO billing.subscription_pauses (pause_ref, subscription_id, starts_at, ends_at, kind, state)
SELECT 'p' || subscription_id, subscription_id, '2026-03-01',
    CASE WHEN subscription_id % 2 = 0 THEN '2026-04-01'::timestamptz END,
    CASE WHEN subscription_id % 4 = 0 THEN 'admin' ELSE 'customer' END, 'active'
FROM billing.subscriptions WHERE status = 'paused';
INSERT INTO billing.subscription_pauses (pause_ref, subscription_id, starts_at, ends_at, kind, state)
SELECT 'q' || subscription_id, subscription_id, '2026-05-01', '2026-05-20', 'customer', 'scheduled'
FROM billing.subscriptions WHERE status = 'active' AND subscription_id % 6 = 0;
INSERT INTO billing.subscription_pauses (pause_ref, subscription_id, starts_at, ends_at, kind, state)
SELECT 'g' || subscription_id, subscription_id, '2026-03-08', '2026-03-15', 'payment_failure', 'active'
FROM billing.subscriptions WHERE status = 'past_due';
INSERT INTO billing.frequency_changes (
    subscription_id, from_frequency, to_frequency, amount_minor, requested_at, effective_at, currency, state
)
SELECT subscription_id, payment_frequency, 'YEARLY', 11000, '2026-03-01', '2026-04-01', 'EUR', 'scheduled'
FROM billing.subscriptions WHERE payment_frequency <> 'YEARLY' AND status <> 'canceled' AND subscription_id % 8 = 0;
INSERT INTO billing.reward_entries (customer_id, occurred_at, kind, amount_minor)
SELECT n, '2026-01-05', 'earned', 500 FROM generate_series(1, {n}) AS n WHERE n % 2 = 0;
INSERT INTO billing.reward_entries (customer_id, occurred_at, kind, amount_minor)
SELECT n, '2026-01-06', 'spent', 500 FROM generate_series(1, {n}) AS n WHERE n % 10 = 0;
"""


def make_company(billing: Connection, customers: int = 120) -> None:
    """`customers` customers with a subscription each, in every state."""
    for statement in COMPANY.format(n=customers).split(";"):
        if statement.strip():
            billing.execute(statement.encode())


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock(NOW)


@pytest.fixture
def company(billing: Connection) -> Connection:
    make_company(billing)
    return billing
