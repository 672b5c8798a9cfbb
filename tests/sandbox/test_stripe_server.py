"""The sandbox as the real SDK sees it: billing at exact instants, idempotency, paging, limits, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stripe

from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.sandbox.stripe_objects import stable_id
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox, running_stripe_server

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
PRICES = [
    ["price_w", "prod_a", "eur", 300, "week", 1, "basic:WEEKLY:EUR"],
    ["price_m", "prod_a", "eur", 1000, "month", 1, "basic:MONTHLY:EUR"],
    ["price_x", "prod_a", "eur", 3100, "month", 1, "pro:MONTHLY:EUR"],
    ["price_y", "prod_a", "eur", 9000, "year", 1, "basic:YEARLY:EUR"],
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeSandbox]:
    with running_stripe_server(tmp_path_factory.mktemp("stripe")) as running:
        yield running


@pytest.fixture
def sandbox(server: StripeSandbox) -> StripeSandbox:
    """An account at NOW with two products' worth of prices and no subscription; payments succeed."""
    server.control("clear")
    server.clear_faults()
    server.set_decline_rate(0)
    server.set_rate_limit(10_000)
    server.set_seed(0)
    server.set_clock(NOW)
    at = int(NOW.timestamp())
    server.control(
        "seed",
        {
            "products": [["prod_a", "basic"]],
            "prices": PRICES,
            "customers": [["cus_000000001", "c1", "c1@example.com", "eur", at]],
        },
    )
    return server


@pytest.fixture
def client(sandbox: StripeSandbox) -> stripe.StripeClient:
    return stripe.StripeClient(sandbox.api_key, base_addresses={"api": sandbox.api_base}, max_network_retries=0)


def _subscribe(sandbox: StripeSandbox, *references: str, price: str = "price_m", days: float = 0, **more: Any) -> None:
    """Subscriptions `sub_<reference>` whose current period ends some days after NOW, on the anchor's day."""
    end = NOW + timedelta(days=days)
    row = {
        "customer": "cus_000000001", "price": price, "quantity": 1, "status": "active", "pause": None,
        "currency": "eur", "created": int(NOW.timestamp()), "anchor": int(end.timestamp()),
        "next_payment": int(end.timestamp()) if days else None, **more,
    }  # fmt: skip
    rows = [{**row, "id": f"sub_{reference}", "ref": reference} for reference in references]
    sandbox.control("seed", {"subscriptions": rows})


def _invoices(client: stripe.StripeClient, subscription: str) -> list[stripe.Invoice]:
    """Oldest first."""
    found = client.v1.invoices.list({"subscription": subscription, "limit": 100}).data
    return found[::-1]


def _at(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp())  # type: ignore[arg-type,misc]


