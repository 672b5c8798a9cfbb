"""Mends: each kind of difference is made for real, mended for real, and gone when the two are compared again."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.payments import MendPolicy, MendResult, StripeGateway, mend_differences
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox
from tests.payments.books import Books, rename
from tests.payments.conftest import NOW, change, command, stripe_id

MODES = pytest.mark.parametrize("mode", ["collection", "subscription"])


@pytest.fixture
def books(company: Connection, gateway: StripeGateway, clock: FixedClock, stripe: StripeSandbox) -> Books:
    return Books(company, gateway, clock, stripe)


def _agree(books: Books) -> None:
    assert books.compare(incremental=True).by_kind == {}
    assert books.compare().by_kind == {}


@MODES
def test_a_pause_that_stripe_does_not_have(books: Books, mode: str) -> None:
    ends = NOW + timedelta(days=9)
    change(books.billing, "s1", "status = 'paused'")
    books.billing.execute(
        "INSERT INTO billing.subscription_pauses (pause_ref, subscription_id, starts_at, ends_at, kind, state)"
        " SELECT 'p', subscription_id, %s, %s, 'customer', 'active' FROM billing.subscriptions WHERE status = 'paused'",
        (NOW - timedelta(days=1), ends),
    )
    change(books.billing, "s2", "status = 'suspended'")
    assert books.mend(mode=mode).mended == {"pause": 2}
    paused, suspended = books.at_stripe("s1"), books.at_stripe("s2")
    if mode == "collection":
        assert paused["pause_collection"] == {"behavior": "void", "resumes_at": int(ends.timestamp())}
        assert suspended["pause_collection"]["resumes_at"] is None
    else:
        assert (paused["status"], suspended["status"]) == ("paused", "paused")
    _agree(books)


@MODES
def test_a_pause_that_only_stripe_has(books: Books, mode: str) -> None:
    for ref in ("s1", "s2"):
        books.gateway.pause(stripe_id(books.billing, ref), mode=mode, resumes_at=None, key=f"portal {ref}")
    change(books.billing, "s2", "next_payment_at = next_payment_at + interval '5 days'")
    before = books.at_stripe("s1")
    assert books.mend(mode=mode).mended == {"pause": 2}
    for ref in ("s1", "s2"):
        after = books.at_stripe(ref)
        assert (after["pause_collection"], after["status"] != "paused") == (None, True)
        wanted = int(books.here(ref)["next_payment_at"].timestamp())
        assert after["items"]["data"][0]["current_period_end"] == wanted
    assert books.at_stripe("s1")["trial_end"] is before["trial_end"] is None, "a date that agrees is not moved"
    _agree(books)


def test_the_first_answer_to_an_old_command_is_not_taken_for_a_mend(books: Books) -> None:
    """What was delivered once, and undone at Stripe by a person: the mend needs a key of its own."""
    change(books.billing, "s1", "status = 'paused'")
    version = books.here("s1")["version"]
    command(books.billing, "s1", "pause", json.dumps({"mode": "collection", "resumes_at": None}), version=version)
    books.deliver()
    assert books.compare().by_kind == {}
    books.gateway.resume_collection(stripe_id(books.billing, "s1"), next_payment_at=None, key="portal")
    assert books.mend().mended == {"pause": 1}
    assert books.at_stripe("s1")["pause_collection"] is not None
    assert books.commands() == [("pause", "delivered"), ("pause", "delivered")]
    assert books.events("s1")[1:] == [], "a mend at Stripe is no history"
    _agree(books)


def test_canceled_at_stripe(books: Books) -> None:
    """Its event is lost: nobody polls before the plan, and the mend finds what Stripe says."""
    gone = NOW + timedelta(hours=5)
    books.stripe.set_clock(gone)
    books.gateway.cancel(stripe_id(books.billing, "s1"), key="portal")
    books.stripe.set_clock(NOW + timedelta(hours=9))
    books.clock.advance(timedelta(hours=9))
    planned = books.compare()
    assert [one.mend for one in planned.differences] == ["cancel in the database, as of its end at Stripe"]
    assert books.write_mends(planned).mended == {"status": 1}
    row = books.here("s1")
    assert (row["status"], row["canceled_at"], row["next_payment_at"]) == ("canceled", gone, None)
    assert row["change_reason"] == "reconciliation: canceled at Stripe"
    assert [event for event, *_ in books.events("s1")] == ["canceled"]
    _agree(books)


def test_canceled_here(books: Books) -> None:
    change(books.billing, "s1", "status = 'canceled'")
    assert books.mend().mended == {"status": 1}
    assert books.at_stripe("s1")["status"] == "canceled"
    _agree(books)


def test_price_and_frequency(books: Books) -> None:
    change(books.billing, "s5", "amount_minor = 4321")
    change(books.billing, "s6", "payment_frequency = 'MONTHLY'")
    invoices = books.stripe.counts().get("invoices", 0)
    assert books.mend().mended == {"price": 2}
    price = books.at_stripe("s5")["items"]["data"][0]["price"]
    assert price["unit_amount"] == 4321
    recurring = books.at_stripe("s6")["items"]["data"][0]["price"]["recurring"]
    assert (recurring["interval"], recurring["interval_count"]) == ("month", 1)
    assert books.stripe.counts().get("invoices", 0) == invoices, "no mend charges anybody"
    _agree(books)


def test_quantity(books: Books) -> None:
    change(books.billing, "s1", "quantity = 7")
    assert books.mend().mended == {"quantity": 1}
    assert books.at_stripe("s1")["items"]["data"][0]["quantity"] == 7
    _agree(books)


def test_a_date_that_lies_ahead_is_ours(books: Books) -> None:
    change(books.billing, "s1", "next_payment_at = next_payment_at + interval '3 days'")
    assert books.mend().mended == {"next_payment": 1}
    wanted = int(books.here("s1")["next_payment_at"].timestamp())
    assert books.at_stripe("s1")["items"]["data"][0]["current_period_end"] == wanted
    _agree(books)


def test_a_date_that_has_passed_is_stripes(books: Books) -> None:
    change(books.billing, "s1", "next_payment_at = next_payment_at - interval '20 days'")
    # Not a date of our own calendar either: from then on they are counted from Stripe's.
    change(books.billing, "s2", "next_payment_at = '2026-03-01 12:00+00', billing_anchor = '2026-01-01 12:00+00'")
    anchor = books.here("s1")["billing_anchor"]
    assert books.mend().mended == {"next_payment": 2}
    for ref in ("s1", "s2"):
        there = books.at_stripe(ref)["items"]["data"][0]["current_period_end"]
        assert int(books.here(ref)["next_payment_at"].timestamp()) == there
    assert books.here("s1")["billing_anchor"] == anchor
    assert books.here("s2")["billing_anchor"] == books.here("s2")["next_payment_at"]
    _agree(books)


def test_a_payment_that_is_being_collected_is_no_difference(books: Books) -> None:
    """Stripe's new period begins up to an hour before its invoice is paid."""
    change(books.billing, "s20", "next_payment_at = next_payment_at - interval '25 hours'")
    assert books.here("s20")["next_payment_at"] < NOW
    assert books.kinds() == {}
    books.clock.advance(timedelta(hours=24))
    assert books.kinds() == {("s20", "next_payment"): "flexpay"}


