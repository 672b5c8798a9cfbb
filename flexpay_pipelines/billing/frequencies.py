"""Changing what a customer pays and how often: quote first, then change, now or at the end of the period.

What belongs here: a change's one row, its one command. What does not: its price and dates (`quotes`), making changes
whose day has come (`due_changes`), taking frequencies back (`flexpay_pipelines.rollback`).

Stripe's price is always that of the next payment. So Stripe is told of a change when it is made or *scheduled*: of one
made now with proration as of now; of one at the end of the period without, and with the date kept where the interval
changes. Whoever takes a scheduled change back tells Stripe the present terms again. The database itself follows when
the period has ended (`due_changes`), and then tells nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flexpay_pipelines.billing.features import require_feature
from flexpay_pipelines.billing.pauses import locked_subscription
from flexpay_pipelines.billing.quotes import FrequencyQuote, When, Wish, quote
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.money import PaymentFrequency
from flexpay_pipelines.sql import queries

FREQUENCIES = "frequencies"
REASON = "plan or payment frequency changed"


@dataclass(frozen=True, slots=True)
class ScheduledChange:
    """A change that waits, or waited, for the end of the period; the amount in minor units."""

    subscription_ref: str
    from_plan: str
    to_plan: str
    from_frequency: str
    to_frequency: str
    amount_minor: int
    currency: str
    effective_at: datetime


def quote_frequency_change(
    connection: Connection,
    *,
    subscription_ref: str,
    to: PaymentFrequency | None = None,
    to_plan: str | None = None,
    clock: Clock,
    when: When = "now",
) -> FrequencyQuote:
    """Price, proration and next dates of a change. Changes nothing.

    Args:
        to: the new frequency; None: the present one.
        to_plan: the new plan; None: the present one, at its list price.

    Raises:
        BadInput: with the reason for which the change would be refused.
    """
    require_feature(connection, FREQUENCIES)
    with connection.transaction():
        return quote(
            connection, locked_subscription(connection, subscription_ref), Wish(to, to_plan, when), clock.now()
        )


def change_frequency(
    connection: Connection,
    *,
    subscription_ref: str,
    to: PaymentFrequency | None = None,
    to_plan: str | None = None,
    clock: Clock,
    when: When = "now",
) -> FrequencyQuote:
    """Change plan or frequency, as quoted: one row, one event, one command for Stripe, the first and last at once.

    At a period's end the event comes when the period has ended, with `apply_due_frequency_changes`.

    Raises:
        BadInput: refused while paused, past due, suspended or canceled, where the plan has no such price, where the
            feature is off, or where a change is already scheduled; nothing was changed.
    """
    require_feature(connection, FREQUENCIES)
    now = clock.now()
    with connection.transaction():
        subscription = locked_subscription(connection, subscription_ref)
        quoted = quote(connection, subscription, Wish(to, to_plan, when), now)
        _record(connection, subscription, quoted, now, when)
        if when == "now":
            _change_now(connection, subscription, quoted)
        else:
            queries("billing_frequencies").tell_next_terms(
                connection, subscription_id=subscription["subscription_id"], plan=quoted.to_plan,
                payment_frequency=quoted.to_frequency, amount_minor=quoted.amount_minor, crosses=quoted.crosses,
                recount=False,
            )  # fmt: skip
        return quoted


def scheduled_change(connection: Connection, *, subscription_ref: str) -> ScheduledChange:
    """The change that waits for the end of a subscription's period.

    Raises:
        BadInput: there is none, or no such subscription.
    """
    require_feature(connection, FREQUENCIES)
    with connection.transaction():
        return _shown(_scheduled(connection, locked_subscription(connection, subscription_ref)))


def cancel_frequency_change(connection: Connection, *, subscription_ref: str, clock: Clock) -> ScheduledChange:
    """Take a scheduled change back: the present terms stay, and Stripe is told them again.

    Raises:
        BadInput: nothing is scheduled, or its period has ended; nothing was changed.
    """
    require_feature(connection, FREQUENCIES)
    with connection.transaction():
        subscription = locked_subscription(connection, subscription_ref)
        change = _scheduled(connection, subscription)
        if change["effective_at"] <= clock.now() and subscription["status"] != "paused":
            raise BadInput(
                f"The period of subscription '{subscription_ref}' ended at {change['effective_at'].isoformat()}, "
                "and its change comes with that: change it anew."
            )
        sql = queries("billing_frequencies")
        sql.cancel_scheduled_change(connection, frequency_change_id=change["frequency_change_id"])
        sql.tell_next_terms(
            connection, subscription_id=subscription["subscription_id"], plan=subscription["plan"],
            payment_frequency=subscription["payment_frequency"], amount_minor=subscription["amount_minor"],
            crosses=change["from_frequency"] != change["to_frequency"], recount=True,
        )  # fmt: skip
        return _shown(change)


def _scheduled(connection: Connection, subscription: dict[str, Any]) -> dict[str, Any]:
    change: dict[str, Any] | None = queries("billing_frequencies").scheduled_change(
        connection, subscription_id=subscription["subscription_id"]
    )
    if change is None:
        raise BadInput(f"Subscription '{subscription['subscription_ref']}' has no change scheduled.")
    return change


def _shown(change: dict[str, Any]) -> ScheduledChange:
    return ScheduledChange(**{name: value for name, value in change.items() if name != "frequency_change_id"})


def _record(
    connection: Connection, subscription: dict[str, Any], quoted: FrequencyQuote, asked_at: datetime, when: When
) -> None:
    replaced = quoted.from_plan != quoted.to_plan
    queries("billing_frequencies").record_change(
        connection,
        subscription_id=subscription["subscription_id"],
        from_plan=quoted.from_plan if replaced else None,
        to_plan=quoted.to_plan if replaced else None,
        old=quoted.from_frequency,
        new=quoted.to_frequency,
        was=quoted.from_amount_minor,
        price=quoted.amount_minor,
        asked=asked_at,
        at=quoted.effective_at,
        credit=quoted.credit_minor,
        debit=quoted.debit_minor,
        currency=quoted.currency,
        state="applied" if when == "now" else "scheduled",
    )


def _change_now(connection: Connection, subscription: dict[str, Any], quoted: FrequencyQuote) -> None:
    anchor, next_payment_at = subscription["billing_anchor"], subscription["next_payment_at"]
    if quoted.crosses:
        next_payment_at = quoted.next_payments[0]
        # A trial goes on, and the first payment after it begins the new calendar.
        anchor = next_payment_at if subscription["status"] == "trialing" else quoted.effective_at
    queries("billing_frequencies").change_terms_now(
        connection,
        subscription_id=subscription["subscription_id"],
        version=subscription["version"],
        plan=quoted.to_plan,
        payment_frequency=quoted.to_frequency,
        amount_minor=quoted.amount_minor,
        anchor=anchor,
        next_payment_at=next_payment_at,
        at=quoted.effective_at,
        reason=REASON,
    )
