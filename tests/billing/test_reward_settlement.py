"""Milestones, reversals of referrals and expiry: due by rule, dated when they were due, once however often it runs."""

from __future__ import annotations

import calendar
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexpay_pipelines.billing import (
    RewardPolicy,
    SettlementResult,
    earn_reward,
    excess_write_offs,
    negative_balances,
    plan_settlement,
    reward_balance,
    set_feature,
    settle_rewards,
    spend_reward,
)
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.sql import MIGRATIONS_ROOT
from tests.billing.helpers import DAY, HOUR, clock_at, make_company

START = datetime(2024, 1, 31, 10, tzinfo=UTC)
SINCE = datetime(2020, 1, 1, tzinfo=UTC)
POLICY = RewardPolicy(loyalty_since=SINCE, lifetime_days=0)
TICK = timedelta(microseconds=1)

Entry = tuple[str, str, int, datetime]


def settle(connection: Connection, at: datetime, policy: RewardPolicy = POLICY) -> SettlementResult:
    return settle_rewards(connection, clock=clock_at(at), policy=policy, progress=lambda _: None)


def entries(connection: Connection) -> list[Entry]:
    """The ledger but for what was earned by hand, in the order of time."""
    return [
        (row["customer_ref"], row["kind"], row["amount_minor"], row["occurred_at"])
        for row in connection.execute(
            "SELECT customer_ref, kind, amount_minor, occurred_at FROM billing.reward_entries"
            " JOIN billing.customers USING (customer_id)"
            " WHERE source IS DISTINCT FROM 'bonus' AND source IS DISTINCT FROM 'referral'"
            " ORDER BY occurred_at, customer_ref, reward_entry_id"
        )
    ]


def event(connection: Connection, ref: str, what: str, at: datetime, amount: int = 1000) -> None:
    """One more line of a subscription's history."""
    connection.execute(
        "INSERT INTO billing.subscription_events"
        " (subscription_id, customer_id, event, occurred_at, plan, payment_frequency, amount_minor, quantity, currency)"
        " SELECT subscription_id, customer_id, %s, %s, plan, 'MONTHLY', %s, 1, currency FROM billing.subscriptions"
        " WHERE subscription_ref = %s",
        (what, at, amount, ref),
    )


def refer(connection: Connection, at: datetime, expires_at: datetime | None = None) -> int:
    """c1 brought c2."""
    return earn_reward(
        connection, customer_ref="c1", amount_minor=100, reason="brought c2", clock=clock_at(at),
        expires_at=expires_at, source="referral", referred_customer_ref="c2",
    )  # fmt: skip


def test_each_milestone_is_rewarded_once_at_its_instant(billing: Connection) -> None:
    make_company(billing, 1, anchor=START)
    year, two = datetime(2025, 1, 31, 10, tzinfo=UTC), datetime(2026, 1, 31, 10, tzinfo=UTC)
    assert settle(billing, year - TICK).granted.entries == 0
    assert settle(billing, year).granted.amount_minor == {"EUR": 500}
    assert settle(billing, year).granted.entries == 0
    assert settle(billing, two + 90 * DAY).granted.amount_minor == {"EUR": 1000}
    assert entries(billing) == [("c1", "earned", 500, year), ("c1", "earned", 1000, two)]


def test_the_calendar_is_that_of_the_customers_zone(billing: Connection) -> None:
    """Begun on the first of March in Auckland, while it was the last of February in London."""
    make_company(billing, 1, anchor=datetime(2024, 2, 29, 12, tzinfo=UTC), zone="Pacific/Auckland")
    settle(billing, datetime(2025, 3, 2, tzinfo=UTC))
    assert entries(billing) == [("c1", "earned", 500, datetime(2025, 2, 28, 12, tzinfo=UTC))]


def test_tenure_begins_with_the_first_price_that_is_paid(billing: Connection) -> None:
    """A trial is not paid, nor is a free plan."""
    make_company(billing, 2, anchor=START, status="trialing")
    event(billing, "s1", "changed", START + 5 * DAY, 2000)
    event(billing, "s1", "started", START + 14 * DAY)
    event(billing, "s2", "started", START + 14 * DAY, 0)
    event(billing, "s2", "changed", START + 40 * DAY)
    settle(billing, datetime(2026, 1, 1, tzinfo=UTC))
    assert [(ref, at) for ref, _, _, at in entries(billing)] == [
        ("c1", datetime(2025, 2, 14, 10, tzinfo=UTC)),
        ("c2", datetime(2025, 3, 11, 10, tzinfo=UTC)),
    ]


