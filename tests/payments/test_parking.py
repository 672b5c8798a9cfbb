"""Parked commands: listed with their reasons, told of once, tried again when the reason is mended."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from flexpay_pipelines.alerts import list_alerts
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.payments import (
    Retried,
    StripeGateway,
    alert_parked,
    deliver_commands,
    parked_commands,
    retry_parked,
)
from tests.payments.conftest import change, command, outbox, quiet, stripe_id

PAUSE = json.dumps({"mode": "collection", "resumes_at": None})
RESUME = json.dumps({"mode": "collection"})


def _deliver(billing: Connection, gateway: StripeGateway, clock: FixedClock) -> None:
    deliver_commands(billing, gateway, clock=clock, progress=quiet)


def _alert(billing: Connection, control: Connection, clock: FixedClock) -> int:
    return alert_parked(billing, control, clock=clock, progress=quiet)


@pytest.fixture
def refused(company: Connection, gateway: StripeGateway, clock: FixedClock) -> list[int]:
    """Two commands that Stripe refused: their subscriptions are unknown there."""
    ids = [command(company, f"s{number}", "pause", PAUSE) for number in (1, 2)]
    for number in (1, 2):
        change(company, f"s{number}", f"stripe_subscription_id = 'sub_none_{number}'")
    _deliver(company, gateway, clock)
    return ids


def test_what_is_parked_is_listed_with_its_reason(company: Connection, refused: list[int]) -> None:
    listed = parked_commands(company)
    assert [one.command_id for one in listed] == refused
    assert [one.subscription_ref for one in listed] == ["s1", "s2"]
    assert all("No such subscription" in str(one.reason) for one in listed)


def test_one_alert_tells_of_all_that_was_parked_and_never_again(
    company: Connection, control: Connection, gateway: StripeGateway, clock: FixedClock, refused: list[int]
) -> None:
    assert _alert(company, control, clock) == 1
    (record,) = list_alerts(control, limit=10)
    assert record.alert.title == "Stripe refuses 2 of our changes"
    assert "No such subscription" in json.dumps(record.alert.context)
    clock.advance(timedelta(days=1))
    assert _alert(company, control, clock) == 0
    assert all(one.alerted_at is not None for one in parked_commands(company))
    third = command(company, "s3", "pause", PAUSE)
    change(company, "s3", "stripe_subscription_id = 'sub_none_3'")
    _deliver(company, gateway, clock)
    assert _alert(company, control, clock) == 1, f"command {third} is news"
    assert list_alerts(control, limit=1)[0].alert.title == "Stripe refuses 1 of our changes"
    assert {one.alert.repeats for one in list_alerts(control, limit=10)} == {0}


def test_killed_after_the_alert_it_is_not_raised_a_second_time(
    company: Connection, control: Connection, clock: FixedClock, refused: list[int]
) -> None:
    """The alert stands in the control database; the mark in the billing database was lost."""
    assert _alert(company, control, clock) == 1
    company.execute("UPDATE billing.stripe_commands SET alerted_at = NULL")
    clock.advance(timedelta(hours=5))
    assert _alert(company, control, clock) == 0
    assert len(list_alerts(control, limit=10)) == 1
    assert all(one.alerted_at is not None for one in parked_commands(company))


def test_killed_before_the_alert_it_is_raised_by_the_next_run(
    company: Connection, control: Connection, clock: FixedClock, refused: list[int]
) -> None:
    company.execute("UPDATE billing.stripe_commands SET alert = 'stripe-parked:7:1'")
    assert _alert(company, control, clock) == 1
    assert list_alerts(control, limit=1)[0].alert.fingerprint == "stripe-parked:7:1"


def test_what_is_mended_is_tried_again(
    company: Connection, control: Connection, gateway: StripeGateway, clock: FixedClock, refused: list[int]
) -> None:
    _alert(company, control, clock)
    known = gateway.subscription(stripe_id(company, "s3"))["id"]
    change(company, "s3", "stripe_subscription_id = NULL")
    change(company, "s1", f"stripe_subscription_id = '{known}'")
    assert retry_parked(company, [refused[0]]) == Retried(1, 0)
    assert outbox(company) == {refused[0]: "pending", refused[1]: "parked"}
    _deliver(company, gateway, clock)
    assert outbox(company)[refused[0]] == "delivered"
    assert gateway.subscription(known)["pause_collection"] is not None
    assert retry_parked(company, None) == Retried(1, 0), "all that is left"
    _deliver(company, gateway, clock)
    assert outbox(company)[refused[1]] == "parked"
    assert _alert(company, control, clock) == 1, "it was refused anew"


def test_what_a_later_command_has_overtaken_is_over(
    company: Connection, gateway: StripeGateway, clock: FixedClock
) -> None:
    """A pause that is tried again after its resume would stop a customer's payments for ever."""
    parked = command(company, "s1", "pause", json.dumps({"mode": "collection", "resumes_at": "rubbish"}))
    _deliver(company, gateway, clock)
    command(company, "s1", "resume", RESUME, 2)
    _deliver(company, gateway, clock)
    assert outbox(company)[parked] == "parked"
    assert retry_parked(company, None) == Retried(0, 1)
    assert outbox(company)[parked] == "superseded"


def test_only_parked_commands_can_be_retried(company: Connection, refused: list[int]) -> None:
    before = outbox(company)
    with pytest.raises(BadInput, match="Not parked: command 4711"):
        retry_parked(company, [refused[0], 4711])
    assert outbox(company) == before
