"""Asking for a pause, taking it back, ending it early."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexpay_pipelines.billing import (
    Pause,
    PausePolicy,
    SweepPolicy,
    apply_payment_outcomes,
    cancel_pause,
    end_pause_now,
    list_pauses,
    schedule_pause,
    set_feature,
)
from flexpay_pipelines.billing.moments import days_after, instant_of
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.errors import BadInput
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


def ask(connection: Connection, **changed: Any) -> Pause:
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
    asked = ask(billing)
    assert (asked.state, asked.starts_at, asked.ends_at) == ("scheduled", NOON + DAY, NOON + 10 * DAY)
    assert subscription(billing)["status"] == "active"
    assert sweep(billing, NOON + DAY).started == 1
    assert pauses(billing) == [("customer", "active")]


def test_a_pause_that_begins_now_has_begun_when_the_call_returns(billing: Connection) -> None:
    make_company(billing)
    begun = ask(billing, starts_at="now", days=3, ends_at=None)
    assert (begun.state, begun.subscription_status, begun.ends_at) == ("active", "paused", NOON + 3 * DAY)
    assert events(billing) == [("paused", NOON)]
    assert [operation for operation, _ in commands(billing)] == ["pause"]
    assert sweep(billing, NOON).due == 0


def test_a_dry_run_answers_and_changes_nothing(billing: Connection) -> None:
    make_company(billing)
    assert ask(billing, starts_at=NOON, dry_run=True).state == "active"
    assert (pauses(billing), commands(billing), events(billing)) == ([], [], [])
    with pytest.raises(BadInput, match="at most 90 days"):
        ask(billing, ends_at=NOON + 92 * DAY, dry_run=True)
    real = ask(billing)
    assert cancel_pause(billing, pause_ref=real.pause_ref, clock=clock_at(), dry_run=True).state == "canceled"
    assert pauses(billing) == [("customer", "scheduled")]
    sweep(billing, NOON + DAY)
    ended = end_pause_now(billing, subscription_ref="s1", clock=clock_at(NOON + 2 * DAY), dry_run=True)
    assert (ended.state, ended.subscription_status) == ("completed", "active")
    assert pauses(billing) == [("customer", "active")]


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
        ({"starts_at": "2026-04-01T10:00"}, "offset from UTC"),
        ({"starts_at": "2026-02-30"}, "not a day of the calendar"),
        ({"starts_at": "0001-01-01"}, "outside the years 1900 to 2999"),
        ({"ends_at": "9999-12-31T23:00-05:00"}, "outside the years 1"),
        ({"starts_at": "tomorrow"}, "'tomorrow' is not an ISO-8601 time"),
        ({"days": 3}, "not both"),
        ({"days": 0, "ends_at": None}, "between 1 and 36,500"),
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


def test_a_grace_period_in_the_way_is_called_one(billing: Connection) -> None:
    make_company(billing, status="past_due")
    add_pause(billing, "s1", NOON - DAY, NOON + 6 * DAY, kind="payment_failure", state="active")
    with pytest.raises(BadInput, match="in the grace period after a failed payment until 2026-03-16"):
        ask(billing, kind="admin")


def test_pauses_are_listed(billing: Connection) -> None:
    make_company(billing)
    later, first = ask(billing), ask(billing, subscription_ref="s2", starts_at=NOON)
    over = cancel_pause(billing, pause_ref=ask(billing, subscription_ref="s3").pause_ref, clock=clock_at())
    assert list_pauses(billing) == (later, first)
    assert list_pauses(billing, subscription_ref="s3") == (over,)
    assert list_pauses(billing, limit=1) == (later,)
    with pytest.raises(BadInput, match="no subscription 's9'"):
        list_pauses(billing, subscription_ref="s9")


def test_only_so_many_pauses_in_a_year(billing: Connection) -> None:
    make_company(billing)
    policy = PausePolicy(max_per_year=2)
    ask(billing, policy=policy, starts_at=NOON + 300 * DAY, ends_at=NOON + 301 * DAY)
    taken_back = ask(billing, policy=policy, starts_at=NOON + 200 * DAY, ends_at=NOON + 201 * DAY)
    with pytest.raises(BadInput, match="2 are allowed"):
        ask(billing, policy=policy)
    ask(billing, policy=policy, starts_at=NOON + 600 * DAY, ends_at=NOON + 601 * DAY)
    cancel_pause(billing, pause_ref=taken_back.pause_ref, clock=clock_at())
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
    cancel_pause(billing, pause_ref=ask(billing).pause_ref, clock=clock_at())
    assert pauses(billing) == [("customer", "canceled")]
    pause_ref = ask(billing, starts_at=NOON).pause_ref
    with pytest.raises(BadInput, match="end it instead"):
        cancel_pause(billing, pause_ref=pause_ref, clock=clock_at())
    with pytest.raises(BadInput, match="no pause 'x'"):
        cancel_pause(billing, pause_ref="x", clock=clock_at())


def test_an_active_pause_ends_now(billing: Connection) -> None:
    make_company(billing)
    next_payment_at = subscription(billing)["next_payment_at"]
    ask(billing, starts_at=NOON)
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
    for ref in ("s1", "s2"):
        end_pause_now(billing, subscription_ref=ref, clock=clock_at())
        assert subscription(billing, ref)["status"] == "active"
    assert subscription(billing, "s1")["changed_at"] == NOON + timedelta(microseconds=1)
    assert subscription(billing, "s2")["changed_at"] == NOON - DAY


def test_nothing_is_granted_while_pauses_are_off(billing: Connection) -> None:
    make_company(billing)
    set_feature(billing, "pauses", False, "incident", clock_at())
    refusals: tuple[Callable[[], Any], ...] = (
        lambda: ask(billing),
        lambda: cancel_pause(billing, pause_ref="x", clock=clock_at()),
        lambda: end_pause_now(billing, subscription_ref="s1", clock=clock_at()),
    )
    for refused in refusals:
        with pytest.raises(BadInput, match="'pauses' is off"):
            refused()
    with pytest.raises(BadInput, match="'teleport' is not a deployed component"):
        set_feature(billing, "teleport", True, "why not", clock_at())


ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Africa/Cairo",
    "America/Havana",
    "America/Sao_Paulo",
    "America/St_Johns",
    "Asia/Kathmandu",
    "Asia/Gaza",
    "Pacific/Apia",
]
days_of_the_calendar = st.dates(date(1990, 1, 1), date(2037, 12, 30))
same_database = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def midnights(day: date, zone: str) -> set[datetime]:
    """The instants that a midnight may mean: two where it comes twice; where it is missing, either side's offset."""
    local = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone))
    return {local.replace(fold=fold).astimezone(UTC) for fold in (0, 1)}


