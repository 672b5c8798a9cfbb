"""Random drift on both sides, mended: the two agree, but for what only a person can mend."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import FlexPayError
from flexpay_pipelines.payments import StripeGateway, link_subscriptions
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox
from tests.payments.books import Books
from tests.payments.conftest import NOW, change, fill, quiet, stripe_id

NUMBER = 6
REFS = st.sampled_from([f"s{number}" for number in range(1, NUMBER + 1)])
HERE = st.sampled_from(
    (
        "status = 'paused'", "status = 'suspended'", "status = 'past_due'", "status = 'trialing'",
        "status = 'canceled'", "status = 'active'", "quantity = quantity + 1", "amount_minor = amount_minor + 13",
        "payment_frequency = 'QUARTERLY'", "payment_frequency = 'WEEKLY'", "stripe_subscription_id = NULL",
        "next_payment_at = next_payment_at + interval '3 days'",
        "next_payment_at = next_payment_at - interval '40 days'",
    )
)  # fmt: skip
THERE = st.sampled_from(("pause collection", "pause subscription", "resume", "cancel", "quantity", "move"))
EDITS = st.lists(st.tuples(REFS, st.one_of(HERE, THERE)), min_size=1, max_size=9)


def _at_stripe(books: Books, ref: str, edit: str, key: str) -> None:
    """What a person clicks in Stripe's own pages; what Stripe does not allow is not done."""
    identifier = stripe_id(books.billing, ref)
    gateway = books.gateway
    try:
        match edit.split():
            case "pause", mode:
                gateway.pause(identifier, mode=mode, resumes_at=None, key=key)
            case ("resume",):
                gateway.resume_collection(identifier, next_payment_at=None, key=key)
            case ("cancel",):
                gateway.cancel(identifier, key=key)
            case ("quantity",):
                item = gateway.subscription(identifier)["items"]["data"][0]["id"]
                gateway.change_quantity(identifier, item=item, quantity=9, key=key)
            case _:
                gateway.move_payment(identifier, int(NOW.timestamp()) + 5 * 86_400, key=key)
    except FlexPayError:
        return


def _begin(books: Books) -> None:
    """The company as it was: the database is cheaper to restore than to clone for each example."""
    billing = books.billing
    billing.execute("SET session_replication_role = replica")
    billing.execute("TRUNCATE billing.customers, billing.plans, billing.reconciliations, billing.stripe_events CASCADE")
    billing.execute("RESET session_replication_role")
    fill(billing, NUMBER)
    books.stripe.seed_from_billing(billing)
    link_subscriptions(billing, books.gateway, progress=quiet)


def _drift_and_mend(books: Books, edits: list[tuple[str, str]], mode: str) -> None:
    _begin(books)
    for number, (ref, edit) in enumerate(edits):
        if " = " in edit:
            change(books.billing, ref, edit)
        else:
            _at_stripe(books, ref, edit, f"portal {number} {edit}")
    before = books.stripe.counts().get("invoices", 0)
    # A link that comes back, or a pause that is lifted, shows what was hidden behind it: at most a few rounds.
    for _ in range(4):
        books.mend(mode=mode)
        left = books.compare()
        if all(one.by == "a person" for one in left.differences):
            break
    assert [one for one in left.differences if one.by == "flexpay"] == []
    assert books.stripe.counts().get("invoices", 0) == before, "no mend charges anybody"
    assert {state for _, state in books.commands()} <= {"delivered"}
    assert books.compare(incremental=True).by_kind == left.by_kind
    asked = books.commands()
    books.mend(mode=mode)
    assert books.commands() == asked, "what agrees is left in peace"


@pytest.mark.parametrize("mode", ["collection", "subscription"])
@pytest.mark.parametrize("examples", [10, pytest.param(500, marks=pytest.mark.soak)])
def test_drift_is_mended(
    billing: Connection, stripe: StripeSandbox, gateway: StripeGateway, mode: str, examples: int
) -> None:
    books = Books(billing, gateway, FixedClock(NOW), stripe)

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=examples < 100)
    @given(edits=EDITS)
    def drifts(edits: list[tuple[str, str]]) -> None:
        _drift_and_mend(books, edits, mode)

    drifts()
