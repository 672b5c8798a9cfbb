"""The shapes of Stripe's objects, as the pinned API version sends them.

What belongs here: turning the sandbox's compact state into Stripe's JSON; a test checks it against the SDK's own typed
classes. What does not: how the state changes (`stripe_changes`, `stripe_cycles`), HTTP (`stripe_http`).

State is kept as small dicts (times in epoch seconds, money in minor units); only what leaves the server has full shape.
"""

from __future__ import annotations

import hashlib
from typing import Any

API_VERSION = "2026-10-28.endive"
State = dict[str, Any]

# Visa's published test number ends like this. It is emitted so that tests can prove that it is never stored.
CARD = {"brand": "visa", "last4": "4242", "exp_month": 12, "exp_year": 2034, "fingerprint": "Xt5EWLLDS7FJjR1c"}


def stable_id(prefix: str, *parts: object) -> str:
    """An identifier that the same parts always give: `sub_` and 24 hexadecimal digits."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in (prefix, *parts)).encode()).hexdigest()
    return f"{prefix}_{digest[:24]}"


def listing(data: list[State], url: str, *, has_more: bool = False) -> State:
    return {"object": "list", "data": data, "has_more": has_more, "url": url}


def product(identifier: str, name: str, created: int) -> State:
    return {
        "id": identifier, "object": "product", "active": True, "created": created, "default_price": None,
        "description": None, "images": [], "livemode": False, "marketing_features": [], "metadata": {"plan": name},
        "name": name, "package_dimensions": None, "shippable": None, "statement_descriptor": None, "tax_code": None,
        "type": "service", "unit_label": None, "updated": created, "url": None,
    }  # fmt: skip


def price(
    identifier: str, *, product_id: str, currency: str, amount: int, interval: str, count: int,
    lookup_key: str | None, created: int,
) -> State:  # fmt: skip
    return {
        "id": identifier, "object": "price", "active": True, "billing_scheme": "per_unit", "created": created,
        "currency": currency, "custom_unit_amount": None, "livemode": False, "lookup_key": lookup_key, "metadata": {},
        "nickname": None, "product": product_id,
        "recurring": {
            "interval": interval, "interval_count": count, "meter": None, "trial_period_days": None,
            "usage_type": "licensed",
        },
        "tax_behavior": "unspecified", "tiers_mode": None, "transform_quantity": None, "type": "recurring",
        "unit_amount": amount, "unit_amount_decimal": str(amount),
    }  # fmt: skip


def _plan(of: State) -> State:
    recurring = of["recurring"]
    return {
        "id": of["id"], "object": "plan", "active": True, "amount": of["unit_amount"],
        "amount_decimal": of["unit_amount_decimal"], "billing_scheme": "per_unit", "created": of["created"],
        "currency": of["currency"], "interval": recurring["interval"], "interval_count": recurring["interval_count"],
        "livemode": False, "metadata": {}, "meter": None, "nickname": None, "product": of["product"],
        "tiers_mode": None, "transform_usage": None, "trial_period_days": None, "usage_type": "licensed",
    }  # fmt: skip


def customer(identifier: str, *, ref: str, email: str | None, currency: str, created: int) -> State:
    return {
        "id": identifier, "object": "customer", "address": None, "balance": 0, "created": created,
        "currency": currency, "default_source": None, "delinquent": False, "description": None, "discount": None,
        "email": email, "invoice_prefix": identifier[-8:].upper(),
        "invoice_settings": {
            "custom_fields": None, "default_payment_method": None, "footer": None, "rendering_options": None,
        },
        "livemode": False, "metadata": {"customer_ref": ref}, "name": None, "next_invoice_sequence": 1, "phone": None,
        "preferred_locales": [], "shipping": None, "tax_exempt": "none", "test_clock": None,
    }  # fmt: skip


def subscription(state: State, price_object: State) -> State:
    identifier = state["id"]
    item = {
        "id": stable_id("si", identifier), "object": "subscription_item", "billing_thresholds": None,
        "created": state["created"], "current_period_end": state["period_end"],
        "current_period_start": state["period_start"], "discounts": [], "metadata": {}, "plan": _plan(price_object),
        "price": price_object, "quantity": state["quantity"], "subscription": identifier, "tax_rates": [],
    }  # fmt: skip
    paused = None
    if state["status"] == "paused":
        paused = {
            "paused": {
                "subscription": {"type": "pause_requested"},
                "transitioned_at": state["paused_at"],
                "type": "subscription",
            }
        }
    return {
        "id": identifier, "object": "subscription", "application": None, "application_fee_percent": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": state["anchor"], "billing_cycle_anchor_config": None,
        "billing_mode": {
            "type": "flexible", "flexible": {"proration_discounts": "included"}, "updated_at": state["created"],
        },
        "billing_schedules": [], "billing_thresholds": None, "cancel_at": None, "cancel_at_period_end": False,
        "canceled_at": state["canceled_at"],
        "cancellation_details": {
            "comment": None, "feedback": None,
            "reason": "cancellation_requested" if state["canceled_at"] is not None else None,
        },
        "collection_method": "charge_automatically", "created": state["created"], "currency": state["currency"],
        "customer": state["customer"], "customer_account": None, "days_until_due": None,
        "default_payment_method": None, "default_source": None, "default_tax_rates": [], "description": None,
        "discounts": [], "ended_at": state["canceled_at"],
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "items": listing([item], f"/v1/subscription_items?subscription={identifier}"),
        "latest_invoice": state["latest_invoice"], "livemode": False, "metadata": state["metadata"],
        "next_pending_invoice_item_invoice": None, "on_behalf_of": None, "pause_collection": state["pause"],
        "payment_settings": {
            "payment_method_options": None, "payment_method_types": None, "save_default_payment_method": "off",
        },
        "pending_invoice_item_interval": None, "pending_setup_intent": None, "pending_update": None, "schedule": None,
        "start_date": state["created"], "status": state["status"], "status_details": paused, "test_clock": None,
        "transfer_data": None, "trial_end": state["trial_end"],
        "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
        "trial_start": state["trial_start"],
    }  # fmt: skip


def invoice(state: State, *, with_payments: str | None = None) -> State:
    """An invoice; `payments` is there only when it was asked for: `id` with the PaymentIntent's id, `object` whole."""
    paid = state["status"] == "paid"
    due = max(state["amount"], 0)
    shaped = {
        "id": state["id"], "object": "invoice", "account_country": "DE", "account_name": "Sandbox",
        "account_tax_ids": None, "amount_due": due, "amount_overpaid": 0, "amount_paid": due if paid else 0,
        "amount_remaining": 0 if paid else due, "amount_shipping": 0, "application": None,
        "attempt_count": state["attempts"], "attempted": state["attempts"] > 0,
        "auto_advance": state["status"] == "open" and state["next_attempt"] is not None,
        "automatic_tax": {
            "disabled_reason": None, "enabled": False, "liability": None, "provider": None, "status": None,
        },
        "automatically_finalizes_at": None, "billing_reason": state["reason"],
        "collection_method": "charge_automatically", "created": state["created"], "currency": state["currency"],
        "custom_fields": None, "customer": state["customer"], "customer_account": None, "customer_address": None,
        "customer_email": None, "customer_name": None, "customer_phone": None, "customer_shipping": None,
        "customer_tax_exempt": "none", "customer_tax_ids": [], "default_payment_method": None, "default_source": None,
        "default_tax_rates": [], "description": None, "discounts": [], "due_date": None,
        "effective_at": state["finalized_at"], "ending_balance": 0, "footer": None, "from_invoice": None,
        "hosted_invoice_url": None, "invoice_pdf": None, "issuer": {"type": "self"}, "last_finalization_error": None,
        "latest_revision": None,
        "lines": listing(
            [_line(state, number, line) for number, line in enumerate(state["lines"])],
            f"/v1/invoices/{state['id']}/lines",
        ),
        "livemode": False, "metadata": {}, "next_payment_attempt": state["next_attempt"], "number": None,
        "on_behalf_of": None,
        "parent": {
            "quote_details": None,
            "subscription_details": {"metadata": state["metadata"], "subscription": state["subscription"]},
            "type": "subscription_details",
        },
        "payment_settings": {"default_mandate": None, "payment_method_options": None, "payment_method_types": None},
        "period_end": state["period_end"], "period_start": state["period_start"],
        "post_payment_credit_notes_amount": 0, "pre_payment_credit_notes_amount": 0, "receipt_number": None,
        "rendering": None, "shipping_cost": None, "shipping_details": None, "starting_balance": 0,
        "statement_descriptor": None, "status": state["status"],
        "status_transitions": {
            "finalized_at": state["finalized_at"], "marked_uncollectible_at": state["uncollectible_at"],
            "paid_at": state["paid_at"], "voided_at": state["voided_at"],
        },
        "subtotal": state["amount"], "subtotal_excluding_tax": state["amount"], "test_clock": None,
        "total": state["amount"], "total_discount_amounts": [], "total_excluding_tax": state["amount"],
        "total_pretax_credit_amounts": [], "total_taxes": [], "webhooks_delivered_at": state["created"],
    }  # fmt: skip
    if with_payments is not None:
        shaped["payments"] = listing([_invoice_payment(state, with_payments)], "/v1/invoice_payments")
    return shaped


