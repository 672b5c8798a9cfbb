"""Asking for a pause, taking it back, ending it early."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest

from flexpay_pipelines.billing import PausePolicy, cancel_pause, end_pause_now, schedule_pause, set_feature
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.errors import BadInput
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


def ask(connection: Connection, **changed: Any) -> str:
    wanted: dict[str, Any] = {
        "subscription_ref": "s1",
        "starts_at": NOON + DAY,
        "ends_at": NOON + 10 * DAY,
        "kind": "customer",
        "reason": "holiday",
        "policy": PausePolicy(),
        "clock": clock_at(),
    }
    return schedule_pause(connection, **{**wanted, **changed})


def test_a_pause_is_scheduled_and_swept(billing: Connection) -> None:
    make_company(billing)
    assert ask(billing).startswith("pause-")
    ask(billing, starts_at=NOON, ends_at=NOON + HOUR)
    assert sweep(billing, NOON).started == 1
    assert pauses(billing) == [("customer", "active"), ("customer", "scheduled")]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"subscription_ref": "nobody"}, "no subscription 'nobody'"),
        ({"starts_at": NOON - HOUR}, "in the past"),
        ({"ends_at": NOON + DAY}, "end after it begins"),
        ({"ends_at": NOON + 92 * DAY}, "at most 90 days"),
        ({"ends_at": None}, "at most 90 days"),
        ({"kind": "payment_failure"}, "not a kind of pause"),
        ({"starts_at": datetime(2026, 4, 1)}, "offset from UTC"),  # noqa: DTZ001 - what is refused
    ],
)
def test_what_the_rules_forbid_is_refused(billing: Connection, changed: dict[str, Any], reason: str) -> None:
    make_company(billing)
    with pytest.raises(BadInput, match=reason):
        ask(billing, **changed)
    assert pauses(billing) == []


@pytest.mark.parametrize("status", ["canceled", "suspended"])
def test_what_is_over_cannot_be_paused(billing: Connection, status: str) -> None:
    make_company(billing, status=status)
    with pytest.raises(BadInput, match=status):
        ask(billing)


def test_an_admin_may_pause_without_an_end(billing: Connection) -> None:
    make_company(billing)
    ask(billing, kind="admin", ends_at=None)
    assert pauses(billing) == [("admin", "scheduled")]


def test_two_pauses_may_touch_but_not_overlap(billing: Connection) -> None:
    make_company(billing)
    ask(billing)
    ask(billing, starts_at=NOON + 10 * DAY, ends_at=NOON + 11 * DAY)
    with pytest.raises(BadInput, match="another pause in that time"):
        ask(billing, starts_at=NOON + 9 * DAY, ends_at=NOON + 10 * DAY)
    assert len(pauses(billing)) == 2


def test_only_so_many_pauses_in_a_year(billing: Connection) -> None:
    make_company(billing)
    policy = PausePolicy(max_per_year=2)
    ask(billing, policy=policy, starts_at=NOON + 300 * DAY, ends_at=NOON + 301 * DAY)
    taken_back = ask(billing, policy=policy, starts_at=NOON + 200 * DAY, ends_at=NOON + 201 * DAY)
    with pytest.raises(BadInput, match="2 are allowed"):
        ask(billing, policy=policy)
    ask(billing, policy=policy, starts_at=NOON + 600 * DAY, ends_at=NOON + 601 * DAY)
    cancel_pause(billing, pause_ref=taken_back, clock=clock_at())
    ask(billing, policy=policy)


def test_two_at_once_cannot_pass_the_limit_together(billing_url: str, billing: Connection) -> None:
    make_company(billing)

    def run(number: int) -> bool:
        with opened(billing_url, purpose="test") as connection:
            starts = NOON + number * 10 * DAY
            try:
                ask(connection, starts_at=starts, ends_at=starts + DAY, policy=PausePolicy(max_per_year=1))
            except BadInput:
                return False
            return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(run, range(1, 5))) == 1


def test_a_pause_can_be_taken_back_until_it_begins(billing: Connection) -> None:
    make_company(billing)
    pause_ref = ask(billing, starts_at=NOON)
    sweep(billing)
    with pytest.raises(BadInput, match="end it instead"):
        cancel_pause(billing, pause_ref=pause_ref, clock=clock_at())
    with pytest.raises(BadInput, match="no pause 'x'"):
        cancel_pause(billing, pause_ref="x", clock=clock_at())


def test_an_active_pause_ends_now(billing: Connection) -> None:
    make_company(billing)
    next_payment_at = subscription(billing)["next_payment_at"]
    ask(billing, starts_at=NOON)
    sweep(billing)
    end_pause_now(billing, subscription_ref="s1", clock=clock_at(NOON + 2 * DAY))
    row = subscription(billing)
    assert (row["status"], row["next_payment_at"]) == ("active", next_payment_at + 2 * DAY)
    assert events(billing) == [("paused", NOON), ("resumed", NOON + 2 * DAY)]
    assert [operation for operation, _ in commands(billing)] == ["pause", "resume"]
    assert sweep(billing, NOON + 30 * DAY).due == 0
    with pytest.raises(BadInput, match="not in a pause"):
        end_pause_now(billing, subscription_ref="s1", clock=clock_at(NOON + 3 * DAY))


def test_a_pause_that_has_just_begun_or_is_overdue_can_end(billing: Connection) -> None:
    make_company(billing)
    ask(billing, starts_at=NOON)
    add_pause(billing, "s2", NOON - 2 * DAY, NOON - DAY, state="active")
    billing.execute("UPDATE billing.subscriptions SET status = 'paused' WHERE subscription_ref = 's2'")
    billing.execute("UPDATE billing.subscription_pauses SET state = 'active' WHERE state = 'scheduled'")
    billing.execute("UPDATE billing.subscriptions SET status = 'paused' WHERE subscription_ref = 's1'")
    for ref in ("s1", "s2"):
        end_pause_now(billing, subscription_ref=ref, clock=clock_at())
        assert subscription(billing, ref)["status"] == "active"
    assert subscription(billing, "s1")["changed_at"] == NOON + timedelta(microseconds=1)
    assert subscription(billing, "s2")["changed_at"] == NOON - DAY


def test_nothing_is_granted_while_pauses_are_off(billing: Connection) -> None:
    make_company(billing)
    set_feature(billing, "pauses", False, "incident", clock_at())
    for refused in (
        lambda: ask(billing),
        lambda: cancel_pause(billing, pause_ref="x", clock=clock_at()),
        lambda: end_pause_now(billing, subscription_ref="s1", clock=clock_at()),
    ):
        with pytest.raises(BadInput, match="'pauses' is off"):
            refused()
    with pytest.raises(BadInput, match="'teleport' is not a deployed component"):
        set_feature(billing, "teleport", True, "why not", clock_at())
