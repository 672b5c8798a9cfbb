"""The database against Stripe, every subscription of both.

What belongs here: listing what differs, and how each difference is mended. What does not: mending.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from flexpay_pipelines.payments.staging import analyze, copy_rows, staged
from flexpay_pipelines.payments.stripe_gateway import INTERVALS
from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    from flexpay_pipelines.clock import Clock
    from flexpay_pipelines.database import Connection
    from flexpay_pipelines.payments.stripe_gateway import Object, StripeGateway

_TABLE = "stripe_now"
_ON_THEIR_WAY = "on_their_way"
_FREQUENCIES = {interval: frequency.value for frequency, interval in INTERVALS.items()}
_TOLD_EVERY = 5_000


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which the database and Stripe disagree.

    Attributes:
        kind: status, pause, price (amount, currency, frequency), quantity, next_payment, missing_in_stripe or
            missing_in_database.
        in_database, in_stripe: as each has it; None where it has nothing.
        mend: what would make them agree.
    """

    subscription_ref: str
    kind: str
    in_database: str | None
    in_stripe: str | None
    mend: str


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The result of a comparison.

    Attributes:
        compared: how many subscriptions Stripe has.
        in_flight: subscriptions left out, because a command has not been delivered, or a pause is due to be swept.
    """

    compared: int
    differences: tuple[Difference, ...]
    in_flight: int
    compared_at: datetime


def reconcile(
    connection: Connection,
    gateway: StripeGateway,
    *,
    clock: Clock,
    progress: Callable[[str], None],
    tolerance: timedelta = timedelta(days=1),
) -> Reconciliation:
    """Compare every subscription. Nothing is changed on either side.

    Args:
        tolerance: how far apart the next payment dates may lie; Stripe counts days in UTC, we in the customer's zone.

    Raises:
        StripeTransient: Stripe cannot be read to the end.
    """
    catalogue, compared_at = queries("payments_reconciliation"), clock.now()
    with staged(connection, _TABLE), staged(connection, _ON_THEIR_WAY):
        compared = copy_rows(connection, _TABLE, _rows(gateway, progress))
        analyze(connection, _TABLE)
        with connection.transaction():
            in_flight = _leave_out(connection, compared_at)
            found = catalogue.stripe_differences(connection, tolerance=tolerance)
            differences = tuple(Difference(**row) for row in found)
    progress(f"Compared {compared} subscriptions with Stripe: {len(differences)} differences, {in_flight} in flight.")
    return Reconciliation(compared, differences, in_flight, compared_at)


def _leave_out(connection: Connection, now: datetime) -> int:
    catalogue = queries("payments_reconciliation")
    catalogue.collect_untold(connection)
    if queries("billing").has_table(connection, relation="billing.subscription_pauses"):
        catalogue.collect_due_pauses(connection, now=now)
    analyze(connection, _ON_THEIR_WAY)
    return int(catalogue.subscriptions_in_flight(connection))


def _rows(gateway: StripeGateway, progress: Callable[[str], None]) -> Iterator[tuple[Any, ...]]:
    read = 0
    for page in gateway.subscriptions():
        yield from map(_row, page)
        if (read + len(page)) // _TOLD_EVERY > read // _TOLD_EVERY:
            progress(f"Read {read + len(page)} subscriptions from Stripe.")
        read += len(page)


def _row(one: Object) -> tuple[Any, ...]:
    item = one["items"]["data"][0]
    price, metadata = item["price"], one["metadata"]
    recurring = price["recurring"]
    interval = (recurring["interval"], recurring["interval_count"])
    return (
        one["id"], metadata.get("subscription_ref"), one["status"],
        one["pause_collection"] is not None or one["status"] == "paused", price["currency"], price["unit_amount"],
        _FREQUENCIES.get(interval, f"every {interval[1]} {interval[0]}"), item.get("quantity", 1),
        datetime.fromtimestamp(item["current_period_end"], UTC),
        one["trial_end"] is not None and metadata.get("date_kept_until") == str(one["trial_end"]),
    )  # fmt: skip
