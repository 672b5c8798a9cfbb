"""Events in: what Stripe tells us, by polling or by webhook, into one table, and what follows from it.

What belongs here: taking events in, keeping nothing of a card, turning invoices into payments. What does not: what a
payment means for a subscription (`billing`).

Events come more than once and in any order. Each is stored once; payments are named by what they are, so that they are
recorded once; what follows from them is worked out from all that is known, not from what came last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from flexpay_pipelines.billing import apply_changes_before_periods, close_grace_periods
from flexpay_pipelines.payments.failures import StripePermanent, failure_class
from flexpay_pipelines.payments.staging import copy_rows, staged
from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    from flexpay_pipelines.clock import Clock
    from flexpay_pipelines.database import Connection
    from flexpay_pipelines.payments.stripe_gateway import Object, StripeGateway

TYPES = (
    "invoice.paid", "invoice.payment_failed", "payment_intent.payment_failed", "customer.subscription.created",
    "customer.subscription.updated", "customer.subscription.deleted", "customer.subscription.paused",
    "customer.subscription.resumed",
)  # fmt: skip
STREAM = "events"
# How far behind the newest event of the last poll Stripe is read again: one can appear later than younger ones.
OVERLAP = timedelta(minutes=15)
# Stripe lists no older ones.
LISTED_FOR = timedelta(days=30)
_TABLE = "incoming_stripe_events"
# What the payments of these ids do to their subscriptions, in the transaction that records them.
Effects = Callable[["Connection", Sequence[int]], object]

# What is kept of each object. Nothing else of an event is stored, so nothing of a card can be.
_KEPT = {
    "invoice": (
        "id", "object", "status", "customer", "currency", "amount_due", "amount_paid", "amount_remaining", "total",
        "attempt_count", "billing_reason", "created", "period_start", "period_end", "next_payment_attempt",
    ),
    "subscription": (
        "id", "object", "status", "customer", "currency", "created", "canceled_at", "ended_at", "cancel_at",
        "cancel_at_period_end", "trial_end", "pause_collection",
    ),
    "payment_intent": ("id", "object", "status", "customer", "currency", "amount", "created"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class EventsResult:
    """What a poll brought: events `received` (repeats included), `new` to us, `applied` (older ones that had waited
    included), payments recorded, and events that were older than what was known."""

    received: int
    new: int
    applied: int
    payments_recorded: int
    stale: int


def poll_events(
    connection: Connection,
    gateway: StripeGateway,
    *,
    clock: Clock,
    apply: Callable[[Connection, Sequence[int]], object],
    progress: Callable[[str], None],
    overlap: timedelta = OVERLAP,
) -> EventsResult:
    """Read the events since the last poll, store them, and record the payments that they tell of.

    The poll has a cursor of its own, moved in the transaction that stores what was read to the end: an event that a
    webhook has brought does not hide an older one.

    Args:
        apply: as `apply_events` has it.
        overlap: how far behind the newest event of the last poll to begin.

    Raises:
        StripeTransient: Stripe cannot be read to the end; what was read before is not half applied.
    """
    newest = queries("payments_events").read_through(connection, stream=STREAM)
    since = None if newest is None else newest - int(overlap.total_seconds())
    if newest is not None and clock.now() - datetime.fromtimestamp(newest, UTC) > LISTED_FOR:
        progress(
            f"No event was read for {LISTED_FOR.days} days, and Stripe lists no older ones: run `flexpay reconcile`."
        )
    events = (event for page in gateway.events(since=since, types=TYPES) for event in page)
    received, new = _store(connection, events, read_at=clock.now())
    progress(f"Received {received} events from Stripe, {new} of them new.")
    result = apply_events(connection, gateway, clock=clock, apply=apply)
    progress(f"Recorded {result.payments_recorded} payments.")
    return EventsResult(received, new, result.applied, result.payments_recorded, result.stale)


def store_events(connection: Connection, events: Iterable[Object]) -> tuple[int, int]:
    """Store events as Stripe sends them, without card data; no cursor moves.

    Returns:
        How many came, and how many of them were new.
    """
    return _store(connection, events, read_at=None)


def store_event(connection: Connection, event: Object) -> bool:
    """Store one event, as a webhook brings it; returns whether it was new."""
    ((identifier, kind, created, subject, kept),) = _rows([event])
    stored: int = queries("payments_events").store_event(
        connection, stripe_event_id=identifier, type=kind, created=created, subject_id=subject, object=kept
    )
    return stored > 0


def _store(connection: Connection, events: Iterable[Object], *, read_at: datetime | None) -> tuple[int, int]:
    catalogue = queries("payments_events")
    with staged(connection, _TABLE):
        received = copy_rows(connection, _TABLE, _rows(events))
        with connection.transaction():
            new: int = catalogue.store_events(connection)
            if read_at is not None:
                catalogue.advance_cursor(connection, stream=STREAM, now=read_at)
    return received, new


def apply_events(
    connection: Connection,
    gateway: StripeGateway,
    *,
    clock: Clock,
    apply: Callable[[Connection, Sequence[int]], object],
) -> EventsResult:
    """Make payments and cancellations of the stored events that nothing was made of yet, in one transaction.

    Whatever the order and the portions in which events come, the same events lead to the same payments, subscriptions
    and grace periods. Several callers take turns.

    Args:
        apply: called in the transaction with the ids of the payments that were recorded, or whose reason was corrected.

    Raises:
        StripeTransient: the reason of a failed payment cannot be asked for now; nothing is applied.
    """
    catalogue = queries("payments_events")
    _ask_for_reasons(connection, gateway)
    with connection.transaction():
        catalogue.lock_applying(connection)
        events = [row["stripe_event_id"] for row in catalogue.unapplied_events(connection)]
        if not events:
            return EventsResult(0, 0, 0, 0, 0)
        payments = [row["payment_id"] for row in catalogue.record_payments(connection, events=events)]
        corrected = [row["payment_id"] for row in catalogue.correct_reasons(connection, events=events)]
        if payments or corrected:
            apply(connection, [*payments, *corrected])
        free = catalogue.subscriptions_of_free_periods(connection, events=events)
        apply_changes_before_periods(connection, free, clock=clock)
        catalogue.advance_free_periods(connection, events=events)
        canceled = [row["subscription_id"] for row in catalogue.apply_cancellations(connection, events=events)]
        close_grace_periods(connection, canceled, clock=clock)
        stale: int = catalogue.mark_events(connection, events=events, now=clock.now())
    return EventsResult(0, 0, len(events), len(payments), stale)


def _ask_for_reasons(connection: Connection, gateway: StripeGateway) -> None:
    """An invoice's event does not say why it failed: its PaymentIntent does."""
    catalogue = queries("payments_events")
    found = []
    for row in catalogue.failures_without_reason(connection):
        try:
            failure = gateway.payment_failure(row["invoice"])
        except StripePermanent:
            # The invoice is gone at Stripe: the failure stays unclassified, which counts against us.
            failure = dict.fromkeys(("payment_intent", "type", "code", "decline_code"))
        failure["failure_class"] = failure_class(failure["type"], failure["decline_code"])
        found.append({"invoice": row["invoice"], "failure": failure})
    if found:
        catalogue.store_failures(connection, failures=json.dumps(found))


def _rows(events: Iterable[Object]) -> Iterator[tuple[Any, ...]]:
    for event in events:
        subject = event["data"]["object"]
        created = datetime.fromtimestamp(event["created"], UTC)
        yield event["id"], event["type"], created, subject["id"], json.dumps(sanitised(subject))


def sanitised(subject: Object) -> Object:
    """What we keep of an event's object: a list of harmless fields, never the object less some fields."""
    kept = {name: subject.get(name) for name in _KEPT.get(subject.get("object", ""), ("id", "object"))}
    if subject.get("object") == "invoice":
        details = (subject.get("parent") or {}).get("subscription_details") or {}
        kept["subscription"] = _identifier(details.get("subscription"))
    if subject.get("object") == "subscription":
        kept["subscription"] = subject["id"]
    if subject.get("object") == "payment_intent":
        error = subject.get("last_payment_error") or {}
        kept |= {name: error.get(name) for name in ("type", "code", "decline_code")}
        kept["failure_class"] = failure_class(error.get("type"), error.get("decline_code"))
    kept["customer"] = _identifier(subject.get("customer"))
    return kept


def _identifier(reference: Any) -> Any:
    return reference.get("id") if isinstance(reference, dict) else reference
