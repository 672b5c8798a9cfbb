"""`flexpay reconcile` as its users run it: what it lists, asks, mends, and with which exit code it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flexpay_pipelines.database import Connection
from flexpay_pipelines.payments import StripeGateway
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox
from tests.commands import Said, environment, run
from tests.payments.conftest import change, stripe_id

Reconcile = Callable[..., Said]


@pytest.fixture
def reconcile(
    company: Connection, stripe: StripeSandbox, billing_url: str, control_url: str, tmp_path: Path
) -> Reconcile:
    """Run `flexpay reconcile ARGUMENTS` over the company's databases and Stripe."""
    variables = environment(
        tmp_path, FLEXPAY_BILLING_URL=billing_url, FLEXPAY_CONTROL_URL=control_url,
        FLEXPAY_STRIPE_API_KEY=stripe.api_key, FLEXPAY_STRIPE_API_BASE=stripe.api_base,
        FLEXPAY_STRIPE_REQUESTS_PER_SECOND="1000", COLUMNS="200",
    )  # fmt: skip

    def run_reconcile(*arguments: str) -> Said:
        said = run("reconcile", *arguments, env=variables, cwd=tmp_path)
        assert "Traceback" not in said.err
        return said

    return run_reconcile


def test_a_plan_a_mend_and_peace(reconcile: Reconcile, company: Connection, gateway: StripeGateway) -> None:
    change(company, "s1", "quantity = 2")
    change(company, "s2", "amount_minor = amount_minor + 1")
    gateway.pause(stripe_id(company, "s3"), mode="collection", resumes_at=None, key="portal")

    plan = reconcile("--mend", "--plan", "--json")
    assert plan.code == 0
    assert [(one["subscription_ref"], one["kind"], one["by"]) for one in plan.json] == [
        ("s3", "pause", "flexpay"), ("s2", "price", "flexpay"), ("s1", "quantity", "flexpay"),
    ]  # fmt: skip
    row = company.execute("SELECT count(*) AS n FROM billing.stripe_commands").fetchone()
    assert row == {"n": 0}, "a plan changes nothing"

    some = reconcile("--mend", "--kind", "quantity", "--kind", "pause", "--yes", "--json")
    assert (some.code, some.json["mended"], some.json["left"]) == (1, {"pause": 1, "quantity": 1}, 1)
    assert [one["kind"] for one in some.json["which"]] == ["price"]

    rest = reconcile("--mend", "--yes", "--json")
    assert (rest.code, rest.json["mended"], rest.json["delivered"], rest.json["which"]) == (0, {"price": 1}, 1, [])
    again = reconcile("--mend")
    assert again.code == 0
    assert "Nothing is to be mended." in again.err


def test_nobody_to_ask_and_what_a_killed_mend_left_waiting(reconcile: Reconcile, company: Connection) -> None:
    change(company, "s2", "quantity = 2")
    listed = reconcile()
    assert listed.code == 1
    assert "change the quantity" in " ".join(listed.out.split())
    unasked = reconcile("--mend")
    assert unasked.code == 2
    assert "1 of 1 differences can be mended. Mend them, and tell Stripe? Nobody" in " ".join(unasked.err.split())

    change(company, "s2", "quantity = 1")
    change(company, "s1", "quantity = 2")
    company.execute(
        "INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)"
        " SELECT 'left', subscription_id, 'change_quantity', '{\"quantity\": 2}' FROM billing.subscriptions"
        " WHERE subscription_ref = 's1'"
    )
    done = reconcile("--mend", "--yes", "--json")
    assert (done.code, done.json["delivered"], done.json["left"]) == (0, 1, 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--yes",), "--plan and --yes go with --mend"),
        (("--kind", "colour"), "There is no kind of difference 'colour': use one of status, pause, price"),
    ],
)
def test_wrong_usage(reconcile: Reconcile, arguments: tuple[str, ...], sentence: str) -> None:
    said = reconcile(*arguments)
    assert said.code == 2
    assert sentence in " ".join(said.err.split())
