"""Which of Stripe's objects belongs to which of ours.

What belongs here: finding Stripe's ids by our references and storing them. What does not: creating anything at Stripe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from flexpay_pipelines.payments.staging import analyze, copy_rows, staged
from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    from flexpay_pipelines.database import Connection
    from flexpay_pipelines.payments.stripe_gateway import StripeGateway

_TABLE = "stripe_links"


def link_subscriptions(connection: Connection, gateway: StripeGateway, *, progress: Callable[[str], None]) -> int:
    """Store the Stripe ids of customers (by `metadata.customer_ref`), prices (by lookup key) and subscriptions (by
    `metadata.subscription_ref`; of several the newest that is not canceled). What is linked already costs nothing.

    Returns:
        How many subscriptions got an id, or another one.

    Raises:
        StripeTransient: Stripe cannot be read to the end; nothing was changed.
    """
    catalogue = queries("payments_linking")
    with staged(connection, _TABLE):
        found = copy_rows(connection, _TABLE, _customers(gateway)) + copy_rows(connection, _TABLE, _prices(gateway))
        progress(f"Found {found} customers and prices at Stripe.")
        found = copy_rows(connection, _TABLE, _subscriptions(gateway))
        progress(f"Found {found} subscriptions at Stripe.")
        analyze(connection, _TABLE)
        with connection.transaction():
            catalogue.link_customers(connection)
            catalogue.link_prices(connection)
            linked: int = catalogue.link_subscriptions(connection)
    progress(f"Linked {linked} subscriptions.")
    return linked


def _customers(gateway: StripeGateway) -> Iterator[tuple[Any, ...]]:
    for page in gateway.customers():
        for one in page:
            if ref := one["metadata"].get("customer_ref"):
                yield "customer", ref, one["id"], True, 0


def _prices(gateway: StripeGateway) -> Iterator[tuple[Any, ...]]:
    for page in gateway.prices():
        for one in page:
            if one["lookup_key"]:
                yield "price", one["lookup_key"], one["id"], one["active"], 0


def _subscriptions(gateway: StripeGateway) -> Iterator[tuple[Any, ...]]:
    position = 0
    for page in gateway.subscriptions():
        for one in page:
            if ref := one["metadata"].get("subscription_ref"):
                position += 1
                yield "subscription", ref, one["id"], one["status"] != "canceled", position
