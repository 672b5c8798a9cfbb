"""Who owes when a pause begins or ends: what is billed, what moves, and the grace period that follows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flexpay_pipelines.billing import (
    SweepPolicy,
    apply_payment_outcomes,
    history_breaks,
)
from flexpay_pipelines.database import Connection
from tests.billing.helpers import (
    DAY,
    HOUR,
    NOON,
    add_pause,
    add_payment,
    clock_at,
    commands,
    events,
    make_company,
    pauses,
    subscription,
    sweep,
)

MARCH = 31 * DAY


@pytest.mark.parametrize("tried", [False, True])
def test_a_payment_that_stripe_had_not_come_to_before_the_pause_moves_as_well(billing: Connection, tried: bool) -> None:
    due, starts, ends = NOON - 2 * HOUR, NOON - HOUR, NOON + 9 * DAY
    make_company(billing, anchor=due - 28 * DAY, next_payment_at=due)
    if tried:
        # It failed: the invoice is there and is being collected.
        add_payment(billing, "s1", due + timedelta(minutes=30), "failed")
    add_pause(billing, "s1", starts, ends)
    sweep(billing, NOON)
    sweep(billing, ends)
    # What was tried was billed: it is the payment after it that moves.
    moved = due + (MARCH if tried else timedelta(0)) + (ends - starts)
    assert commands(billing)[1] == ("resume", {"mode": "collection", "next_payment_at": moved.isoformat()})
    assert subscription(billing)["next_payment_at"] == moved


@pytest.mark.parametrize("early", [timedelta(0), HOUR, 3 * DAY])
@pytest.mark.parametrize("known", [True, False])
def test_a_payment_that_failed_before_the_pause_is_owed_after_it(
    billing: Connection, early: timedelta, known: bool
) -> None:
    starts, ends = NOON, NOON + 9 * DAY
    due = starts - early
    make_company(billing, anchor=due - 28 * DAY, next_payment_at=due)
    add_pause(billing, "s1", starts, ends)
    failed = [add_payment(billing, "s1", due, "failed"), add_payment(billing, "s1", due + DAY, "failed", attempt=2)]
    if known:
        apply_payment_outcomes(billing, failed, clock=clock_at(NOON), grace_days=7)
    sweep(billing, NOON)
    sweep(billing, ends)
    row, moved = subscription(billing), due + MARCH + 9 * DAY
    assert (row["next_payment_at"], row["billing_anchor"]) == (moved, moved)
    if known:
        assert row["status"] == "past_due"
        assert events(billing) == [("past_due", due), ("paused", starts), ("past_due", ends)]
    assert commands(billing)[1] == ("resume", {"mode": "collection", "next_payment_at": moved.isoformat()})
    # It is paid in the end, and nothing moves once more.
    paid = add_payment(billing, "s1", ends + DAY, "succeeded", attempt=3)
    apply_payment_outcomes(billing, [paid], clock=clock_at(ends + DAY), grace_days=7)
    row = subscription(billing)
    assert (row["status"], row["next_payment_at"]) == ("active", moved)


GRACES = """
SELECT starts_at, ends_at, state, reason FROM billing.subscription_pauses
WHERE kind = 'payment_failure' ORDER BY starts_at
"""


def graces(connection: Connection) -> list[tuple[datetime, datetime, str, str]]:
    return [
        (row["starts_at"], row["ends_at"], row["state"], row["reason"]) for row in connection.execute(GRACES.encode())
    ]


def paused_while_owing(billing: Connection, ends: datetime, *, again: datetime | None = None) -> list[int]:
    """`s1` failed to pay an hour before its pause, which begins at noon: what failed is known, and is past due."""
    make_company(billing, anchor=NOON - HOUR - 28 * DAY, next_payment_at=NOON - HOUR)
    add_pause(billing, "s1", NOON, ends)
    if again is not None:
        add_pause(billing, "s1", again, again + DAY)
    failed = [add_payment(billing, "s1", NOON - HOUR, "failed")]
    apply_payment_outcomes(billing, failed, clock=clock_at(NOON), grace_days=7)
    assert graces(billing) == []
    return failed


@pytest.mark.parametrize("days", [2, 7])
def test_who_owes_when_a_pause_ends_has_a_grace_period_and_is_suspended(billing: Connection, days: int) -> None:
    ends = NOON + 9 * DAY
    policy = SweepPolicy(grace_days=days)
    failed = paused_while_owing(billing, ends)
    sweep(billing, NOON, policy=policy)
    result = sweep(billing, ends + HOUR, policy=policy)
    assert (result.due, result.ended, result.suspended, result.commands) == (1, 1, 0, 1)
    over = ends + days * DAY
    assert graces(billing) == [(ends, over, "active", "issuer_decline")]
    # What is known of its payments, told again or of later tries, neither moves it nor begins another.
    failed.append(add_payment(billing, "s1", ends + DAY, "failed", attempt=2))
    for _ in range(2):
        apply_payment_outcomes(billing, failed, clock=clock_at(ends + DAY), grace_days=days)
        assert graces(billing) == [(ends, over, "active", "issuer_decline")]
    assert sweep(billing, over - timedelta(seconds=1), policy=policy).due == 0
    assert sweep(billing, over + HOUR, policy=policy).suspended == 1
    assert events(billing) == [
        ("past_due", NOON - HOUR), ("paused", NOON), ("past_due", ends), ("suspended", over),
    ]  # fmt: skip
    assert [operation for operation, _ in commands(billing)] == ["pause", "resume", "pause"]
    # A payment brings it back, however late.
    paid = add_payment(billing, "s1", over + 5 * DAY, "succeeded", attempt=3)
    apply_payment_outcomes(billing, [paid], clock=clock_at(over + 5 * DAY), grace_days=days)
    assert (subscription(billing)["status"], commands(billing)[-1][0]) == ("active", "resume")


@pytest.mark.parametrize("begun", [True, False])
def test_a_late_sweep_ends_the_pause_and_its_grace_period_each_at_its_time(billing: Connection, begun: bool) -> None:
    ends = NOON + 9 * DAY
    paused_while_owing(billing, ends)
    if begun:
        sweep(billing, NOON)
    result = sweep(billing, NOON + 40 * DAY, policy=SweepPolicy(batch_size=1))
    assert (result.started, result.ended, result.suspended) == (not begun, 1, 1)
    assert events(billing)[1:] == [("paused", NOON), ("past_due", ends), ("suspended", ends + 7 * DAY)]
    assert pauses(billing) == [("customer", "completed"), ("payment_failure", "completed")]
    assert commands(billing)[-1] == ("pause", {"mode": "collection", "resumes_at": None})
    assert sweep(billing, NOON + 40 * DAY).due == 0


def test_a_payment_in_the_grace_period_after_a_pause_ends_it_at_once(billing: Connection) -> None:
    ends = NOON + 9 * DAY
    paused_while_owing(billing, ends)
    sweep(billing, NOON)
    sweep(billing, ends)
    paid = add_payment(billing, "s1", ends + 2 * DAY, "succeeded", attempt=2)
    # An earlier payment than the one that is known ends it earlier.
    earlier = add_payment(billing, "s1", ends + DAY, "succeeded", attempt=2)
    for payment_id, at in ((paid, ends + 2 * DAY), (earlier, ends + DAY)):
        apply_payment_outcomes(billing, [payment_id], clock=clock_at(ends + 3 * DAY), grace_days=7)
        assert graces(billing)[0][:3] == (ends, at if payment_id == earlier else ends + DAY, "completed")
    assert subscription(billing)["status"] == "active"
    assert sweep(billing, ends + 30 * DAY).due == 0


@pytest.mark.parametrize("failed_at", [-1, 2])
@pytest.mark.parametrize("paid_after", [None, -1, 3])
def test_a_failure_that_is_heard_of_after_the_pause_has_its_grace_period_from_the_end_of_it(
    billing: Connection, failed_at: int, paid_after: int | None
) -> None:
    """Failed a day before the pause or two days into it; paid a day before its end, three after it, or never."""
    make_company(billing)
    ends = NOON + 9 * DAY
    add_pause(billing, "s1", NOON, ends)
    sweep(billing, NOON)
    sweep(billing, ends)
    told = [(NOON + failed_at * DAY, "failed")]
    if paid_after is not None:
        told.append((ends + paid_after * DAY, "succeeded"))
    found = set()
    # In any order, or at once: the same end.
    for together in ([told], [[each] for each in told], [[each] for each in reversed(told)]):
        with billing.transaction(force_rollback=True):
            for payments in together:
                ids = [add_payment(billing, "s1", at, outcome) for at, outcome in payments]
                apply_payment_outcomes(billing, ids, clock=clock_at(ends + 4 * DAY), grace_days=7)
            lasted = tuple(grace for grace in graces(billing) if grace[1] - grace[0] > timedelta(microseconds=1))
            found.add((subscription(billing)["status"], lasted))
            swept = sweep(billing, ends + 7 * DAY)
            assert (swept.suspended, swept.due) == ((1, 1) if paid_after is None else (0, 0))
    if paid_after is None:
        assert found == {("past_due", ((ends, ends + 7 * DAY, "active", "issuer_decline"),))}
    elif paid_after < 0:
        assert found == {("active", ())}
    else:
        assert found == {("active", ((ends, ends + paid_after * DAY, "completed", "issuer_decline"),))}


def test_a_suspension_is_not_dated_before_the_subscription_is_past_due(billing: Connection) -> None:
    """The failure was heard of a month late, after the terms had been changed: history goes on from there."""
    make_company(billing)
    changed = NOON + 20 * DAY
    billing.execute(
        "UPDATE billing.subscriptions SET quantity = 2, version = version + 1, changed_at = %s"
        " WHERE subscription_ref = 's1'",
        (changed,),
    )
    failed = add_payment(billing, "s1", NOON, "failed")
    apply_payment_outcomes(billing, [failed], clock=clock_at(NOON + 30 * DAY), grace_days=7)
    assert sweep(billing, NOON + 30 * DAY).suspended == 1
    assert subscription(billing)["status"] == "suspended"
    assert [name for name, at in events(billing) if at >= changed][-2:] == ["past_due", "suspended"]
    assert history_breaks(billing) == ()


def test_what_was_paid_in_the_pause_and_heard_of_after_it_leaves_no_grace_period(billing: Connection) -> None:
    ends = NOON + 9 * DAY
    paused_while_owing(billing, ends)
    sweep(billing, NOON)
    sweep(billing, ends)
    paid = add_payment(billing, "s1", NOON + DAY, "succeeded", attempt=2)
    apply_payment_outcomes(billing, [paid], clock=clock_at(ends + HOUR), grace_days=7)
    assert graces(billing) == [(ends, ends + timedelta(microseconds=1), "completed", "issuer_decline")]
    assert (subscription(billing)["status"], sweep(billing, ends + 30 * DAY).due) == ("active", 0)


def test_the_next_pause_on_the_calendar_stands_before_the_grace_period_which_comes_after_it(
    billing: Connection,
) -> None:
    ends, again = NOON + 9 * DAY, NOON + 12 * DAY
    paused_while_owing(billing, ends, again=again)
    for at in (NOON, ends):
        sweep(billing, at)
    assert (subscription(billing)["status"], graces(billing)) == ("past_due", [])
    for at in (again, again + DAY):
        sweep(billing, at)
    assert graces(billing) == [(again + DAY, again + 8 * DAY, "active", "issuer_decline")]
    assert sweep(billing, again + 8 * DAY).suspended == 1


def test_a_payment_that_failed_after_a_pause_was_due_to_end_has_its_whole_grace_period(billing: Connection) -> None:
    make_company(billing)
    ends, failed = NOON + 5 * DAY, datetime(2026, 4, 5, 10, tzinfo=UTC)
    add_pause(billing, "s1", NOON, ends)
    sweep(billing, NOON)
    # Stripe went on by itself while the sweep was down.
    ids = [add_payment(billing, "s1", failed, "failed")]
    apply_payment_outcomes(billing, ids, clock=clock_at(failed), grace_days=7)
    result = sweep(billing, failed + DAY)
    assert (result.ended, result.suspended, subscription(billing)["status"]) == (1, 0, "past_due")
    assert graces(billing) == [(failed, failed + 7 * DAY, "active", "issuer_decline")]


@pytest.mark.parametrize("length", [30 * timedelta(minutes=1), 30 * DAY])
def test_a_pause_begun_after_a_later_failure_became_known_is_the_end_of_history(
    billing: Connection, length: timedelta
) -> None:
    make_company(billing, next_payment_at=NOON)
    starts, failed = NOON - HOUR, NOON
    add_pause(billing, "s1", starts, starts + length, kind="admin")
    apply_payment_outcomes(
        billing, [add_payment(billing, "s1", failed, "failed")], clock=clock_at(NOON + DAY), grace_days=7
    )
    sweep(billing, NOON + DAY)
    now = subscription(billing)["status"]
    last = sorted(events(billing), key=lambda one: one[1])[-1]
    assert (now, last) == (("paused", ("paused", failed)) if length > DAY else ("past_due", ("past_due", failed)))


@pytest.mark.parametrize("length", [HOUR, 30 * DAY])
@pytest.mark.parametrize("begun", ["trialing", "active"])
def test_a_pause_begun_after_a_later_payment_became_known_is_the_end_of_history(
    billing: Connection, begun: str, length: timedelta
) -> None:
    """A trial that became a subscription, or a failure that was made good, after the pause was due to begin."""
    make_company(billing, status=begun, next_payment_at=NOON)
    starts, paid = NOON - HOUR, NOON + HOUR
    add_pause(billing, "s1", starts, starts + length)
    told = [(NOON, "failed")] if begun == "active" else []
    for at, outcome in [*told, (paid, "succeeded")]:
        payment = add_payment(billing, "s1", at, outcome)
        apply_payment_outcomes(billing, [payment], clock=clock_at(NOON + DAY), grace_days=7)
    # New terms are no new status.
    billing.execute(
        "UPDATE billing.subscriptions SET quantity = 2, version = version + 1, changed_at = %s"
        " WHERE subscription_ref = 's1'",
        (NOON + 2 * HOUR,),
    )
    sweep(billing, NOON + DAY)
    assert [event for event in events(billing) if event[0] != "changed"][-1] == (
        "paused" if length > DAY else "resumed",
        paid,
    )
    assert history_breaks(billing) == ()


def test_a_payment_that_may_be_under_way_is_not_asked_for_again(billing: Connection) -> None:
    due = NOON - 30 * timedelta(minutes=1)
    make_company(billing, anchor=due - 28 * DAY, next_payment_at=due)
    add_pause(billing, "s1", due + timedelta(minutes=10), due + timedelta(minutes=20))
    sweep(billing, NOON)
    assert (subscription(billing)["next_payment_at"], commands(billing)) == (due, [])
