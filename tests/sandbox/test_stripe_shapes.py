"""The sandbox's objects against the SDK's own typed classes: every field exists, none is missing, words are known."""

from __future__ import annotations

import builtins
import sys
import types
import typing
from decimal import Decimal
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import stripe
from stripe._list_object import ListObject
from stripe._stripe_object import StripeObject

from flexpay_pipelines.payments.stripe_gateway import API_VERSION as PINNED
from flexpay_pipelines.sandbox import stripe_objects as objects

PRICE = objects.price(
    "price_1", product_id="prod_1", currency="eur", amount=990, interval="month", count=3,
    lookup_key="basic:QUARTERLY:EUR", created=1_700_000_000,
)  # fmt: skip
SUBSCRIPTION: dict[str, Any] = {
    "id": "sub_1", "customer": "cus_1", "price": "price_1", "quantity": 2, "status": "active", "created": 1_700_000_000,
    "currency": "eur", "anchor": 1_700_000_000, "period_start": 1_700_000_000, "period_end": 1_702_000_000,
    "trial_start": None, "trial_end": None, "pause": None, "paused_at": None, "canceled_at": None,
    "latest_invoice": "in_1", "metadata": {"subscription_ref": "s1"}, "pending": [],
}  # fmt: skip
INVOICE: dict[str, Any] = {
    "id": "in_1", "subscription": "sub_1", "customer": "cus_1", "status": "open", "amount": 1980, "currency": "eur",
    "created": 1_700_000_000, "period_start": 1_700_000_000, "period_end": 1_702_000_000, "attempts": 1,
    "next_attempt": 1_700_086_400, "reason": "subscription_cycle", "paid_at": None, "voided_at": None,
    "finalized_at": 1_700_000_000, "uncollectible_at": None, "first_failure": 1_700_000_000,
    "error": {"code": "card_declined", "decline_code": "insufficient_funds", "message": "No.", "type": "card_error"},
    "lines": [{
        "amount": 1980, "description": "Subscription period", "proration": False, "price": "price_1",
        "product": "prod_1", "unit_amount": "990", "quantity": 2,
    }],
    "metadata": {"subscription_ref": "s1"},
}  # fmt: skip


class _Names(dict[str, Any]):
    """The names that the SDK imports for type checkers only. One that it does not export is some Stripe object."""

    def __missing__(self, name: str) -> Any:
        if name in vars(builtins):
            raise KeyError(name)
        return getattr(stripe, name, StripeObject)


def _hints(shape: type) -> dict[str, Any]:
    """The annotations of a typed class, resolved."""
    names = _Names(vars(sys.modules[shape.__module__]))
    return {
        name: typing._eval_type(  # type: ignore[attr-defined]
            typing.ForwardRef(annotation) if isinstance(annotation, str) else annotation, {}, names
        )
        for name, annotation in shape.__annotations__.items()
    }


