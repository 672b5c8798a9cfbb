"""The judge catches up, opens one incident, and every guard holds it back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.monitoring import (
    PAYMENT_FAILURES,
    Judgement,
    Tick,
    judge_issuer_declines,
    judge_payment_failures,
    judge_system_errors,
    newest_deploy,
    payment_ticks,
    record_deploy,
)

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
TICK = timedelta(minutes=5)


def decisions(control: Connection, trigger: str = "payment_failure_rate") -> list[dict[str, Any]]:
    return control.execute(
        "SELECT deploy_id, tick_at, verdict, failures, attempts, evidence FROM ops.decisions"
        " WHERE trigger = %s ORDER BY tick_at",
        (trigger,),
    ).fetchall()


def incidents(control: Connection) -> list[dict[str, Any]]:
    return control.execute("SELECT * FROM ops.incidents ORDER BY incident_id").fetchall()


@pytest.fixture
def judge(billing: Connection, control: Connection, clock: FixedClock) -> Callable[[], Judgement]:
    return lambda: judge_payment_failures(billing, control, clock=clock)


Judge = Callable[[], Judgement]


def test_a_bad_release_is_rolled_back_once_with_the_smallest_rollback(
    traffic: Any, control: Connection, clock: FixedClock, deploy_id: int, judge: Judge
) -> None:
    deployed = clock.now()
    traffic.pay(deployed, 4 * HOUR, failing="n >= 60 AND (1 + n % 40) % 2 = 0")
    verdicts = []
    for _ in range(36):
        clock.advance(TICK)
        found = judge()
        assert found.ticks_judged == 1
        verdicts.append(found.verdict)
        if found.verdict == "roll_back":
            break
    assert "watching" in verdicts or verdicts.count("healthy") >= 12
    assert found.component == "frequencies"
    assert deployed + HOUR < clock.now() <= deployed + HOUR + timedelta(minutes=30)
    assert found.evidence["blame"]["component"] == "frequencies"
    assert found.run_key == f"rb:{deploy_id}:payment_failure_rate:1"
    again = judge()
    clock.advance(TICK)
    third = judge()
    assert [(j.verdict, j.incident_id, j.run_key) for j in (again, third)] == [
        ("roll_back", found.incident_id, found.run_key)
    ] * 2
    opened_incidents = incidents(control)
    assert len(opened_incidents) == 1
    assert opened_incidents[0]["component"] == "frequencies"
    assert opened_incidents[0]["opened_at"] == deployed + HOUR
    assert found.e_value >= 1000
    assert decisions(control)[-1]["evidence"]["naive"]["would_roll_back"] is True
    assert decisions(control)[0]["evidence"]["source"].startswith("payment_counts sha256")


@pytest.mark.usefixtures("deploy_id")
def test_catching_up_gives_the_same_rows_as_judging_each_tick(
    traffic: Any, control: Connection, clock: FixedClock, judge: Judge
) -> None:
    deployed = clock.now()
    traffic.pay(deployed, 3 * HOUR, failing="n % 9 = 0")
    for _ in range(12):
        clock.advance(TICK)
        judge()
    stepwise = decisions(control)
    control.execute("DELETE FROM ops.decisions")
    clock.instant = deployed + HOUR
    assert judge().ticks_judged == 12
    caught_up = decisions(control)
    assert [row["tick_at"] for row in caught_up] == [deployed + n * TICK for n in range(12)]
    assert caught_up == stepwise
    clock.advance(2 * HOUR + MINUTE)
    assert judge().ticks_judged == 24
    assert judge().ticks_judged == 0
    assert len(decisions(control)) == 36
    assert sum(row["attempts"] for row in decisions(control)) == 180


@pytest.mark.usefixtures("deploy_id")
def test_healthy_traffic_is_left_alone(traffic: Any, control: Connection, clock: FixedClock, judge: Judge) -> None:
    traffic.pay(clock.now(), 24 * HOUR, failing="n % 33 = 0")
    clock.advance(23 * HOUR)
    found = judge()
    assert (found.verdict, found.ticks_judged, found.incident_id) == ("healthy", 276, None)
    assert incidents(control) == []


@pytest.mark.parametrize(
    ("failure_class", "attempt"), [("issuer_decline", 1), ("block", 1), (None, 1), ("integration_error", 2)]
)
@pytest.mark.usefixtures("deploy_id")
def test_what_no_release_can_cause_does_not_count(
    traffic: Any, clock: FixedClock, judge: Judge, failure_class: str | None, attempt: int
) -> None:
    traffic.pay(clock.now(), 2 * HOUR, failing="true", failure_class=failure_class, attempt=attempt)
    traffic.pay(clock.now(), 2 * HOUR)
    clock.advance(2 * HOUR)
    found = judge()
    assert (found.verdict, found.failures) == ("healthy", 0)


@pytest.mark.parametrize("failure_class", ["integration_error", "provider_error", "some other word"])
@pytest.mark.usefixtures("deploy_id")
def test_what_a_release_can_cause_does(traffic: Any, clock: FixedClock, judge: Judge, failure_class: str) -> None:
    traffic.pay(clock.now(), 2 * HOUR, failing="n % 3 = 0", failure_class=failure_class)
    clock.advance(2 * HOUR)
    found = judge()
    assert (found.verdict, found.failures, found.component) == ("roll_back", 40, "complete")


def test_without_a_deploy_in_24_hours_nothing_is_rolled_back(traffic: Any, clock: FixedClock, judge: Judge) -> None:
    assert judge().verdict == "healthy"
    traffic.pay(clock.now(), HOUR, failing="true")
    clock.advance(HOUR)
    found = judge()
    assert (found.verdict, found.deploy_id, found.incident_id) == ("held", None, None)
    assert "no deploy" in found.evidence["held_because"][0]
    assert judge() == replace(found, ticks_judged=0)


def test_an_old_deploy_is_judged_to_its_end_and_held(
    traffic: Any, control: Connection, clock: FixedClock, deploy_id: int, judge: Judge
) -> None:
    traffic.pay(clock.now() + 20 * HOUR, 10 * HOUR, failing="true")
    clock.advance(26 * HOUR)
    found = judge()
    assert (found.verdict, found.ticks_judged, found.deploy_id) == ("held", 288, deploy_id)
    assert "older than 24 h" in found.evidence["held_because"][0]
    assert judge().deploy_id is None
    assert incidents(control) == []


@pytest.mark.usefixtures("deploy_id")
def test_silence_is_inconclusive_while_payments_were_due(
    traffic: Any, billing: Connection, clock: FixedClock, judge: Judge
) -> None:
    deployed = clock.now()
    traffic.pay(deployed, HOUR, failing="n % 20 = 0")
    clock.advance(4 * HOUR)
    assert judge().verdict in ("healthy", "watching")
    billing.execute(
        "UPDATE billing.subscriptions SET next_payment_at = %s", (deployed + timedelta(hours=2, minutes=10),)
    )
    clock.advance(TICK)
    found = judge()
    assert found.verdict == "inconclusive"
    assert "though 40 subscriptions fell due" in found.evidence["because"]
    traffic.pay(deployed + HOUR, 3 * HOUR, failing="true")
    clock.advance(2 * TICK)
    late = judge()
    assert late.failures == 183
    assert late.verdict == "roll_back"


@pytest.mark.usefixtures("deploy_id")
def test_a_database_that_cannot_be_read_is_inconclusive(
    traffic: Any, billing_url: str, control: Connection, clock: FixedClock, judge: Judge
) -> None:
    with opened(billing_url, purpose="broken") as broken:
        traffic.billing.execute("SELECT pg_terminate_backend(%s)", (broken.info.backend_pid,))
        clock.advance(HOUR)
        found = judge_payment_failures(broken, control, clock=clock)
    assert (found.verdict, found.ticks_judged) == ("inconclusive", 1)
    assert "cannot be read" in found.evidence["because"]
    traffic.pay(clock.now() - HOUR, 2 * HOUR, failing="n % 2 = 0")
    clock.advance(HOUR)
    found = judge()
    assert (found.verdict, found.failures, found.attempts) == ("roll_back", 60, 120)


@pytest.mark.usefixtures("deploy_id")
def test_what_comes_late_counts_when_it_comes(
    traffic: Any, control: Connection, clock: FixedClock, judge: Judge
) -> None:
    traffic.pay(clock.now(), HOUR)
    clock.advance(HOUR)
    assert judge().failures == 0
    traffic.pay(clock.now() - HOUR, HOUR, failing="true")
    clock.advance(2 * TICK)
    found = judge()
    assert (found.verdict, found.failures, found.attempts) == ("roll_back", 60, 120)
    assert decisions(control)[-2]["evidence"]["late"] == {"failures": 60, "attempts": 60}


@pytest.mark.usefixtures("deploy_id")
def test_harm_that_passed_before_it_was_judged_is_not_acted_on(
    traffic: Any, control: Connection, clock: FixedClock, judge: Judge
) -> None:
    traffic.pay(clock.now() + HOUR, HOUR, failing="true")
    traffic.pay(clock.now() + 2 * HOUR, 12 * HOUR, every=timedelta(seconds=5))
    clock.advance(13 * HOUR)
    assert judge().verdict == "healthy"
    assert incidents(control) == []


def bad_release(traffic: Any, control: Connection, clock: FixedClock, name: str) -> None:
    record_deploy(control, release=name, actor="ada", run_id=name, revisions={}, clock=clock)
    traffic.pay(clock.now(), HOUR, failing="true")
    clock.advance(HOUR)


def rolled_back(control: Connection, clock: FixedClock, found: Judgement, state: str = "done") -> None:
    control.execute(
        "INSERT INTO ops.rollbacks (component, incident_id, actor, reason, requested_at, state, finished_at, details)"
        " VALUES (%s, %s, 'sensor', 'test', %s, %s, %s, '{\"attempts\": 1}')",
        (found.component, found.incident_id, clock.now(), state, clock.now()),
    )
    if state == "done":
        control.execute("UPDATE ops.incidents SET closed_at = %s WHERE closed_at IS NULL", (clock.now(),))


def test_cooldown_and_breaker(traffic: Any, control: Connection, clock: FixedClock, judge: Judge) -> None:
    bad_release(traffic, control, clock, "r1")
    found = judge()
    assert found.verdict == "roll_back"
    rolled_back(control, clock, found)
    bad_release(traffic, control, clock, "r2")
    held = judge()
    assert (held.verdict, held.incident_id) == ("held", None)
    assert held.evidence["held_because"] == ["the last rollback is less than 6 h ago"]
    clock.advance(6 * HOUR)
    bad_release(traffic, control, clock, "r3")
    found = judge()
    assert found.verdict == "roll_back"
    rolled_back(control, clock, found)
    clock.advance(24 * HOUR)
    bad_release(traffic, control, clock, "r4")
    held = judge()
    assert held.verdict == "held"
    assert held.evidence["held_because"] == ["2 automatic rollbacks in 7 days"]
    clock.advance(timedelta(days=8))
    bad_release(traffic, control, clock, "r5")
    assert judge().verdict == "roll_back"
    assert len(incidents(control)) == 3


def test_after_the_rollback_the_release_is_judged_afresh_and_not_rolled_back_again(
    traffic: Any, control: Connection, clock: FixedClock, judge: Judge
) -> None:
    bad_release(traffic, control, clock, "r1")
    found = judge()
    rolled_back(control, clock, found)
    traffic.pay(clock.now(), HOUR)
    clock.advance(HOUR)
    after = judge()
    assert (after.verdict, after.failures, after.attempts, after.incident_id) == ("healthy", 0, 60, found.incident_id)
    traffic.pay(clock.now(), HOUR, failing="true")
    clock.advance(HOUR)
    held = judge()
    assert held.verdict == "held"
    assert "this deploy was rolled back for this reason already" in held.evidence["held_because"]
    assert len(incidents(control)) == 1


def test_a_second_trigger_does_not_roll_the_same_deploy_back(
    traffic: Any, control: Connection, clock: FixedClock, judge: Judge
) -> None:
    bad_release(traffic, control, clock, "r1")
    assert judge().verdict == "roll_back"
    deployed = clock.now() - HOUR
    ticks = [Tick(deployed + n * TICK, 20, 20) for n in range(12)]
    held = judge_system_errors(control, clock=clock, ticks=ticks)
    assert held.verdict == "held"
    assert "another trigger has ordered a rollback of this deploy already" in held.evidence["held_because"]


def test_a_rollback_that_failed_is_asked_for_again_under_a_new_key(
    traffic: Any, control: Connection, clock: FixedClock, judge: Judge
) -> None:
    bad_release(traffic, control, clock, "r1")
    found = judge()
    assert found.attempt == 1
    rolled_back(control, clock, found, "failed")
    again = judge()
    assert (again.verdict, again.attempt, again.incident_id) == ("roll_back", 2, found.incident_id)
    control.execute("UPDATE ops.rollbacks SET state = 'running'")
    assert judge().attempt == 1
    clock.advance(timedelta(minutes=31))
    assert judge().attempt == 2
    control.execute("UPDATE ops.incidents SET closed_at = now()")
    clock.advance(TICK)
    assert judge().verdict == "held"


def test_two_judges_at_once_open_one_incident(
    traffic: Any, billing_url: str, control_url: str, control: Connection, clock: FixedClock
) -> None:
    bad_release(traffic, control, clock, "r1")
    barrier, found = threading.Barrier(4), []

    def run() -> None:
        with opened(billing_url, purpose="j") as billing, opened(control_url, purpose="j") as mine:
            barrier.wait()
            found.append(judge_payment_failures(billing, mine, clock=clock))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(one.verdict, one.incident_id) for one in found} == {("roll_back", found[0].incident_id)}
    assert sorted(one.ticks_judged for one in found) == [0, 0, 0, 12]
    assert len(incidents(control)) == 1
    assert len(decisions(control)) == 12


@pytest.mark.usefixtures("deploy_id")
def test_a_component_that_is_off_is_not_blamed(
    traffic: Any, billing: Connection, clock: FixedClock, judge: Judge
) -> None:
    traffic.pay(clock.now(), 2 * HOUR, failing="(1 + n % 40) % 2 = 0")
    billing.execute("UPDATE billing.feature_flags SET enabled = false WHERE feature = 'frequencies'")
    clock.advance(2 * HOUR)
    assert judge().component == "complete"


@pytest.mark.usefixtures("deploy_id")
def test_an_earlier_incident_is_no_baseline(control: Connection, traffic: Any, clock: FixedClock, judge: Judge) -> None:
    start = clock.now() - timedelta(hours=12)
    traffic.pay(start, HOUR, failing="true")
    traffic.pay(clock.now(), HOUR)
    clock.advance(HOUR)
    judge()
    clustered = decisions(control)[0]["evidence"]["rule"]["dispersion"]
    control.execute("DELETE FROM ops.decisions")
    control.execute(
        "INSERT INTO ops.incidents (trigger, opened_at, detected_at, closed_at)"
        " VALUES ('payment_failure_rate', %s, %s, %s)",
        (start, start + HOUR, start + HOUR),
    )
    judge()
    assert 1 <= decisions(control)[0]["evidence"]["rule"]["dispersion"] < clustered


@pytest.mark.usefixtures("deploy_id")
def test_issuer_declines_are_judged_against_their_own_past(
    traffic: Any, billing: Connection, control: Connection, clock: FixedClock
) -> None:
    past = clock.now() - timedelta(days=5)
    traffic.pay(past, timedelta(days=3), failing="n % 5 = 0", failure_class="issuer_decline")
    traffic.pay(clock.now(), 3 * HOUR, failing="n % 5 = 0", failure_class="issuer_decline")
    clock.advance(3 * HOUR)
    assert judge_issuer_declines(billing, control, clock=clock).verdict in ("healthy", "watching")
    traffic.pay(clock.now(), 3 * HOUR, failing="n % 3 > 0", failure_class="issuer_decline")
    clock.advance(3 * HOUR)
    found = judge_issuer_declines(billing, control, clock=clock)
    assert (found.verdict, found.component) == ("roll_back", "complete")


@pytest.mark.usefixtures("deploy_id")
def test_system_errors(control: Connection, clock: FixedClock) -> None:
    deployed = clock.now()
    ticks = [Tick(deployed - TICK, 50, 50), *(Tick(deployed + n * TICK, 10, 0) for n in range(6))]
    clock.advance(timedelta(minutes=30))
    assert judge_system_errors(control, clock=clock, ticks=ticks).verdict == "healthy"
    ticks += [Tick(deployed + n * TICK, 10, 2) for n in range(6, 12)]
    clock.advance(timedelta(minutes=30))
    found = judge_system_errors(control, clock=clock, ticks=ticks)
    assert (found.verdict, found.component, found.failures, found.attempts) == ("roll_back", "complete", 12, 120)


@pytest.mark.parametrize(
    "unreadable", [(None, None), (float("nan"), 1.0), (5.0, float("nan")), (5.0, 9.0), (-1.0, 0.0)]
)
@pytest.mark.usefixtures("deploy_id")
def test_a_metric_that_cannot_be_read_is_inconclusive(
    control: Connection, clock: FixedClock, unreadable: tuple[float | None, float | None]
) -> None:
    deployed = clock.now()
    clock.advance(HOUR)
    ticks = [*(Tick(deployed + n * TICK, 10, 9) for n in range(11)), Tick(deployed + 11 * TICK, *unreadable)]
    found = judge_system_errors(control, clock=clock, ticks=ticks)
    assert found.verdict == "inconclusive"
    assert incidents(control) == []
    assert decisions(control, "system_error_rate")[-1]["verdict"] == "inconclusive"


def test_payment_ticks_know_what_each_payment_was_exposed_to(
    traffic: Any, billing: Connection, clock: FixedClock
) -> None:
    start: datetime = clock.now()
    billing.execute(
        "UPDATE billing.subscriptions SET status = 'paused', changed_at = %s WHERE subscription_id = 1",
        (start - 3 * HOUR,),
    )
    billing.execute(
        "UPDATE billing.subscriptions SET status = 'active', changed_at = %s WHERE subscription_id = 1", (start - HOUR,)
    )
    billing.execute(
        "INSERT INTO billing.reward_entries (customer_id, occurred_at, kind, amount_minor)"
        " VALUES (2, %s, 'earned', 9), (2, %s, 'spent', 9)",
        (start - 9 * HOUR, start - HOUR),
    )
    traffic.pay(start, timedelta(minutes=4), failing="n IN (0, 1)")
    traffic.pay(start + TICK, timedelta(minutes=1), failing="true", failure_class="issuer_decline")
    # After a rollback a payment of before it still counts as what it was then.
    billing.execute("UPDATE billing.subscriptions SET payment_frequency = 'MONTHLY', changed_at = %s", (start + HOUR,))
    first, second, third = payment_ticks(billing, start=start, end=start + timedelta(minutes=11))
    assert (first.attempts, first.failures, first.issuer_declines) == (4, 2, 0)
    shown = {name: (counts.attempts, counts.failures) for name, counts in first.exposures.items()}
    assert shown == {"non_monthly": (2, 1), "resumed_lately": (1, 1), "reward_applied": (1, 1), "none": (1, 0)}
    assert (second.attempts, second.failures, second.issuer_declines) == (1, 0, 1)
    assert (third.tick_at, third.attempts) == (start + 2 * TICK, 0)
    billing.execute("ALTER TABLE billing.reward_entries SET SCHEMA archive")
    assert payment_ticks(billing, start=start, end=start + TICK)[0].exposures["reward_applied"].attempts == 0


def test_a_deploy_is_recorded_once_per_run(control: Connection, clock: FixedClock) -> None:
    assert newest_deploy(control, now=clock.now()) is None
    first = record_deploy(control, release="r1", actor="ada", run_id="a", revisions={"core": "1"}, clock=clock)
    assert record_deploy(control, release="r1", actor="ada", run_id="a", revisions={"core": "1"}, clock=clock) == first
    clock.advance(HOUR)
    second = record_deploy(control, release="r2", actor="ada", run_id=None, revisions={}, clock=clock)
    newest = newest_deploy(control, now=clock.now())
    assert newest is not None
    assert (newest.deploy_id, newest.release) == (second, "r2")
    before = newest_deploy(control, now=clock.now() - MINUTE)
    assert before is not None
    assert before.revisions == {"core": "1"}


@pytest.mark.usefixtures("deploy_id")
def test_the_first_minutes_have_no_tick(traffic: Any, clock: FixedClock, judge: Judge) -> None:
    clock.advance(4 * MINUTE)
    found = judge()
    assert (found.verdict, found.ticks_judged) == ("healthy", 0)
    assert PAYMENT_FAILURES.horizon == 288