def _line(state: State, number: int, line: State) -> State:
    return {
        "id": stable_id("il", state["id"], number), "object": "line_item", "amount": line["amount"],
        "currency": state["currency"], "description": line["description"], "discount_amounts": [],
        "discountable": False, "discounts": [], "invoice": state["id"], "livemode": False, "metadata": {},
        "parent": {
            "invoice_item_details": None,
            "subscription_item_details": {
                "invoice_item": None, "proration": line["proration"], "proration_details": {"credited_items": None},
                "subscription": state["subscription"], "subscription_item": stable_id("si", state["subscription"]),
            },
            "type": "subscription_item_details",
        },
        "period": {"start": state["period_start"], "end": state["period_end"]}, "pretax_credit_amounts": [],
        "pricing": {
            "price_details": {"price": line["price"], "product": line["product"]}, "type": "price_details",
            "unit_amount_decimal": line["unit_amount"],
        },
        "quantity": line["quantity"], "subscription": state["subscription"], "subtotal": line["amount"], "taxes": [],
    }  # fmt: skip


def payment_intent_id(state: State) -> str:
    return stable_id("pi", state["id"])


def _invoice_payment(state: State, how: str) -> State:
    intent = payment_intent(state) if how == "object" else payment_intent_id(state)
    return {
        "id": stable_id("inpay", state["id"]), "object": "invoice_payment",
        "amount_paid": max(state["amount"], 0) if state["status"] == "paid" else None,
        "amount_requested": max(state["amount"], 0), "created": state["created"], "currency": state["currency"],
        "invoice": state["id"], "is_default": True, "livemode": False,
        "payment": {"payment_intent": intent, "type": "payment_intent"},
        "status": "paid" if state["status"] == "paid" else "open",
        "status_transitions": {"canceled_at": None, "paid_at": state["paid_at"]},
    }  # fmt: skip


