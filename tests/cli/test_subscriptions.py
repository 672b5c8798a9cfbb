"""One customer's wishes at the terminal: pauses, and changes of plan and payment frequency."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flexpay_pipelines.database import Connection
from flexpay_pipelines.payments import StripeGateway, link_subscriptions
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox, running_stripe_server
from tests.billing.helpers import make_company
from tests.cli.conftest import Flexpay
from tests.commands import Said
from tests.payments.conftest import stripe_id


@pytest.fixture
def stripe(tmp_path: Path) -> Iterator[StripeSandbox]:
    """A Stripe of its own."""
    with running_stripe_server(tmp_path / "stripe") as running:
        running.set_decline_rate(0)
        yield running


@pytest.fixture
def at_work(
    flexpay: Flexpay, billing: Connection, billing_url: str, control_url: str, stripe: StripeSandbox
) -> Callable[..., Said]:
    """The command on a company that Stripe knows: s1 to s3, plan pro at 10.00 EUR a month, paid for ten days ago."""
    paid = datetime.now(UTC).replace(microsecond=0) - timedelta(days=10)
    make_company(billing, zone="Europe/Berlin", anchor=paid, next_payment_at=None, in_stripe=False)
    billing.execute(
        "UPDATE billing.subscriptions SET version = version + 1,"
        " next_payment_at = billing.payment_at(billing_anchor, 'MONTHLY', 1, 'Europe/Berlin')"
    )
    billing.execute("INSERT INTO billing.plans VALUES ('basic', 'Basic')")
    billing.execute(
        "INSERT INTO billing.plan_prices VALUES ('basic', 'MONTHLY', 'EUR', 400), ('basic', 'YEARLY', 'EUR', 4000)"
    )
    stripe.set_clock(datetime.now(UTC))
    stripe.seed_from_billing(billing)
    link_subscriptions(billing, StripeGateway(stripe.api_key, stripe.api_base), progress=lambda _: None)

    def run(*arguments: str, **variables: str) -> Said:
        return flexpay(
            *arguments, FLEXPAY_BILLING_URL=billing_url, FLEXPAY_CONTROL_URL=control_url,
            FLEXPAY_STRIPE_API_KEY=stripe.api_key, FLEXPAY_STRIPE_API_BASE=stripe.api_base, **variables,
        )  # fmt: skip

    return run


def _done(said: Said) -> Said:
    assert said.code == 0, said.out + said.err
    assert "Traceback" not in said.err
    return said


def _refused(said: Said, *words: str) -> None:
    assert said.code == 2, said.out + said.err
    assert "Traceback" not in said.err + said.out
    for word in words:
        assert word in said.err, said.err


def test_a_customers_wishes(at_work: Flexpay, billing: Connection, stripe: StripeSandbox) -> None:
    def there(ref: str) -> dict[str, Any]:
        return StripeGateway(stripe.api_key, stripe.api_base).subscription(stripe_id(billing, ref))

    plan = _done(at_work("pause", "schedule", "s1", "--days", "10", "--plan", "--json")).json
    assert (plan["kind"], plan["subscription_status"]) == ("customer", "paused")
    begun = _done(at_work("pause", "schedule", "s1", "--days", "10", "--reason", "holiday", "--yes", "--json")).json
    assert (begun["state"], begun["reason"], begun["subscription_status"]) == ("active", "holiday", "paused")
    assert there("s1")["pause_collection"] is not None
    later = ("2090-03-29", "2090-04-10")
    put = _done(at_work("pause", "schedule", "s1", "--from", later[0], "--until", later[1], "--yes", "--json")).json
    # Midnight in Berlin, before and after the clock changes.
    assert put["starts_at"].startswith("2090-03-2") and put["ends_at"] == "2090-04-09T22:00:00+00:00"
    _refused(at_work("pause", "schedule", "s1", "--from", later[0], "--days", "3", "--yes"), put["pause_ref"])
    listed = _done(at_work("pause", "list", "--json")).json
    assert [(row["pause_ref"], row["state"]) for row in listed] == [
        (begun["pause_ref"], "active"), (put["pause_ref"], "scheduled"),
    ]  # fmt: skip
    assert _done(at_work("pause", "cancel", put["pause_ref"], "--yes", "--json")).json["state"] == "canceled"
    ended = _done(at_work("pause", "end", "s1", "--yes", "--json")).json
    assert (ended["state"], ended["subscription_status"]) == ("completed", "active")
    assert there("s1")["pause_collection"] is None

    quote = _done(at_work("frequency", "quote", "s3", "--to", "monthly", "--to-plan", "basic", "--json")).json
    assert (quote["from_plan"], quote["to_plan"], quote["amount_minor"]) == ("pro", "basic", 400)
    assert quote["credit_minor"] > quote["debit_minor"] > 0 > quote["net_minor"]
    changed = _done(at_work("frequency", "change", "s3", "--to-plan", "basic", "--yes", "--json")).json
    assert (changed["to_plan"], len(changed["next_payments"])) == ("basic", 3)
    assert there("s3")["items"]["data"][0]["price"]["unit_amount"] == 400
    wish = ("s3", "--to", "YEARLY", "--when", "period-end")
    shown = _done(at_work("frequency", "change", *wish, "--plan"))
    assert "40.00 EUR" in shown.out
    scheduled = _done(at_work("frequency", "change", *wish, "--yes", "--json")).json
    assert (scheduled["credit_minor"], scheduled["debit_minor"]) == (0, 0)
    assert there("s3")["items"]["data"][0]["price"]["unit_amount"] == 4000
    waiting = _done(at_work("frequency", "cancel", "s3", "--plan", "--json")).json
    assert waiting["effective_at"] == scheduled["next_payments"][0]
    _done(at_work("frequency", "cancel", "s3", "--yes", "--json"))
    assert there("s3")["items"]["data"][0]["price"]["unit_amount"] == 400

    trail = _done(at_work("audit", "--subject", "s3", "--json")).json
    assert {(entry["action"], entry["outcome"]) for entry in trail} >= {
        ("change frequency", "done"), ("cancel frequency change", "done"),
    }  # fmt: skip
    for bad, words in (
        (("pause", "schedule", "s1", "--from", "2026-02-30", "--days", "3", "--yes"), ("2026-02-30",)),
        (("pause", "list", "s9"), ("s9",)),
        (("pause", "cancel", "p9", "--yes"), ("p9", "flexpay pause list")),
        (("frequency", "quote", "s3", "--to", "WEEKLY"), ("no WEEKLY price in EUR",)),
    ):
        _refused(at_work(*bad), *words)
    _refused(at_work("pause", "schedule", "s1", "--days", "8", "--yes", FLEXPAY_PAUSE_MAX_DAYS="7"), "at most 7 days")


@pytest.mark.parametrize("group", [("pause", "schedule"), ("frequency", "change"), ("frequency", "quote")])
def test_help_shows_examples(flexpay: Flexpay, group: tuple[str, str]) -> None:
    said = flexpay(*group, "--help")
    assert said.code == 0
    assert f"flexpay {' '.join(group)} sub-17" in said.out


def test_a_frequency_that_there_is_not(flexpay: Flexpay) -> None:
    _refused(flexpay("frequency", "quote", "s1", "--to", "DAILY"), "DAILY")
