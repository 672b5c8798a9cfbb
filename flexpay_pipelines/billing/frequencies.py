"""Changing how often a customer pays: quote first, then change, now or at the end of the period.

What belongs here: price, proration and dates of a change, its one row, its one command. What does not: the calendar
itself (`billing.payment_at` in the database), taking frequencies back (`flexpay_pipelines.rollback`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from typing import Any, Literal

from flexpay_pipelines.billing.features import feature_enabled, require_feature
from flexpay_pipelines.billing.pauses import locked_subscription
from flexpay_pipelines.billing.proration import Proration, across_intervals
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.money import PaymentFrequency
from flexpay_pipelines.sql import queries

FREQUENCIES = "frequencies"
DATES_SHOWN = 3

When = Literal["now", "period_end"]


@dataclass(frozen=True, slots=True)
class FrequencyQuote:
    """What a change of frequency would cost and bring.

    Attributes:
        amount_minor: the new price of one unit for one period, minor units.
        credit_minor: what is given back of the running period, all units; 0 at a period's end and on trial.
        debit_minor: what is taken at the change for the new period, all units; 0 at a period's end and on trial,
            where the next payment simply takes the new price.
        effective_at: when the new terms hold.
        next_payments: the next three payments on the new terms, UTC.
    """

    subscription_ref: str
    from_frequency: PaymentFrequency
    to_frequency: PaymentFrequency
    amount_minor: int
    currency: str
    credit_minor: int
    debit_minor: int
    effective_at: datetime
    next_payments: tuple[datetime, ...]


def quote_frequency_change(
    connection: Connection,
    *,
    subscription_ref: str,
    to: PaymentFrequency,
    at: datetime | None = None,
    clock: Clock,
    when: When = "now",
) -> FrequencyQuote:
    """Price, proration and next dates of a change made `at` (default: now). Changes nothing.

    Raises:
        BadInput: with the reason for which the change would be refused.
    """
    require_feature(connection, FREQUENCIES)
    with connection.transaction():
        return _quote(connection, locked_subscription(connection, subscription_ref), to, at or clock.now(), when)


def change_frequency(
    connection: Connection,
    *,
    subscription_ref: str,
    to: PaymentFrequency,
    at: datetime | None = None,
    clock: Clock,
    when: When = "now",
) -> FrequencyQuote:
    """Change the frequency, as quoted: one row, one event, one command for Stripe, in one transaction.

    At a period's end the row is all that is written now; `apply_due_frequency_changes` does the rest.

    Raises:
        BadInput: refused while paused, past due, suspended or canceled, where the plan has no such price, where the
            feature is off, or where a change is already scheduled; nothing was changed.
    """
    require_feature(connection, FREQUENCIES)
    now = clock.now()
    moment = at or now
    if moment > now:
        raise BadInput(f"A change cannot be made ahead of time ({moment.isoformat()}): choose the end of the period.")
    with connection.transaction():
        subscription = locked_subscription(connection, subscription_ref)
        if at is not None and at < subscription["changed_at"]:
            raise BadInput(f"Subscription '{subscription_ref}' has changed since {at.isoformat()}: give a later time.")
        quote = _quote(connection, subscription, to, moment, when)
        _write(connection, subscription, quote, now, when)
        return quote


def apply_due_frequency_changes(connection: Connection, *, clock: Clock) -> int:
    """Make the changes whose period has ended; how many. Set-based; nothing while frequencies are off.

    A paused or unpaid subscription keeps its change until it is active again.
    """
    if not feature_enabled(connection, FREQUENCIES):
        return 0
    with connection.transaction():
        return int(queries("billing_frequencies").apply_due_frequency_changes(connection, now=clock.now()))


def _quote(
    connection: Connection, subscription: dict[str, Any], to: PaymentFrequency, at: datetime, when: When
) -> FrequencyQuote:
    sql = queries("billing_frequencies")
    price = _price(connection, subscription, to)
    scheduled = sql.scheduled_frequency_change(connection, subscription_id=subscription["subscription_id"])
    if scheduled is not None:
        raise BadInput(
            f"Subscription '{subscription['subscription_ref']}' already has a change of frequency scheduled for "
            f"{scheduled.isoformat()}: let it happen first."
        )
    present = PaymentFrequency(subscription["payment_frequency"])
    zone, next_payment_at = subscription["time_zone"], subscription["next_payment_at"]
    period = sql.paid_period(
        connection, anchor=subscription["billing_anchor"], payment_frequency=present, at=at, zone=zone
    )
    next_payment_at = next_payment_at or period["ends_at"]
    proration = Proration(0, 0)
    anchor, first = (next_payment_at, 0)
    if when == "now" and subscription["status"] == "active":
        if next_payment_at <= at:
            raise BadInput(
                f"The payment of {next_payment_at.isoformat()} on this subscription is still to come: "
                "change the frequency once it is made."
            )
        anchor, first = at, 1
        # A date moved by a pause leaves at most the period that was paid for.
        left = min(Fraction(period["left_us"], period["period_us"]), Fraction(1))
        quantity = subscription["quantity"]
        proration = across_intervals(subscription["amount_minor"] * quantity, price * quantity, left)
    dates = sql.payment_dates(
        connection, anchor=anchor, payment_frequency=to, first=first, last=first + DATES_SHOWN - 1, zone=zone
    )
    return FrequencyQuote(
        subscription_ref=subscription["subscription_ref"],
        from_frequency=present,
        to_frequency=to,
        amount_minor=price,
        currency=subscription["currency"],
        credit_minor=proration.credit_minor,
        debit_minor=proration.debit_minor,
        effective_at=at if when == "now" else next_payment_at,
        next_payments=tuple(row["payment_at"] for row in dates),
    )


def _price(connection: Connection, subscription: dict[str, Any], to: PaymentFrequency) -> int:
    ref, status, plan = (subscription[name] for name in ("subscription_ref", "status", "plan"))
    if status not in ("active", "trialing"):
        raise BadInput(f"Subscription '{ref}' is {status.replace('_', ' ')}: its frequency cannot be changed now.")
    if subscription["payment_frequency"] == to:
        raise BadInput(f"Subscription '{ref}' already pays {to}.")
    price: int | None = queries("billing_frequencies").plan_price(
        connection, plan=plan, payment_frequency=to, currency=subscription["currency"]
    )
    if price is None:
        raise BadInput(f"Plan '{plan}' has no {to} price in {subscription['currency']}: add one to plan_prices first.")
    return price


def _write(
    connection: Connection, subscription: dict[str, Any], quote: FrequencyQuote, requested_at: datetime, when: When
) -> None:
    sql = queries("billing_frequencies")
    sql.record_frequency_change(
        connection,
        subscription_id=subscription["subscription_id"],
        old=quote.from_frequency,
        new=quote.to_frequency,
        price=quote.amount_minor,
        asked_at=requested_at,
        at=quote.effective_at,
        credit=quote.credit_minor,
        debit=quote.debit_minor,
        currency=quote.currency,
        state="applied" if when == "now" else "scheduled",
    )
    if when == "now":
        on_trial = subscription["status"] == "trialing"
        sql.change_frequency_now(
            connection,
            subscription_id=subscription["subscription_id"],
            version=subscription["version"],
            to_frequency=quote.to_frequency,
            amount_minor=quote.amount_minor,
            anchor=quote.next_payments[0] if on_trial else quote.effective_at,
            next_payment_at=quote.next_payments[0],
            at=quote.effective_at,
        )
