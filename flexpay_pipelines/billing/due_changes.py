"""Scheduled changes whose day has come: the database follows what Stripe has done.

What belongs here: making due changes in bulk, right whenever and however late it runs. What does not: scheduling them
and telling Stripe (`frequencies`).

The invariant: a scheduled change holds from the first end of a paid period after Stripe was told of it. Stripe bills
that period at the new price by itself. So a change waits while its subscription is paused; it moves with a payment that
a pause has moved or left out; it comes a period later where Stripe was told too late. It is made before the payment of
its own period is taken in (`outcomes` sees to it, and `payments` where credit left nothing to pay), so that dates move
on by the new calendar; made after it, the end is the same, because the payment itself says whether the period is paid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from flexpay_pipelines.billing.features import feature_enabled, has_table
from flexpay_pipelines.billing.frequencies import FREQUENCIES
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import queries

BATCH_SIZE = 5_000


@dataclass(frozen=True, slots=True)
class AppliedChanges:
    """What came of the changes that were due.

    Attributes:
        applied: new terms hold.
        postponed: the period ends later than was thought.
        dropped: the subscription was canceled.
    """

    applied: int
    postponed: int
    dropped: int


def apply_due_frequency_changes(
    connection: Connection,
    *,
    clock: Clock,
    progress: Callable[[str], None] = lambda _: None,
    batch_size: int = BATCH_SIZE,
) -> AppliedChanges:
    """Make the changes whose period has ended, a transaction a batch; nothing while frequencies are off.

    A row that somebody else holds is left to the next run.
    """
    if not feature_enabled(connection, FREQUENCIES):
        progress("Frequencies are off or not deployed: no change was made.")
        return AppliedChanges(0, 0, 0)
    return settle_due_changes(connection, clock=clock, progress=progress, batch_size=batch_size)


def overdue_frequency_changes(connection: Connection, *, up_to: datetime) -> int:
    """How many changes were due by an instant and are not made; 0 while frequencies are off."""
    if not feature_enabled(connection, FREQUENCIES):
        return 0
    return int(queries("billing_frequencies").count_due_changes(connection, up_to=up_to))


def apply_changes_before_periods(connection: Connection, subscription_ids: Sequence[int], *, clock: Clock) -> None:
    """The due changes of these subscriptions, before a period that was paid for moves their dates; in the caller's
    transaction."""
    if subscription_ids and feature_enabled(connection, FREQUENCIES):
        _batch(connection, clock, list(subscription_ids), len(subscription_ids))


def settle_due_changes(
    connection: Connection,
    *,
    clock: Clock,
    progress: Callable[[str], None] = lambda _: None,
    batch_size: int = BATCH_SIZE,
) -> AppliedChanges:
    """The same with the feature off: a rollback first takes down what Stripe has done already."""
    total = AppliedChanges(0, 0, 0)
    while (done := _batch(connection, clock, None, batch_size)) is not None:
        total = AppliedChanges(
            total.applied + done.applied, total.postponed + done.postponed, total.dropped + done.dropped
        )
        progress(
            f"{total.applied:,} changes of frequency made, {total.postponed:,} postponed, {total.dropped:,} dropped."
        )
    return total


def _batch(
    connection: Connection, clock: Clock, subscription_ids: list[int] | None, batch_size: int
) -> AppliedChanges | None:
    """One batch; None where nothing is due. What is postponed to a day that has come as well is due again."""
    sql, now = queries("billing_frequencies"), clock.now()
    with connection.transaction():
        held = sql.hold_due_changes(connection, now=now, subscription_ids=subscription_ids, batch_size=batch_size)
        ids = [row["frequency_change_id"] for row in held]
        if not ids:
            return None
        postponed = sql.postpone_moved_changes(connection, change_ids=ids, now=now)
        if has_table(connection, "billing.subscription_pauses"):
            postponed += sql.postpone_paused_changes(connection, change_ids=ids)
        row = sql.apply_changes(connection, change_ids=ids, now=now)
        return AppliedChanges(row["applied"], postponed, row["dropped"])
