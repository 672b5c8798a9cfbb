"""Mends: what was shown as different and still is, made to agree.

What belongs here: choosing what is still to be mended, and writing the mends: commands in the outbox, and guarded
changes of the database. What does not: finding differences (`reconciliation`), telling Stripe (`delivery`), recording
payments (`events`): poll before mending, deliver after it, then compare again.

A batch is one transaction: killed anywhere, what is committed is on its way, and the rest is still different.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from flexpay_pipelines.payments.reconciliation import BY_HAND, TOLERANCE, compared
from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    from flexpay_pipelines.clock import Clock
    from flexpay_pipelines.database import Connection
    from flexpay_pipelines.payments.stripe_gateway import StripeGateway

BATCH = 1_000


@dataclass(frozen=True, slots=True)
class MendPolicy:
    """How Stripe is told to pause, and the grace period in days (None: pauses are off, and there is none)."""

    pause_mode: str = "collection"
    grace_days: int | None = None
    tolerance: timedelta = TOLERANCE


@dataclass(frozen=True, slots=True)
class MendResult:
    """What mending did. Counts are differences unless they say otherwise.

    Attributes:
        planned: those of the plan that were still there.
        mended: of them, by kind.
        left_alone: of them, because the subscription has changed since it was compared.
        commands: for Stripe.
    """

    planned: int
    mended: dict[str, int]
    left_alone: int
    commands: int


def mend_differences(
    connection: Connection,
    gateway: StripeGateway,
    *,
    planned: int,
    kinds: Collection[str] | None = None,
    policy: MendPolicy,
    clock: Clock,
    progress: Callable[[str], None],
) -> MendResult:
    """Compare afresh what was different, and mend what the planned pass has shown and still has the same mend.

    Poll Stripe's events before: what a payment explains is no difference any more. What a person must mend is left.

    Args:
        planned: `reconciliation_id` of the pass whose differences were agreed to.
        kinds: only these.

    Raises:
        StripeTransient: Stripe cannot be read; nothing was changed.
    """
    with compared(
        connection, gateway, clock=clock, progress=progress, incremental=True, tolerance=policy.tolerance
    ) as comparison:
        chosen: int = queries("payments_mending").choose_mends(
            connection, planned=planned, kinds=None if kinds is None else list(kinds), by_hand=list(BY_HAND)
        )
        progress(f"{chosen} of the planned differences are still there, and can be mended.")
        commands = 0
        while (made := _batch(connection, policy, comparison.started_at)) is not None:
            commands += made
        outcomes = list(queries("payments_mending").mends_by_outcome(connection))
    mended = {row["kind"]: row["number"] for row in outcomes if row["outcome"] == "mended"}
    left_alone = Counter({row["kind"]: row["number"] for row in outcomes if row["outcome"] == "changed since"}).total()
    progress(f"Mended {sum(mended.values())} differences; {left_alone} left alone; {commands} commands for Stripe.")
    return MendResult(chosen, mended, left_alone, commands)


def _batch(connection: Connection, policy: MendPolicy, now: datetime) -> int | None:
    """Mend the next subscriptions, all of their differences; how many commands that took, None when all is done."""
    catalogue = queries("payments_mending")
    has_pauses = queries("billing").has_table(connection, relation="billing.subscription_pauses")
    with connection.transaction():
        if not catalogue.hold_mends(connection, most=BATCH):
            return None
        catalogue.link(connection)
        catalogue.cancel_here(connection, now=now)
        if catalogue.follow_status(connection, now=now) and has_pauses:
            catalogue.close_grace_periods(connection, now=now)
            if policy.grace_days is not None:
                catalogue.open_grace_periods(connection, now=now, grace_days=policy.grace_days)
        catalogue.adopt_date(connection, now=now, tolerance=policy.tolerance)
        if has_pauses:
            catalogue.note_pause_ends(connection)
        catalogue.supersede_parked(connection)
        commands: int = catalogue.tell_stripe(
            connection, now=now, tolerance=policy.tolerance, pause_mode=policy.pause_mode
        )
        catalogue.settle_mends(connection)
    return commands
