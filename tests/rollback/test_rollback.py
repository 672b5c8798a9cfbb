"""Rolling a component back changes what it should, keeps what was there, and does it once."""

from __future__ import annotations

import pytest

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.rollback import (
    plan_rollback,
    undo_rollback,
)
from tests.rollback.helpers import (
    LIVE,
    SCHEDULED,
    live,
    one,
    rolled,
    rows,
)


@pytest.fixture
def incident(control: Connection) -> int:
    return int(
        one(
            control,
            "INSERT INTO ops.incidents (trigger, component, opened_at, detected_at)"
            " VALUES ('payment_failure_rate', 'frequencies', '2026-03-10', '2026-03-10') RETURNING incident_id",
        )
    )


def test_the_plan_is_what_is_done(company: Connection, control: Connection, clock: FixedClock) -> None:
    for component in ("frequencies", "pauses", "rewards"):
        before = live(company)
        plan = plan_rollback(company, component)
        assert live(company) == before
        result = rolled(company, control, clock, component)
        assert result.changes == {name: count for name, count in plan.changes.items() if count}
        assert sum(result.changes.values()) > 3 or component == "rewards"


def test_frequencies_go_to_the_monthly_price(company: Connection, control: Connection, clock: FixedClock) -> None:
    before = {row["subscription_id"]: row for row in rows(company, LIVE)}
    commands_before = one(company, "SELECT count(*) FROM billing.stripe_commands")
    result = rolled(company, control, clock, "frequencies", batch_size=7)
    moved = 0
    for row in rows(company, LIVE):
        was = before[row["subscription_id"]]
        if was["payment_frequency"] == "MONTHLY" or was["status"] == "canceled":
            assert row == was
            continue
        moved += 1
        expected = {"basic": 1000, "bespoke": 8334}[was["plan"]]  # 100003 / 12 = 8333.58
        assert row == {**was, "payment_frequency": "MONTHLY", "amount_minor": expected}
    assert moved == result.changes["subscriptions_moved_to_monthly"] > 50
    events = rows(
        company,
        "SELECT event, occurred_at, payment_frequency FROM billing.subscription_events WHERE reason = %s",
        f"rollback {result.rollback_id}",
    )
    assert len(events) == moved
    assert {(e["event"], e["payment_frequency"], e["occurred_at"]) for e in events} == {
        ("changed", "MONTHLY", clock.now())
    }
    commands = rows(
        company,
        "SELECT idempotency_key, subscription_id, operation, parameters FROM billing.stripe_commands"
        " ORDER BY command_id",
    )[commands_before:]
    at_stripe = rows(
        company, "SELECT subscription_id, version FROM billing.subscriptions WHERE stripe_subscription_id IS NOT NULL"
    )
    versions = {row["subscription_id"]: row["version"] for row in at_stripe}
    amounts = {row["subscription_id"]: row["amount_minor"] for row in rows(company, LIVE)}
    assert len(commands) == result.changes["stripe_commands"] > 20
    for command in commands:
        number = command["subscription_id"]
        assert command["idempotency_key"] == f"{number}:change_price:{versions[number]}"
        assert command["operation"] == "change_price"
        assert command["parameters"]["payment_frequency"] == "MONTHLY"
        assert command["parameters"]["proration"] == "none"
        assert command["parameters"]["currency"] == "EUR"
        assert command["parameters"]["amount_minor"] == amounts[number]
    assert rows(company, SCHEDULED) == []
    assert not one(company, "SELECT enabled FROM billing.feature_flags WHERE feature = 'frequencies'")
    assert one(company, "SELECT count(*) FROM billing.feature_flags WHERE enabled") == 2
    kept = rows(control, "SELECT state, details, finished_at FROM ops.rollbacks")
    assert [(row["state"], row["finished_at"]) for row in kept] == [("done", clock.now())]
    assert kept[0]["details"]["derived_prices"][0]["monthly_minor"] == 8334
    assert kept[0]["details"]["changes"] == result.changes


def test_an_incident_is_answered_once(
    company: Connection, control: Connection, clock: FixedClock, incident: int
) -> None:
    first = rolled(company, control, clock, "frequencies", incident_id=incident, run_id="r1")
    after = live(company)
    second = rolled(company, control, clock, "frequencies", incident_id=incident, run_id="r2")
    assert (second.rollback_id, second.changes) == (first.rollback_id, first.changes)
    assert live(company) == after
    assert one(control, "SELECT closed_at FROM ops.incidents") == clock.now()
    with pytest.raises(BadInput, match="takes back 'frequencies', not 'pauses'"):
        rolled(company, control, clock, "pauses", incident_id=incident)


def test_bad_input_changes_nothing(company: Connection, control: Connection, clock: FixedClock) -> None:
    before = live(company)
    for component, more, says in (
        ("loyalty", {}, "no component 'loyalty'"),
        ("pauses", {"pause_mode": "forever"}, "no pause mode 'forever'"),
        ("pauses", {"incident_id": 99}, "no incident 99"),
        ("pauses", {"rollback_id": 99}, "no rollback 99"),
        ("pauses", {"batch_size": 0}, "at least one row"),
    ):
        with pytest.raises(BadInput, match=says):
            rolled(company, control, clock, component, **more)
    with pytest.raises(BadInput, match="no rollback 5"):
        undo_rollback(company, control, rollback_id=5, actor="grace", clock=clock)
    assert live(company) == before
    assert rows(control, "SELECT * FROM ops.rollbacks") == []


def test_a_component_that_is_not_deployed_is_named(billing: Connection, control: Connection, clock: FixedClock) -> None:
    billing.execute("ALTER TABLE billing.subscription_pauses SET SCHEMA archive")
    with pytest.raises(BadInput, match="'pauses' is not deployed in this database"):
        plan_rollback(billing, "pauses")
    assert rolled(billing, control, clock, "complete").changes == {"features_turned_off": 2}
    billing.execute("ALTER TABLE archive.rollback_entries RENAME TO rollback_entries_set_aside")
    with pytest.raises(BadInput, match="deploy the component 'core' first"):
        rolled(billing, control, clock, "frequencies")


def test_numbers_are_not_given_twice_after_the_control_database_was_lost(
    company: Connection, control: Connection, clock: FixedClock
) -> None:
    rolled(company, control, clock, "rewards")
    first = rolled(company, control, clock, "frequencies")
    control.execute("TRUNCATE ops.rollbacks RESTART IDENTITY CASCADE")
    assert rolled(company, control, clock, "pauses").rollback_id > first.rollback_id
