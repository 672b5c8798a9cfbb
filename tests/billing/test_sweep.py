"""The pause sweep: each due transition once, at its own time, however and however often it runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flexpay_pipelines.billing import (
    SweepPlan,
    SweepPolicy,
    pauses_by_hour,
    plan_sweep,
    set_feature,
    sweep_pauses,
)
from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import MIGRATIONS_ROOT, queries
from tests.billing.helpers import (
    DAY,
    HOUR,
    NOON,
    add_pause,
    clock_at,
    commands,
    events,
    make_company,
    pauses,
    subscription,
    sweep,
)


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
