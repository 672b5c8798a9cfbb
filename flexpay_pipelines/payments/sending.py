"""One command of the outbox and Stripe: what is called, and whether it was done already.

What belongs here: the meaning of each operation. What does not: order and retries (`delivery`), pace (`pacing`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from flexpay_pipelines.clock import parse_instant
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.money import PaymentFrequency
from flexpay_pipelines.payments.failures import StripePermanent
from flexpay_pipelines.payments.stripe_gateway import INTERVALS

if TYPE_CHECKING:
    from flexpay_pipelines.payments.stripe_gateway import Object, StripeGateway

# Stripe may forget an idempotency key after a day: from then on the object says whether the effect is there.
KEY_LIFETIME = timedelta(hours=24)
SOON_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one command: `state` is delivered, superseded, parked, or pending (to be tried again)."""

    command_id: int
    state: str
    error: str | None = None
    attempts: int = 0
    retry_after: float | None = None
    key_is_spent: bool = False
    unreachable: bool = False
    generation: int = 0


@dataclass(frozen=True)
class _Sending:
    command: dict[str, Any]
    gateway: StripeGateway
    now: datetime

    @property
    def parameters(self) -> Object:
        return dict(self.command["parameters"])

    @property
    def identifier(self) -> str:
        return str(self.command["stripe_subscription_id"])

    @property
    def key(self) -> str:
        """The command's key; another one after an answer that Stripe would only repeat."""
        generation = self.parameters.get("key_generation", 0)
        return f"{self.command['idempotency_key']}:{generation}" if generation else str(self.command["idempotency_key"])

    def outcome(self, state: str, error: str | None = None) -> Outcome:
        return Outcome(self.command["command_id"], state, error)

    def read(self) -> Object:
        return self.gateway.subscription(self.identifier)


def send(command: dict[str, Any], gateway: StripeGateway, *, now: datetime) -> Outcome:
    """Tell Stripe one command, unless the object shows that it was told before.

    Raises:
        StripeTransient: it may succeed later.
        StripeRefusesUs: no call can succeed.
    """
    sending = _Sending(command, gateway, now)
    if command["stripe_subscription_id"] is None:
        return sending.outcome("parked", "the subscription has no Stripe id: link it, then retry the command")
    try:
        return _send(sending)
    except StripePermanent as error:
        return _refused(sending, error)
    except (KeyError, ValueError, BadInput) as error:
        return sending.outcome("parked", f"the command's parameters cannot be used: {type(error).__name__} {error}")


def _send(sending: _Sending) -> Outcome:
    command = sending.command
    if command["operation"] == "move_payment":
        wanted = _date_wanted(sending)
        if wanted is None:
            return sending.outcome("superseded", "the payment of that date has been made since")
        if wanted <= sending.now.timestamp():
            return sending.outcome("superseded", "the date has passed before Stripe was told of it")
    uncertain = command["attempts"] > 0 or sending.now - command["created_at"] > KEY_LIFETIME
    present: Object = sending.read() if uncertain or command["operation"] in _LOOK_FIRST else {}
    if present and (uncertain or present["status"] == "canceled"):
        settled = _settled(sending, present)
        if settled is not None:
            return settled
    if command["operation"] == "pause" and _is_over(sending):
        # Stripe may have ended it by itself: told again, it would have no end. The resume that follows moves the date.
        return sending.outcome("superseded", "the pause was over before Stripe was told of it")
    _OPERATIONS[command["operation"]](sending, present)
    return sending.outcome("delivered")


def _settled(sending: _Sending, present: Object) -> Outcome | None:
    if sending.command["operation"] == "cancel":
        return sending.outcome("delivered") if present["status"] == "canceled" else None
    if present["status"] == "canceled":
        return sending.outcome("superseded", "the subscription is canceled at Stripe")
    return sending.outcome("delivered") if _shows_effect(sending, present) else None


def _shows_effect(sending: _Sending, present: Object) -> bool:
    operation, parameters = sending.command["operation"], sending.parameters
    if operation == "change_price":
        price = present["items"]["data"][0]["price"]
        recurring = price["recurring"]
        return (price["unit_amount"], (recurring["interval"], recurring["interval_count"])) == (
            parameters["amount_minor"],
            INTERVALS[PaymentFrequency(parameters["payment_frequency"])],
        )
    if operation == "change_quantity":
        return bool(present["items"]["data"][0].get("quantity", 1) == parameters["quantity"])
    if operation == "move_payment":
        return _in_time(sending, present)
    paused = present["pause_collection"] is not None or present["status"] == "paused"
    if operation == "pause" and paused:
        ends = (present["pause_collection"] or {}).get("resumes_at")
        return present["status"] == "paused" or ends == _instant(sending, "resumes_at")
    return operation == "resume" and not paused and _in_time(sending, present)


def _in_time(sending: _Sending, present: Object) -> bool:
    """Whether the next payment stands where a resume wants it."""
    wanted = _date_wanted(sending)
    if wanted is None or wanted == present["items"]["data"][0]["current_period_end"]:
        return True
    if wanted > sending.now.timestamp():
        return False
    # A date that has passed was moved to a moment after the call that moved it; the payment may be made by now.
    return int(present["metadata"].get("date_kept_until", 0)) >= wanted or _billed_since(sending, present)


def _billed_since(sending: _Sending, present: Object) -> bool:
    """Whether Stripe has begun a period by itself since the command was made, and asked for its payment.

    It may not be known here yet. What it made while payments were paused is void, and asked of nobody.
    """
    made = sending.command["created_at"].timestamp()
    if present["items"]["data"][0]["current_period_start"] <= made or present.get("latest_invoice") is None:
        return False
    invoice = sending.gateway.invoice(present["latest_invoice"])
    asked = invoice["billing_reason"] == "subscription_cycle" and invoice["status"] in ("open", "paid")
    return bool(asked and invoice["created"] > made)