def test_a_payment_that_an_event_explains_is_recorded(books: Books) -> None:
    due = books.here("s1")["next_payment_at"]
    books.stripe.advance(due + timedelta(days=2))
    books.clock.advance(due + timedelta(days=2) - NOW)
    assert books.mend(books.compare()).mended == {}, "the events say it all"
    row = books.billing.execute(
        "SELECT count(*) AS n FROM billing.payments JOIN billing.subscriptions USING (subscription_id)"
        " WHERE subscription_ref = 's1' AND outcome = 'succeeded'"
    ).fetchone()
    assert row == {"n": 1}
    _agree(books)


@pytest.mark.parametrize("paid", [True, False])
def test_a_status_that_no_event_explains_is_stripes(books: Books, paid: bool) -> None:
    """Somebody has edited the status by hand, after the events of the payment were applied."""
    books.stripe.set_decline_rate(0 if paid else 1)
    due = books.here("s20")["next_payment_at"] + timedelta(minutes=1)
    books.stripe.advance(due)
    books.clock.advance(due - NOW)
    books.poll()
    books.billing.execute("DELETE FROM billing.subscription_pauses")
    change(books.billing, "s20", f"status = '{'past_due' if paid else 'active'}'")
    if paid:
        books.billing.execute(
            "INSERT INTO billing.subscription_pauses (pause_ref, subscription_id, starts_at, ends_at, kind, state)"
            " SELECT 'g', subscription_id, %s, %s, 'payment_failure', 'active' FROM billing.subscriptions"
            " WHERE subscription_ref = 's20'",
            (NOW, NOW + timedelta(days=7)),
        )
    assert books.mend().mended == {"status": 1}
    assert books.here("s20")["status"] == ("active" if paid else "past_due")
    grace = books.billing.execute("SELECT state, ends_at FROM billing.subscription_pauses").fetchall()
    ends = books.clock.now() if paid else books.clock.now() + timedelta(days=7)
    assert grace == [{"state": "completed" if paid else "active", "ends_at": ends}]
    _agree(books)


def test_a_link_that_is_missing_or_points_to_a_canceled_one(books: Books) -> None:
    change(books.billing, "s9", "stripe_subscription_id = NULL")
    # s8 is linked to what was canceled; a living one carries its reference.
    known = stripe_id(books.billing, "s7")
    change(books.billing, "s7", "stripe_subscription_id = NULL")
    books.gateway.cancel(stripe_id(books.billing, "s8"), key="portal")
    rename(books, known, "s8")
    found = books.kinds()
    assert found[("s9", "missing_in_stripe")] == "flexpay"
    assert found[("s8", "missing_in_stripe")] == "flexpay"
    assert found[("s7", "missing_in_stripe")] == "a person"
    assert len(found) == 3
    planned = books.compare()
    assert books.write_mends(planned).mended == {"missing_in_stripe": 2}
    assert stripe_id(books.billing, "s8") == known


