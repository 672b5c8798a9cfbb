"""Both ways of pausing at Stripe, under every fault that can be ordered: each effect exactly once."""

from __future__ import annotations

import json
from datetime import timedelta
from itertools import product

import pytest

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.payments import StripeGateway, deliver_commands, pending_commands
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox
from tests.payments.conftest import NOW, command, outbox, quiet, stripe_id

FAULTS = (
    "429", "500_before", "500_after", "timeout_before", "timeout_after", "reset_before", "reset_after",
)  # fmt: skip
MODES = ("collection", "subscription")
# Which writes a resume of each mode consists of; the fault strikes one of them.
STRUCK = {
    ("pause", "collection"): ("POST",), ("pause", "subscription"): ("POST",),
    ("resume", "collection"): ("GET", "POST"), ("resume", "subscription"): ("GET", "POST /v1/subscriptions/{id}/resume",
                                                                          "POST /v1/subscriptions/{id}"),
}  # fmt: skip
CASES = [
    (fault, mode, operation, struck)
    for fault, mode, operation in product(FAULTS, MODES, ("pause", "resume"))
    for struck in STRUCK[operation, mode]
]


def _deliver_all(billing: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox) -> int:
    """Run the relay until nothing is left; returns how often it had to."""
    runs = 0
    while pending_commands(billing):
        runs += 1
        assert runs < 6
        try:
            deliver_commands(billing, gateway, clock=clock, progress=quiet, jitter=lambda: 0.5)
        finally:
            clock.advance(timedelta(hours=2))
            stripe.set_clock(clock.now())
    return runs


def _changes(gateway: StripeGateway, identifier: str) -> list[str]:
    """What Stripe recorded of a subscription, oldest first."""
    types = [f"customer.subscription.{what}" for what in ("updated", "paused", "resumed")]
    events = [event for page in gateway.events(since=None, types=types) for event in page]
    return [
        event["type"].rpartition(".")[2] for event in reversed(events) if event["data"]["object"]["id"] == identifier
    ]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_each_effect_happens_once(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox, case: tuple[str, ...]
) -> None:
    fault, mode, operation, struck = case
    hasty = StripeGateway(
        stripe.api_key, stripe.api_base, timeout_seconds=0.5, max_network_retries=0, requests_per_second=10_000
    )
    identifier, ends = stripe_id(company, "s1"), NOW + timedelta(days=30)
    moved = NOW + timedelta(days=60)
    command(company, "s1", "pause", json.dumps({"mode": mode, "resumes_at": ends.isoformat()}))
    if operation == "resume":
        assert _deliver_all(company, gateway, clock, stripe) == 1
        command(company, "s1", "resume", json.dumps({"mode": mode, "next_payment_at": moved.isoformat()}), 2)
    stripe.order_fault(fault, match=_match(struck, identifier), seconds=1 if fault.startswith("timeout") else 3)
    assert _deliver_all(company, hasty, clock, stripe) == 2, "once with the fault, once without"
    assert set(outbox(company).values()) == {"delivered"}
    shown = gateway.subscription(identifier)
    paused = shown["pause_collection"] is not None or shown["status"] == "paused"
    assert paused == (operation == "pause")
    if mode == "collection":
        assert _changes(gateway, identifier) == ["updated"] * (1 if operation == "pause" else 2)
    else:
        done = ["paused"] if operation == "pause" else ["paused", "resumed", "updated"]
        assert _changes(gateway, identifier) == done
    if operation == "resume":
        assert shown["items"]["data"][0]["current_period_end"] == int(moved.timestamp())
    assert "invoices" not in stripe.counts(), "nobody was billed"


def _match(struck: str, identifier: str) -> str:
    method, _, path = struck.partition(" ")
    return f"{method} {(path or '/v1/subscriptions/{id}').replace('{id}', identifier)}"