def _refused(sending: _Sending, error: StripePermanent) -> Outcome:
    """Parked, unless the object explains it: done already, canceled, or a key used with other parameters."""
    try:
        settled = _settled(sending, sending.read())
    except StripePermanent:
        settled = None
    if settled is not None:
        return settled
    if error.key_is_spent:
        generation = sending.parameters.get("key_generation", 0)
        return Outcome(
            sending.command["command_id"], "pending", str(error), sending.command["attempts"],
            key_is_spent=True, generation=generation,
        )  # fmt: skip
    return sending.outcome("parked", str(error))


def _future(sending: _Sending, name: str) -> int | None:
    """An instant of the parameters in epoch seconds, where it is given and still to come: Stripe takes no other."""
    instant = _instant(sending, name)
    return None if instant is None or instant <= sending.now.timestamp() else instant


def _is_over(sending: _Sending) -> bool:
    ends = _instant(sending, "resumes_at")
    return ends is not None and ends <= sending.now.timestamp()


def _instant(sending: _Sending, name: str) -> int | None:
    """An instant of the parameters in epoch seconds, where it is given."""
    written = sending.parameters.get(name)
    return None if written is None else int(parse_instant(written).timestamp())


def _date_wanted(sending: _Sending) -> int | None:
    """The date that a command gives the next payment, in epoch seconds; None where it gives none.

    Told hours late, Stripe can have billed on its own date meanwhile, and would bill the same period once more: where
    the payment of the command's date has been made, the date is that of the next one, or none if that has passed, too.
    """
    written, expected = sending.parameters.get("next_payment_at"), sending.command["next_payment_at"]
    if written is None or expected is None or parse_instant(written) >= expected:
        return _instant(sending, "next_payment_at")
    return int(expected.timestamp()) if expected > sending.now else None


def _pause(sending: _Sending, _present: Object) -> None:
    sending.gateway.pause(
        sending.identifier,
        mode=sending.parameters["mode"],
        resumes_at=_instant(sending, "resumes_at"),
        key=sending.key,
    )


def _resume(sending: _Sending, present: Object) -> None:
    """Resumed in the way in which it is paused, whatever the command says: somebody may have paused it at Stripe."""
    wanted = _date_wanted(sending)
    # A payment that fell due between the end of the pause and now is made as soon as Stripe can.
    now = int(sending.now.timestamp())
    moved = wanted if wanted is None or wanted > now else now + SOON_SECONDS
    if present["status"] == "paused":
        sending.gateway.resume_subscription(sending.identifier, key=sending.key)
    if present["pause_collection"] is not None:
        sending.gateway.resume_collection(sending.identifier, next_payment_at=moved, key=f"{sending.key}:collection")
    elif moved is not None and not _in_time(sending, present):
        sending.gateway.move_payment(sending.identifier, moved, key=f"{sending.key}:date")


def _change_price(sending: _Sending, present: Object) -> None:
    parameters = sending.parameters
    # A price is put on an item, whose id only the object tells.
    item = present["items"]["data"][0]
    recurring = item["price"]["recurring"]
    interval, count = INTERVALS[PaymentFrequency(parameters["payment_frequency"])]
    # Without proration nothing may be billed at once either: another interval keeps the date that was paid for, to the
    # second of ours where that is named.
    crosses = (recurring["interval"], recurring["interval_count"]) != (interval, count)
    ends = _future(sending, "next_payment_at") or item["current_period_end"]
    kept = parameters["proration"] == "none" and crosses and present["status"] != "paused"
    sending.gateway.change_price(
        sending.identifier,
        item={"id": item["id"], **_price(sending, item, interval, count)},
        proration=parameters["proration"],
        proration_date=_within_period(sending, item),
        keep_date=ends if kept and ends > sending.now.timestamp() else None,
        key=sending.key,
    )


def _within_period(sending: _Sending, item: Object) -> int | None:
    """As of when to prorate: when the change was made, so that the amounts are those that were quoted."""
    changed = _instant(sending, "proration_date")
    # Another period has begun since: Stripe takes no date outside the running one.
    return changed if changed is not None and changed >= item["current_period_start"] else None


def _price(sending: _Sending, item: Object, interval: str, count: int) -> Object:
    """The listed price where the amount is the list's; otherwise one made for this subscription."""
    if (listed := sending.command["stripe_price_id"]) is not None:
        return {"price": listed}
    return {
        "price_data": {
            "currency": sending.parameters["currency"].lower(),
            "product": item["price"]["product"],
            "unit_amount": sending.parameters["amount_minor"],
            "recurring": {"interval": interval, "interval_count": count},
        }
    }


def _change_quantity(sending: _Sending, present: Object) -> None:
    item = present["items"]["data"][0]["id"]
    sending.gateway.change_quantity(
        sending.identifier, item=item, quantity=sending.parameters["quantity"], key=sending.key
    )


def _move_payment(sending: _Sending, _present: Object) -> None:
    if (wanted := _date_wanted(sending)) is not None:
        sending.gateway.move_payment(sending.identifier, wanted, key=sending.key)


def _cancel(sending: _Sending, _present: Object) -> None:
    sending.gateway.cancel(sending.identifier, key=sending.key)


# What these send depends on the object as it is.
_LOOK_FIRST = frozenset({"resume", "change_price", "change_quantity"})
_OPERATIONS: dict[str, Callable[[_Sending, Object], None]] = {
    "pause": _pause, "resume": _resume, "change_price": _change_price, "change_quantity": _change_quantity,
    "move_payment": _move_payment, "cancel": _cancel,
}  # fmt: skip
