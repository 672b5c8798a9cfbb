"""What a change of plan or payment frequency would cost and bring, and why it would be refused.

What belongs here: prices, proration and dates of one change. What does not: making it (`frequencies`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from typing import Any, Literal

from flexpay_pipelines.billing.proration import NOTHING, Proration, prorated
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.money import PaymentFrequency
from flexpay_pipelines.sql import queries

DATES_SHOWN = 3
_MOMENT = timedelta(microseconds=1)

When = Literal["now", "period_end"]


@dataclass(frozen=True, slots=True)
class FrequencyQuote:
    """What a change would cost and bring; amounts in minor units.

    Attributes:
        from_amount_minor, amount_minor: the price of one unit for one period, before and after.
        credit_minor: what is given back of the running period, all units; 0 at a period's end and on trial.
        debit_minor: what is taken for the rest of the period (same frequency) or for the new one, all units; 0 at a
            period's end and on trial, where the next payment simply takes the new price.
        net_minor: debit less credit.
        effective_at: when the new terms hold.
        next_payments: the next three payments on the new terms, UTC.
    """

    subscription_ref: str
    from_plan: str
    to_plan: str
    from_frequency: PaymentFrequency
    to_frequency: PaymentFrequency
    from_amount_minor: int
    amount_minor: int
    quantity: int
    currency: str
    credit_minor: int
    debit_minor: int
    net_minor: int
    effective_at: datetime
    next_payments: tuple[datetime, ...]

    @property
    def crosses(self) -> bool:
        """Whether the interval changes, and with it the dates."""
        return self.from_frequency != self.to_frequency


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for; None keeps the present plan or frequency."""

    to: PaymentFrequency | None
    to_plan: str | None
    when: When


def quote(connection: Connection, subscription: dict[str, Any], wish: Wish, at: datetime) -> FrequencyQuote:
    """The quote for a locked subscription at an instant (for this package).

    Raises:
        BadInput: with the reason for which the change is refused.
    """
    present = PaymentFrequency(subscription["payment_frequency"])
    frequency, plan = wish.to or present, wish.to_plan or subscription["plan"]
    price = _price(connection, subscription, plan, frequency)
    _refuse_second_change(connection, subscription)
    period = queries("billing_frequencies").paid_period(
        connection, anchor=subscription["billing_anchor"], payment_frequency=present, at=at,
        zone=subscription["time_zone"],
    )  # fmt: skip
    ends_at: datetime = subscription["next_payment_at"] or period["ends_at"]
    if ends_at <= at:
        raise BadInput(
            f"The payment of {ends_at.isoformat()} on subscription '{subscription['subscription_ref']}' is still to "
            "come: change it once that is made."
        )
    proration, counted_from, after = NOTHING, ends_at, ends_at - _MOMENT
    if wish.when == "now" and subscription["status"] == "active":
        proration = _proration(connection, subscription, price, period, at, same_interval=frequency == present)
        counted_from, after = at, at
    if frequency == present:
        counted_from, after = subscription["billing_anchor"], ends_at - _MOMENT
    dates = queries("billing_frequencies").payment_dates(
        connection, anchor=counted_from, payment_frequency=frequency, after=after, zone=subscription["time_zone"],
        number=DATES_SHOWN,
    )  # fmt: skip
    return FrequencyQuote(
        subscription_ref=subscription["subscription_ref"],
        from_plan=subscription["plan"],
        to_plan=plan,
        from_frequency=present,
        to_frequency=frequency,
        from_amount_minor=subscription["amount_minor"],
        amount_minor=price,
        quantity=subscription["quantity"],
        currency=subscription["currency"],
        credit_minor=proration.credit_minor,
        debit_minor=proration.debit_minor,
        net_minor=proration.net_minor,
        effective_at=at if wish.when == "now" else ends_at,
        next_payments=tuple(row["payment_at"] for row in dates),
    )


def _price(connection: Connection, subscription: dict[str, Any], plan: str, frequency: PaymentFrequency) -> int:
    """The list price of the new terms, where the subscription may change to them."""
    sql, ref, status = queries("billing_frequencies"), subscription["subscription_ref"], subscription["status"]
    if status not in ("active", "trialing"):
        raise BadInput(f"Subscription '{ref}' is {status.replace('_', ' ')}: its terms cannot be changed now.")
    if not sql.plan_known(connection, plan=plan):
        raise BadInput(f"There is no plan '{plan}'.")
    price: int | None = sql.plan_price(
        connection, plan=plan, payment_frequency=frequency, currency=subscription["currency"]
    )
    if price is None:
        raise BadInput(
            f"Plan '{plan}' has no {frequency} price in {subscription['currency']}: add one to plan_prices first."
        )
    present = (subscription["plan"], subscription["payment_frequency"], subscription["amount_minor"])
    if (plan, frequency, price) == present:
        raise BadInput(f"Subscription '{ref}' already pays {frequency} for plan '{plan}', at that price.")
    return price


def _refuse_second_change(connection: Connection, subscription: dict[str, Any]) -> None:
    scheduled = queries("billing_frequencies").scheduled_change(
        connection, subscription_id=subscription["subscription_id"]
    )
    if scheduled is not None:
        ref = subscription["subscription_ref"]
        raise BadInput(
            f"Subscription '{ref}' already has a change scheduled for {scheduled['effective_at'].isoformat()}: "
            f"let it happen, or take it back with `flexpay frequency cancel {ref}`."
        )


def _proration(
    connection: Connection,
    subscription: dict[str, Any],
    price: int,
    period: dict[str, Any],
    at: datetime,
    *,
    same_interval: bool,
) -> Proration:
    if queries("billing_frequencies").date_is_kept(
        connection, subscription_id=subscription["subscription_id"], at=at, since=period["starts_at"]
    ):
        raise BadInput(
            f"The running period of subscription '{subscription['subscription_ref']}' ends on a date that was moved "
            "(by a pause, a mend or a change taken back), and Stripe prorates no such period: change it at the "
            "period's end."
        )
    quantity = subscription["quantity"]
    return prorated(
        subscription["amount_minor"] * quantity,
        price * quantity,
        Fraction(period["left_us"], period["period_us"]),
        same_interval=same_interval,
    )