@pytest.mark.parametrize(
    ("gone", "back", "rewarded"),
    [(-TICK, None, 0), (timedelta(0), None, 0), (TICK, None, 1), (-60 * DAY, -30 * DAY, 1), (-DAY, DAY, 0)],
)
def test_only_who_is_a_customer_at_that_instant_is_rewarded(
    billing: Connection, gone: timedelta, back: timedelta | None, rewarded: int
) -> None:
    make_company(billing, 1, anchor=START)
    year = datetime(2025, 1, 31, 10, tzinfo=UTC)
    event(billing, "s1", "canceled", year + gone)
    # The terms of what is canceled may still change: that brings nobody back.
    event(billing, "s1", "changed", year + gone)
    if back is not None:
        event(billing, "s1", "started", year + back)
    assert settle(billing, year + 2 * DAY).granted.entries == rewarded


def test_milestones_before_the_programme_are_left_out(billing: Connection) -> None:
    make_company(billing, 1, anchor=START)
    two = datetime(2026, 1, 31, 10, tzinfo=UTC)
    late = two + 400 * DAY
    assert settle(billing, late, RewardPolicy(loyalty_since=two + TICK)).granted.entries == 1
    assert settle(billing, late, RewardPolicy(loyalty_since=two)).granted.entries == 1
    assert [amount for _, kind, amount, _ in entries(billing) if kind == "earned"] == [1000, 1500]
    # Unset: since the component was first deployed, which a revert does not make younger.
    known = "SELECT starts_at FROM billing.reward_programmes"
    first = billing.execute(known).fetchone()
    for step in ("revert", "deploy"):
        billing.execute((MIGRATIONS_ROOT / "rewards" / f"0002_reward_sources.{step}.sql").read_bytes())
    assert billing.execute(known).fetchone() == first
    assert settle(billing, datetime.now(UTC), RewardPolicy()).granted.entries == 0


def test_a_currency_may_have_milestones_of_its_own(billing: Connection) -> None:
    make_company(billing, 4, anchor=START)
    for number, currency in ((2, "JPY"), (3, "USD"), (4, "CHF")):
        billing.execute(
            "WITH c AS (UPDATE billing.customers SET currency = %(is)s WHERE customer_ref = 'c' || %(n)s::text)"
            " UPDATE billing.subscriptions SET currency = %(is)s WHERE subscription_ref = 's' || %(n)s::text",
            {"is": currency, "n": number},
        )
    policy = RewardPolicy(
        loyalty={12: 500, 24: 1000}, loyalty_of={"JPY": {12: 800}, "CHF": {}}, loyalty_since=SINCE, lifetime_days=0
    )
    done = settle(billing, START + 3 * 366 * DAY, policy)
    # Not 24 months in yen, and nothing in francs: what has a table of its own has no other.
    assert done.granted.amount_minor == {"EUR": 1500, "JPY": 800, "USD": 1500}
    assert settle(billing, START + 3 * 366 * DAY, policy).granted.entries == 0
    only = RewardPolicy(loyalty={}, loyalty_of={"CHF": {24: 7}}, loyalty_since=SINCE, lifetime_days=0)
    assert settle(billing, START + 3 * 366 * DAY, only).granted.amount_minor == {"CHF": 7}


def test_a_milestone_found_late_may_have_run_out(billing: Connection) -> None:
    make_company(billing, 1, anchor=START)
    year = datetime(2025, 1, 31, 10, tzinfo=UTC)
    policy = RewardPolicy(loyalty={12: 500}, loyalty_since=SINCE, lifetime_days=30)
    done = settle(billing, year + 90 * DAY, policy)
    assert (done.granted.amount_minor, done.expired.amount_minor) == ({"EUR": 500}, {"EUR": 500})
    assert entries(billing) == [("c1", "earned", 500, year), ("c1", "expired", 500, year + 30 * DAY)]