def test_what_a_person_must_mend_is_left(books: Books) -> None:
    books.gateway.cancel(stripe_id(books.billing, "s1"), key="portal 1")
    change(books.billing, "s1", "stripe_subscription_id = 'sub_nowhere'")
    books.billing.execute("ALTER TABLE billing.subscriptions DROP CONSTRAINT subscriptions_customer_id_currency_fkey")
    change(books.billing, "s2", "currency = 'GBP'")
    unknown = stripe_id(books.billing, "s3")
    rename(books, unknown, "x")
    change(books.billing, "s3", "status = 'canceled', stripe_subscription_id = NULL")
    before = books.kinds()
    assert before == {
        ("s1", "missing_in_stripe"): "a person",
        ("s2", "price"): "a person",
        (unknown, "missing_in_database"): "a person",
    }
    assert books.mend() == MendResult(0, {}, 0, 0)
    assert books.kinds() == before


def test_only_what_was_planned_is_mended(books: Books) -> None:
    change(books.billing, "s1", "quantity = 2")
    change(books.billing, "s2", "amount_minor = 77")
    change(books.billing, "s4", "quantity = 4")
    planned = books.compare()
    change(books.billing, "s3", "quantity = 3")
    change(books.billing, "s4", "quantity = 5")
    assert books.mend(planned, kinds=["quantity"]).mended == {"quantity": 1}, "s3 was not shown, s4 not like this"
    assert set(books.kinds()) == {("s2", "price"), ("s3", "quantity"), ("s4", "quantity")}


def test_mending_twice_does_nothing_more(books: Books) -> None:
    change(books.billing, "s1", "quantity = 2")
    change(books.billing, "s2", "status = 'paused'")
    planned = books.compare()
    assert books.write_mends(planned).commands == 2
    # On its way: nothing is asked for a second time, also not by another plan.
    assert books.write_mends(planned) == MendResult(0, {}, 0, 0)
    assert books.compare().in_flight == 2
    books.deliver()
    assert books.write_mends(planned) == MendResult(0, {}, 0, 0)
    assert books.commands() == [("change_quantity", "delivered"), ("pause", "delivered")]


def test_what_has_changed_since_it_was_compared_is_left_alone(books: Books) -> None:
    change(books.billing, "s1", "quantity = 2")
    change(books.billing, "s2", "quantity = 2")
    planned = books.compare()

    def somebody_is_quicker(sentence: str) -> None:
        if "still there" in sentence:
            change(books.billing, "s1", "quantity = 1")

    result = mend_differences(
        books.billing, books.gateway, planned=planned.reconciliation_id, policy=MendPolicy(), clock=books.clock,
        progress=somebody_is_quicker,
    )  # fmt: skip
    assert result == MendResult(planned=2, mended={"quantity": 1}, left_alone=1, commands=1)
    books.deliver()
    _agree(books)


def test_several_differences_of_one_subscription(books: Books) -> None:
    change(
        books.billing,
        "s5",
        "quantity = 3, amount_minor = 999, payment_frequency = 'YEARLY',"
        " next_payment_at = next_payment_at + interval '4 days'",
    )
    assert books.mend().mended == {"next_payment": 1, "price": 1, "quantity": 1}
    assert [operation for operation, _ in books.commands()] == ["change_price", "change_quantity", "move_payment"]
    _agree(books)


def test_a_parked_command_is_named_and_asked_for_anew(books: Books) -> None:
    change(books.billing, "s1", "status = 'paused'")
    number = command(books.billing, "s1", "pause", json.dumps({"mode": "collection", "resumes_at": "never"}))
    books.deliver()
    assert books.commands() == [("pause", "parked")]
    found = books.compare()
    assert [one.mend for one in found.differences] == [
        f"pause at Stripe; command {number} is parked: the command's parameters cannot be used:"
        " BadInput 'never' is not an ISO-8601 time such as 2026-01-31T09:00:00+00:00."
    ]
    assert books.mend(found).mended == {"pause": 1}
    assert books.commands() == [("pause", "superseded"), ("pause", "delivered")]
    _agree(books)


@pytest.mark.parametrize("fault", ["500_before", "500_after", "reset_after"])
def test_a_mend_that_fails_halfway_is_made_once(books: Books, fault: str) -> None:
    change(books.billing, "s1", "quantity = 2")
    change(books.billing, "s2", "next_payment_at = next_payment_at + interval '3 days'")
    books.write_mends(books.compare())
    books.stripe.order_fault(fault, match="POST /v1/subscriptions", times=2)
    books.deliver()
    assert {state for _, state in books.commands()} == {"pending"}
    books.clock.advance(timedelta(hours=2))
    books.deliver()
    assert {state for _, state in books.commands()} == {"delivered"}
    _agree(books)


def test_a_date_that_passes_before_stripe_is_told_is_not_sent(books: Books) -> None:
    change(books.billing, "s20", "next_payment_at = next_payment_at + interval '2 days'")
    books.write_mends(books.compare())
    books.clock.advance(timedelta(days=4))
    books.deliver()
    assert books.commands() == [("move_payment", "superseded")]
