"""The pause sweep: each due transition once, at its own time, however and however often it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from flexpay_pipelines.billing import (
    SweepPlan,
    SweepPolicy,
    apply_payment_outcomes,
    history_breaks,
    pauses_by_hour,
    plan_sweep,
    set_feature,
    sweep_pauses,
)
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.sql import MIGRATIONS_ROOT, queries
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


def test_a_pause_starts_and_ends_at_the_times_it_was_due(billing: Connection) -> None:
    make_company(billing)
    starts, ends = NOON - 3 * HOUR, NOON + 10 * DAY
    add_pause(billing, "s1", starts, ends)

    first = sweep(billing, NOON)
    assert (first.started, first.ended, first.commands, first.oldest_lag) == (1, 0, 1, 3 * HOUR)
    assert subscription(billing)["status"] == "paused"
    assert events(billing) == [("paused", starts)]
    assert commands(billing) == [("pause", {"mode": "collection", "resumes_at": ends.isoformat()})]

    second = sweep(billing, ends + HOUR)
    assert (second.started, second.ended, second.commands, second.oldest_lag) == (0, 1, 1, HOUR)
    row = subscription(billing)
    moved = datetime(2026, 3, 31, 10, tzinfo=UTC) + (ends - starts)
    assert (row["status"], row["next_payment_at"], row["billing_anchor"]) == ("active", moved, moved)
    assert events(billing) == [("paused", starts), ("resumed", ends)]
    assert commands(billing)[1] == ("resume", {"mode": "collection", "next_payment_at": moved.isoformat()})
    assert pauses(billing) == [("customer", "completed")]
    assert subscription(billing, "s2")["status"] == "active"


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


def test_a_payment_that_may_be_under_way_is_not_asked_for_again(billing: Connection) -> None:
    due = NOON - 30 * timedelta(minutes=1)
    make_company(billing, anchor=due - 28 * DAY, next_payment_at=due)
    add_pause(billing, "s1", due + timedelta(minutes=10), due + timedelta(minutes=20))
    sweep(billing, NOON)
    assert (subscription(billing)["next_payment_at"], commands(billing)) == (due, [])


def test_a_second_sweep_finds_nothing(billing: Connection) -> None:
    make_company(billing)
    add_pause(billing, "s1", NOON - HOUR, NOON + DAY)
    sweep(billing)
    again = sweep(billing)
    assert (again.due, again.commands, again.oldest_lag, again.batches) == (0, 0, None, 0)
    assert len(events(billing)) == len(commands(billing)) == 1


def test_a_pause_that_passed_while_down_only_moves_the_payment_at_stripe(billing: Connection) -> None:
    make_company(billing)
    add_pause(billing, "s1", NOON - 5 * HOUR, NOON - 2 * HOUR)
    result = sweep(billing)
    assert (result.started, result.ended, result.commands, result.oldest_lag) == (1, 1, 1, 5 * HOUR)
    assert events(billing) == [("paused", NOON - 5 * HOUR), ("resumed", NOON - 2 * HOUR)]
    moved = datetime(2026, 3, 31, 13, tzinfo=UTC)
    assert commands(billing) == [("move_payment", {"next_payment_at": moved.isoformat()})]
    assert subscription(billing)["next_payment_at"] == moved


def test_several_pauses_of_one_subscription_happen_in_order(billing: Connection) -> None:
    make_company(billing)
    add_pause(billing, "s1", NOON - HOUR, NOON + DAY)
    add_pause(billing, "s1", NOON - 9 * HOUR, NOON - 8 * HOUR)
    add_pause(billing, "s1", NOON - 5 * HOUR, NOON - HOUR)
    result = sweep(billing, policy=SweepPolicy(batch_size=1))
    assert (result.started, result.ended) == (3, 2)
    assert [at for _, at in events(billing)] == [NOON - hours * HOUR for hours in (9, 8, 5, 1, 1)]
    assert [event for event, _ in events(billing)] == ["paused", "resumed", "paused", "resumed", "paused"]
    assert [operation for operation, _ in commands(billing)] == ["move_payment", "move_payment", "pause"]


def test_a_grace_period_that_runs_out_suspends(billing: Connection) -> None:
    make_company(billing)
    add_pause(billing, "s1", NOON - HOUR, NOON + 7 * DAY, kind="payment_failure")
    assert sweep(billing).started == 1
    assert (subscription(billing)["status"], commands(billing)) == ("past_due", [])
    result = sweep(billing, NOON + 8 * DAY)
    assert (result.suspended, result.ended, result.commands) == (1, 0, 1)
    assert events(billing) == [("past_due", NOON - HOUR), ("suspended", NOON + 7 * DAY)]
    assert commands(billing) == [("pause", {"mode": "collection", "resumes_at": None})]


def test_a_grace_period_that_began_and_ran_out_while_down_pauses_at_stripe(billing: Connection) -> None:
    make_company(billing)
    add_pause(billing, "s1", NOON - 8 * DAY, NOON - DAY, kind="payment_failure")
    result = sweep(billing, policy=SweepPolicy(pause_mode="subscription"))
    assert (result.started, result.suspended, result.commands) == (1, 1, 1)
    assert subscription(billing)["status"] == "suspended"
    assert commands(billing) == [("pause", {"mode": "subscription", "resumes_at": None})]


@pytest.mark.parametrize("status", ["canceled", "suspended"])
def test_a_terminal_status_beats_the_pause(billing: Connection, status: str) -> None:
    make_company(billing, status=status)
    add_pause(billing, "s1", NOON - HOUR, NOON + DAY)
    add_pause(billing, "s2", NOON - DAY, NOON - HOUR, state="active")
    before = [subscription(billing, ref) for ref in ("s1", "s2")]
    result = sweep(billing)
    assert (result.due, result.commands, result.skipped) == (2, 0, {f"subscription {status}": 2})
    assert [subscription(billing, ref) for ref in ("s1", "s2")] == before
    assert pauses(billing, "s1") == [("customer", "canceled")]
    assert pauses(billing, "s2") == [("customer", "completed")]


def test_dates_keep_their_calendar_where_the_policy_says_so(billing: Connection) -> None:
    make_company(billing, 2)
    anchor = subscription(billing)["billing_anchor"]
    add_pause(billing, "s1", NOON, NOON + 30 * DAY)
    add_pause(billing, "s2", NOON, NOON + 2 * DAY)
    policy = SweepPolicy(moves_next_payment=False)
    sweep(billing, NOON, policy=policy)
    sweep(billing, NOON + 31 * DAY, policy=policy)
    assert subscription(billing, "s1")["next_payment_at"] == datetime(2026, 4, 30, 10, tzinfo=UTC)
    assert subscription(billing, "s2")["next_payment_at"] == datetime(2026, 3, 31, 10, tzinfo=UTC)
    assert subscription(billing, "s1")["billing_anchor"] == anchor
    assert commands(billing, "s1")[1] == ("resume", {"mode": "collection"})


def test_an_unknown_next_payment_is_found_when_a_pause_ends(billing: Connection) -> None:
    make_company(billing, status="paused", next_payment_at=None)
    add_pause(billing, "s1", NOON - 2 * DAY, NOON, state="active")
    sweep(billing)
    assert subscription(billing)["next_payment_at"] == datetime(2026, 4, 2, 10, tzinfo=UTC)


def test_stripe_is_resumed_as_it_was_paused(billing: Connection) -> None:
    make_company(billing)
    add_pause(billing, "s1", NOON, NOON + DAY)
    sweep(billing, NOON, policy=SweepPolicy(pause_mode="subscription"))
    sweep(billing, NOON + DAY, policy=SweepPolicy(pause_mode="collection"))
    assert [parameters["mode"] for _, parameters in commands(billing)] == ["subscription", "subscription"]


def test_without_stripe_nothing_is_told(billing: Connection) -> None:
    make_company(billing, in_stripe=False)
    add_pause(billing, "s1", NOON, NOON + DAY)
    assert (sweep(billing).commands, sweep(billing, NOON + DAY).commands) == (0, 0)
    assert subscription(billing)["status"] == "active"


@pytest.mark.parametrize(
    ("starts", "ends"),
    [
        (datetime(2026, 3, 29, 0, 30, tzinfo=UTC), datetime(2026, 3, 29, 1, 30, tzinfo=UTC)),  # 02:00-03:00 is missing
        (
            datetime(2026, 10, 25, 0, 30, tzinfo=UTC),
            datetime(2026, 10, 25, 1, 30, tzinfo=UTC),
        ),  # 02:00-03:00 comes twice
    ],
)
def test_clock_changes_neither_skip_nor_double(billing: Connection, starts: datetime, ends: datetime) -> None:
    make_company(billing, zone="Europe/Berlin", next_payment_at=datetime(2026, 10, 31, 9, tzinfo=UTC))
    billing.execute("SET timezone = 'Europe/Berlin'")
    add_pause(billing, "s1", starts, ends)
    results = [sweep(billing, starts.replace(minute=0) + hours * HOUR) for hours in range(5)]
    assert (sum(r.started for r in results), sum(r.ended for r in results)) == (1, 1)
    billing.execute("SET timezone = 'UTC'")
    assert events(billing) == [("paused", starts), ("resumed", ends)]
    assert subscription(billing)["next_payment_at"] == datetime(2026, 10, 31, 10, tzinfo=UTC)


def test_a_plan_counts_and_changes_nothing(billing: Connection) -> None:
    make_company(billing, 4)
    add_pause(billing, "s1", NOON - HOUR, NOON + DAY)
    add_pause(billing, "s2", NOON - 3 * HOUR, NOON - 2 * HOUR)
    add_pause(billing, "s3", NOON - 7 * DAY, NOON - 4 * HOUR, kind="payment_failure", state="active")
    add_pause(billing, "s4", NOON + HOUR, NOON + DAY)
    assert plan_sweep(billing, clock=clock_at()) == SweepPlan(2, 1, 1, NOON - 4 * HOUR)
    assert plan_sweep(billing, clock=clock_at(), up_to=NOON + HOUR).to_start == 3
    assert [pauses(billing, f"s{n}")[0][1] for n in range(1, 5)] == ["scheduled", "scheduled", "active", "scheduled"]


def test_nothing_is_swept_while_pauses_are_off(billing: Connection) -> None:
    make_company(billing)
    add_pause(billing, "s1", NOON - HOUR, NOON + DAY)
    set_feature(billing, "pauses", False, "incident 1", clock_at())
    assert (sweep(billing).skipped, plan_sweep(billing, clock=clock_at()).due) == ({"feature off": 1}, 0)
    assert events(billing) == []
    set_feature(billing, "pauses", True, "over", clock_at())
    assert sweep(billing).started == 1


def test_without_the_pauses_component_nothing_is_due(billing: Connection) -> None:
    billing.execute((MIGRATIONS_ROOT / "pauses" / "0001_pauses.revert.sql").read_bytes())
    assert sweep(billing).skipped == {"feature off": 0}
    assert pauses_by_hour(billing, start=NOON, end=NOON + HOUR) == []


def test_without_the_frequencies_component_the_sweep_works(billing: Connection) -> None:
    make_company(billing, 2)
    billing.execute((MIGRATIONS_ROOT / "frequencies" / "0001_payment_frequency.revert.sql").read_bytes())
    add_pause(billing, "s1", NOON, NOON + 25 * DAY)
    sweep(billing)
    sweep(billing, NOON + 25 * DAY, policy=SweepPolicy(moves_next_payment=False))
    assert events(billing) == [("paused", NOON), ("resumed", NOON + 25 * DAY)]
    assert subscription(billing)["next_payment_at"] == datetime(2026, 4, 30, 10, tzinfo=UTC)


def test_the_hours_show_what_was_due_and_what_is_done(billing: Connection) -> None:
    make_company(billing)
    add_pause(billing, "s1", NOON - 90 * timedelta(minutes=1), NOON - HOUR)
    add_pause(billing, "s2", NOON + timedelta(minutes=5), NOON + DAY)
    sweep(billing)
    rows = pauses_by_hour(billing, start=NOON - 2 * HOUR, end=NOON + 2 * HOUR)
    assert [(row["due"], row["done"]) for row in rows] == [(1, 1), (1, 1), (1, 0), (0, 0)]
    assert rows[0]["hour"] == NOON - 2 * HOUR


def test_two_sweeps_at_once_do_each_transition_once(billing_url: str, billing: Connection) -> None:
    make_company(billing, 400)
    for number in range(1, 401):
        add_pause(billing, f"s{number}", NOON - 3 * HOUR, NOON - HOUR if number % 2 else NOON + DAY)

    def run(_: int) -> tuple[int, int]:
        with opened(billing_url, purpose="sweep") as connection:
            result = sweep(connection, policy=SweepPolicy(batch_size=7))
            return result.started, result.ended

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, range(4)))
    sweep(billing)
    assert billing.execute("SELECT count(*) AS n FROM billing.stripe_commands").fetchone() == {"n": 400}
    assert sum(started for started, _ in results) == 400
    assert sum(ended for _, ended in results) == 200
    for number in (1, 2, 399, 400):
        assert [event for event, _ in events(billing, f"s{number}")] == (
            ["paused", "resumed"] if number % 2 else ["paused"]
        )
    history = billing.execute(
        "SELECT event, count(*) AS n FROM billing.subscription_events WHERE event <>"
        " 'started' GROUP BY event ORDER BY event"
    ).fetchall()
    assert history == [{"event": "paused", "n": 400}, {"event": "resumed", "n": 200}]


def test_what_somebody_else_holds_is_left_to_him_and_done_next_time(billing_url: str, billing: Connection) -> None:
    make_company(billing)
    add_pause(billing, "s1", NOON - HOUR, NOON + DAY)
    add_pause(billing, "s2", NOON - HOUR, NOON + DAY)
    with opened(billing_url, purpose="application") as other, other.transaction():
        other.execute("UPDATE billing.subscription_pauses SET state = 'canceled' WHERE pause_id = 1")
        result = sweep(billing)
        assert (result.started, result.skipped) == (1, {"left to whoever holds it": 1})
    assert sweep(billing).due == 0
    assert (subscription(billing, "s1")["status"], subscription(billing, "s2")["status"]) == ("active", "paused")


def test_a_payment_being_recorded_does_not_hold_the_sweep_up(billing_url: str, billing: Connection) -> None:
    make_company(billing)
    add_pause(billing, "s1", NOON - HOUR, NOON + DAY)
    with opened(billing_url, purpose="application") as other, other.transaction():
        other.execute(
            "INSERT INTO billing.payments (payment_ref, subscription_id, occurred_at, amount_minor, currency, outcome)"
            " SELECT 'p', subscription_id, now(), 1, 'EUR', 'succeeded' FROM"
            " billing.subscriptions WHERE subscription_ref = 's1'"
        )
        assert sweep(billing).started == 1


KILLED_SWEEP = """
import os, signal, sys
from datetime import datetime
from flexpay_pipelines.billing import SweepPolicy, sweep_pauses
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import opened

