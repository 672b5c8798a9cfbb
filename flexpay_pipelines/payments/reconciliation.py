"""The database against Stripe: every subscription of both, or those that were touched since the last pass.

What belongs here: listing what differs, how each difference is mended and by whom. What does not: mending (`mending`),
the memory of passes (`passes`), reading Stripe (`reading`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from flexpay_pipelines.payments.passes import forget_and_keep
from flexpay_pipelines.payments.reading import all_subscriptions, some_subscriptions
from flexpay_pipelines.payments.staging import analyze, copy_rows, staged
from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    from flexpay_pipelines.clock import Clock
    from flexpay_pipelines.database import Connection
    from flexpay_pipelines.payments.stripe_gateway import StripeGateway

FULL = "full"
INCREMENTAL = "incremental"
FLEXPAY = "flexpay"
PERSON = "a person"
# How far apart the next payment dates may lie: Stripe counts days in UTC, we in the customer's zone.
TOLERANCE = timedelta(days=1)
# How far before the last pass an incremental one begins: clocks differ, and a long transaction is seen late.
OVERLAP = timedelta(minutes=15)
# All of them are in billing.reconciliation_differences.
LISTED = 1_000
# A page of 100 costs as much as one subscription by its id.
_PAGE = 100
_FEW = 100
_TABLES = ("in_scope", "on_their_way", "scheduled_terms", "stripe_now", "differences_found")

# Each mend as a sentence, and who makes it. PostgreSQL is right about what was decided, Stripe about money.
MENDS = {
    "link": ("link the two: Stripe's carries our reference", FLEXPAY),
    "cancel_here": ("cancel in the database, as of its end at Stripe", FLEXPAY),
    "cancel_at_stripe": ("cancel at Stripe", FLEXPAY),
    "pause_at_stripe": ("pause at Stripe", FLEXPAY),
    "resume_at_stripe": ("resume at Stripe", FLEXPAY),
    "change_price": ("change the price at Stripe, without proration", FLEXPAY),
    "change_quantity": ("change the quantity at Stripe, without proration", FLEXPAY),
    "move_payment": ("move the payment at Stripe to our date", FLEXPAY),
    "follow_status": ("record the payments of Stripe's events; if that is not enough, adopt Stripe's status", FLEXPAY),
    "adopt_date": ("record the payments of Stripe's events; if that is not enough, adopt Stripe's date", FLEXPAY),
    "create_by_hand": ("create it at Stripe, or cancel it in the database", PERSON),
    "import_by_hand": ("import the subscription, or cancel it at Stripe", PERSON),
    "currency_by_hand": ("end it and begin another: Stripe changes no subscription's currency", PERSON),
}
BY_HAND = tuple(code for code, (_, by) in MENDS.items() if by == PERSON)
KINDS = ("status", "pause", "price", "quantity", "next_payment", "missing_in_stripe", "missing_in_database")


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which the database and Stripe disagree.

    Attributes:
        subscription_ref: ours; Stripe's id where we have none.
        kind: one of KINDS; `price` is amount, currency and frequency.
        in_database, in_stripe: as each has it; None where it has nothing.
        mend: what would make them agree, and the parked command that is known to be the reason.
        by: who makes the mend, `flexpay` or `a person`.
    """

    subscription_ref: str
    kind: str
    in_database: str | None
    in_stripe: str | None
    mend: str
    by: str


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The result of a comparison.

    Attributes:
        reconciliation_id: under which the pass is remembered.
        scope: `full`, or `incremental`: what was touched since the last pass, and what was different then.
        compared: how many subscriptions were read from Stripe.
        by_kind: how many differences of each kind.
        differences: the first 1,000 of them, by kind and reference.
        in_flight: subscriptions left out: a command is not delivered, a pause or a change of frequency is due, or it
            changed while Stripe was read.
        compared_at: when the comparison began.
    """

    reconciliation_id: int
    scope: str
    compared: int
    by_kind: dict[str, int]
    differences: tuple[Difference, ...]
    in_flight: int
    compared_at: datetime

    @property
    def different(self) -> int:
        """How many differences there are."""
        return sum(self.by_kind.values())


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the staged tables hold, for this package: times on our clock (`started_at`) and the database's."""

    scope: str
    started_at: datetime
    read_at: datetime
    compared: int
    in_flight: int


