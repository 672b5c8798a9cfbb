"""What a payment attempt does to its subscription: past due and a grace period, or active again.

What belongs here: the effects of attempts that are recorded in `billing.payments`. What does not: recording them
(`flexpay_pipelines.payments`), suspending when the grace period has run out (`sweep`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flexpay_pipelines.billing.features import feature_enabled, has_table
from flexpay_pipelines.billing.sweep import PAUSES
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import queries


@dataclass(frozen=True, slots=True)
class PaymentEffects:
    """Subscriptions that became past due, that came back, and grace periods that began."""

    failed: int
    recovered: int
    grace_started: int


def apply_payment_outcomes(
    connection: Connection,
    payment_ids: Sequence[int],
    *,
    clock: Clock,
    grace_days: int,
    pause_mode: str = "collection",
) -> PaymentEffects:
    """Let newly recorded payments act on their subscriptions: set-based, idempotent, in one transaction.

    The latest attempt of a subscription decides, whichever of its payments are named. Failed: active (or on trial)
    becomes past due and, where pauses are on, a grace period of `grace_days` begins at the attempt. Succeeded: past
    due or suspended becomes active, what is left of the grace period is void, the next payment date moves on. A
    canceled subscription stays so.

    Args:
        pause_mode: how Stripe is resumed where no pause command says how it was paused.
    """
    if not payment_ids:
        return PaymentEffects(0, 0, 0)
    sql = queries("billing_outcomes")
    ids = list(payment_ids)
    now = clock.now()
    with connection.transaction():
        failed = sql.apply_failed_payments(connection, payment_ids=ids)
        succeeded = sql.apply_succeeded_payments(connection, payment_ids=ids, pause_mode=pause_mode)
        grace = 0
        if failed["failed"] and feature_enabled(connection, PAUSES):
            grace = sql.open_grace_periods(
                connection, payment_ids=failed["payment_ids"], grace_days=grace_days, now=now
            )
        if succeeded["subscription_ids"] and has_table(connection, "billing.subscription_pauses"):
            sql.close_grace_periods(connection, subscription_ids=succeeded["subscription_ids"], now=now)
    return PaymentEffects(failed["failed"], succeeded["recovered"], grace)
