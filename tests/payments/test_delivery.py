"""The relay: every command told once, in order, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from itertools import product

import pytest

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, advisory_lock, opened
from flexpay_pipelines.payments import (
    DeliveryResult,
    StripeGateway,
    StripeRefusesUs,
    StripeTransient,
    deliver_commands,
    pending_commands,
)
from flexpay_pipelines.payments.delivery import RELAY as RELAY_LOCK
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox
from tests.payments.conftest import NOW, change, command, outbox, quiet, stripe_id

PAUSE = json.dumps({"mode": "collection", "resumes_at": None})
MODES = ("collection", "subscription")
RESUME = json.dumps({"mode": "collection"})


def _deliver(
    billing: Connection, gateway: StripeGateway, clock: FixedClock, limit: int | None = None
) -> DeliveryResult:
    return deliver_commands(billing, gateway, clock=clock, progress=quiet, limit=limit, jitter=lambda: 0.5)


def _later(clock: FixedClock, stripe: StripeSandbox) -> None:
    """Every back-off is over."""
    clock.advance(timedelta(hours=2))
    stripe.set_clock(clock.now())


def _updates(stripe: StripeSandbox) -> int:
    return stripe.counts().get("events.customer.subscription.updated", 0)


def test_every_operation_takes_effect(company: Connection, gateway: StripeGateway, clock: FixedClock) -> None:
    ends = NOW + timedelta(days=30)
    command(company, "s1", "pause", json.dumps({"mode": "collection", "resumes_at": ends.isoformat()}))
    command(company, "s2", "pause", json.dumps({"mode": "subscription", "resumes_at": None}))
    command(company, "s3", "cancel")
    terms = {"plan": "pro", "payment_frequency": "MONTHLY", "currency": "EUR", "amount_minor": 12_000}
    command(company, "s4", "change_price", json.dumps({**terms, "proration": "none"}))
    result = _deliver(company, gateway, clock)
    assert (result.delivered, result.remaining, result.parked, result.retried) == (4, 0, 0, 0)
    paused = gateway.subscription(stripe_id(company, "s1"))["pause_collection"]
    assert paused == {"behavior": "void", "resumes_at": int(ends.timestamp())}
    assert gateway.subscription(stripe_id(company, "s2"))["status"] == "paused"
    assert gateway.subscription(stripe_id(company, "s3"))["status"] == "canceled"
    price = gateway.subscription(stripe_id(company, "s4"))["items"]["data"][0]["price"]
    assert price["lookup_key"] == "pro:MONTHLY:EUR"
    command(company, "s1", "resume", RESUME, 2)
    command(company, "s2", "resume", json.dumps({"mode": "subscription"}), 2)
    assert _deliver(company, gateway, clock).delivered == 2
    assert gateway.subscription(stripe_id(company, "s1"))["pause_collection"] is None
    assert gateway.subscription(stripe_id(company, "s2"))["status"] == "active"


def test_another_interval_without_proration_bills_nobody_and_keeps_the_date(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    before = gateway.subscription(stripe_id(company, "s4"))["items"]["data"][0]
    assert before["price"]["recurring"]["interval"] == "year"
    terms = {"plan": "basic", "payment_frequency": "MONTHLY", "currency": "EUR", "amount_minor": 3_333}
    command(company, "s4", "change_price", json.dumps({**terms, "proration": "none"}))
    assert _deliver(company, gateway, clock).delivered == 1
    after = gateway.subscription(stripe_id(company, "s4"))["items"]["data"][0]
    assert (after["price"]["unit_amount"], after["price"]["lookup_key"]) == (3_333, None)
    assert after["current_period_end"] == before["current_period_end"]
    assert "invoices" not in stripe.counts()


@pytest.mark.parametrize("mode", ["collection", "subscription"])
def test_a_resumed_subscription_is_not_billed_before_the_date_that_the_pause_moved(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox, mode: str
) -> None:
    command(company, "s1", "pause", json.dumps({"mode": mode, "resumes_at": None}))
    _deliver(company, gateway, clock)
    moved = NOW + timedelta(days=50)
    command(company, "s1", "resume", json.dumps({"mode": mode, "next_payment_at": moved.isoformat()}), 2)
    assert _deliver(company, gateway, clock).delivered == 1
    shown = gateway.subscription(stripe_id(company, "s1"))
    assert shown["pause_collection"] is None
    assert shown["items"]["data"][0]["current_period_end"] == int(moved.timestamp())
    assert shown["metadata"]["date_kept_until"] == str(shown["trial_end"])
    stripe.advance(moved - timedelta(hours=1))
    made = [one for page in gateway.events(since=None, types=["invoice.created"]) for one in page]
    assert shown["id"] not in {one["data"]["object"]["parent"]["subscription_details"]["subscription"] for one in made}
    stripe.advance(moved)
    made = [one for page in gateway.events(since=None, types=["invoice.created"]) for one in page]
    assert shown["id"] in {one["data"]["object"]["parent"]["subscription_details"]["subscription"] for one in made}


@pytest.mark.parametrize("case", list(product(MODES, MODES, (True, False))))
def test_a_pause_is_ended_in_the_way_in_which_it_was_made(
    company: Connection, gateway: StripeGateway, clock: FixedClock, case: tuple[str, str, bool]
) -> None:
    """The setting may have changed since, and a portal does as it likes."""
    there, asked, moved = case
    gateway.pause(stripe_id(company, "s1"), mode=there, resumes_at=None, key="portal")
    to = NOW + timedelta(days=50)
    more = {"next_payment_at": to.isoformat()} if moved else {}
    command(company, "s1", "resume", json.dumps({"mode": asked, **more}))
    assert _deliver(company, gateway, clock).delivered == 1
    shown = gateway.subscription(stripe_id(company, "s1"))
    assert shown["pause_collection"] is None
    assert shown["status"] == ("trialing" if moved else "active")
    assert (shown["items"]["data"][0]["current_period_end"] == int(to.timestamp())) == moved


def test_a_price_of_a_paused_subscription_changes_without_waking_it(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    command(company, "s4", "pause", json.dumps({"mode": "subscription", "resumes_at": None}))
    terms = {"plan": "basic", "payment_frequency": "MONTHLY", "currency": "EUR", "amount_minor": 4_000}
    command(company, "s4", "change_price", json.dumps({**terms, "proration": "none"}), 2)
    assert _deliver(company, gateway, clock).delivered == 2
    shown = gateway.subscription(stripe_id(company, "s4"))
    assert (shown["status"], shown["items"]["data"][0]["price"]["lookup_key"]) == ("paused", "basic:MONTHLY:EUR")
    assert "invoices" not in stripe.counts()


def test_commands_of_one_subscription_go_in_order(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    first = command(company, "s1", "pause", PAUSE)
    second = command(company, "s1", "resume", RESUME, 2)
    third = command(company, "s1", "cancel", version=3)
    stripe.order_fault("500_before", match="POST")
    assert _deliver(company, gateway, clock).retried == 1
    assert outbox(company) == {first: "pending", second: "pending", third: "pending"}
    _later(clock, stripe)
    result = _deliver(company, gateway, clock)
    assert (result.delivered, result.remaining) == (3, 0)
    types = [
        event["type"] for page in gateway.events(since=None, types=["customer.subscription.updated"]) for event in page
    ]
    assert len(types) == 2, "paused and resumed, each once"
    assert gateway.subscription(stripe_id(company, "s1"))["status"] == "canceled"


@pytest.mark.parametrize("fault", ["500_before", "500_after", "reset_before", "reset_after", "timeout_after", "429"])
def test_each_failure_ends_in_one_effect(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox, fault: str
) -> None:
    command(company, "s1", "pause", PAUSE)
    stripe.order_fault(fault, match="POST /v1/subscriptions", seconds=5)
    first = _deliver(company, gateway, clock)
    assert (first.delivered, first.retried, first.remaining) == (0, 1, 1)
    assert _deliver(company, gateway, clock).retried == 0, "not before its time"
    _later(clock, stripe)
    second = _deliver(company, gateway, clock)
    assert (second.delivered, second.remaining) == (1, 0)
    assert gateway.subscription(stripe_id(company, "s1"))["pause_collection"] is not None
    assert _updates(stripe) == 1


@pytest.mark.parametrize("fault", ["reset_before", "reset_after", "500_after"])
def test_a_pause_that_is_over_is_not_begun_again(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox, fault: str
) -> None:
    """Stripe ended it by itself; told once more, it would have no end, and the next payment would be voided."""
    ends = NOW + timedelta(hours=1)
    pause = command(company, "s1", "pause", json.dumps({"mode": "collection", "resumes_at": ends.isoformat()}))
    stripe.order_fault(fault, match="POST /v1/subscriptions")
    assert _deliver(company, gateway, clock).retried == 1
    clock.advance(timedelta(hours=2))
    stripe.advance(clock.now())
    paused = _updates(stripe)
    assert _deliver(company, gateway, clock).remaining == 0
    assert outbox(company) == {pause: "superseded"}
    assert gateway.subscription(stripe_id(company, "s1"))["pause_collection"] is None
    assert _updates(stripe) == paused


def test_retry_after_is_honoured(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    command(company, "s1", "pause", PAUSE)
    stripe.order_fault("429", match="POST /v1/subscriptions", seconds=600)
    _deliver(company, gateway, clock)
    row = company.execute("SELECT not_before, last_error FROM billing.stripe_commands").fetchone()
    assert row is not None
    assert row["not_before"] == NOW + timedelta(seconds=600)
    assert "slow down" in row["last_error"]


def test_what_stripe_refuses_is_parked_and_blocks_nothing(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    bad = command(company, "s1", "pause")
    hourly = {"payment_frequency": "HOURLY", "amount_minor": "a lot", "proration": "none"}
    worse = command(company, "s2", "change_price", json.dumps(hourly))
    nowhere = command(company, "s3", "pause", PAUSE)
    change(company, "s3", "stripe_subscription_id = 'sub_none'")
    good = command(company, "s1", "pause", PAUSE, 2)
    result = _deliver(company, gateway, clock)
    assert (result.parked, result.delivered, result.remaining) == (3, 1, 0)
    assert outbox(company) == {bad: "parked", worse: "parked", nowhere: "parked", good: "delivered"}
    rows = company.execute("SELECT command_id, last_error FROM billing.stripe_commands")
    reasons = {row["command_id"]: row["last_error"] for row in rows}
    assert "mode" in reasons[bad]
    assert "HOURLY" in reasons[worse]
    assert "No such subscription" in reasons[nowhere]


def test_a_canceled_subscription_supersedes(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    here = command(company, "s1", "pause", PAUSE)
    change(company, "s1", "status = 'canceled'")
    told = command(company, "s1", "cancel", version=2)
    there = command(company, "s2", "pause", PAUSE)
    gateway.cancel(stripe_id(company, "s2"), key="by hand")
    result = _deliver(company, gateway, clock)
    assert (result.superseded, result.delivered) == (2, 1)
    assert outbox(company) == {here: "superseded", told: "delivered", there: "superseded"}


def test_an_old_command_looks_before_it_leaps(
    company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    command(company, "s1", "pause", PAUSE)
    gateway.pause(stripe_id(company, "s1"), mode="collection", resumes_at=None, key="another key")
    clock.advance(timedelta(hours=25))
    stripe.set_clock(clock.now())
    assert _deliver(company, gateway, clock).delivered == 1
    assert _updates(stripe) == 1, "the key was another one: without a look it would have been done twice"


def test_an_unreachable_stripe_is_one_sentence_and_changes_nothing(company: Connection, clock: FixedClock) -> None:
    command(company, "s1", "pause", PAUSE)
    nowhere = StripeGateway("sk_test_x", "http://127.0.0.1:9", timeout_seconds=1, max_network_retries=0)
    with pytest.raises(StripeTransient, match=r"^Stripe does not answer at http://127\.0\.0\.1:9: check the network"):
        _deliver(company, nowhere, clock)
    row = company.execute("SELECT state, attempts FROM billing.stripe_commands").fetchone()
    assert row == {"state": "pending", "attempts": 0}


def test_a_wrong_key_parks_nothing(company: Connection, stripe: StripeSandbox, clock: FixedClock) -> None:
    command(company, "s1", "pause", PAUSE)
    wrong = StripeGateway("sk_test_wrong", stripe.api_base, max_network_retries=0)
    with pytest.raises(StripeRefusesUs, match="FLEXPAY_STRIPE_API_KEY"):
        _deliver(company, wrong, clock)
    assert pending_commands(company) == 1


def test_an_empty_outbox_asks_nothing_of_stripe(billing: Connection, clock: FixedClock) -> None:
    nowhere = StripeGateway("sk_test_x", "http://127.0.0.1:9", timeout_seconds=1, max_network_retries=0)
    assert _deliver(billing, nowhere, clock).delivered == 0


def test_a_slow_call_holds_up_no_other(
    company: Connection, billing_url: str, clock: FixedClock, stripe: StripeSandbox
) -> None:
    """What was told is marked at once, and what is behind it in the outbox goes on."""
    for number in range(1, 21):
        command(company, f"s{number}", "pause", PAUSE)
        command(company, f"s{number}", "resume", RESUME, 2)
    stripe.order_fault("timeout_after", match=f"POST /v1/subscriptions/{stripe_id(company, 's1')}", seconds=3)
    patient = StripeGateway(stripe.api_key, stripe.api_base, requests_per_second=10)
    results: list[DeliveryResult] = []

    def relay() -> None:
        with opened(billing_url, purpose="test relay") as connection:
            results.append(deliver_commands(connection, patient, clock=clock, progress=quiet))

    running = threading.Thread(target=relay)
    running.start()
    until = time.monotonic() + 60
    while list(outbox(company).values()).count("delivered") < 19:
        assert time.monotonic() < until
    first = min(outbox(company))
    assert outbox(company)[first] == "pending", "the slow one has not answered yet"
    running.join(timeout=60)
    assert results[0].delivered == 40
    assert _updates(stripe) == 40


def test_a_second_relay_leaves_the_work_to_the_first(
    company: Connection, billing_url: str, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    waiting = command(company, "s1", "pause", PAUSE)
    said: list[str] = []
    with opened(billing_url, purpose="first relay") as first, advisory_lock(first, RELAY_LOCK):
        result = deliver_commands(company, gateway, clock=clock, progress=said.append)
        assert (result.delivered, result.remaining) == (0, 1)
        assert said == ["Another relay is at work: it delivers what waits."]
    assert outbox(company) == {waiting: "pending"}
    assert _deliver(company, gateway, clock).delivered == 1


def test_two_relays_at_once_tell_each_command_once(
    company: Connection, billing_url: str, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    for number in range(1, 21):
        command(company, f"s{number}", "pause", PAUSE)
        command(company, f"s{number}", "resume", RESUME, 2)
    results: list[DeliveryResult] = []

    def relay() -> None:
        with opened(billing_url, purpose="test relay") as connection:
            while pending_commands(connection):
                results.append(_deliver(connection, gateway, clock, limit=7))

    relays = [threading.Thread(target=relay) for _ in range(2)]
    for one in relays:
        one.start()
    for one in relays:
        one.join(timeout=60)
    assert sum(result.delivered for result in results) == 40
    assert set(outbox(company).values()) == {"delivered"}
    assert _updates(stripe) == 40


RELAY = """
import sys
from datetime import datetime
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import opened
from flexpay_pipelines.payments import StripeGateway, deliver_commands
url, key, base, now = sys.argv[1:]
with opened(url, purpose="killed relay") as connection:
    deliver_commands(connection, StripeGateway(key, base, timeout_seconds=60, max_network_retries=0),
                     clock=FixedClock(datetime.fromisoformat(now)), progress=print)