@pytest.mark.parametrize(
    ("left_after", "reversed_"),
    [(timedelta(0), 1), (50 * DAY, 1), (89 * DAY - TICK, 1), (89 * DAY, 0), (-TICK, 0)],
)
def test_a_referral_is_reversed_when_the_referred_customer_leaves_in_time(
    billing: Connection, left_after: timedelta, reversed_: int
) -> None:
    """From 31 January three months are 89 days: to 30 April."""
    at = datetime(2025, 1, 31, 10, tzinfo=UTC)
    make_company(billing, 2, anchor=START)
    refer(billing, at)
    spend_reward(billing, customer_ref="c1", amount_minor=30, reason="invoice", clock=clock_at(at + HOUR))
    event(billing, "s2", "canceled", at + left_after)
    policy = RewardPolicy(loyalty={})
    done = settle(billing, at + 200 * DAY, policy)
    assert done.reversed.amount_minor == ({"EUR": 70} if reversed_ else {})
    assert settle(billing, at + 201 * DAY, policy).reversed.entries == 0
    assert reward_balance(billing, "c1") == (0 if reversed_ else 70)
    assert [at_ for _, kind, _, at_ in entries(billing) if kind == "reversed"] == [at + left_after] * reversed_


def test_who_keeps_a_subscription_has_not_left(billing: Connection) -> None:
    make_company(billing, 2, anchor=START)
    billing.execute(
        "INSERT INTO billing.subscriptions (subscription_ref, customer_id, plan, status, amount_minor, currency,"
        " started_at, billing_anchor) SELECT 'second', customer_id, plan, 'active', 1000, currency, %s, %s"
        " FROM billing.subscriptions WHERE subscription_ref = 's2'",
        (START + 10 * DAY, START + 10 * DAY),
    )
    refer(billing, START)
    event(billing, "s2", "canceled", START + 20 * DAY)
    assert settle(billing, START + 21 * DAY).reversed.entries == 0
    event(billing, "second", "canceled", START + 30 * DAY)
    event(billing, "second", "started", START + 31 * DAY)
    assert settle(billing, START + 32 * DAY).reversed.entries == 1
    assert entries(billing)[-1] == ("c1", "reversed", 100, START + 30 * DAY)


@pytest.mark.parametrize(("expires_after", "kind"), [(20, "expired"), (21, "reversed")])
def test_what_came_first_is_what_is_written(billing: Connection, expires_after: int, kind: str) -> None:
    make_company(billing, 2, anchor=START)
    refer(billing, START, START + expires_after * DAY)
    event(billing, "s2", "canceled", START + 20 * DAY)
    settle(billing, START + 100 * DAY)
    assert entries(billing) == [("c1", kind, 100, START + 20 * DAY)]


def test_a_plan_says_it_and_changes_nothing(billing: Connection) -> None:
    make_company(billing, 3, anchor=START)
    refer(billing, START, START + 50 * DAY)
    at = START + 400 * DAY
    plan = plan_settlement(billing, clock=clock_at(at), policy=POLICY, progress=lambda _: None)
    assert entries(billing) == []
    assert settle(billing, at) == plan
    assert (plan.granted.entries, plan.expired.amount_minor) == (3, {"EUR": 100})


def test_nothing_is_done_while_rewards_are_off(billing: Connection) -> None:
    make_company(billing, 1, anchor=START)
    said: list[str] = []
    set_feature(billing, "rewards", False, "incident", clock_at())
    done = settle_rewards(billing, clock=clock_at(START + 400 * DAY), policy=POLICY, progress=said.append)
    assert (done.enabled, done.granted.entries, entries(billing)) == (False, 0, [])
    assert "nothing was settled" in said[0]
    set_feature(billing, "rewards", True, "over", clock_at())
    assert settle(billing, START + 400 * DAY).granted.entries == 1
    for revision in ("0002_reward_sources", "0001_reward_ledger"):
        billing.execute((MIGRATIONS_ROOT / "rewards" / f"{revision}.revert.sql").read_bytes())
        assert not settle(billing, START + 400 * DAY).enabled