def reconcile(
    connection: Connection,
    gateway: StripeGateway,
    *,
    clock: Clock,
    progress: Callable[[str], None],
    incremental: bool = False,
    tolerance: timedelta = TOLERANCE,
) -> Reconciliation:
    """Compare, and remember the pass and what is different. No subscription is changed on either side.

    Args:
        incremental: only what was touched since the last pass; all of them where there was none, or where reading
            page by page is quicker.
        tolerance: how far apart the next payment dates may lie.

    Raises:
        StripeTransient: Stripe cannot be read to the end; nothing is remembered.
    """
    with compared(
        connection, gateway, clock=clock, progress=progress, incremental=incremental, tolerance=tolerance
    ) as comparison:
        by_kind: dict[str, int] = queries("payments_passes").differences_by_kind(connection)
        found = tuple(
            difference_of(row) for row in queries("payments_passes").found_differences(connection, at_most=LISTED)
        )
        reconciliation_id = forget_and_keep(connection, comparison, by_kind)
    result = Reconciliation(
        reconciliation_id, comparison.scope, comparison.compared, by_kind, found, comparison.in_flight,
        comparison.started_at,
    )  # fmt: skip
    progress(
        f"Compared {result.compared} subscriptions with Stripe: {result.different} differences, "
        f"{result.in_flight} in flight."
    )
    return result


@contextmanager
def compared(
    connection: Connection,
    gateway: StripeGateway,
    *,
    clock: Clock,
    progress: Callable[[str], None],
    incremental: bool,
    tolerance: timedelta,
) -> Iterator[Comparison]:
    """Have `stripe_now` and `differences_found` staged for as long as the block lasts (for this package)."""
    catalogue, started_at = queries("payments_reconciliation"), clock.now()
    with ExitStack() as stack:
        for table in _TABLES:
            stack.enter_context(staged(connection, table))
        begun = catalogue.pass_begins(connection)
        asked = _touched(connection, begun) if incremental else None
        # What is told while Stripe is read is on its way as well.
        catalogue.collect_untold(connection)
        if asked is None:
            catalogue.look_at_all(connection)
            rows = all_subscriptions(gateway, progress)
        else:
            rows = some_subscriptions(gateway, asked)
        number = copy_rows(connection, "stripe_now", rows)
        for table in ("stripe_now", "in_scope"):
            analyze(connection, table)
        in_flight = _leave_out(connection, started_at)
        catalogue.find_differences(connection, now=started_at, tolerance=tolerance)
        yield Comparison(FULL if asked is None else INCREMENTAL, started_at, begun["read_at"], number, in_flight)


def _touched(connection: Connection, begun: dict[str, Any]) -> list[str] | None:
    """The Stripe ids to ask for; None where all of them have to be read, or may as well be."""
    if begun["last_read_at"] is None or begun["last_full"] is None:
        return None
    catalogue = queries("payments_reconciliation")
    catalogue.look_at_touched(
        connection, read_since=begun["last_read_at"] - OVERLAP, told_since=begun["last_started_at"] - OVERLAP
    )
    ids = [row["stripe_id"] for row in catalogue.stripe_ids_in_scope(connection)]
    if len(ids) <= max(begun["last_full"] // _PAGE, _FEW):
        return ids
    catalogue.look_at_nothing(connection)
    return None


def _leave_out(connection: Connection, now: datetime) -> int:
    catalogue = queries("payments_reconciliation")
    catalogue.collect_untold(connection)
    catalogue.collect_moving(connection)
    if queries("billing").has_table(connection, relation="billing.subscription_pauses"):
        catalogue.collect_due_pauses(connection, now=now)
    if queries("billing").has_table(connection, relation="billing.frequency_changes"):
        catalogue.collect_due_frequency_changes(connection, now=now)
        catalogue.collect_scheduled_terms(connection)
    for table in ("on_their_way", "scheduled_terms"):
        analyze(connection, table)
    return int(catalogue.subscriptions_in_flight(connection))


def difference_of(row: dict[str, Any]) -> Difference:
    """A row with `mend` as a code and `parked` as the difference that a person reads (for this package)."""
    sentence, by = MENDS[row["mend"]]
    mend = sentence if row["parked"] is None else f"{sentence}; {row['parked']}"
    return Difference(row["subscription_ref"], row["kind"], row["in_database"], row["in_stripe"], mend, by)


def open_differences(connection: Connection, *, kinds: tuple[str, ...] | None, limit: int) -> tuple[Difference, ...]:
    """What the last pass found different, of these kinds or of all, by kind and reference, at most `limit`."""
    rows = queries("payments_passes").open_differences(
        connection, kinds=None if kinds is None else list(kinds), at_most=limit
    )
    return tuple(difference_of(row) for row in rows)
