"""Rolling a component back changes what it should, keeps what was there, and does it once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from datetime import timedelta
from typing import Any

import pytest

from flexpay_pipelines.billing import apply_payment_outcomes, set_feature
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.errors import BadInput, FlexPayError, TransientError
from flexpay_pipelines.rollback import (
    RollbackResult,
    list_rollbacks,
    plan_rollback,
    plan_undo,
    roll_back,
    undo_rollback,
)
from tests.billing.helpers import DAY, HOUR, add_pause, add_payment, clock_at, commands, events, subscription, sweep
from tests.billing.helpers import make_company as one_company
from tests.rollback.conftest import NOW

LIVE = """
SELECT s.subscription_id, s.status, s.plan, s.payment_frequency, s.amount_minor, s.quantity, s.next_payment_at
FROM billing.subscriptions AS s ORDER BY 1
"""
ANCHORS = "SELECT subscription_id, billing_anchor FROM billing.subscriptions ORDER BY 1"
PAUSES = "SELECT pause_id, state, starts_at, ends_at, kind FROM billing.subscription_pauses ORDER BY 1"
CHANGING_AT_STRIPE = """
SELECT count(*) FROM billing.frequency_changes AS f JOIN billing.subscriptions AS s USING (subscription_id)
WHERE f.state = 'scheduled' AND s.payment_frequency <> 'MONTHLY' AND s.stripe_subscription_id IS NOT NULL
"""
SCHEDULED = "SELECT frequency_change_id FROM billing.frequency_changes WHERE state = 'scheduled' ORDER BY 1"
FLAGS = "SELECT feature, enabled FROM billing.feature_flags ORDER BY 1"
BALANCES = "SELECT customer_id, balance_minor FROM billing.reward_balances ORDER BY 1"


def rows(connection: Connection, query: str, *given: object) -> list[dict[str, Any]]:
    return connection.execute(query.encode(), given or None).fetchall()


def one(connection: Connection, query: str, *given: object) -> Any:
    row = connection.execute(query.encode(), given or None).fetchone()
    assert row is not None
    return next(iter(row.values()))


def live(billing: Connection) -> list[list[dict[str, Any]]]:
    return [rows(billing, query) for query in (LIVE, PAUSES, SCHEDULED, FLAGS, BALANCES)]


def rolled(billing: Connection, control: Connection, clock: FixedClock, component: str, **more: Any) -> RollbackResult:
    given: dict[str, Any] = {"actor": "ada", "reason": "a test", "incident_id": None, "run_id": None, **more}
    return roll_back(billing, control, component=component, clock=clock, **given)


@pytest.fixture
def urls(billing_url: str, control_url: str) -> tuple[str, str]:
    return billing_url, control_url


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


def test_a_later_rollback_is_undone_first(company: Connection, control: Connection, clock: FixedClock) -> None:
    first = rolled(company, control, clock, "frequencies")
    second = rolled(company, control, clock, "complete")
    with pytest.raises(BadInput, match=f"Rollback {second.rollback_id} of 'complete' came later"):
        undo_rollback(company, control, rollback_id=first.rollback_id, actor="grace", clock=clock)
    undo_rollback(company, control, rollback_id=second.rollback_id, actor="grace", clock=clock)
    assert not one(company, "SELECT enabled FROM billing.feature_flags WHERE feature = 'frequencies'")
    undo_rollback(company, control, rollback_id=first.rollback_id, actor="grace", clock=clock)
    assert one(company, "SELECT count(*) FROM billing.feature_flags WHERE enabled") == 3


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


def test_an_unfinished_rollback_cannot_be_undone(company: Connection, control: Connection, clock: FixedClock) -> None:
    done = rolled(company, control, clock, "rewards")
    control.execute("UPDATE ops.rollbacks SET state = 'running'")
    with pytest.raises(BadInput, match="is running: run the rollback again to finish it"):
        undo_rollback(company, control, rollback_id=done.rollback_id, actor="grace", clock=clock)


def test_numbers_are_not_given_twice_after_the_control_database_was_lost(
    company: Connection, control: Connection, clock: FixedClock
) -> None:
    rolled(company, control, clock, "rewards")
    first = rolled(company, control, clock, "frequencies")
    control.execute("TRUNCATE ops.rollbacks RESTART IDENTITY CASCADE")
    assert rolled(company, control, clock, "pauses").rollback_id > first.rollback_id


def test_two_at_once_do_it_once(
    company: Connection, control: Connection, billing_url: str, control_url: str, clock: FixedClock
) -> None:
    before = live(company)
    outcomes: list[object] = []
    barrier = threading.Barrier(2)

    def run() -> None:
        with opened(billing_url, purpose="one") as billing, opened(control_url, purpose="one") as mine:
            barrier.wait()
            try:
                outcomes.append(rolled(billing, mine, clock, "complete", batch_size=2).rollback_id)
            except FlexPayError as error:
                outcomes.append(type(error))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Either the second was refused, or it came after the first and found nothing to change.
    assert len([outcome for outcome in outcomes if isinstance(outcome, int)]) == (
        1 if TransientError in outcomes else 2
    )
    first = min(outcome for outcome in outcomes if isinstance(outcome, int))
    others = [outcome for outcome in outcomes if isinstance(outcome, int) and outcome != first]
    for number in [*others, first]:
        undo_rollback(company, control, rollback_id=number, actor="grace", clock=clock)
    assert live(company) == before


def test_a_writer_in_the_way_is_waited_for_or_left_for_the_next_pass(
    company: Connection, control: Connection, billing_url: str, clock: FixedClock
) -> None:
    """A row that becomes non-monthly behind the rollback's key is found by the next pass."""
    monthly = one(
        company,
        "SELECT min(subscription_id) FROM billing.subscriptions"
        " WHERE payment_frequency = 'MONTHLY' AND status = 'active'",
    )
    meddled: list[str] = []

    def meddle(said: str) -> None:
        if "moved to monthly" in said and not meddled:
            meddled.append(said)
            with opened(billing_url, purpose="meddler") as other:
                other.execute(
                    "UPDATE billing.subscriptions SET payment_frequency = 'WEEKLY' WHERE subscription_id = %s",
                    (monthly,),
                )

    rolled(company, control, clock, "frequencies", batch_size=20, progress=meddle)
    assert meddled
    assert (
        one(
            company,
            "SELECT count(*) FROM billing.subscriptions WHERE payment_frequency <> 'MONTHLY' AND status <> 'canceled'",
        )
        == 0
    )


