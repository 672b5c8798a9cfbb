"""The sandbox's events under orders: late in the list, in any order, and by webhook, signed as Stripe signs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import stripe

from flexpay_pipelines.sandbox.stripe_server import StripeSandbox, running_stripe_server
from flexpay_pipelines.sandbox.stripe_webhooks import ATTEMPTS

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
AT = int(NOW.timestamp())
SECRET = "whsec_sandbox"
PATIENCE = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeSandbox]:
    with running_stripe_server(tmp_path_factory.mktemp("stripe")) as running:
        yield running


@pytest.fixture
def sandbox(server: StripeSandbox) -> Iterator[StripeSandbox]:
    """Ten monthly subscriptions whose first payments lie one to ten days ahead, and succeed."""
    server.control("clear")
    server.clear_faults()
    server.set_decline_rate(0)
    server.set_rate_limit(10_000)
    server.set_clock(NOW)
    rows = {
        "products": [["prod_a", "basic"]],
        "prices": [["price_m", "prod_a", "eur", 1000, "month", 1, "basic:MONTHLY:EUR"]],
        "customers": [["cus_1", "c1", "c1@example.com", "eur", AT]],
        "subscriptions": [
            {
                "id": f"sub_{number}", "ref": str(number), "customer": "cus_1", "price": "price_m", "quantity": 1,
                "status": "active", "pause": None, "currency": "eur", "created": AT, "anchor": AT + number * 86_400,
                "next_payment": AT + number * 86_400,
            }
            for number in range(1, 11)
        ],
    }  # fmt: skip
    server.control("seed", rows)
    yield server
    server.set_webhook(None)


@pytest.fixture
def client(sandbox: StripeSandbox) -> stripe.StripeClient:
    return stripe.StripeClient(sandbox.api_key, base_addresses={"api": sandbox.api_base}, max_network_retries=0)


class Receiver:
    """An endpoint that keeps what it is sent; it refuses the first `refusing` of them."""

    def __init__(self) -> None:
        self.bodies: list[tuple[bytes, str]] = []
        self.refusing = 0
        keep = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                keep.bodies.append((body, self.headers["Stripe-Signature"]))
                keep.refusing -= 1
                self.send_response(500 if keep.refusing >= 0 else 200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nothing is printed."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    serving = threading.Thread(target=one.server.serve_forever)
    serving.start()
    yield one
    one.server.shutdown()
    serving.join()
    one.server.server_close()


def _await_sent(sandbox: StripeSandbox) -> None:
    until = time.monotonic() + PATIENCE
    while sandbox.webhooks()["waiting"]:
        assert time.monotonic() < until
        time.sleep(0.02)


def _paid(client: stripe.StripeClient) -> list[str]:
    return [str(event.id) for event in client.v1.events.list({"types": ["invoice.paid"], "limit": 100}).data]


def test_a_delayed_event_is_listed_later_than_younger_ones(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    sandbox.order_fault("delayed_events", match="invoice.paid", seconds=5 * 86_400)
    sandbox.advance(NOW + timedelta(days=3))
    assert len(_paid(client)) == 2, "the first of three is not listed yet"
    sandbox.advance(NOW + timedelta(days=7))
    assert len(_paid(client)) == 7
    created = [event.created for event in client.v1.events.list({"types": ["invoice.paid"], "limit": 100}).data]
    assert min(created) == AT + 86_400


def test_a_shuffled_page_holds_the_same_events(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    sandbox.advance(NOW + timedelta(days=10))
    in_order = _paid(client)
    sandbox.order_fault("shuffled_events", match="GET /v1/events")
    shuffled = _paid(client)
    assert shuffled != in_order
    assert sorted(shuffled) == sorted(in_order)


def test_a_fault_can_strike_a_share_of_the_requests(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    sandbox.order_fault("429", times=1000, share=0.3, match="GET /v1/customers")
    struck = 0
    for _ in range(100):
        try:
            client.v1.customers.list()
        except stripe.RateLimitError:
            struck += 1
    assert 15 <= struck <= 45


def test_what_time_brings_about_carries_no_key_of_the_last_request(
    sandbox: StripeSandbox, client: stripe.StripeClient
) -> None:
    until = int((NOW + timedelta(hours=1)).timestamp())
    paused = {"pause_collection": {"behavior": "void", "resumes_at": until}}
    client.v1.subscriptions.update("sub_1", paused, {"idempotency_key": "pause"})  # type: ignore[arg-type]
    sandbox.advance(NOW + timedelta(hours=2))
    requests = [one.request for one in client.v1.events.list({"type": "customer.subscription.updated"}).data]
    assert [request and request.idempotency_key for request in requests] == [None, "pause"]


def test_a_payment_that_is_asked_for_is_no_attempt_of_the_schedule(
    sandbox: StripeSandbox, client: stripe.StripeClient
) -> None:
    sandbox.set_decline_rate(1)
    sandbox.advance(NOW + timedelta(days=1, hours=1))
    (invoice,) = client.v1.invoices.list({"status": "open"}).data
    with pytest.raises(stripe.CardError):
        client.v1.invoices.pay(str(invoice.id))
    assert client.v1.invoices.retrieve(str(invoice.id)).attempt_count == 1
    sandbox.advance(NOW + timedelta(days=2, hours=1))
    assert client.v1.invoices.retrieve(str(invoice.id)).attempt_count == 2
    sandbox.set_decline_rate(0)
    assert client.v1.invoices.pay(str(invoice.id)).status == "paid"


def test_webhooks_carry_what_is_listed_and_the_sdk_verifies_them(
    sandbox: StripeSandbox, client: stripe.StripeClient, receiver: Receiver
) -> None:
    sandbox.set_webhook(receiver.url, secret=SECRET)
    sandbox.advance(NOW + timedelta(days=10))
    _await_sent(sandbox)
    listed = {str(event.id) for event in client.v1.events.list({"limit": 100}).data}
    verified = [stripe.Webhook.construct_event(body, signed, SECRET) for body, signed in receiver.bodies]
    assert {event.id for event in verified} == listed
    assert len(verified) == len(listed) > 20
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(*receiver.bodies[0], "whsec_other")


def test_webhooks_come_in_any_order_and_twice_where_that_is_ordered(
    sandbox: StripeSandbox, client: stripe.StripeClient, receiver: Receiver
) -> None:
    sandbox.set_webhook(receiver.url, secret=SECRET, shuffled=True, repeated=True)
    sandbox.advance(NOW + timedelta(days=10))
    _await_sent(sandbox)
    listed = [str(event.id) for event in client.v1.events.list({"limit": 100}).data]
    sent = [json.loads(body)["id"] for body, _ in receiver.bodies]
    assert sorted(sent) == sorted(listed * 2)
    assert list(dict.fromkeys(sent)) != listed[::-1]


def test_what_is_not_answered_is_sent_again_and_given_up_in_the_end(
    sandbox: StripeSandbox, client: stripe.StripeClient, receiver: Receiver
) -> None:
    before = sandbox.webhooks()
    sandbox.set_webhook(receiver.url, secret=SECRET)
    receiver.refusing = 2
    client.v1.subscriptions.update("sub_1", {"metadata": {"a": "b"}})
    _await_sent(sandbox)
    assert len(receiver.bodies) == 3
    receiver.refusing = ATTEMPTS
    client.v1.subscriptions.update("sub_1", {"metadata": {"a": "c"}})
    _await_sent(sandbox)
    sent = sandbox.webhooks()
    assert (sent["delivered"] - before["delivered"], sent["failed"] - before["failed"]) == (1, 1)