"""


def test_killed_between_the_effect_and_the_mark_the_next_run_finishes_once(
    company: Connection, billing_url: str, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox
) -> None:
    for number in range(1, 6):
        command(company, f"s{number}", "pause", PAUSE)
    stripe.order_fault("timeout_after", times=5, match="POST /v1/subscriptions", seconds=30)
    killed = subprocess.Popen(
        [sys.executable, "-c", RELAY, billing_url, stripe.api_key, stripe.api_base, NOW.isoformat()],
        stdout=subprocess.DEVNULL,
    )
    until = time.monotonic() + 60
    while _updates(stripe) < 5:
        assert time.monotonic() < until
        assert killed.poll() is None
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert set(outbox(company).values()) == {"pending"}, "all five effects are there, no mark is"
    _await_no_locks(company)
    result = _deliver(company, gateway, clock)
    assert (result.delivered, result.remaining) == (5, 0)
    assert _updates(stripe) == 5


def _await_no_locks(connection: Connection) -> None:
    """The server notices a killed client when it next writes to it: until then its row locks stay."""
    until = time.monotonic() + 60
    while True:
        free = connection.execute(
            "SELECT count(*) AS n FROM pg_stat_activity WHERE application_name LIKE '%%killed%%'", ()
        )
        row = free.fetchone()
        assert row is not None
        if row["n"] == 0:
            return
        assert time.monotonic() < until


def test_the_pace_is_kept(company: Connection, stripe: StripeSandbox, clock: FixedClock) -> None:
    for number in range(1, 11):
        command(company, f"s{number}", "pause", PAUSE)
    waits: list[float] = []
    slow = StripeGateway(stripe.api_key, stripe.api_base, requests_per_second=5, sleep=waits.append)
    deliver_commands(company, slow, clock=clock, progress=quiet)
    assert len(waits) == 10, "all but the first request, which asks whether Stripe answers"
    assert max(waits) == pytest.approx(10 / 5, abs=0.5)


def test_the_instant_of_delivery_is_the_clocks(company: Connection, gateway: StripeGateway, clock: FixedClock) -> None:
    command(company, "s1", "pause", PAUSE)
    _deliver(company, gateway, clock)
    row = company.execute("SELECT delivered_at FROM billing.stripe_commands").fetchone()
    assert row == {"delivered_at": NOW}
    assert isinstance(row["delivered_at"], datetime)
