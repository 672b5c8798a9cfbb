"""`flexpay stripe`: what was refused is listed, put back and told, each as a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.payments import StripeGateway, link_subscriptions
from flexpay_pipelines.sandbox.stripe_server import running_stripe_server
from tests.cli.conftest import Flexpay
from tests.commands import Said
from tests.payments.conftest import NOW, change, command, fill, outbox, quiet, stripe_id

PAUSE = json.dumps({"mode": "collection", "resumes_at": None})


def _done(said: Said) -> Said:
    assert said.code == 0, said.out + said.err
    assert "Traceback" not in said.err
    return said


def test_a_refused_command_from_the_alert_to_its_delivery(
    flexpay: Flexpay, tmp_path: Path, billing: Connection, billing_url: str, control_url: str
) -> None:
    with running_stripe_server(tmp_path / "sandbox") as stripe:
        stripe.set_clock(NOW)
        fill(billing, 3)
        stripe.seed_from_billing(billing)
        gateway = StripeGateway(stripe.api_key, stripe.api_base)
        link_subscriptions(billing, gateway, progress=quiet)
        ours = {
            "FLEXPAY_BILLING_URL": billing_url, "FLEXPAY_CONTROL_URL": control_url,
            "FLEXPAY_STRIPE_API_KEY": stripe.api_key, "FLEXPAY_STRIPE_API_BASE": stripe.api_base,
        }  # fmt: skip
        refused, known = command(billing, "s1", "pause", PAUSE), stripe_id(billing, "s1")
        change(billing, "s1", "stripe_subscription_id = 'sub_unknown'")

        assert _done(flexpay("stripe", "deliver", "--plan", "--json", **ours)).json == {"waiting": 1}
        assert _done(flexpay("stripe", "deliver", "--yes", "--json", **ours)).json["parked"] == 1
        (listed,) = _done(flexpay("stripe", "parked", "--json", **ours)).json
        assert (listed["command_id"], listed["subscription_ref"]) == (refused, "s1")
        assert "No such subscription" in listed["reason"]
        assert listed["alerted_at"] is not None
        with opened(control_url, purpose="test", role="control") as control:
            row = control.execute("SELECT title FROM ops.alerts").fetchone()
        assert row == {"title": "Stripe refuses 1 of our changes"}

        change(billing, "s1", f"stripe_subscription_id = '{known}'")
        assert [
            one["command_id"] for one in _done(flexpay("stripe", "retry", "--all", "--plan", "--json", **ours)).json
        ] == [refused]
        assert outbox(billing) == {refused: "parked"}, "a plan changes nothing"
        assert _done(flexpay("stripe", "retry", str(refused), "--yes", "--json", **ours)).json["retried"] == 1
        assert _done(flexpay("stripe", "deliver", "--yes", "--json", **ours)).json["delivered"] == 1
        assert gateway.subscription(known)["pause_collection"] is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("retry",), "or --all"),
        (("retry", "7", "--all"), "or --all"),
        (("retry", "seven"), "Invalid value"),
    ],
)  # fmt: skip
def test_a_retry_names_what_it_means(flexpay: Flexpay, arguments: tuple[str, ...], said: str) -> None:
    answer = flexpay("stripe", *arguments)
    assert answer.code == 2
    assert said in answer.err
