"""Events in: what Stripe tells us, by polling or by webhook, into one table, and what follows from it.

What belongs here: taking events in, keeping nothing of a card, turning invoices into payments. What does not: what a
payment means for a subscription (`billing`).

Events come more than once and in any order. Each is stored once; payments are named by invoice and attempt, so that
they are recorded once; a subscription is changed only by an event newer than the last that changed it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

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
# How far behind the newest known event Stripe is read again: an event can appear later than younger ones.
OVERLAP = timedelta(minutes=15)
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
    """Read the events since the newest known one, store them, and record the payments that they tell of.

    Args:
        apply: called with the ids of the payments recorded, in the transaction that records them.
        overlap: how far behind the newest known event to begin.

    Raises:
        StripeTransient: Stripe cannot be read to the end; what was read before is not half applied.
    """
    newest = queries("payments_events").newest_event(connection)
    since = None if newest is None else newest - int(overlap.total_seconds())
    events = (event for page in gateway.events(since=since, types=TYPES) for event in page)
    received, new = store_events(connection, events)
    progress(f"Received {received} events from Stripe, {new} of them new.")
    result = apply_events(connection, gateway, clock=clock, apply=apply)
    progress(f"Recorded {result.payments_recorded} payments.")
    return EventsResult(received, new, result.applied, result.payments_recorded, result.stale)


def store_events(connection: Connection, events: Iterable[Object]) -> tuple[int, int]:
    """Store events as Stripe sends them, without card data; the webhook's way in as well.

    Returns:
        How many came, and how many of them were new.
    """
    with staged(connection, _TABLE):
        received = copy_rows(connection, _TABLE, _rows(events))
        with connection.transaction():
            new: int = queries("payments_events").store_events(connection)
    return received, new


def apply_events(
    connection: Connection,
    gateway: StripeGateway,
    *,
    clock: Clock,
    apply: Callable[[Connection, Sequence[int]], object],
) -> EventsResult:
    """Make payments and cancellations of the stored events that nothing was made of yet, in one transaction.

    Raises:
        StripeTransient: the reason of a failed payment cannot be asked for now; nothing is applied.
    """
    catalogue = queries("payments_events")
    _ask_for_reasons(connection, gateway)
    with connection.transaction():
        events = [row["stripe_event_id"] for row in catalogue.lock_unapplied_events(connection)]
        if not events:
            return EventsResult(0, 0, 0, 0, 0)
        payments = [row["payment_id"] for row in catalogue.record_payments(connection, events=events)]
        if payments:
            apply(connection, payments)
        catalogue.correct_reasons(connection, events=events)
        catalogue.apply_cancellations(connection, events=events)
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