def payment_intent(state: State) -> State:
    """The PaymentIntent of an invoice, with the last attempt's error as Stripe words it."""
    paid = state["status"] == "paid"
    return {
        "id": payment_intent_id(state), "object": "payment_intent", "amount": max(state["amount"], 0),
        "amount_capturable": 0, "amount_received": max(state["amount"], 0) if paid else 0, "application": None,
        "cancellation_reason": None, "capture_method": "automatic", "confirmation_method": "automatic",
        "created": state["created"], "currency": state["currency"], "customer": state["customer"],
        "last_payment_error": None if paid or state["error"] is None else _payment_error(state),
        "latest_charge": None, "livemode": False, "metadata": {}, "on_behalf_of": None,
        "payment_method": stable_id("pm", state["customer"]) if paid else None, "payment_method_types": ["card"],
        "payment_record": None, "review": None, "setup_future_usage": None, "source": None,
        "status": "succeeded" if paid else "requires_payment_method",
    }  # fmt: skip


def _payment_error(state: State) -> State:
    return {
        **state["error"],
        "payment_method": {
            "id": stable_id("pm", state["customer"]), "object": "payment_method", "allow_redisplay": "unspecified",
            "billing_details": {"address": None, "email": None, "name": None, "phone": None, "tax_id": None},
            "card": {
                **CARD, "checks": None, "country": "US", "display_brand": "visa", "funding": "credit",
                "generated_from": None, "networks": None, "regulated_status": "unregulated",
                "three_d_secure_usage": None, "wallet": None,
            },
            "created": state["created"], "customer": state["customer"], "livemode": False, "metadata": {},
            "type": "card",
        },
    }  # fmt: skip


def event(sequence: int, kind: str, created: int, subject: State, request_key: str | None) -> State:
    return {
        "id": stable_id("evt", sequence), "object": "event", "api_version": API_VERSION, "created": created,
        "data": {"object": subject}, "livemode": False, "pending_webhooks": 0,
        "request": {"id": None, "idempotency_key": request_key}, "type": kind,
    }  # fmt: skip
