"""Time passing in the sandbox account: periods end, invoices are made, payments are tried, declined and tried again.

What belongs here: everything that happens because an instant came. What does not: what a caller asks for
(`stripe_changes`).

Everything happens at the exact instant at which it falls due, in order, and depends on nothing but the account and its
seed: the same company advanced to the same instant in one step or in many has the same invoices.
"""

from __future__ import annotations

import hashlib
from calendar import monthrange
from datetime import UTC, datetime
from typing import Any

from flexpay_pipelines.sandbox import stripe_objects as objects
from flexpay_pipelines.sandbox.stripe_account import DEFAULT_DECLINE_RATE, Account, Refused, missing, period_line
from flexpay_pipelines.sandbox.stripe_objects import State

DAY = 86_400
# Days after the first failure; then it rests, and the subscription stays past due.
RETRY_AFTER_DAYS = (1, 3, 5)
_DECLINES = (
    ("insufficient_funds", 10), ("do_not_honor", 5), ("generic_decline", 2), ("expired_card", 2), ("fraudulent", 1),
)  # fmt: skip


def boundary_after(anchor: int, price: State, instant: int) -> int:
    """The first end of a period after `instant`, counted from the anchor: 31 Jan, 28 Feb, 31 Mar. UTC."""
    interval, count = price["recurring"]["interval"], price["recurring"]["interval_count"]
    if interval in ("day", "week"):
        step = count * DAY * (7 if interval == "week" else 1)
        return int(anchor + ((instant - anchor) // step + 1) * step)
    months = count * (12 if interval == "year" else 1)
    start, then = datetime.fromtimestamp(anchor, UTC), datetime.fromtimestamp(instant, UTC)
    number = ((then.year - start.year) * 12 + then.month - start.month) // months - 1
    while (found := int(_add_months(start, number * months).timestamp())) <= instant:
        number += 1
    return found


def _add_months(start: datetime, months: int) -> datetime:
    year, month = divmod(start.year * 12 + start.month - 1 + months, 12)
    return start.replace(year=year, month=month + 1, day=min(start.day, monthrange(year, month + 1)[1]))


def _period_before(price: State, end: int) -> int:
    interval, count = price["recurring"]["interval"], price["recurring"]["interval_count"]
    if interval in ("day", "week"):
        return int(end - count * DAY * (7 if interval == "week" else 1))
    months = count * (12 if interval == "year" else 1)
    return int(_add_months(datetime.fromtimestamp(end, UTC), -months).timestamp())


def advance(account: Account, until: int, *, most: int) -> tuple[int, bool]:
    """Let time pass up to `until`, at most so many happenings. Returns how many, and whether `until` was reached."""
    # What happens because time has passed is nobody's request.
    account.request_key = None
    happened = 0
    while happened < most and (due := account.store.next_due(until)) is not None:
        kind, identifier, at = due
        instant = max(at, account.now)
        account.store.set_setting("clock", instant)
        account.store.plan(kind, identifier, None)
        _HAPPENINGS[kind](account, identifier, instant)
        happened += 1
    if happened < most:
        account.store.set_setting("clock", until)
        return happened, True
    return happened, False


def _cycle(account: Account, identifier: str, at: int) -> None:
    state = account.subscription(identifier)
    if state["status"] == "trialing":
        state["status"] = "active"
    bill(account, state, at, reason="subscription_cycle", first=True)


def _unpause(account: Account, identifier: str, at: int) -> None:
    state = account.subscription(identifier)
    state["pause"] = None
    account.save(state, "customer.subscription.updated", at=at)


def _retry(account: Account, identifier: str, at: int) -> None:
    invoice = account.store.get("invoice", identifier)
    if invoice is not None and invoice["status"] == "open":
        attempt(account, invoice, at)


_HAPPENINGS = {"cycle": _cycle, "unpause": _unpause, "retry": _retry}


def bill(account: Account, state: State, at: int, *, reason: str, first: bool) -> State:
    """Invoice the period that begins at `at` (with `first`) and whatever is pending, and try to collect it."""
    price = account.price(state["price"])
    if first:
        state.update(period_start=at, period_end=boundary_after(state["anchor"], price, at))
    lines = ([period_line(price, state["quantity"])] if first else []) + state["pending"]
    invoice = _invoice(account, state, lines, at, reason)
    # A credit that is larger than the invoice is carried over, never paid out.
    carried = min(invoice["amount"], 0)
    state["pending"] = [{**lines[-1], "amount": carried, "description": "Credit", "proration": True}] if carried else []
    state["latest_invoice"] = invoice["id"]
    _record(account, invoice, "invoice.created", at)
    if state["pause"] is not None:
        account.save(state, "customer.subscription.updated", at=at)
        _set_aside(account, invoice, state["pause"]["behavior"], at)
        return state
    account.save(state, "customer.subscription.updated", at=at)
    attempt(account, invoice, at)
    return account.subscription(state["id"])


def _invoice(account: Account, state: State, lines: list[State], at: int, reason: str) -> State:
    return {
        "id": _invoice_id(account, state["id"], at, reason), "subscription": state["id"],
        "customer": state["customer"], "status": "open", "amount": sum(line["amount"] for line in lines),
        "currency": state["currency"], "created": at, "period_start": state["period_start"],
        "period_end": state["period_end"], "attempts": 0, "next_attempt": None, "lines": lines, "reason": reason,
        "paid_at": None, "voided_at": None, "finalized_at": at, "uncollectible_at": None, "error": None,
        "first_failure": None, "metadata": state["metadata"],
    }  # fmt: skip


def _invoice_id(account: Account, subscription: str, at: int, reason: str) -> str:
    """Of two changes within a second each has an invoice of its own."""
    identifier = objects.stable_id("in", subscription, at, reason)
    taken = account.store.get("invoice", identifier) is not None
    return _invoice_id(account, subscription, at, f"{reason} again") if taken else identifier


def _record(account: Account, invoice: State, event: str | None, at: int) -> None:
    account.store.put("invoice", invoice, lookup=invoice["subscription"], status=invoice["status"])
    if event is not None:
        account.store.record_event(event, at, objects.invoice(invoice), account.request_key)


def _set_aside(account: Account, invoice: State, behavior: str, at: int) -> None:
    """Collection is paused: the invoice is kept as a draft, voided or written off, and no payment is tried."""
    if behavior == "keep_as_draft":
        invoice.update(status="draft", finalized_at=None)
        _record(account, invoice, None, at)
    elif behavior == "void":
        invoice.update(status="void", voided_at=at)
        _record(account, invoice, "invoice.voided", at)
    else:
        invoice.update(status="uncollectible", uncollectible_at=at)
        _record(account, invoice, "invoice.marked_uncollectible", at)


def attempt(account: Account, invoice: State, at: int, *, asked_for: bool = False) -> None:
    """Try to collect an open invoice once; the outcome depends on the seed, the invoice and the tries only."""
    if invoice["amount"] <= 0:
        _paid(account, invoice, at)
        return
    invoice["tries"] = (invoice["tries"] if "tries" in invoice else invoice["attempts"]) + 1
    # A try that somebody asks for does not count as one of the schedule, unless it is the first.
    invoice["attempts"] = max(invoice["attempts"] + (not asked_for), 1)
    invoice["error"] = _failure(account, invoice, at)
    if invoice["error"] is None:
        _paid(account, invoice, at)
        return
    invoice["first_failure"] = invoice["first_failure"] or at
    retries = [invoice["first_failure"] + days * DAY for days in RETRY_AFTER_DAYS]
    later = [instant for instant in retries if instant > at]
    invoice["next_attempt"] = later[0] if later else None
    account.store.plan("retry", invoice["id"], invoice["next_attempt"])
    account.store.record_event(
        "payment_intent.payment_failed", at, objects.payment_intent(invoice), account.request_key
    )
    _record(account, invoice, "invoice.payment_failed", at)
    state = account.subscription(invoice["subscription"])
    if state["status"] == "active":
        state["status"] = "past_due"
        account.save(state, "customer.subscription.updated", at=at)


def _paid(account: Account, invoice: State, at: int) -> None:
    invoice.update(status="paid", paid_at=at, next_attempt=None, error=None)
    account.store.plan("retry", invoice["id"], None)
    _record(account, invoice, "invoice.paid", at)
    state = account.subscription(invoice["subscription"])
    if state["status"] == "past_due" and state["latest_invoice"] == invoice["id"]:
        state["status"] = "active"
        account.save(state, "customer.subscription.updated", at=at)


def _failure(account: Account, invoice: State, at: int) -> State | None:
    if _released_fault(account, invoice, at):
        return {
            "code": "parameter_invalid_integer", "type": "invalid_request_error", "param": "interval_count",
            "message": "Invalid integer: the release sent an interval that is not an integer",
        }  # fmt: skip
    rate = float(account.store.setting("decline_rate", DEFAULT_DECLINE_RATE))
    # A card that was declined is likely to be declined again: 2 % at first, about 38 % of the retries.
    chance = rate if invoice["tries"] == 1 else rate**0.25
    if _draw(account, invoice, "decline") >= chance:
        return None
    code = _pick(_draw(account, invoice, "code"))
    message = "Your card was declined."
    if code == "expired_card":
        return {"code": code, "decline_code": code, "message": "Your card has expired.", "type": "card_error"}
    return {"code": "card_declined", "decline_code": code, "message": message, "type": "card_error"}


def _released_fault(account: Account, invoice: State, at: int) -> bool:
    price = account.price(account.subscription(invoice["subscription"])["price"])
    recurring = price["recurring"]
    monthly = (recurring["interval"], recurring["interval_count"]) == ("month", 1)
    return not monthly and any(
        fault["kind"] == "release" and fault["since"] <= at and _draw(account, invoice, "release") < fault["share"]
        for _, fault in account.store.faults()
    )


def _draw(account: Account, invoice: State, what: str) -> float:
    seed = account.store.setting("seed", 0)
    digest = hashlib.sha256(f"{seed}:{what}:{invoice['id']}:{invoice['tries']}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _pick(draw: float) -> str:
    point = draw * sum(weight for _, weight in _DECLINES)
    for code, weight in _DECLINES:
        if point < weight:
            return code
        point -= weight
    return _DECLINES[0][0]


def pay(account: Account, identifier: str, _parameters: State) -> State:
    """POST /v1/invoices/{id}/pay: one attempt now.

    Raises:
        Refused: 402 with the decline, or 400 when the invoice is not open.
    """
    invoice = account.store.get("invoice", identifier)
    if invoice is None:
        raise missing("invoice", identifier)
    if invoice["status"] != "open":
        raise Refused("Invoice is already paid" if invoice["status"] == "paid" else "This invoice is not open.")
    attempt(account, invoice, account.now, asked_for=True)
    if (error := invoice["error"]) is not None:
        status = 402 if error["type"] == "card_error" else 400
        raise Refused(error["message"], error["code"], error.get("param"), status, error["type"])
    return objects.invoice(invoice)


def seed(account: Account, rows: dict[str, list[Any]]) -> None:
    """Add products, prices, customers and subscriptions in bulk, as they are at this instant, without any event."""
    store, now = account.store, account.now
    store.put_all("product", ((objects.product(i, name, now), None, None) for i, name in rows.get("products", [])))
    prices = [
        objects.price(i, product_id=p, currency=c, amount=a, interval=iv, count=n, lookup_key=k, created=now)
        for i, p, c, a, iv, n, k in rows.get("prices", [])
    ]
    store.put_all("price", ((price, price["lookup_key"], None) for price in prices))
    store.put_all(
        "customer",
        (
            (objects.customer(i, ref=ref, email=email, currency=currency, created=created), None, None)
            for i, ref, email, currency, created in rows.get("customers", [])
        ),
    )
    known: dict[str, State] = {}
    for row in rows.get("subscriptions", []):
        price = known.setdefault(row["price"], account.price(row["price"]))
        state = _seeded(row, price, now)
        if state["status"] == "past_due" and state["pause"] is None:
            _owe(account, state, price, now)
        account.save(state)


def _owe(account: Account, state: State, price: State, now: int) -> None:
    """The invoice whose failed payment has made a subscription past due; it is tried again."""
    line = period_line(price, state["quantity"])
    invoice = _invoice(account, state, [line], state["period_start"], "subscription_cycle")
    invoice.update(attempts=1, first_failure=now, next_attempt=now + RETRY_AFTER_DAYS[0] * DAY)
    invoice["error"] = {"code": "card_declined", "decline_code": "insufficient_funds", "type": "card_error"}
    state["latest_invoice"] = invoice["id"]
    _record(account, invoice, None, now)
    account.store.plan("retry", invoice["id"], invoice["next_attempt"])


def _seeded(row: State, price: State, now: int) -> State:
    anchor, end = row["anchor"], row["next_payment"]
    # A payment date that lies off the anchor's own dates was moved by a pause: the dates count from it on.
    if end is not None and abs(boundary_after(anchor, price, end - DAY) - end) > DAY:
        anchor = end
    if end is None or end <= now:
        end = boundary_after(anchor, price, now)
    trial_end = end if row["status"] == "trialing" else None
    return {
        "id": row["id"], "customer": row["customer"], "price": row["price"], "quantity": row["quantity"],
        "status": row["status"], "created": row["created"], "currency": row["currency"], "anchor": anchor,
        "period_start": _period_before(price, end), "period_end": end,
        "trial_start": row["created"] if trial_end else None,
        "trial_end": trial_end, "pause": row["pause"], "paused_at": now if row["status"] == "paused" else None,
        "canceled_at": None, "latest_invoice": None, "metadata": {"subscription_ref": row["ref"]}, "pending": [],
    }  # fmt: skip
