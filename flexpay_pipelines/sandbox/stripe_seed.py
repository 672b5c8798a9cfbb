"""What the billing database holds, as the sandbox account is filled with it.

What belongs here: reading the database set by set and naming Stripe's objects. What does not: the account itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flexpay_pipelines.sandbox.stripe_objects import stable_id
from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    from flexpay_pipelines.database import Connection

_ROWS_A_REQUEST = 2_000
INTERVALS = {
    "WEEKLY": ("week", 1), "BIWEEKLY": ("week", 2), "MONTHLY": ("month", 1), "QUARTERLY": ("month", 3),
    "YEARLY": ("year", 1),
}  # fmt: skip


def seed_rows(connection: Connection) -> Iterator[dict[str, list[Any]]]:
    """The requests that fill an account: products and prices first, then customers, then subscriptions."""
    catalogue = queries("sandbox")
    prices = list(catalogue.seed_prices(connection))
    plans = sorted({row["plan"] for row in prices})
    yield {
        "products": [[stable_id("prod", plan), plan] for plan in plans],
        "prices": [
            [
                price_id(row), stable_id("prod", row["plan"]), row["currency"].lower(), row["amount_minor"],
                *INTERVALS[row["payment_frequency"]], row["lookup_key"],
            ]
            for row in prices
        ],
    }  # fmt: skip
    yield from _in_parts("customers", (_customer(row) for row in catalogue.seed_customers(connection)))
    ends = _pause_ends(connection)
    yield from _in_parts(
        "subscriptions", (_subscription(row, ends) for row in catalogue.seed_subscriptions(connection))
    )


def _customer(row: dict[str, Any]) -> list[Any]:
    ref = row["customer_ref"]
    return [stable_id("cus", ref), ref, row["email"], row["currency"].lower(), row["created"]]


def price_id(row: dict[str, Any]) -> str:
    """The id of a price: the same plan, frequency, currency and amount have the same."""
    return stable_id("price", row["plan"], row["payment_frequency"], row["currency"], row["amount_minor"])


def _subscription(row: dict[str, Any], ends: dict[int, int | None]) -> dict[str, Any]:
    """Suspended here is past due there, with collection paused: no retry may revive it."""
    status = row["status"]
    pause = None
    if status in ("paused", "suspended"):
        pause = {"behavior": "void", "resumes_at": ends.get(row["subscription_id"]) if status == "paused" else None}
    return {
        "id": stable_id("sub", row["subscription_ref"]), "ref": row["subscription_ref"],
        "customer": stable_id("cus", row["customer_ref"]), "price": price_id(row), "quantity": row["quantity"],
        "status": {"paused": "active", "suspended": "past_due"}.get(status, status), "pause": pause,
        "currency": row["currency"].lower(), "created": row["started"], "anchor": row["anchor"],
        "next_payment": row["next_payment"],
    }  # fmt: skip


def _pause_ends(connection: Connection) -> dict[int, int | None]:
    catalogue = queries("sandbox")
    if not queries("billing").has_table(connection, relation="billing.subscription_pauses"):
        return {}
    return {row["subscription_id"]: row["ends"] for row in catalogue.seed_pause_ends(connection)}


def _in_parts(name: str, rows: Iterator[Any]) -> Iterator[dict[str, list[Any]]]:
    part: list[Any] = []
    for row in rows:
        part.append(row)
        if len(part) == _ROWS_A_REQUEST:
            yield {name: part}
            part = []
    if part:
        yield {name: part}
