"""What a rollback changed comes back, where nobody has changed it since."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.rollback import (
    list_rollbacks,
    plan_undo,
    undo_rollback,
)
from tests.rollback.helpers import (
    ANCHORS,
    CHANGING_AT_STRIPE,
    LIVE,
    live,
    one,
    rolled,
    rows,
)


@pytest.mark.parametrize("component", ["frequencies", "pauses", "rewards", "complete"])
def test_undo_brings_everything_back(
    company: Connection, control: Connection, clock: FixedClock, component: str
) -> None:
    before, anchors = live(company), rows(company, ANCHORS)
    done = rolled(company, control, clock, component, batch_size=11)
    assert live(company) != before
    clock.advance(timedelta(hours=3))
    result = undo_rollback(company, control, rollback_id=done.rollback_id, actor="grace", clock=clock, batch_size=5)
    assert live(company) == before
    if component == "pauses":
        assert rows(company, ANCHORS) == anchors
    assert result.left_alone == {}
    assert result.restored["feature"] == (3 if component == "complete" else 1)
    again = undo_rollback(company, control, rollback_id=done.rollback_id, actor="grace", clock=clock)
    assert again == result
    assert live(company) == before
    assert one(control, "SELECT state FROM ops.rollbacks") == "undone"
    if component in ("frequencies", "complete"):
        moved = "SELECT count(*) FROM billing.subscription_events WHERE reason = %s"
        there = one(company, moved, f"rollback {done.rollback_id}")
        back = one(company, moved, f"undo of rollback {done.rollback_id}")
        assert there == back > 0
    keys = rows(company, "SELECT idempotency_key FROM billing.stripe_commands")
    # There one command told a subscription's new terms and that its change is off; back each has its own.
    both = 0 if component in ("pauses", "rewards") else one(company, CHANGING_AT_STRIPE)
    assert len(keys) == 2 * done.changes.get("stripe_commands", 0) + both
    assert component in ("pauses", "rewards") or both > 0


def test_undo_leaves_alone_what_was_changed_since(company: Connection, control: Connection, clock: FixedClock) -> None:
    done = rolled(company, control, clock, "frequencies")
    moved = rows(
        company,
        "SELECT subject_id FROM archive.rollback_entries WHERE subject = 'subscription' ORDER BY subject_id LIMIT 3",
    )
    changed, canceled, touched = (row["subject_id"] for row in moved)
    company.execute("UPDATE billing.subscriptions SET amount_minor = 77 WHERE subscription_id = %s", (changed,))
    company.execute("UPDATE billing.subscriptions SET status = 'canceled' WHERE subscription_id = %s", (canceled,))
    company.execute("UPDATE billing.subscriptions SET stripe_event_at = now() WHERE subscription_id = %s", (touched,))
    result = undo_rollback(company, control, rollback_id=done.rollback_id, actor="grace", clock=clock)
    assert result.left_alone["subscription: its terms were changed since"] == 1
    assert result.left_alone["subscription: it was canceled since"] == 1
    assert result.restored["subscription"] == done.changes["subscriptions_moved_to_monthly"] - 2
    now = {row["subscription_id"]: row for row in rows(company, LIVE)}
    assert (now[changed]["amount_minor"], now[changed]["payment_frequency"]) == (77, "MONTHLY")
    assert now[touched]["payment_frequency"] != "MONTHLY"


def test_a_later_rollback_is_undone_first(company: Connection, control: Connection, clock: FixedClock) -> None:
    first = rolled(company, control, clock, "frequencies")
    second = rolled(company, control, clock, "complete")
    with pytest.raises(BadInput, match=f"Rollback {second.rollback_id} of 'complete' came later"):
        undo_rollback(company, control, rollback_id=first.rollback_id, actor="grace", clock=clock)
    undo_rollback(company, control, rollback_id=second.rollback_id, actor="grace", clock=clock)
    assert not one(company, "SELECT enabled FROM billing.feature_flags WHERE feature = 'frequencies'")
    undo_rollback(company, control, rollback_id=first.rollback_id, actor="grace", clock=clock)
    assert one(company, "SELECT count(*) FROM billing.feature_flags WHERE enabled") == 3


def test_rollbacks_are_listed_and_an_undo_is_planned(
    company: Connection, control: Connection, clock: FixedClock
) -> None:
    first = rolled(company, control, clock, "rewards")
    second = rolled(company, control, clock, "frequencies")
    assert [row["rollback_id"] for row in list_rollbacks(control)] == [second.rollback_id, first.rollback_id]
    before = live(company)
    plan = plan_undo(company, control, second.rollback_id)
    assert live(company) == before
    result = undo_rollback(company, control, rollback_id=second.rollback_id, actor="grace", clock=clock)
    assert plan == result.restored
    assert list_rollbacks(control, limit=1)[0]["state"] == "undone"
    with pytest.raises(BadInput, match="undone already"):
        plan_undo(company, control, second.rollback_id)


def test_an_unfinished_rollback_cannot_be_undone(company: Connection, control: Connection, clock: FixedClock) -> None:
    done = rolled(company, control, clock, "rewards")
    control.execute("UPDATE ops.rollbacks SET state = 'running'")
    with pytest.raises(BadInput, match="is running: run the rollback again to finish it"):
        undo_rollback(company, control, rollback_id=done.rollback_id, actor="grace", clock=clock)