def test_two_settlements_and_a_spender_at_once(billing_url: str, billing: Connection) -> None:
    make_company(billing, 30, anchor=START)
    refer(billing, START)
    event(billing, "s2", "canceled", START + 20 * DAY)
    for number in range(3, 31):
        earn_reward(
            billing, customer_ref=f"c{number}", amount_minor=50, reason="bonus", clock=clock_at(START),
            expires_at=START + 30 * DAY,
        )  # fmt: skip
    small = RewardPolicy(loyalty_since=SINCE, lifetime_days=0, batch_size=7)

    def run(who: int) -> None:
        with opened(billing_url, purpose="test") as connection:
            if who:
                settle(connection, START + 400 * DAY, small)
                return
            for number in range(30, 2, -1):
                # By a clock that has not seen the expiry: each finds its credit, or what came with the milestone.
                spend_reward(
                    connection, customer_ref=f"c{number}", amount_minor=1, reason="race", clock=clock_at(START + DAY)
                )

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, range(3)))
    written = entries(billing)
    kinds = [kind for _, kind, _, _ in written]
    assert {kind: kinds.count(kind) for kind in kinds} == {"earned": 29, "reversed": 1, "expired": 28, "spent": 28}
    expired = {ref: amount for ref, kind, amount, _ in written if kind == "expired"}
    assert set(expired.values()) <= {49, 50}
    for ref, amount in expired.items():
        assert reward_balance(billing, ref) == 500 + 50 - 1 - amount


def test_the_checks_see_what_the_triggers_would_have_refused(billing: Connection) -> None:
    make_company(billing, 2, anchor=START)
    credit = refer(billing, START)
    assert negative_balances(billing) == excess_write_offs(billing) == []
    billing.execute("ALTER TABLE billing.reward_entries DISABLE TRIGGER reward_entries_balance")
    for ref, amount in (("c1", 60), ("c1", 70), ("c2", 5)):
        billing.execute(
            "INSERT INTO billing.reward_entries (customer_id, occurred_at, kind, amount_minor, credit_id)"
            " SELECT customer_id, now(), 'reversed', %s, %s FROM billing.customers WHERE customer_ref = %s",
            (amount, credit, ref),
        )
    assert negative_balances(billing) == [
        {"customer_ref": "c1", "balance_minor": -30}, {"customer_ref": "c2", "balance_minor": -5},
    ]  # fmt: skip
    # The credit of c1 is none of c2's.
    assert excess_write_offs(billing) == [
        {"customer_ref": "c1", "credit_id": credit, "earned_minor": 100, "taken_minor": 130},
        {"customer_ref": "c2", "credit_id": credit, "earned_minor": 0, "taken_minor": 5},
    ]


# Random lives against a reference that walks through them one by one.

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Pacific/Auckland", "Asia/Kolkata")
SAMPLE = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True)
class Life:
    """A customer: a zone, and the histories of up to three subscriptions (instant, event, price)."""

    zone: str
    histories: tuple[tuple[tuple[datetime, str, int], ...], ...]


def months_later(at: datetime, months: int, zone: str) -> datetime:
    local = at.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    year, month = divmod(local.year * 12 + local.month - 1 + months, 12)
    day = min(local.day, calendar.monthrange(year, month + 1)[1])
    return local.replace(year=year, month=month + 1, day=day, tzinfo=ZoneInfo(zone)).astimezone(UTC)


def alive(life: Life, at: datetime) -> bool:
    for history in life.histories:
        told = [what for when, what, _ in history if when <= at and what != "changed"]
        if told and told[-1] != "canceled":
            return True
    return False


def first_paid(life: Life) -> datetime | None:
    found = []
    for history in life.histories:
        started = False
        for when, what, price in history:
            started = started or what == "started"
            if started and price and what != "canceled":
                found.append(when)
                break
    return min(found, default=None)


def left_at(life: Life, since: datetime, until: datetime) -> datetime | None:
    gone = sorted(when for history in life.histories for when, what, _ in history if what == "canceled")
    return next((when for when in gone if since <= when < until and not alive(life, when)), None)


@st.composite
def lives(draw: st.DrawFn) -> Life:
    zone = draw(st.sampled_from(ZONES))
    # At an hour of the day that no clock change touches; month ends among the days.
    local = datetime(2023, draw(st.integers(1, 12)), draw(st.sampled_from([1, 15, 28])), tzinfo=ZoneInfo(zone))
    born = local.replace(hour=draw(st.integers(8, 20))).astimezone(UTC) + draw(st.integers(0, 3)) * DAY
    near = st.builds(
        lambda months, offset: months_later(born, months, zone) + offset,
        st.sampled_from([0, 1, 2, 3, 6, 12, 24, 36]),
        st.sampled_from([-DAY, -TICK, timedelta(0), TICK, DAY]),
    ).filter(lambda at: at >= born)
    histories = []
    for number in range(draw(st.integers(1, 3))):
        instants = sorted(draw(st.lists(near, min_size=1, max_size=5, unique=True)))
        instants[0] = born if number == 0 else instants[0]
        first = draw(st.sampled_from(["started", "trial_started"]))
        later = st.sampled_from(["started", "changed", "paused", "resumed", "past_due", "canceled", "canceled"])
        whats = [first, *(draw(later) for _ in instants[1:])]
        histories.append(
            tuple((at, what, draw(st.sampled_from([0, 1000, 2500]))) for at, what in zip(instants, whats, strict=True))
        )
    return Life(zone, tuple(histories))


