"""Pauses that a rollback ends: dates and debts as at any end of a pause, and back again."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flexpay_pipelines.billing import apply_payment_outcomes, set_feature
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.rollback import (
    plan_rollback,
    undo_rollback,
)
from tests.billing.helpers import DAY, HOUR, add_pause, add_payment, clock_at, commands, events, subscription, sweep
from tests.billing.helpers import make_company as one_company
from tests.rollback.conftest import NOW
from tests.rollback.helpers import (
    ANCHORS,
    LIVE,
    PAUSES,
    live,
    one,
    rolled,
    rows,
)


def test_pauses_end_and_graces_go_on(company: Connection, control: Connection, clock: FixedClock) -> None:
    before = {row["subscription_id"]: row for row in rows(company, LIVE)}
    graces = rows(company, PAUSES.replace("ORDER", "WHERE kind = 'payment_failure' ORDER"))
    assert graces
    result = rolled(company, control, clock, "pauses", pause_mode="subscription", batch_size=3)
    assert rows(company, PAUSES.replace("ORDER", "WHERE kind = 'payment_failure' ORDER")) == graces
    paused_for = clock.now() - rows(company, "SELECT '2026-03-01'::timestamptz AS t")[0]["t"]
    for row in rows(company, LIVE):
        was = before[row["subscription_id"]]
        if was["status"] == "paused":
            moved = was["next_payment_at"] + paused_for
            assert row == {**was, "status": "active", "next_payment_at": moved}
            # Dates to come are counted from the one that was moved.
            anchor = "SELECT billing_anchor FROM billing.subscriptions WHERE subscription_id = %s"
            assert one(company, anchor, row["subscription_id"]) == moved
        else:
            assert row == was
    # Stripe is told of the moved date, or it would bill on the old one.
    told = rows(
        company,
        "SELECT c.parameters FROM billing.stripe_commands AS c JOIN billing.subscriptions AS s USING (subscription_id)"
        " WHERE (c.parameters ->> 'next_payment_at')::timestamptz = s.next_payment_at",
    )
    assert {row["parameters"]["mode"] for row in told} == {"subscription"}
    assert (
        len(told) == one(company, "SELECT count(*) FROM billing.stripe_commands") == result.changes["stripe_commands"]
    )
    states = rows(
        company, "SELECT DISTINCT kind, state FROM billing.subscription_pauses WHERE state IN ('active', 'scheduled')"
    )
    assert [row["kind"] for row in states] == ["payment_failure"]


def test_an_overdue_pause_ends_when_it_was_due(company: Connection, control: Connection, clock: FixedClock) -> None:
    clock.advance(timedelta(days=30))  # the pauses of even subscriptions ended on 1 April, and nobody swept them
    rolled(company, control, clock, "pauses")
    ended = rows(company, "SELECT subscription_id, ends_at FROM billing.subscription_pauses WHERE state = 'completed'")
    assert ended
    for row in ended:
        due = "2026-04-01" if row["subscription_id"] % 2 == 0 else "2026-04-09"
        assert row["ends_at"].isoformat().startswith(due)
        occurred = one(
            company,
            "SELECT occurred_at FROM billing.subscription_events WHERE event = 'resumed' AND subscription_id = %s",
            row["subscription_id"],
        )
        assert occurred == row["ends_at"]


# Of `owing`: when it began, was to be paid, paused, and when it is rolled back.
DUE = NOW - 8 * DAY
PAUSED, ENDS = DUE + HOUR, NOW + 20 * DAY
NEXT = DUE + 31 * DAY


def owing(billing: Connection, *, tried: bool = True) -> None:
    """`s1`, whose payment was due an hour before its pause: it was declined, or Stripe had not come to it."""
    one_company(billing, 2, anchor=DUE - 28 * DAY, next_payment_at=DUE)
    add_pause(billing, "s1", PAUSED, ENDS)
    if tried:
        failed = add_payment(billing, "s1", DUE, "failed")
        apply_payment_outcomes(billing, [failed], clock=clock_at(DUE), grace_days=7)
    sweep(billing, PAUSED)
    assert subscription(billing)["status"] == "paused"


def pauses_by_time(billing: Connection) -> list[tuple[object, ...]]:
    query = "SELECT kind, state, starts_at, ends_at FROM billing.subscription_pauses ORDER BY starts_at"
    return [tuple(row.values()) for row in rows(billing, query)]


@pytest.mark.parametrize("tried", [True, False])
def test_a_payment_that_was_declined_before_a_pause_is_not_billed_twice(
    billing: Connection, control: Connection, clock: FixedClock, tried: bool
) -> None:
    owing(billing, tried=tried)
    warned = [says for says in plan_rollback(billing, "pauses").warnings if "owe a payment" in says]
    assert [says.split()[0] for says in warned] == ["1"] * tried
    rolled(billing, control, clock, "pauses", grace_days=5)
    row, moved = subscription(billing), (NEXT if tried else DUE) + (NOW - PAUSED)
    # What was tried was billed, and is owed: the pause moves the one after it. What nobody tried is asked for now.
    assert (row["next_payment_at"], row["billing_anchor"]) == (moved, moved)
    assert commands(billing)[1:] == [("resume", {"mode": "collection", "next_payment_at": moved.isoformat()})]
    assert row["status"] == ("past_due" if tried else "active")
    assert events(billing)[-1] == ("past_due" if tried else "resumed", NOW)
    grace = [("payment_failure", "active", NOW, NOW + 5 * DAY)] if tried else []
    assert pauses_by_time(billing) == [("customer", "completed", PAUSED, NOW), *grace]
    if tried:
        # While pauses are off nobody is suspended; after that at the time at which it was due.
        assert sweep(billing, NOW + 6 * DAY).suspended == 0
        set_feature(billing, "pauses", True, "over", clock)
        assert sweep(billing, NOW + 6 * DAY).suspended == 1
        assert events(billing)[-1] == ("suspended", NOW + 5 * DAY)


@pytest.mark.parametrize("then", ["nothing", "paid", "suspended"])
def test_the_undo_lets_the_pause_of_one_who_owes_go_on(
    billing: Connection, control: Connection, clock: FixedClock, then: str
) -> None:
    owing(billing)
    before, anchors = live(billing), rows(billing, ANCHORS)
    done = rolled(billing, control, clock, "pauses")
    assert done.changes == {
        "features_turned_off": 1, "pauses_ended": 1, "subscriptions_resumed": 1, "stripe_commands": 1
    }  # fmt: skip
    clock.advance(DAY if then != "suspended" else 8 * DAY)
    if then == "paid":
        paid = add_payment(billing, "s1", NOW + HOUR, "succeeded", attempt=2)
        apply_payment_outcomes(billing, [paid], clock=clock, grace_days=7)
    elif then == "suspended":
        set_feature(billing, "pauses", True, "over", clock)
        assert sweep(billing, clock.now()).suspended == 1
    result = undo_rollback(billing, control, rollback_id=done.rollback_id, actor="grace", clock=clock)
    if then == "suspended":
        assert result.left_alone == {
            "pause: its subscription is suspended now": 1, "subscription: its pause was left alone": 1,
            "feature: the switch was set since": 1,
        }  # fmt: skip
        return
    assert (result.left_alone, result.restored["pause"], result.restored["subscription"]) == ({}, 1, 1)
    grace = "SELECT pause_id, state FROM billing.subscription_pauses WHERE kind = 'payment_failure'"
    assert [row["state"] for row in rows(billing, grace)] == ["canceled" if then == "nothing" else "completed"]
    billing.execute("DELETE FROM billing.subscription_pauses WHERE kind = 'payment_failure'")
    if then == "nothing":
        assert (live(billing), rows(billing, ANCHORS)) == (before, anchors)
    assert [operation for operation, _ in commands(billing)] == ["pause", "resume", "pause"]
    # It ends as it would have without the rollback: who owes is past due, who has paid is not.
    assert sweep(billing, ENDS).ended == 1
    row = subscription(billing)
    assert row["status"] == ("past_due" if then == "nothing" else "active")
    assert row["next_payment_at"] == NEXT + (ENDS - PAUSED)


@pytest.mark.parametrize("moves", [True, False])
def test_a_pause_begun_this_instant_and_one_that_hangs_behind_it_are_ended(
    billing: Connection, control: Connection, clock: FixedClock, moves: bool
) -> None:
    one_company(billing, 2, status="paused", next_payment_at=NOW + DAY)
    add_pause(billing, "s1", NOW - 9 * DAY, NOW - 2 * DAY, state="active")
    add_pause(billing, "s1", NOW - DAY, None, kind="admin", state="active")
    add_pause(billing, "s2", NOW, NOW + DAY, state="active")
    plan = plan_rollback(billing, "pauses").changes
    done = rolled(billing, control, clock, "pauses", moves_next_payment=moves, batch_size=1)
    assert done.changes == {name: count for name, count in plan.items() if count}
    assert [state for _, state, *_ in pauses_by_time(billing)] == ["completed"] * 3
    # The pause that holds it is the last one.
    assert subscription(billing)["next_payment_at"] == NOW + (2 if moves else 1) * DAY
    assert events(billing)[-1] == ("resumed", NOW)
    instant = timedelta(microseconds=1)
    assert subscription(billing, "s2")["next_payment_at"] == NOW + DAY + (instant if moves else timedelta())


def test_undo_leaves_pauses_alone_that_cannot_go_on(
    company: Connection, control: Connection, clock: FixedClock
) -> None:
    done = rolled(company, control, clock, "pauses")
    company.execute(
        "INSERT INTO billing.subscription_pauses (pause_ref, subscription_id, starts_at, kind) "
        "SELECT 'new' || subscription_id, subscription_id, '2026-05-10', 'customer' FROM billing.subscriptions "
        "WHERE subscription_id IN (7, 6)"
    )
    clock.advance(timedelta(days=40))
    result = undo_rollback(company, control, rollback_id=done.rollback_id, actor="grace", clock=clock)
    assert result.left_alone["pause: it would be over by now"] > 0
    assert result.left_alone["pause: another pause was made since"] == 2
    assert result.left_alone["subscription: its pause was left alone"] > 0
    assert result.restored["pause"] > 0
    state = rows(
        company,
        "SELECT status FROM billing.subscriptions WHERE subscription_id IN (7, 14, 21) ORDER BY subscription_id",
    )
    assert [row["status"] for row in state] == ["active", "active", "paused"]