@same_database
@given(days_of_the_calendar, st.sampled_from(ZONES))
def test_every_day_is_one_instant_and_days_keep_their_order(billing: Connection, day: date, zone: str) -> None:
    begins, next_begins, again = (
        instant_of(billing, one.isoformat(), zone=zone, now=NOON) for one in (day, day + timedelta(days=1), day)
    )
    assert begins == again
    assert begins in midnights(day, zone)
    local = begins.astimezone(ZoneInfo(zone))
    # Nothing of the day before is left; the day itself is there, unless the zone left all of it out.
    assert local.date() == day or begins == next_begins
    assert begins <= next_begins <= begins + timedelta(hours=26)


@same_database
@given(days_of_the_calendar, st.integers(1, 400), st.sampled_from(ZONES))
def test_a_number_of_days_from_a_day_is_the_day_then(billing: Connection, day: date, days: int, zone: str) -> None:
    begins = instant_of(billing, day.isoformat(), zone=zone, now=NOON)
    if begins.astimezone(ZoneInfo(zone)).time() == datetime.min.time():
        then = day + timedelta(days=days)
        assert days_after(billing, begins, days, zone=zone) == instant_of(billing, str(then), zone=zone, now=NOON)


@pytest.mark.parametrize(
    ("zone", "day", "begins"),
    [
        ("Europe/Berlin", "2026-03-29", "2026-03-28T23:00+00:00"),
        ("Africa/Cairo", "2026-04-24", "2026-04-23T22:00+00:00"),  # 00:00 is 01:00
        ("Pacific/Apia", "2011-12-30", "2011-12-30T10:00+00:00"),  # there was no such day
        ("Pacific/Apia", "2011-12-31", "2011-12-30T10:00+00:00"),
    ],
)
def test_days_whose_midnight_is_missing(billing: Connection, zone: str, day: str, begins: str) -> None:
    assert instant_of(billing, day, zone=zone, now=NOON) == datetime.fromisoformat(begins)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dates(date(2026, 3, 11), date(2027, 12, 31)), st.integers(1, 90), st.integers(1, 90), st.sampled_from(ZONES))
def test_adjoining_pauses_touch_and_never_overlap(
    billing: Connection, first: date, length: int, more: int, zone: str
) -> None:
    with billing.transaction(force_rollback=True):
        make_company(billing, 1, zone=zone)
        middle = first + timedelta(days=length)
        one = ask(billing, starts_at=str(first), ends_at=str(middle))
        other = ask(billing, starts_at=str(middle), ends_at=None, days=more)
        assert one.ends_at == other.starts_at
        # The longest pause is counted in the customer's days, also where the clock changes.
        assert other.ends_at == instant_of(billing, str(middle + timedelta(days=more)), zone=zone, now=NOON)
        # Swept hour by hour or all at once, each transition is made once.
        assert sweep(billing, other.ends_at).due == 4
        assert [event for event, _ in events(billing)] == ["paused", "resumed", "paused", "resumed"]
        assert [at for _, at in events(billing)] == [one.starts_at, one.ends_at, other.starts_at, other.ends_at]


def test_who_owes_when_a_person_ends_the_pause_has_a_grace_period(billing: Connection) -> None:
    make_company(billing, anchor=NOON - 28 * DAY, next_payment_at=NOON)
    add_pause(billing, "s1", NOON + HOUR, NOON + 9 * DAY)
    failed = add_payment(billing, "s1", NOON, "failed")
    apply_payment_outcomes(billing, [failed], clock=clock_at(NOON), grace_days=3)
    sweep(billing, NOON + HOUR)
    now = NOON + 2 * DAY
    policy = SweepPolicy(grace_days=3)
    planned = end_pause_now(billing, subscription_ref="s1", clock=clock_at(now), policy=policy, dry_run=True)
    assert (planned.subscription_status, len(pauses(billing))) == ("past_due", 1)
    assert end_pause_now(billing, subscription_ref="s1", clock=clock_at(now), policy=policy) == planned
    assert pauses(billing) == [("customer", "completed"), ("payment_failure", "active")]
    with pytest.raises(BadInput, match="in the grace period after a failed payment until 2026-03-15"):
        ask(billing, starts_at=now + DAY)
    assert sweep(billing, now + 3 * DAY, policy=policy).suspended == 1
