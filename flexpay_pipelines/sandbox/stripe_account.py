"""The sandbox account: what it holds, how it is shown, and how a refusal is worded.

What belongs here: reading and saving subscriptions with their agenda and events. What does not: what a caller may
change (`stripe_changes`), what time changes (`stripe_cycles`), HTTP (`stripe_http`), shapes (`stripe_objects`).
"""

from __future__ import annotations

from dataclasses import dataclass

from flexpay_pipelines.sandbox import stripe_objects as objects
from flexpay_pipelines.sandbox.stripe_objects import State
from flexpay_pipelines.sandbox.stripe_store import Store

DEFAULT_DECLINE_RATE = 0.02


@dataclass(frozen=True)
class Refused(Exception):
    """An answer other than 200, as Stripe words it."""

    message: str
    code: str | None = None
    param: str | None = None
    status: int = 400
    kind: str = "invalid_request_error"

    def body(self) -> State:
        found = {"message": self.message, "type": self.kind, "code": self.code, "param": self.param}
        return {"error": {name: value for name, value in found.items() if value is not None}}


def missing(kind: str, identifier: str) -> Refused:
    return Refused(f"No such {kind}: '{identifier}'", "resource_missing", "id", 404)


def invalid(message: str, param: str | None = None) -> Refused:
    return Refused(message, None, param)


class Account:
    """One Stripe account: what it holds and what may be done to it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.request_key: str | None = None

    @property
    def now(self) -> int:
        return int(self.store.setting("clock", 0))

    def subscription(self, identifier: str) -> State:
        state = self.store.get("subscription", identifier)
        if state is None:
            raise missing("subscription", identifier)
        return state

    def price(self, identifier: str) -> State:
        state = self.store.get("price", identifier)
        if state is None:
            raise Refused(f"No such price: '{identifier}'", "resource_missing", "items[0][price]")
        return state

    def show_subscription(self, state: State) -> State:
        return objects.subscription(state, self.price(state["price"]))

    def show_subscriptions(self, states: list[State]) -> list[State]:
        prices = {identifier: self.price(identifier) for identifier in {state["price"] for state in states}}
        return [objects.subscription(state, prices[state["price"]]) for state in states]

    def save(self, state: State, event: str | None = None, *, at: int | None = None) -> None:
        """Write a subscription, put its next instants on the agenda, and record what happened to it."""
        self.store.put("subscription", state, status=state["status"])
        living = state["status"] not in ("canceled", "paused")
        self.store.plan("cycle", state["id"], state["period_end"] if living else None)
        resumes_at = (state["pause"] or {}).get("resumes_at")
        self.store.plan("unpause", state["id"], resumes_at if living else None)
        if event is not None:
            shown = self.show_subscription(state)
            self.store.record_event(event, self.now if at is None else at, shown, self.request_key)


def invoice_line(price: State, quantity: int, amount: int, description: str, proration: bool) -> State:
    return {
        "amount": amount, "description": description, "proration": proration, "price": price["id"],
        "product": price["product"], "unit_amount": price["unit_amount_decimal"], "quantity": quantity,
    }  # fmt: skip


def period_line(price: State, quantity: int) -> State:
    """The line of an invoice that charges one full period."""
    return invoice_line(price, quantity, price["unit_amount"] * quantity, "Subscription period", False)
