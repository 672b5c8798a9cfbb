"""Events in: once each, in any order, nothing of a card, every failure with its class."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
import stripe as sdk
from psycopg.pq import TransactionStatus

from flexpay_pipelines.billing import apply_payment_outcomes
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.payments import (
    EventsResult,
    StripeGateway,
    StripeTransient,
    apply_events,
    construct_event,
    failure_class,
    poll_events,
    reconcile,
    store_events,
)
from flexpay_pipelines.payments.events import TYPES
from flexpay_pipelines.sandbox.stripe_objects import CARD
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox
from tests.payments.conftest import NOW, change, quiet, stripe_id


class Applied:
    """Remembers which payments it was called with."""

    def __init__(self) -> None:
        self.payments: list[int] = []

    def __call__(self, connection: Connection, payments: Sequence[int]) -> None:
        assert connection.info.transaction_status == TransactionStatus.INTRANS
        self.payments += payments


def _poll(billing: Connection, gateway: StripeGateway, clock: FixedClock, apply: Any = None) -> EventsResult:
    return poll_events(billing, gateway, clock=clock, apply=apply or Applied(), progress=quiet)


def _payments(billing: Connection) -> list[dict[str, Any]]:
    return billing.execute(
        """
        SELECT payment_ref, subscription_id, occurred_at, amount_minor, currency, outcome, failure_class, failure_code,
               attempt
        FROM billing.payments ORDER BY payment_ref
        """
    ).fetchall()


def test_each_attempt_becomes_one_payment(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    stripe.set_decline_rate(0.3)
    stripe.advance(NOW + timedelta(days=20))
    counts, applied = stripe.counts(), Applied()
    first = _poll(company, gateway, clock, applied)
    expected = counts["events.invoice.paid"] + counts["events.invoice.payment_failed"]
    assert counts["events.invoice.payment_failed"] > 3
    assert first.new == first.received == first.applied
    assert first.payments_recorded == expected == len(_payments(company)) == len(set(applied.payments))
    assert {row["failure_class"] for row in _payments(company) if row["outcome"] == "failed"} <= {
        "issuer_decline",
        "block",
    }
    again = _poll(company, gateway, clock)
    assert again.received > 0, "the overlap is read again"
    assert (again.new, again.applied, again.payments_recorded) == (0, 0, 0)
    assert len(_payments(company)) == expected


def test_each_attempt_keeps_its_own_reason(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    """By the time of the poll the PaymentIntent shows the last attempt only, or none."""
    stripe.set_decline_rate(1)
    stripe.advance(NOW + timedelta(days=2, hours=1))
    stripe.set_decline_rate(0)
    stripe.advance(NOW + timedelta(days=12))
    _poll(company, gateway, clock)
    failed = [row for row in _payments(company) if row["outcome"] == "failed"]
    assert failed
    assert all(row["failure_class"] in ("issuer_decline", "block") and row["failure_code"] for row in failed)


def test_a_release_fails_other_frequencies_by_our_fault(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    stripe.order_fault("release", since=NOW + timedelta(days=5))
    stripe.advance(NOW + timedelta(days=20))
    _poll(company, gateway, clock)
    rows = company.execute(
        """
        SELECT payment_frequency = 'MONTHLY' AS monthly, outcome, failure_class, p.occurred_at >= %s AS released
        FROM billing.payments AS p JOIN billing.subscriptions USING (subscription_id)
        """,
        (NOW + timedelta(days=5),),
    ).fetchall()
    assert {row["outcome"] for row in rows if not row["released"] or row["monthly"]} == {"succeeded"}
    broken = {(row["outcome"], row["failure_class"]) for row in rows if row["released"] and not row["monthly"]}
    assert broken == {("failed", "integration_error")}


def test_any_order_and_repetition_ends_the_same(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    stripe.set_decline_rate(0.3)
    stripe.advance(NOW + timedelta(days=15))
    gateway.cancel(stripe_id(company, "s1"), key="by hand")
    events = [event for page in gateway.events(since=None, types=TYPES) for event in page]
    shuffled = events * 2
    random.Random(5).shuffle(shuffled)  # noqa: S311 - a test's order
    for start in range(0, len(shuffled), 17):
        store_events(company, shuffled[start : start + 17])
        apply_events(company, gateway, clock=clock, apply=Applied())
    piecewise = _payments(company)
    row = company.execute(
        "SELECT status, canceled_at, version FROM billing.subscriptions WHERE subscription_ref = 's1'"
    ).fetchone()
    assert row is not None
    assert row["status"] == "canceled"
    assert row["canceled_at"] == NOW + timedelta(days=15)
    company.execute("DELETE FROM billing.payments")
    company.execute("DELETE FROM billing.stripe_events")
    _poll(company, gateway, clock)
    assert _payments(company) == piecewise
    after = company.execute("SELECT version FROM billing.subscriptions WHERE subscription_ref = 's1'").fetchone()
    assert after == {"version": row["version"]}, "an event that was applied changes nothing again"


def test_older_news_of_a_subscription_is_stale(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    stripe.advance(NOW + timedelta(days=9))
    gateway.pause(stripe_id(company, "s1"), mode="collection", resumes_at=None, key="a")
    events = [event for page in gateway.events(since=None, types=["customer.subscription.updated"]) for event in page]
    mine = [event for event in events if event["data"]["object"]["id"] == stripe_id(company, "s1")]
    assert len(mine) >= 2
    store_events(company, mine[:1])
    assert apply_events(company, gateway, clock=clock, apply=Applied()).stale == 0
    store_events(company, mine[1:])
    assert apply_events(company, gateway, clock=clock, apply=Applied()).stale == len(mine) - 1


def test_nothing_of_a_card_is_stored(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    stripe.set_decline_rate(1)
    stripe.advance(NOW + timedelta(days=5))
    sent = json.dumps([event for page in gateway.events(since=None, types=TYPES) for event in page])
    assert str(CARD["fingerprint"]) in sent, "Stripe does send it"
    _poll(company, gateway, clock)
    stored = json.dumps([row["object"] for row in company.execute("SELECT object FROM billing.stripe_events")])
    for word in (CARD["fingerprint"], '"card"', "last4", "4242", '"payment_method"', "exp_year", "@example.com"):
        assert str(word) not in stored


def test_events_of_a_subscription_that_is_not_linked_wait_for_the_link(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    identifier = stripe_id(company, "s1")
    change(company, "s1", "stripe_subscription_id = NULL")
    stripe.advance(NOW + timedelta(days=3))
    _poll(company, gateway, clock)
    before = len(_payments(company))
    company.execute(
        "UPDATE billing.subscriptions SET stripe_subscription_id = %s WHERE subscription_ref = 's1'", (identifier,)
    )
    assert _poll(company, gateway, clock).payments_recorded == 1
    assert len(_payments(company)) == before + 1


def test_what_follows_a_payment_shares_its_transaction(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    stripe.advance(NOW + timedelta(days=3))

    def fail(connection: Connection, payments: Sequence[int]) -> None:
        raise BadInput("killed here")

    with pytest.raises(BadInput):
        _poll(company, gateway, clock, fail)
    assert _payments(company) == []
    result = _poll(company, gateway, clock)
    assert result.new == 0, "they had been stored"
    assert result.payments_recorded > 0


def test_a_broken_poll_loses_nothing(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    stripe.advance(NOW + timedelta(days=90))
    stripe.order_fault("duplicate_events", match="GET /v1/events", times=1)
    stripe.order_fault("reset_before", match="GET /v1/events")
    with pytest.raises(StripeTransient):
        _poll(company, gateway, clock)
    assert _payments(company) == []
    assert _poll(company, gateway, clock).payments_recorded == stripe.counts()["events.invoice.paid"]


def test_reading_slows_down_when_asked(company: Connection, stripe: StripeSandbox, clock: FixedClock) -> None:
    waits: list[float] = []
    gateway = StripeGateway(
        stripe.api_key, stripe.api_base, max_network_retries=0, requests_per_second=1e6, sleep=waits.append
    )
    stripe.order_fault("429", match="GET /v1/events", seconds=3)
    assert _poll(company, gateway, clock).received == 0
    assert max(waits) == 3


SECRET = "whsec_test"


def _signature(payload: bytes, at: int, secret: str = SECRET) -> str:
    digest = hmac.new(secret.encode(), f"{at}.".encode() + payload, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def test_a_webhook_is_taken_in_by_its_raw_body(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    stripe.advance(NOW + timedelta(days=2))
    event = next(event for page in gateway.events(since=None, types=["invoice.paid"]) for event in page)
    payload = json.dumps(event, indent=1).encode()
    received = construct_event(payload, _signature(payload, int(time.time())), [SECRET])
    assert store_events(company, [received]) == (1, 1)
    assert store_events(company, [received]) == (1, 0)
    assert apply_events(company, gateway, clock=clock, apply=Applied()).payments_recorded == 1


@pytest.mark.parametrize("wrong", ["secret", "body", "age", "none", "rubbish"])
def test_a_webhook_that_stripe_did_not_send_is_refused(wrong: str) -> None:
    payload, now = b'{"object": "event", "id": "evt_1"}', int(time.time())
    signature: str | None = _signature(payload, now)
    if wrong == "secret":
        signature = _signature(payload, now, "whsec_other")
    elif wrong == "body":
        payload = payload.replace(b"evt_1", b"evt_2")
    elif wrong == "age":
        signature = _signature(payload, now - 301)
    elif wrong == "none":
        signature = None
    else:
        signature = "rubbish"
    with pytest.raises(BadInput, match="secret of its endpoint"):
        construct_event(payload, signature, [SECRET])


@pytest.mark.parametrize("payload", [b"not json", b"[]", b'{"object": "charge"}', b"\xff"])
def test_a_signed_body_that_is_no_event_is_refused(payload: bytes) -> None:
    with pytest.raises(BadInput):
        construct_event(payload, _signature(payload, int(time.time())), [SECRET])


@pytest.mark.parametrize(
    ("kind", "decline", "expected"),
    [
        ("card_error", "insufficient_funds", "issuer_decline"),
        ("card_error", None, "issuer_decline"),
        ("card_error", "fraudulent", "block"),
        ("invalid_request_error", None, "integration_error"),
        ("idempotency_error", None, "integration_error"),
        ("api_error", None, "provider_error"),
        (None, None, "unclassified"),
    ],
)
def test_whose_fault_a_failure_is(kind: str | None, decline: str | None, expected: str) -> None:
    assert failure_class(kind, decline) == expected


def test_an_invoice_that_a_customer_pays_after_a_failure_is_paid(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    """Such an attempt has the number of the failed one: the number alone would hide that the money came."""
    stripe.set_decline_rate(1)
    stripe.advance(NOW + timedelta(days=1, hours=1))
    stripe.set_decline_rate(0)
    client = sdk.StripeClient(stripe.api_key, base_addresses={"api": stripe.api_base})
    owed = client.v1.invoices.list({"status": "open"}).data
    for invoice in owed:
        client.v1.invoices.pay(str(invoice.id))
    _poll(company, gateway, clock)
    assert len(owed) >= 1
    assert [(row["outcome"], row["attempt"]) for row in _payments(company)].count(("succeeded", 1)) == len(owed)
    assert [row["outcome"] for row in _payments(company)].count("failed") == len(owed)


def _cursor(billing: Connection) -> Any:
    row = billing.execute("SELECT created_through FROM billing.stripe_cursors WHERE stream = 'events'").fetchone()
    return None if row is None else row["created_through"]


def test_what_a_webhook_brings_does_not_hide_what_polling_has_not_read(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    stripe.advance(NOW + timedelta(days=2))
    _poll(company, gateway, clock)
    read_through = _cursor(company)
    stripe.advance(NOW + timedelta(days=9))
    newest = next(event for page in gateway.events(since=None, types=["invoice.paid"]) for event in page)
    store_events(company, [newest])
    assert _cursor(company) == read_through
    _poll(company, gateway, clock)
    assert len(_payments(company)) == stripe.counts()["events.invoice.paid"] > 3
    assert _cursor(company) == NOW + timedelta(days=9)


def test_the_cursor_stays_where_reading_broke_off(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    stripe.advance(NOW + timedelta(days=2))
    _poll(company, gateway, clock)
    read_through = _cursor(company)
    stripe.advance(NOW + timedelta(days=60))
    gateway.ping()
    stripe.order_fault("reset_before", match="GET /v1/events", share=0.5, times=1)
    with pytest.raises(StripeTransient):
        for _ in range(20):
            _poll(company, gateway, clock)
            company.execute("UPDATE billing.stripe_cursors SET created_through = %s", (read_through,))
    assert _cursor(company) == read_through
    _poll(company, gateway, clock)
    assert len(_payments(company)) == stripe.counts()["events.invoice.paid"]


def test_an_event_that_is_listed_late_is_found_in_the_overlap(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    stripe.order_fault("delayed_events", match="invoice.paid", seconds=600)
    stripe.order_fault("shuffled_events", match="GET /v1/events", times=50)
    stripe.order_fault("duplicate_events", match="GET /v1/events", times=50)
    stripe.advance(NOW + timedelta(days=1))
    _poll(company, gateway, clock)
    late = stripe.counts()["events.invoice.paid"] - len(_payments(company))
    assert late == 1
    stripe.set_clock(stripe.now() + timedelta(seconds=601))
    _poll(company, gateway, clock)
    assert len(_payments(company)) == stripe.counts()["events.invoice.paid"]


def test_after_a_month_without_a_poll_somebody_is_told(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    stripe.advance(NOW + timedelta(days=2))
    _poll(company, gateway, clock)
    clock.advance(timedelta(days=40))
    said: list[str] = []
    poll_events(company, gateway, clock=clock, apply=Applied(), progress=said.append)
    assert any("flexpay reconcile" in sentence for sentence in said)


def test_two_readers_take_turns(
    company: Connection, billing_url: str, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    """What follows from an older failure depends on the payment that the other reader is recording just now."""
    stripe.set_decline_rate(1)
    stripe.advance(NOW + timedelta(days=1))
    stripe.set_decline_rate(0)
    stripe.advance(NOW + timedelta(days=3))
    events = [event for page in gateway.events(since=None, types=TYPES) for event in page]
    paid = [event for event in events if event["type"] == "invoice.paid"]
    effects = partial(apply_payment_outcomes, clock=clock, grace_days=7)
    inside, go_on = threading.Event(), threading.Event()

    def slowly(connection: Connection, payments: Sequence[int]) -> None:
        effects(connection, payments)
        inside.set()
        assert go_on.wait(30)

    def read(apply: Any) -> None:
        with opened(billing_url, purpose="test reader") as connection:
            apply_events(connection, gateway, clock=clock, apply=apply)

    store_events(company, paid)
    first = threading.Thread(target=read, args=(slowly,))
    first.start()
    assert inside.wait(30)
    store_events(company, events)
    second = threading.Thread(target=read, args=(effects,))
    second.start()
    until = time.monotonic() + 30
    waiting = "SELECT count(*) AS n FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    while company.execute(waiting.encode()).fetchone() != {"n": 1}:
        assert time.monotonic() < until
    go_on.set()
    for reader in (first, second):
        reader.join(30)
    statuses = {row["status"] for row in company.execute("SELECT status FROM billing.subscriptions")}
    assert statuses == {"active"}, "each failure was made good before it became known"


@pytest.mark.parametrize(
    "case",
    [
        # Paid at 00:30 UTC, an hour before the clock of Berlin, set back, shows the time of day of the anchor again.
        ("Europe/Berlin", "WEEKLY", "2026-10-21T00:30+00:00", ("2026-10-28T01:30+00:00", "2026-11-04T01:30+00:00")),
        # 30 January in New York is the 31st in UTC: there February's is paid a day before it falls due here.
        ("America/New_York", "MONTHLY", "2027-01-31T01:00+00:00", ("2027-03-01T01:00+00:00", "2027-03-31T00:00+00:00")),
        # 1 March in Kolkata is 28 February in UTC: there March's is paid three days before it falls due.
        ("Asia/Kolkata", "MONTHLY", "2027-02-28T20:45+00:00", ("2027-03-31T20:45+00:00", "2027-04-30T20:45+00:00")),
    ],
)
def test_the_date_moves_on_where_stripe_bills_before_the_customers_own_clock(
    company: Connection,
    gateway: StripeGateway,
    clock: FixedClock,
    stripe: StripeSandbox,
    case: tuple[str, str, str, tuple[str, str]],
) -> None:
    zone, frequency, due, following = case
    change(company, "s5", f"payment_frequency = '{frequency}', billing_anchor = '{due}', next_payment_at = '{due}'")
    company.execute("UPDATE billing.customers SET time_zone = %s", (zone,))
    clock.instant = datetime.fromisoformat(due) - timedelta(hours=1)
    stripe.set_clock(clock.now())
    stripe.seed_from_billing(company)
    effects = partial(apply_payment_outcomes, clock=clock, grace_days=7)
    for expected in map(datetime.fromisoformat, following):
        row = company.execute(
            "SELECT next_payment_at FROM billing.subscriptions WHERE subscription_ref = 's5'"
        ).fetchone()
        assert row is not None
        clock.instant = row["next_payment_at"] + timedelta(minutes=1)
        stripe.advance(clock.now())
        _poll(company, gateway, clock, effects)
        row = company.execute(
            "SELECT next_payment_at FROM billing.subscriptions WHERE subscription_ref = 's5'"
        ).fetchone()
        assert row == {"next_payment_at": expected}
        found = reconcile(company, gateway, clock=clock, progress=quiet)
        assert [one for one in found.differences if one.subscription_ref == "s5"] == []