def problems(value: Any, annotation: Any, where: str) -> list[str]:
    """What is wrong with a value, one sentence a fault, each with its path."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _any_of(value, arguments, where)
    if origin is list:
        inner = arguments[0]
        return _of_list(value, inner, where) if isinstance(value, list) else [f"{where}: a list is expected"]
    if origin is ListObject:
        return _of_listing(value, arguments[0], where)
    if origin is None and not issubclass(annotation, StripeObject):
        return _of_value(value, annotation, where)
    if origin is Literal:
        return [] if value in arguments else [f"{where}: {value!r} is none of {arguments}"]
    return _of_object(value, annotation, where)


def _of_value(value: Any, annotation: Any, where: str) -> list[str]:
    # A decimal travels as text; a bool is no number here.
    wanted = str if annotation is Decimal else annotation
    fits = isinstance(value, wanted) and (wanted is not int or not isinstance(value, bool))
    return [] if fits else [f"{where}: {value!r} is no {annotation.__name__}"]


def _of_list(values: list[Any], inner: Any, where: str) -> list[str]:
    return [fault for number, one in enumerate(values) for fault in problems(one, inner, f"{where}[{number}]")]


def _any_of(value: Any, choices: tuple[Any, ...], where: str) -> list[str]:
    # Literal[...] | str is how the SDK leaves room for new words: ours must be known ones.
    words = [choice for choice in choices if get_origin(choice) is Literal]
    if words and isinstance(value, str):
        return problems(value, words[0], where)
    tried = [problems(value, choice, where) for choice in choices]
    return min(tried, key=len)


def _of_listing(value: Any, inner: Any, where: str) -> list[str]:
    if not isinstance(value, dict) or set(value) != {"object", "data", "has_more", "url"} or value["object"] != "list":
        return [f"{where}: a list object is expected"]
    return _of_list(value["data"], inner, where)


def _of_object(value: Any, shape: Any, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: an object is expected"]
    if get_origin(shape) is not None or "__annotations__" not in vars(shape):
        return []
    hints = _hints(shape)
    faults = [f"{where}.{name}: Stripe has no such field" for name in value if name not in hints]
    for name, annotation in hints.items():
        if name == "OBJECT_NAME":
            continue
        if name in value:
            faults += problems(value[name], annotation, f"{where}.{name}")
        elif "Optional" not in str(shape.__annotations__[name]) and type(None) not in get_args(annotation):
            faults.append(f"{where}.{name}: is missing")
    return faults


CASES: list[tuple[str, Any, Any]] = [
    ("product", objects.product("prod_1", "basic", 1_700_000_000), stripe.Product),
    ("price", PRICE, stripe.Price),
    (
        "customer",
        objects.customer("cus_12345678", ref="c1", email="a@example.com", currency="eur", created=1),
        stripe.Customer,
    ),
    ("subscription", objects.subscription(SUBSCRIPTION, PRICE), stripe.Subscription),
    (
        "subscription with pause_collection",
        objects.subscription({**SUBSCRIPTION, "pause": {"behavior": "void", "resumes_at": 5}}, PRICE),
        stripe.Subscription,
    ),
    (
        "paused subscription",
        objects.subscription({**SUBSCRIPTION, "status": "paused", "paused_at": 1_700_000_000}, PRICE),
        stripe.Subscription,
    ),
    (
        "canceled subscription",
        objects.subscription({**SUBSCRIPTION, "status": "canceled", "canceled_at": 1_700_000_000}, PRICE),
        stripe.Subscription,
    ),
    ("invoice", objects.invoice(INVOICE), stripe.Invoice),
    ("invoice with payments", objects.invoice(INVOICE, with_payments="id"), stripe.Invoice),
    ("invoice with PaymentIntent", objects.invoice(INVOICE, with_payments="object"), stripe.Invoice),
    ("paid invoice", objects.invoice({**INVOICE, "status": "paid", "paid_at": 5, "error": None}), stripe.Invoice),
    ("PaymentIntent", objects.payment_intent(INVOICE), stripe.PaymentIntent),
    ("event", objects.event(1, "invoice.paid", 1, objects.invoice(INVOICE), None), stripe.Event),
]


@pytest.mark.parametrize(("name", "value", "shape"), CASES, ids=[case[0] for case in CASES])
def test_shape(name: str, value: Any, shape: Any) -> None:
    assert problems(value, shape, name) == []


def test_the_check_sees_faults() -> None:
    good = objects.subscription(SUBSCRIPTION, PRICE)
    assert problems({**good, "colour": "red"}, stripe.Subscription, "s") == ["s.colour: Stripe has no such field"]
    assert problems({name: value for name, value in good.items() if name != "items"}, stripe.Subscription, "s") == [
        "s.items: is missing"
    ]
    assert "is none of" in problems({**good, "status": "sleeping"}, stripe.Subscription, "s")[0]
    assert problems({**good, "created": "now"}, stripe.Subscription, "s") == ["s.created: 'now' is no int"]
    item = good["items"]["data"][0]
    worse = {**good, "items": {**good["items"], "data": [{**item, "price": {**item["price"], "type": "odd"}}]}}
    assert worse["items"]["data"][0]["price"]["type"] == "odd"
    assert problems(worse, stripe.Subscription, "s")


def test_the_version_is_the_sdks() -> None:
    assert stripe.api_version == objects.API_VERSION == PINNED