batches = int(sys.argv[3])

def progress(_):
    global batches
    batches -= 1
    if batches == 0:
        os.kill(os.getpid(), signal.SIGKILL)

with opened(sys.argv[1], purpose="sweep") as connection:
    sweep_pauses(connection, clock=FixedClock(datetime.fromisoformat(sys.argv[2])), policy=SweepPolicy(batch_size=5),
                 progress=progress)
"""


@pytest.mark.parametrize("batches", [1, 3])
def test_a_killed_sweep_is_finished_once_by_the_next(billing_url: str, billing: Connection, batches: int) -> None:
    make_company(billing, 40)
    for number in range(1, 41):
        add_pause(billing, f"s{number}", NOON - 3 * HOUR, NOON - HOUR if number % 2 else NOON + DAY)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_SWEEP, billing_url, NOON.isoformat(), str(batches)],
        check=False,
        env=dict(os.environ),
    )
    assert killed.returncode == -signal.SIGKILL
    left = plan_sweep(billing, clock=clock_at())
    assert 0 < left.to_start < 40
    rest = sweep(billing)
    assert (rest.started, rest.ended) == (left.to_start, left.to_end)
    counts = billing.execute(
        "SELECT event, count(*) AS n, count(DISTINCT subscription_id) AS subscriptions FROM billing.subscription_events"
        " WHERE event <> 'started' GROUP BY event ORDER BY event"
    ).fetchall()
    assert [tuple(row.values()) for row in counts] == [("paused", 40, 40), ("resumed", 20, 20)]
    assert billing.execute("SELECT count(*) AS n FROM billing.stripe_commands").fetchone() == {"n": 40}


def test_an_open_ended_pause_starts_and_waits(billing: Connection) -> None:
    make_company(billing)
    add_pause(billing, "s1", NOON, None, kind="admin")
    assert sweep(billing).started == 1
    assert sweep(billing, NOON + 1000 * DAY).due == 0
    assert commands(billing) == [("pause", {"mode": "collection", "resumes_at": None})]


def test_every_step_is_told(billing: Connection) -> None:
    make_company(billing)
    add_pause(billing, "s1", NOON, NOON + DAY)
    said: list[str] = []
    sweep_pauses(billing, clock=clock_at(), policy=SweepPolicy(), progress=said.append)
    assert len(said) == 2
    assert "1 started" in said[-1]


def test_the_choice_of_due_pauses_reads_the_partial_indexes(billing: Connection) -> None:
    make_company(billing, 20_000)
    billing.execute("ALTER TABLE billing.subscription_pauses DROP CONSTRAINT subscription_pauses_no_overlap")
    billing.execute(
        "INSERT INTO billing.subscription_pauses (pause_ref, subscription_id, starts_at, ends_at, kind, state)"
        " SELECT 'x' || subscription_id, subscription_id, %s + subscription_id * interval '1 minute',"
        " %s + subscription_id * interval '2 minutes', 'customer', CASE WHEN subscription_id"
        " %% 2 = 0 THEN 'active' ELSE 'scheduled' END"
        " FROM billing.subscriptions",
        (NOON, NOON),
    )
    billing.execute("ANALYZE")
    ids, up_to = list(range(1, 2_000)), NOON + HOUR
    start = {"pause_ids": ids, "up_to": up_to, "passed": False, "pause_mode": "collection"}
    end = {
        "pause_ids": ids, "up_to": up_to, "quiet": False, "pause_mode": "collection", "move_next_payment": True,
        "grace_days": 7, "taken_back": None,
    }  # fmt: skip
    for name, parameters, index in (
        ("due_starts", {"up_to": up_to, "passed": False}, "subscription_pauses_due_start"),
        ("due_ends", {"up_to": up_to}, "subscription_pauses_due_end"),
        ("start_due_pauses", start, "subscription_pauses_pkey"),
        ("end_due_pauses", end, "subscription_pauses_pkey"),
    ):
        statement = getattr(queries("billing_sweep"), name).sql
        with billing.transaction():
            queries("billing_sweep").plan_for_batches(billing)
            plan = "\n".join(row["QUERY PLAN"] for row in billing.execute(f"EXPLAIN {statement}", parameters))
        assert index in plan
        assert "Seq Scan on subscriptions" not in plan
        # No nested loop over every pair of a batch.
        assert "Join Filter: (due.pause_id" not in plan
