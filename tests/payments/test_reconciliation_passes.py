"""Passes: an incremental one looks at what was touched and at nothing else, and what lasts is told once."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from flexpay_pipelines.alerts import list_alerts
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.payments import StripeGateway, StripeTransient, alert_persistent, open_differences, reconcile
from flexpay_pipelines.payments.stripe_gateway import Object
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox
from tests.payments.books import Books
from tests.payments.conftest import change, command, quiet, stripe_id


@pytest.fixture
def books(company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox) -> Books:
    """The company, compared once in full a day ago, with nothing touched since."""
    books = Books(company, gateway, clock, stripe)
    assert (books.compare(incremental=True).scope, books.compare().by_kind) == ("full", {})
    company.execute(
        "UPDATE billing.subscriptions SET changed_at = changed_at - interval '1 day', version = version + 1"
    )
    # Our clock stands still here, so that whatever is delivered would seem to have been delivered since.
    company.execute("UPDATE billing.reconciliations SET started_at = started_at + interval '1 hour'")
    company.execute("ALTER TABLE billing.subscription_events DISABLE TRIGGER USER")
    company.execute("UPDATE billing.subscription_events SET recorded_at = recorded_at - interval '1 day'")
    company.execute("ALTER TABLE billing.subscription_events ENABLE TRIGGER USER")
    return books


def _reads(stripe: StripeSandbox) -> int:
    """How many requests for subscriptions there were so far."""
    return sum(n for name, n in stripe.counts().items() if name.startswith("requests.GET /v1/subscriptions"))


def test_what_nobody_touched_is_not_read(books: Books) -> None:
    before = _reads(books.stripe)
    found = books.compare(incremental=True)
    assert (found.scope, found.compared, found.by_kind) == ("incremental", 0, {})
    assert _reads(books.stripe) == before


def test_each_way_in_which_one_is_touched(books: Books) -> None:
    """Changed here, told a command, mentioned by an event, different last time; each is read, and no other."""
    change(books.billing, "s1", "quantity = 2")
    books.gateway.pause(stripe_id(books.billing, "s2"), mode="collection", resumes_at=None, key="portal 2")
    books.poll()
    command(books.billing, "s3", "pause", json.dumps({"mode": "collection", "resumes_at": None}))
    books.clock.advance(timedelta(hours=1))
    books.deliver()
    before = _reads(books.stripe)
    found = books.compare(incremental=True)
    kinds = {(one.subscription_ref, one.kind) for one in found.differences}
    assert kinds == {("s1", "quantity"), ("s2", "pause"), ("s3", "pause")}
    assert (found.scope, found.compared, _reads(books.stripe) - before) == ("incremental", 3, 3)
    # Nothing happens, and all three are looked at again until they agree.
    change(books.billing, "s1", "quantity = 1")
    again = books.compare(incremental=True)
    assert {(one.subscription_ref, one.kind) for one in again.differences} == {("s2", "pause"), ("s3", "pause")}


def test_what_was_on_its_way_is_looked_at_when_it_has_arrived(books: Books) -> None:
    change(books.billing, "s1", "quantity = 2")
    command(books.billing, "s1", "change_quantity", json.dumps({"quantity": 3}))
    assert books.compare(incremental=True).in_flight == 1
    books.clock.advance(timedelta(hours=3))
    books.stripe.set_clock(books.clock.now())
    books.billing.execute("UPDATE billing.subscriptions SET changed_at = '2020-01-01', version = version + 1")
    books.deliver()
    found = books.compare(incremental=True)
    assert [(one.subscription_ref, one.in_stripe) for one in found.differences] == [("s1", "3")]


def test_many_are_read_page_by_page(books: Books) -> None:
    """More than a hundred ids cost more than the one page."""
    books.billing.execute(
        "INSERT INTO billing.stripe_events (stripe_event_id, type, created, subject_id, object)"
        " SELECT 'evt_' || n, 'customer.subscription.updated', now(), 'sub_' || n, '{}'"
        " FROM generate_series(1, 150) AS n"
    )
    assert books.compare(incremental=True).scope == "full"


def test_a_subscription_that_only_stripe_knows_is_found_by_its_event(books: Books) -> None:
    known = stripe_id(books.billing, "s4")
    books.gateway.change_quantity(
        known, item=books.at_stripe("s4")["items"]["data"][0]["id"], quantity=2, key="portal 4"
    )
    books.poll()
    change(books.billing, "s4", "stripe_subscription_id = NULL, subscription_ref = 's4 of old'")
    found = books.compare(incremental=True)
    assert {(one.subscription_ref, one.kind, one.by) for one in found.differences} == {
        ("s4 of old", "missing_in_stripe", "a person"),
        (known, "missing_in_database", "a person"),
    }


def test_a_reading_that_breaks_off_is_no_pass(books: Books) -> None:
    passes = "SELECT count(*) AS n FROM billing.reconciliations"
    before = books.billing.execute(passes).fetchone()
    books.stripe.order_fault("reset_before", match="GET /v1/subscriptions")
    with pytest.raises(StripeTransient, match="does not answer"):
        books.compare()
    assert books.billing.execute(passes).fetchone() == before


def test_what_changes_while_stripe_is_read_waits_for_the_next_pass(books: Books, billing_url: str) -> None:
    class Slow(StripeGateway):
        """Stripe, and somebody who is at work on the database while it answers."""

        def subscriptions(self) -> object:  # type: ignore[override]
            pages: list[list[Object]] = list(super().subscriptions())
            with opened(billing_url, purpose="test") as other:
                change(other, "s1", "quantity = 2")
            yield from pages

    gateway = Slow(books.stripe.api_key, books.stripe.api_base, requests_per_second=10_000)
    found = reconcile(books.billing, gateway, clock=books.clock, progress=quiet)
    assert (found.by_kind, found.in_flight) == ({}, 1)
    assert books.compare(incremental=True).by_kind == {"quantity": 1}


def test_what_lasts_is_told_once(books: Books, control: Connection) -> None:
    def tell() -> bool:
        seen = books.compare(incremental=True).reconciliation_id
        return alert_persistent(books.billing, control, seen, clock=books.clock, progress=quiet)

    change(books.billing, "s1", "quantity = 2")
    change(books.billing, "s2", "quantity = 2")
    assert not tell(), "it may be on its way"
    change(books.billing, "s2", "quantity = 1")
    assert tell()
    books.clock.advance(timedelta(hours=5))
    assert not tell(), "once"
    change(books.billing, "s3", "quantity = 2")
    assert not tell()
    assert tell(), "a new one is told of, once"
    titles = [record.alert.title for record in list_alerts(control, limit=9)]
    assert titles == ["Stripe and the database go on differing in 1 thing"] * 2
    context = list_alerts(control, limit=1)[0].alert.context
    assert context == {"quantity": "1, such as s3"}


def test_an_alert_that_was_raised_before_a_kill_is_not_raised_again(books: Books, control: Connection) -> None:
    change(books.billing, "s1", "quantity = 2")
    books.compare(incremental=True)
    for _ in range(2):
        seen = books.compare(incremental=True).reconciliation_id
        assert alert_persistent(books.billing, control, seen, clock=books.clock, progress=quiet)
        books.billing.execute("UPDATE billing.reconciliation_differences SET alerted_at = NULL")
        books.clock.advance(timedelta(hours=2))
    assert len(list_alerts(control, limit=9)) == 1


def test_open_differences_by_kind(books: Books) -> None:
    change(books.billing, "s1", "quantity = 2, amount_minor = 9")
    books.compare()
    assert [one.kind for one in open_differences(books.billing, kinds=None, limit=9)] == ["price", "quantity"]
    assert [one.kind for one in open_differences(books.billing, kinds=("price",), limit=9)] == ["price"]