def write(connection: Connection, everybody: list[Life]) -> None:
    connection.execute("INSERT INTO billing.plans (plan, name) VALUES ('pro', 'Pro')")
    connection.execute("SELECT set_config('flexpay.ledger', 'import', true)")
    for number, life in enumerate(everybody):
        connection.execute(
            "INSERT INTO billing.customers (customer_ref, currency, time_zone) VALUES (%s, 'EUR', %s)",
            (f"c{number}", life.zone),
        )
        for place, history in enumerate(life.histories):
            ref = f"s{number}.{place}"
            connection.execute(
                "INSERT INTO billing.subscriptions (subscription_ref, customer_id, plan, status, amount_minor,"
                " currency, started_at, billing_anchor) SELECT %s, customer_id, 'pro', 'active', 1, 'EUR', %s, %s"
                " FROM billing.customers WHERE customer_ref = %s",
                (ref, history[0][0], history[0][0], f"c{number}"),
            )
            for at, what, price in history:
                event(connection, ref, what, at, price)


def expected(everybody: list[Life], referrals: list[datetime], now: datetime) -> list[Entry]:
    found: list[Entry] = []
    for number, life in enumerate(everybody):
        begun = first_paid(life)
        for months, amount in POLICY.loyalty.items() if begun else ():
            assert begun is not None
            at = months_later(begun, months, life.zone)
            if SINCE <= at <= now and alive(life, at):
                found.append((f"c{number}", "earned", amount, at))
    for number, at in enumerate(referrals):
        gone = left_at(everybody[number + 1], at, months_later(at, 3, everybody[number].zone))
        if gone is not None and gone <= now:
            found.append((f"c{number}", "reversed", 100, gone))
    return sorted(found, key=lambda entry: (entry[3], entry[0], entry[1]))


@st.composite
def companies(draw: st.DrawFn) -> tuple[list[Life], list[datetime]]:
    everybody = draw(st.lists(lives(), min_size=2, max_size=5))
    # Each brought the next: entered when he began, or so that an end falls on an edge of the three months.
    referrals = []
    for life in everybody[1:]:
        instants = [at for history in life.histories for at, *_ in history]
        at = draw(st.sampled_from(instants)) - draw(st.sampled_from([timedelta(0), TICK, DAY, 89 * DAY, 92 * DAY]))
        referrals.append(at)
    return everybody, referrals


def run_company(connection: Connection, company: tuple[list[Life], list[datetime]], stops: list[int]) -> None:
    everybody, referrals = company
    with connection.transaction(force_rollback=True):
        write(connection, everybody)
        for number, at in enumerate(referrals):
            earn_reward(
                connection, customer_ref=f"c{number}", amount_minor=100, reason="brought", clock=clock_at(at),
                source="referral", referred_customer_ref=f"c{number + 1}",
            )  # fmt: skip
        for stop in sorted({*stops, 2000}):
            now = datetime(2022, 12, 1, tzinfo=UTC) + stop * DAY
            settle(connection, now, RewardPolicy(loyalty_since=SINCE, lifetime_days=0, batch_size=2))
            written = sorted(entries(connection), key=lambda entry: (entry[3], entry[0], entry[1]))
            assert written == expected(everybody, referrals, now)


stops = st.lists(st.integers(1, 1500), max_size=4)


@SAMPLE
@given(companies(), stops)
def test_random_lives_agree_with_a_walk_through_them(
    billing: Connection, company: tuple[list[Life], list[datetime]], stops: list[int]
) -> None:
    run_company(billing, company, stops)


@pytest.mark.soak
@settings(SAMPLE, max_examples=3000)
@given(companies(), stops)
def test_random_lives_agree_with_a_walk_through_them_thousands(
    billing: Connection, company: tuple[list[Life], list[datetime]], stops: list[int]
) -> None:
    run_company(billing, company, stops)
