"""What a caller may do to a subscription of the sandbox account: update, pause, resume, cancel.

What belongs here: the effect of each write. What does not: time passing (`stripe_cycles`), HTTP (`stripe_http`).
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from flexpay_pipelines.money import round_half_up
from flexpay_pipelines.sandbox import stripe_objects as objects
from flexpay_pipelines.sandbox.stripe_account import Account, Refused, invalid, invoice_line, missing
from flexpay_pipelines.sandbox.stripe_cycles import bill, boundary_after
from flexpay_pipelines.sandbox.stripe_objects import State

BEHAVIORS = ("keep_as_draft", "mark_uncollectible", "void")


def update(account: Account, identifier: str, parameters: State) -> State:
    """POST /v1/subscriptions/{id}: pause_collection, one item's price or quantity, trial_end, metadata."""
    state = _changeable(account, identifier)
    before, bill_now = dict(state), None
    if "pause_collection" in parameters:
        state["pause"] = _pause_collection(account, parameters["pause_collection"])
    if "metadata" in parameters:
        state["metadata"] = _metadata(state["metadata"], parameters["metadata"])
    if "items" in parameters:
        bill_now = _change_items(account, state, parameters)
    if "trial_end" in parameters:
        _move_to(account, state, parameters["trial_end"])
    if state != before:
        account.save(state, "customer.subscription.updated")
    if bill_now is not None:
        state = bill(account, state, account.now, reason="subscription_update", first=bill_now)
    return account.show_subscription(state)


def _changeable(account: Account, identifier: str) -> State:
    state = account.subscription(identifier)
    if state["status"] == "canceled":
        raise invalid("A canceled subscription can only update its cancellation_details and metadata.")
    return state


def _pause_collection(account: Account, asked: Any) -> State | None:
    if asked == "":
        return None
    if not isinstance(asked, dict) or asked.get("behavior") not in BEHAVIORS:
        raise invalid(f"Invalid pause_collection[behavior]: must be one of {', '.join(BEHAVIORS)}")
    resumes_at = asked.get("resumes_at")
    if resumes_at in (None, ""):
        return {"behavior": asked["behavior"], "resumes_at": None}
    if not str(resumes_at).isdigit():
        raise invalid("Invalid integer: pause_collection[resumes_at]", "pause_collection[resumes_at]")
    if int(resumes_at) <= account.now:
        raise invalid("`resumes_at` must be in the future.", "pause_collection[resumes_at]")
    return {"behavior": asked["behavior"], "resumes_at": int(resumes_at)}


def _metadata(present: State, asked: Any) -> State:
    if asked == "":
        return {}
    merged = {**present, **asked}
    return {name: value for name, value in merged.items() if value != ""}


def _change_items(account: Account, state: State, parameters: State) -> bool | None:
    """Returns whether an invoice is due at once: True with a new period, False without, None for no invoice."""
    items = parameters["items"]
    if len(items) != 1:
        raise invalid("The sandbox knows subscriptions of one item only.", "items")
    item = items[0]
    if item.get("id") != objects.stable_id("si", state["id"]):
        raise invalid("The sandbox cannot add a second item: give the id of the present one.", "items[0][id]")
    old, quantity = account.price(state["price"]), state["quantity"]
    new = _asked_price(account, item, old)
    state["price"], state["quantity"] = new["id"], int(item.get("quantity", quantity))
    behavior = parameters.get("proration_behavior", "create_prorations")
    if behavior not in ("create_prorations", "none", "always_invoice"):
        raise invalid(f"Invalid proration_behavior: {behavior}", "proration_behavior")
    if (old["id"], quantity) == (new["id"], state["quantity"]) or "trial_end" in parameters:
        return None
    return _prorate(
        account,
        state,
        old=old,
        quantity=quantity,
        new=new,
        behavior=behavior,
        at=_proration_date(account, state, parameters),
        reset=parameters.get("billing_cycle_anchor") == "now",
    )


def _proration_date(account: Account, state: State, parameters: State) -> int:
    if "proration_date" not in parameters:
        return account.now
    date = int(parameters["proration_date"])
    if not state["period_start"] <= date <= state["period_end"]:
        raise invalid("Invalid proration_date: must be within the current billing period.", "proration_date")
    return date


