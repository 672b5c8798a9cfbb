"""What the tests of rollbacks ask the databases, and a rollback as they start it."""

from __future__ import annotations

from typing import Any

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.rollback import (
    RollbackResult,
    roll_back,
)

LIVE = """
SELECT s.subscription_id, s.status, s.plan, s.payment_frequency, s.amount_minor, s.quantity, s.next_payment_at
FROM billing.subscriptions AS s ORDER BY 1
"""
ANCHORS = "SELECT subscription_id, billing_anchor FROM billing.subscriptions ORDER BY 1"
PAUSES = "SELECT pause_id, state, starts_at, ends_at, kind FROM billing.subscription_pauses ORDER BY 1"
CHANGING_AT_STRIPE = """
SELECT count(*) FROM billing.frequency_changes AS f JOIN billing.subscriptions AS s USING (subscription_id)
WHERE f.state = 'scheduled' AND s.payment_frequency <> 'MONTHLY' AND s.stripe_subscription_id IS NOT NULL
"""
SCHEDULED = "SELECT frequency_change_id FROM billing.frequency_changes WHERE state = 'scheduled' ORDER BY 1"
FLAGS = "SELECT feature, enabled FROM billing.feature_flags ORDER BY 1"
BALANCES = "SELECT customer_id, balance_minor FROM billing.reward_balances ORDER BY 1"


def rows(connection: Connection, query: str, *given: object) -> list[dict[str, Any]]:
    return connection.execute(query.encode(), given or None).fetchall()


def one(connection: Connection, query: str, *given: object) -> Any:
    row = connection.execute(query.encode(), given or None).fetchone()
    assert row is not None
    return next(iter(row.values()))


def live(billing: Connection) -> list[list[dict[str, Any]]]:
    return [rows(billing, query) for query in (LIVE, PAUSES, SCHEDULED, FLAGS, BALANCES)]


def rolled(billing: Connection, control: Connection, clock: FixedClock, component: str, **more: Any) -> RollbackResult:
    given: dict[str, Any] = {"actor": "ada", "reason": "a test", "incident_id": None, "run_id": None, **more}
    return roll_back(billing, control, component=component, clock=clock, **given)