KILLED = """
import os, signal, sys
from datetime import datetime
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import opened
from flexpay_pipelines.rollback import roll_back, undo_rollback

what, billing_url, control_url, now, step = sys.argv[1:]
left = int(step)

def progress(said):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

with opened(billing_url, purpose="killed") as billing, opened(control_url, purpose="killed") as control:
    clock = FixedClock(datetime.fromisoformat(now))
    if what == "undo":
        undo_rollback(billing, control, rollback_id=1, actor="ada", clock=clock, progress=progress, batch_size=13)
    else:
        roll_back(billing, control, component="complete", actor="ada", reason="a test", incident_id=None,
                  run_id=None, clock=clock, progress=progress, batch_size=13)
"""


def killed(what: str, urls: tuple[str, str], clock: FixedClock, step: int) -> int:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(KILLED),
            what,
            *urls,
            clock.now().isoformat(),
            str(step),
        ],
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return done.returncode


def let_the_dead_go(billing: Connection) -> None:
    """Wait until the server has noticed that the killed client is gone: its lock is free."""
    billing.execute("SELECT pg_advisory_lock(hashtextextended('flexpay rollback', 0))")
    billing.execute("SELECT pg_advisory_unlock(hashtextextended('flexpay rollback', 0))")


STEPS = [1, 2, 4, 7, 11, 14]


@pytest.mark.parametrize(
    "step", [*STEPS, *(pytest.param(n, marks=pytest.mark.soak) for n in range(1, 20) if n not in STEPS)]
)
def test_killed_anywhere_it_is_finished_once(
    company: Connection, control: Connection, urls: tuple[str, str], clock: FixedClock, step: int
) -> None:
    before = live(company)
    expected = plan_rollback(company, "complete").changes
    code = killed("roll_back", urls, clock, step)
    assert code in (-signal.SIGKILL, 0)
    let_the_dead_go(company)
    result = rolled(company, control, clock, "complete", batch_size=13)
    if code:
        assert result.rollback_id == 1
        assert one(control, "SELECT count(*) FROM ops.rollbacks") == 1
        assert result.changes == expected
    moves = "SELECT count(*) FROM billing.subscription_events WHERE reason LIKE 'rollback %'"
    assert one(company, moves) == expected["subscriptions_moved_to_monthly"] + expected["subscriptions_resumed"]
    undo = killed("undo", urls, clock, step) if code else 0
    let_the_dead_go(company)
    for row in rows(control, "SELECT rollback_id FROM ops.rollbacks ORDER BY rollback_id DESC"):
        undo_rollback(company, control, rollback_id=row["rollback_id"], actor="grace", clock=clock, batch_size=13)
    assert undo in (-signal.SIGKILL, 0)
    assert live(company) == before
    assert one(company, moves.replace("'rollback %'", "'undo %'")) == one(company, moves)