def _asked_price(account: Account, item: State, old: State) -> State:
    if "price" in item:
        return account.price(item["price"])
    if "price_data" not in item:
        return old
    data = item["price_data"]
    recurring = data["recurring"]
    count, amount = int(recurring.get("interval_count", 1)), int(data["unit_amount"])
    terms = (data["product"], data["currency"], amount, recurring["interval"], count)
    if account.store.get("product", data["product"]) is None:
        raise Refused(f"No such product: '{data['product']}'", "resource_missing", "items[0][price_data][product]")
    identifier = objects.stable_id("price", *terms)
    if (known := account.store.get("price", identifier)) is not None:
        return known
    made = objects.price(
        identifier, product_id=data["product"], currency=data["currency"], amount=amount,
        interval=recurring["interval"], count=count, lookup_key=None, created=account.now,
    )  # fmt: skip
    account.store.put("price", made)
    return made


def _prorate(
    account: Account, state: State, *, old: State, quantity: int, new: State, behavior: str, at: int, reset: bool
) -> bool | None:
    """Same interval: credit and debit for what is left of the period. Another one: a new full period from now."""
    trialing = state["status"] == "trialing"
    if trialing or state["status"] == "paused":
        return None
    length = state["period_end"] - state["period_start"]
    left = Fraction(max(state["period_end"] - at, 0), length) if length > 0 else Fraction(0)
    credit = invoice_line(old, quantity, -round_half_up(old["unit_amount"] * quantity * left), "Unused time", True)
    same = _interval(old) == _interval(new) and not reset
    if same and behavior != "none":
        number = state["quantity"]
        debit = invoice_line(new, number, round_half_up(new["unit_amount"] * number * left), "Remaining time", True)
        state["pending"] = [*state["pending"], credit, debit]
    if not same:
        state["pending"] = state["pending"] + ([credit] if behavior != "none" else [])
        state["anchor"] = state["period_end"] = account.now
    return not same if not same or behavior == "always_invoice" else None


def _move_to(account: Account, state: State, asked: Any) -> None:
    """A trial until an instant is how a payment date is moved without billing: no proration, anchor at its end."""
    if state["status"] == "paused":
        raise invalid("The sandbox moves no date of a paused subscription: resume it first.", "trial_end")
    if asked == "now":
        raise invalid("The sandbox does not end trials early.", "trial_end")
    instant = int(asked)
    if instant <= account.now:
        raise invalid("trial_end must be in the future.", "trial_end")
    state.update(status="trialing", trial_start=account.now, trial_end=instant, period_start=account.now)
    state.update(period_end=instant, anchor=instant)


def pause(account: Account, identifier: str, parameters: State) -> State:
    """POST /v1/subscriptions/{id}/pause: no period, no invoice, until it is resumed."""
    state = _changeable(account, identifier)
    if state["status"] == "paused":
        raise invalid("This subscription is already paused.")
    unused = ((parameters.get("bill_for") or {}).get("unused_time_from") or {}).get("type", "now")
    if unused != "none":
        price, length = account.price(state["price"]), state["period_end"] - state["period_start"]
        since = account.now if unused == "now" else state["period_start"]
        left = Fraction(max(state["period_end"] - since, 0), length)
        amount = -round_half_up(price["unit_amount"] * state["quantity"] * left)
        state["pending"] = [*state["pending"], invoice_line(price, state["quantity"], amount, "Unused time", True)]
    state.update(status="paused", paused_at=account.now)
    account.save(state, "customer.subscription.paused")
    return account.show_subscription(state)


def resume(account: Account, identifier: str, parameters: State) -> State:
    """POST /v1/subscriptions/{id}/resume: from now (a new period is billed) or on the old dates (nothing is)."""

    state = _changeable(account, identifier)
    if state["status"] != "paused":
        raise invalid("You can only resume a subscription that is paused.")
    anchor = (parameters.get("billing_cycle_anchor") or {"type": "now"})["type"]
    state.update(status="active", paused_at=None)
    if anchor == "now":
        state.update(anchor=account.now, period_end=account.now)
        account.save(state, "customer.subscription.resumed")
        return account.show_subscription(bill(account, state, account.now, reason="subscription_update", first=True))
    if state["period_end"] <= account.now:
        price = account.price(state["price"])
        state.update(period_start=account.now, period_end=boundary_after(state["anchor"], price, account.now))
    account.save(state, "customer.subscription.resumed")
    return account.show_subscription(state)


def cancel(account: Account, identifier: str, _parameters: State) -> State:
    """DELETE /v1/subscriptions/{id}: at once; what is still owed is not collected any more."""
    state = account.subscription(identifier)
    if state["status"] == "canceled":
        raise missing("subscription", identifier)
    state.update(status="canceled", canceled_at=account.now)
    account.save(state, "customer.subscription.deleted")
    for invoice in account.store.by_lookup("invoice", [identifier]):
        account.store.plan("retry", invoice["id"], None)
    return account.show_subscription(state)


def _interval(price: State) -> tuple[str, int]:
    return price["recurring"]["interval"], price["recurring"]["interval_count"]
