"""What a payment attempt does to its subscription: past due and a grace period, or active again.

What belongs here: the effects of attempts that are recorded in `billing.payments`. What does not: recording them
(`flexpay_pipelines.payments`), suspending when the grace period has run out (`sweep`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flexpay_pipelines.billing.due_changes import apply_changes_before_periods
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

    All that is known of a subscription's attempts decides, whichever of them are named and in whatever order they
    became known. The latest failed: active (or on trial) becomes past due. The latest succeeded: past due or suspended
    becomes active. Where pauses are on, each row of failures has one grace period of `grace_days` from its first
    failure on, which ends early with a success or a cancellation. Each success moves the next payment date on. A
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
        # The payment of a period belongs to the terms that came with it.
        paid_for = sql.subscriptions_of_payments(connection, payment_ids=ids)
        apply_changes_before_periods(connection, paid_for, clock=clock)
        failed: int = sql.apply_failed_payments(connection, payment_ids=ids)
        succeeded = sql.apply_succeeded_payments(connection, payment_ids=ids, pause_mode=pause_mode)
        close_grace_periods(connection, succeeded["subscription_ids"], clock=clock)
        begun = 0
        if feature_enabled(connection, PAUSES):
            begun = sql.place_grace_periods(connection, payment_ids=ids, grace_days=grace_days, now=now)
    return PaymentEffects(failed, succeeded["recovered"], begun)


def close_grace_periods(connection: Connection, subscription_ids: Sequence[int], *, clock: Clock) -> int:
    """End the grace periods of subscriptions that have paid since they began, or are canceled, as of then.

    Returns:
        How many.
    """
    if not subscription_ids or not has_table(connection, "billing.subscription_pauses"):
        return 0
    ids, now = list(subscription_ids), clock.now()
    closed: int = queries("billing_outcomes").close_grace_periods(connection, subscription_ids=ids, now=now)
    return closed
