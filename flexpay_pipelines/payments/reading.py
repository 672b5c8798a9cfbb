"""Subscriptions as Stripe has them, as rows of the staging table `stripe_now`.

What belongs here: reading all of them page by page, or some of them one by one. What does not: comparing them
(`reconciliation`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flexpay_pipelines.payments.failures import StripePermanent
from flexpay_pipelines.payments.stripe_gateway import INTERVALS

if TYPE_CHECKING:
    from flexpay_pipelines.payments.stripe_gateway import Object, StripeGateway

_FREQUENCIES = {interval: frequency.value for frequency, interval in INTERVALS.items()}
_TOLD_EVERY = 5_000
_SIDE_BY_SIDE = 8


def all_subscriptions(gateway: StripeGateway, progress: Callable[[str], None]) -> Iterator[tuple[Any, ...]]:
    """Every subscription, canceled ones included.

    Raises:
        StripeTransient: Stripe cannot be read to the end.
    """
    read = 0
    for page in _ahead(gateway.subscriptions()):
        yield from map(_row, page)
        if (read + len(page)) // _TOLD_EVERY > read // _TOLD_EVERY:
            progress(f"Read {read + len(page)} subscriptions from Stripe.")
        read += len(page)


def some_subscriptions(gateway: StripeGateway, identifiers: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """These subscriptions, less those that Stripe does not know.

    Raises:
        StripeTransient: one of them cannot be read now.
    """
    with ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="stripe") as threads:
        for one in threads.map(lambda identifier: _known(gateway, identifier), identifiers):
            if one is not None:
                yield _row(one)


def _known(gateway: StripeGateway, identifier: str) -> Object | None:
    try:
        return gateway.subscription(identifier)
    except StripePermanent as error:
        if error.code == "resource_missing":
            return None
        raise


def _ahead(pages: Iterator[list[Object]]) -> Iterator[list[Object]]:
    """The same pages; the next one is asked for while the present one is worked on."""
    with ThreadPoolExecutor(1, thread_name_prefix="stripe page") as thread:
        coming = thread.submit(next, pages, None)
        while (page := coming.result()) is not None:
            coming = thread.submit(next, pages, None)
            yield page


def _row(one: Object) -> tuple[Any, ...]:
    item = one["items"]["data"][0]
    price, metadata = item["price"], one["metadata"]
    recurring = price["recurring"]
    interval = (recurring["interval"], recurring["interval_count"])
    # A first payment that was never made ends a subscription as a cancellation does.
    status = "canceled" if one["status"] == "incomplete_expired" else one["status"]
    return (
        one["id"], metadata.get("subscription_ref"), status,
        one["pause_collection"] is not None or one["status"] == "paused", price["currency"], price["unit_amount"],
        _FREQUENCIES.get(interval, f"every {interval[1]} {interval[0]}"), item.get("quantity", 1),
        datetime.fromtimestamp(item["current_period_end"], UTC),
        one["trial_end"] is not None and metadata.get("date_kept_until") == str(one["trial_end"]),
        None if one["ended_at"] is None else datetime.fromtimestamp(one["ended_at"], UTC),
    )  # fmt: skip