def test_month_ends_clamp_and_come_back(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    _subscribe(sandbox, "a")
    sandbox.advance(NOW + timedelta(days=125))
    assert [invoice.created for invoice in _invoices(client, "sub_a")] == [
        _at(2026, 2, 28, 12), _at(2026, 3, 31, 12), _at(2026, 4, 30, 12), _at(2026, 5, 31, 12),
    ]  # fmt: skip
    assert {invoice.status for invoice in _invoices(client, "sub_a")} == {"paid"}


def test_one_step_or_many_end_the_same(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    names = [f"s{number}" for number in range(40)]

    def run(steps: int) -> list[dict[str, Any]]:
        sandbox.control("clear")
        sandbox.set_clock(NOW)
        at = int(NOW.timestamp())
        customers = [["cus_000000001", "c1", "c1@example.com", "eur", at]]
        sandbox.control("seed", {"products": [["prod_a", "basic"]], "prices": PRICES, "customers": customers})
        _subscribe(sandbox, *names, price="price_w", days=1)
        sandbox.set_decline_rate(0.3)
        for step in range(1, steps + 1):
            sandbox.advance(NOW + timedelta(days=30) * step / steps)
        return [event.to_dict() for event in client.v1.events.list({"limit": 100}).auto_paging_iter()]

    once = run(1)
    assert len(once) > 500
    assert run(7) == once


def test_a_failed_payment_is_tried_again_on_the_first_third_and_fifth_day(
    sandbox: StripeSandbox, client: stripe.StripeClient
) -> None:
    _subscribe(sandbox, "a", days=1)
    sandbox.set_decline_rate(1)
    sandbox.advance(NOW + timedelta(days=20))
    events = client.v1.events.list({"type": "invoice.payment_failed", "limit": 100}).data[::-1]
    due = NOW + timedelta(days=1)
    assert [event.created for event in events] == [
        int((due + timedelta(days=days)).timestamp()) for days in (0, 1, 3, 5)
    ]
    assert [event.data.object["attempt_count"] for event in events] == [1, 2, 3, 4]
    assert client.v1.subscriptions.retrieve("sub_a").status == "past_due"
    invoice = _invoices(client, "sub_a")[0]
    with pytest.raises(stripe.CardError) as declined:
        client.v1.invoices.pay(str(invoice.id))
    assert declined.value.http_status == 402
    sandbox.set_decline_rate(0)
    assert client.v1.invoices.pay(str(invoice.id)).status == "paid"
    assert client.v1.subscriptions.retrieve("sub_a").status == "active"
    with pytest.raises(stripe.InvalidRequestError, match="already paid"):
        client.v1.invoices.pay(str(invoice.id))


@pytest.mark.parametrize(
    ("behavior", "status"), [("void", "void"), ("keep_as_draft", "draft"), ("mark_uncollectible", "uncollectible")]
)
def test_paused_collection_makes_invoices_but_collects_nothing(
    sandbox: StripeSandbox, client: stripe.StripeClient, behavior: Any, status: str
) -> None:
    _subscribe(sandbox, "a", price="price_w", days=1)
    until = int((NOW + timedelta(days=10)).timestamp())
    client.v1.subscriptions.update("sub_a", {"pause_collection": {"behavior": behavior, "resumes_at": until}})
    sandbox.advance(NOW + timedelta(days=16))
    assert [invoice.status for invoice in _invoices(client, "sub_a")] == [status, status, "paid"]
    assert client.v1.subscriptions.retrieve("sub_a").pause_collection is None, "it ended by itself"
    client.v1.subscriptions.update("sub_a", {"pause_collection": {"behavior": behavior}})
    assert client.v1.subscriptions.update("sub_a", {"pause_collection": ""}).pause_collection is None


def test_a_paused_subscription_makes_no_invoice(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    _subscribe(sandbox, "a", price="price_w", days=1)
    paused = client.v1.subscriptions.pause("sub_a", {"bill_for": {"unused_time_from": {"type": "none"}}})
    assert paused.status == "paused"
    sandbox.advance(NOW + timedelta(days=30))
    assert _invoices(client, "sub_a") == []
    resumed = client.v1.subscriptions.resume(
        "sub_a", {"billing_cycle_anchor": {"type": "unchanged"}, "proration_behavior": "none"}
    )
    assert resumed.status == "active"
    assert _invoices(client, "sub_a") == [], "nothing is billed for the pause"
    sandbox.advance(NOW + timedelta(days=36, hours=1))
    assert [invoice.created for invoice in _invoices(client, "sub_a")] == [int((NOW + timedelta(days=36)).timestamp())]
    with pytest.raises(stripe.InvalidRequestError, match="only resume"):
        client.v1.subscriptions.resume("sub_a")


def _item(price: str) -> Any:
    return {"id": stable_id("si", "sub_a"), "price": price}


def test_the_same_interval_is_prorated_to_the_cent(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    _subscribe(sandbox, "a", days=10)
    period = client.v1.subscriptions.retrieve("sub_a")["items"].data[0]
    length = period.current_period_end - period.current_period_start
    client.v1.subscriptions.update("sub_a", {"items": [_item("price_x")], "proration_behavior": "create_prorations"})
    sandbox.advance(NOW + timedelta(days=10))
    left = 10 * 86_400
    credit, debit = -(2 * 1000 * left + length) // (2 * length), (2 * 3100 * left + length) // (2 * length)
    lines = [line.amount for line in _invoices(client, "sub_a")[0].lines.data]
    assert lines[0] == 3100
    assert lines[2] == debit
    assert abs(lines[1] - credit) <= 1
    assert sum(lines) == _invoices(client, "sub_a")[0].total


def test_another_interval_bills_a_new_period_at_once(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    _subscribe(sandbox, "a", days=10)
    changed = client.v1.subscriptions.update("sub_a", {"items": [_item("price_y")], "proration_behavior": "none"})
    assert changed["items"].data[0].current_period_end == _at(2027, 1, 31, 12)
    assert [invoice.amount_paid for invoice in _invoices(client, "sub_a")] == [9000]


def test_two_changes_within_a_second_have_an_invoice_each(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    _subscribe(sandbox, "a", days=10)
    for price in ("price_y", "price_w"):
        client.v1.subscriptions.update("sub_a", {"items": [_item(price)], "proration_behavior": "none"})
    assert [invoice.amount_paid for invoice in _invoices(client, "sub_a")] == [9000, 300]


def test_a_trial_end_moves_the_date_unbilled(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    _subscribe(sandbox, "a", days=10)
    end = int((NOW + timedelta(days=40)).timestamp())
    changed = client.v1.subscriptions.update(
        "sub_a", {"items": [_item("price_w")], "proration_behavior": "none", "trial_end": end}
    )
    assert (changed.status, changed["items"].data[0].current_period_end) == ("trialing", end)
    sandbox.advance(NOW + timedelta(days=48))
    assert [invoice.created for invoice in _invoices(client, "sub_a")] == [end, end + 7 * 86_400]
    assert client.v1.subscriptions.retrieve("sub_a").status == "active"


def test_a_key_is_answered_once(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    _subscribe(sandbox, "a", days=10)
    options: Any = {"idempotency_key": "k1"}
    first = client.v1.subscriptions.update("sub_a", {"pause_collection": {"behavior": "void"}}, options)
    client.v1.subscriptions.update("sub_a", {"pause_collection": ""})
    again = client.v1.subscriptions.update("sub_a", {"pause_collection": {"behavior": "void"}}, options)
    assert again.to_dict() == first.to_dict()
    assert again.last_response is not None
    assert again.last_response.headers["Idempotent-Replayed"] == "true"
    assert client.v1.subscriptions.retrieve("sub_a").pause_collection is None, "it was an answer, not an effect"
    with pytest.raises(stripe.IdempotencyError):
        client.v1.subscriptions.update("sub_a", {"metadata": {"x": "y"}}, options)
    sandbox.set_clock(NOW + timedelta(hours=25))
    client.v1.subscriptions.update("sub_a", {"metadata": {"x": "y"}}, options)
    assert client.v1.subscriptions.retrieve("sub_a").metadata["x"] == "y", "keys are forgotten after a day"


@pytest.mark.parametrize("fault", ["500_before", "500_after"])
def test_a_500_is_answered_again_as_well(sandbox: StripeSandbox, client: stripe.StripeClient, fault: str) -> None:
    _subscribe(sandbox, "a", days=10)
    options: Any = {"idempotency_key": f"k {fault}"}
    sandbox.order_fault(fault, match="POST")
    for _ in range(2):
        with pytest.raises(stripe.APIError):
            client.v1.subscriptions.update("sub_a", {"metadata": {"x": "y"}}, options)
    done = "x" in client.v1.subscriptions.retrieve("sub_a").metadata.to_dict()
    assert done == (fault == "500_after")


def test_the_sdk_repeats_a_broken_connection_with_its_key(sandbox: StripeSandbox) -> None:
    _subscribe(sandbox, "a", days=10)
    patient = stripe.StripeClient(sandbox.api_key, base_addresses={"api": sandbox.api_base}, max_network_retries=1)
    sandbox.order_fault("reset_after", match="POST")
    assert patient.v1.subscriptions.update("sub_a", {"metadata": {"x": "y"}}).metadata["x"] == "y"
    assert sandbox.counts()["events.customer.subscription.updated"] == 1


def test_pages_go_both_ways(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    names = [f"p{number:02}" for number in range(25)]
    _subscribe(sandbox, *names, days=10)
    newest_first = [f"sub_{name}" for name in reversed(names)]
    listed = client.v1.subscriptions.list({"limit": 10})
    assert [one.id for one in listed.data] == newest_first[:10]
    assert [one.id for one in listed.auto_paging_iter()] == newest_first
    before = client.v1.subscriptions.list({"limit": 10, "ending_before": newest_first[15]})
    assert [one.id for one in before.data] == newest_first[5:15]
    assert before.has_more
    client.v1.subscriptions.cancel("sub_p07")
    assert len(list(client.v1.subscriptions.list({"limit": 100}))) == 24
    assert len(list(client.v1.subscriptions.list({"limit": 100, "status": "all"}))) == 25
    assert [one.id for one in client.v1.subscriptions.list({"status": "canceled"})] == ["sub_p07"]


def test_events_are_listed_by_time_and_type(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    _subscribe(sandbox, "a", price="price_w", days=1)
    sandbox.advance(NOW + timedelta(days=30))
    since = int((NOW + timedelta(days=15)).timestamp())
    later = client.v1.events.list({"created": {"gte": since}, "types": ["invoice.paid"], "limit": 100}).data
    assert [event.created for event in later] == [
        int((NOW + timedelta(days=days)).timestamp()) for days in (29, 22, 15)
    ]
    after = client.v1.events.list({"created": {"gt": since}, "types": ["invoice.paid"], "limit": 100}).data
    assert len(after) == 2


def test_prices_are_found_by_lookup_key(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    found = client.v1.prices.list({"lookup_keys": ["basic:YEARLY:EUR", "basic:WEEKLY:EUR", "none"]}).data
    assert {price.id for price in found} == {"price_y", "price_w"}
    assert client.v1.prices.retrieve("price_y").recurring is not None
    assert client.v1.products.list().data[0].id == "prod_a"
    metadata = client.v1.customers.retrieve("cus_000000001").metadata
    assert metadata is not None
    assert metadata["customer_ref"] == "c1"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"colour": "red"}, "unknown parameter: colour"),
        ({"items": [{"price": "price_w"}]}, "second item"),
        ({"items": [{"id": stable_id("si", "sub_a"), "price": "price_none"}]}, "No such price"),
        ({"pause_collection": {"behavior": "sleep"}}, "must be one of"),
        ({"pause_collection": {"behavior": "void", "resumes_at": 5}}, "in the future"),
        ({"trial_end": 5}, "in the future"),
        ({"items": [{"id": stable_id("si", "sub_a"), "price": "price_w"}], "proration_behavior": "odd"}, "proration"),
    ],
)
def test_rubbish_is_refused_and_changes_nothing(
    sandbox: StripeSandbox, client: stripe.StripeClient, parameters: Any, said: str
) -> None:
    _subscribe(sandbox, "a", days=10)
    before = client.v1.subscriptions.retrieve("sub_a").to_dict()
    with pytest.raises(stripe.InvalidRequestError, match=said):
        client.v1.subscriptions.update("sub_a", parameters)
    assert client.v1.subscriptions.retrieve("sub_a").to_dict() == before


def test_what_is_not_there_is_missing(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError) as missing:
        client.v1.subscriptions.retrieve("sub_none")
    assert (missing.value.http_status, missing.value.code) == (404, "resource_missing")
    with pytest.raises(stripe.InvalidRequestError, match="Unrecognized request URL"):
        client.v1.balance.retrieve()
    _subscribe(sandbox, "a", days=10)
    client.v1.subscriptions.cancel("sub_a")
    with pytest.raises(stripe.InvalidRequestError, match="canceled subscription"):
        client.v1.subscriptions.update("sub_a", {"metadata": {"x": "y"}})
    stranger = stripe.StripeClient("sk_test_other", base_addresses={"api": sandbox.api_base}, max_network_retries=0)
    with pytest.raises(stripe.AuthenticationError):
        stranger.v1.customers.list()


def test_too_many_requests_are_refused(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    sandbox.set_rate_limit(1)
    with pytest.raises(stripe.RateLimitError) as refused:
        for _ in range(50):
            client.v1.customers.list()
    assert refused.value.request_id is not None
    assert refused.value.request_id.startswith("req_")


def test_time_goes_forward_only(sandbox: StripeSandbox) -> None:
    with pytest.raises(BadInput, match="forward only"):
        sandbox.advance(NOW - timedelta(seconds=1))
    with pytest.raises(BadInput, match="no fault 'earthquake'"):
        sandbox.order_fault("earthquake")


def test_a_release_fails_its_share_of_other_intervals(sandbox: StripeSandbox, client: stripe.StripeClient) -> None:
    _subscribe(sandbox, *(f"w{number}" for number in range(60)), price="price_w", days=1)
    _subscribe(sandbox, *(f"m{number}" for number in range(20)), days=1)
    sandbox.order_fault("release", share=0.5)
    sandbox.advance(NOW + timedelta(days=1))
    failed = client.v1.events.list({"type": "payment_intent.payment_failed", "limit": 100}).data
    assert 15 < len(failed) < 45
    assert {event.data.object["last_payment_error"]["type"] for event in failed} == {"invalid_request_error"}
    assert all(client.v1.subscriptions.retrieve(f"sub_m{number}").status == "active" for number in range(20))
    sandbox.clear_faults()
    sandbox.advance(NOW + timedelta(days=2))
    assert sandbox.counts()["subscriptions.active"] == 80, "the retries succeed once it is taken back"
