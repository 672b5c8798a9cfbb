"""Reward credits: what is earned, spent, taken back, expired; never below zero."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexpay_pipelines.billing import (
    earn_reward,
    expire_rewards,
    reverse_reward,
    reward_balance,
    set_feature,
    spend_reward,
)
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.sql import MIGRATIONS_ROOT
from tests.billing.helpers import DAY, NOON, clock_at, make_company


def earn(connection: Connection, amount: int, at: datetime = NOON, expires: datetime | None = None) -> int:
    return earn_reward(
        connection, customer_ref="c1", amount_minor=amount, reason="bonus", clock=clock_at(at), expires_at=expires
    )


def spend(connection: Connection, amount: int, at: datetime = NOON) -> int:
    return spend_reward(connection, customer_ref="c1", amount_minor=amount, reason="invoice", clock=clock_at(at))


def ledger(connection: Connection) -> list[tuple[str, int]]:
    return [
        (row["kind"], row["amount_minor"])
        for row in connection.execute("SELECT kind, amount_minor FROM billing.reward_entries ORDER BY reward_entry_id")
    ]


def test_earned_credit_can_be_spent_and_no_more(billing: Connection) -> None:
    make_company(billing)
    earn(billing, 500)
    spend(billing, 300)
    assert reward_balance(billing, "c1") == 200
    with pytest.raises(BadInput, match="has 200 minor units of credit left, 201 are asked for"):
        spend(billing, 201)
    assert ledger(billing) == [("earned", 500), ("spent", 300)]
    assert reward_balance(billing, "c2") == 0


def test_two_spenders_at_once_cannot_both_have_the_last(billing_url: str, billing: Connection) -> None:
    make_company(billing)
    earn(billing, 500)

    def run(_: int) -> bool:
        with opened(billing_url, purpose="test") as connection:
            try:
                spend(connection, 200)
            except BadInput:
                return False
            return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(run, range(6))) == 2
    assert reward_balance(billing, "c1") == 100


def test_what_is_left_unspent_expires_once_at_its_time(billing: Connection) -> None:
    make_company(billing)
    earn(billing, 300, NOON, NOON + 10 * DAY)
    earn(billing, 200, NOON + DAY)
    spend(billing, 100, NOON + 2 * DAY)
    assert expire_rewards(billing, clock=clock_at(NOON + 9 * DAY)) == 0
    assert expire_rewards(billing, clock=clock_at(NOON + 20 * DAY)) == 1
    assert expire_rewards(billing, clock=clock_at(NOON + 21 * DAY)) == 0
    assert reward_balance(billing, "c1") == 200
    row = billing.execute(
        "SELECT occurred_at, amount_minor FROM billing.reward_entries WHERE kind = 'expired'"
    ).fetchone()
    assert row == {"occurred_at": NOON + 10 * DAY, "amount_minor": 200}


def test_expiry_takes_nothing_from_older_or_later_credit(billing: Connection) -> None:
    make_company(billing)
    earn(billing, 100, NOON)
    earn(billing, 50, NOON + DAY, NOON + 5 * DAY)
    assert expire_rewards(billing, clock=clock_at(NOON + 6 * DAY)) == 1
    earn(billing, 70, NOON + 7 * DAY, NOON + 9 * DAY)
    assert expire_rewards(billing, clock=clock_at(NOON + 8 * DAY)) == 0
    assert expire_rewards(billing, clock=clock_at(NOON + 9 * DAY)) == 1
    assert reward_balance(billing, "c1") == 100


def test_credit_earned_after_a_spending_still_expires(billing: Connection) -> None:
    make_company(billing)
    earn(billing, 100)
    spend(billing, 100)
    earn(billing, 50, NOON + DAY, NOON + 2 * DAY)
    assert expire_rewards(billing, clock=clock_at(NOON + 3 * DAY)) == 1
    assert reward_balance(billing, "c1") == 0


def test_expired_credit_cannot_be_spent_before_the_job_has_run(billing: Connection) -> None:
    make_company(billing)
    earn(billing, 100, NOON, NOON + DAY)
    earn(billing, 40)
    with pytest.raises(BadInput, match="has 40 minor units"):
        spend(billing, 41, NOON + 2 * DAY)
    spend(billing, 40, NOON + 2 * DAY)
    assert reward_balance(billing, "c1") == 0


def test_a_reversal_takes_what_is_left_of_its_credit_once(billing: Connection) -> None:
    make_company(billing)
    earn(billing, 100, NOON, NOON + 50 * DAY)
    referral = earn(billing, 200, NOON + DAY)
    spend(billing, 150, NOON + DAY)
    reverse_reward(billing, reward_entry_id=referral, reason="referred customer left", clock=clock_at(NOON + 2 * DAY))
    assert (reward_balance(billing, "c1"), ledger(billing)[-1]) == (0, ("reversed", 150))
    with pytest.raises(BadInput, match="Nothing of credit"):
        reverse_reward(billing, reward_entry_id=referral, reason="again", clock=clock_at(NOON + 3 * DAY))
    with pytest.raises(BadInput, match="no earned credit 999"):
        reverse_reward(billing, reward_entry_id=999, reason="?", clock=clock_at())


def test_a_reversal_leaves_other_credit_to_expire(billing: Connection) -> None:
    make_company(billing)
    earn(billing, 100, NOON, NOON + 5 * DAY)
    referral = earn(billing, 100, NOON + DAY)
    reverse_reward(billing, reward_entry_id=referral, reason="left", clock=clock_at(NOON + 2 * DAY))
    assert reward_balance(billing, "c1") == 100
    assert expire_rewards(billing, clock=clock_at(NOON + 6 * DAY)) == 1
    assert reward_balance(billing, "c1") == 0


@pytest.mark.parametrize("amount", [0, -5])
def test_amounts_are_positive(billing: Connection, amount: int) -> None:
    make_company(billing)
    for act in (earn, spend):
        with pytest.raises(BadInput, match="above zero"):
            act(billing, amount)


def test_refused_with_the_reason(billing: Connection) -> None:
    make_company(billing)
    with pytest.raises(BadInput, match="no customer 'x'"):
        spend_reward(billing, customer_ref="x", amount_minor=1, reason="?", clock=clock_at())
    with pytest.raises(BadInput, match="no customer 'x'"):
        reward_balance(billing, "x")
    with pytest.raises(BadInput, match="expire in the past"):
        earn(billing, 1, NOON, NOON)
    set_feature(billing, "rewards", False, "incident", clock_at())
    for act in (earn, spend):
        with pytest.raises(BadInput, match="'rewards' is off"):
            act(billing, 1)
    assert expire_rewards(billing, clock=clock_at()) == 0
    assert reward_balance(billing, "c1") == 0
    billing.execute((MIGRATIONS_ROOT / "rewards" / "0001_reward_ledger.revert.sql").read_bytes())
    with pytest.raises(BadInput, match="not deployed"):
        reward_balance(billing, "c1")


class Wallet:
    """Every unit of credit by itself, oldest first: the naive oracle."""

    def __init__(self) -> None:
        self.credits: list[tuple[int, int, datetime | None]] = []

    def expire(self, now: datetime) -> None:
        self.credits = [c for c in self.credits if c[2] is None or c[2] > now]

    def take(self, amount: int) -> None:
        while amount:
            entry, left, expires = self.credits[0]
            taken = min(left, amount)
            amount -= taken
            self.credits[:1] = [(entry, left - taken, expires)] if left > taken else []

    @property
    def balance(self) -> int:
        return sum(left for _, left, _ in self.credits)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("earn"), st.integers(1, 50), st.none() | st.integers(1, 6)),
        st.tuples(st.just("spend"), st.integers(1, 60), st.none()),
        st.tuples(st.just("reverse"), st.integers(0, 5), st.none()),
        st.tuples(st.just("expire"), st.none(), st.none()),
    ),
    max_size=14,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_the_ledger_agrees_with_a_wallet_of_single_units(
    billing: Connection, history: list[tuple[str, int | None, int | None]]
) -> None:
    if not billing.execute("SELECT 1 FROM billing.customers").fetchall():
        make_company(billing, 1)
    billing.execute("ALTER TABLE billing.reward_entries DISABLE TRIGGER reward_entries_append_only")
    billing.execute("DELETE FROM billing.reward_entries")
    billing.execute("ALTER TABLE billing.reward_entries ENABLE TRIGGER reward_entries_append_only")
    wallet, now = Wallet(), NOON
    for what, number, days in history:
        now += DAY / 2
        if what == "earn":
            assert number is not None
            expires = now + days * DAY if days else None
            wallet.credits.append((earn(billing, number, now, expires), number, expires))
            continue
        if what == "expire":
            wallet.expire(now)
            expire_rewards(billing, clock=clock_at(now))
            assert reward_balance(billing, "c1") == wallet.balance
            continue
        assert number is not None
        lively = Wallet()
        lively.credits = list(wallet.credits)
        lively.expire(now)
        if what == "spend" and lively.balance >= number:
            spend(billing, number, now)
            lively.take(number)
        elif what == "reverse" and number < len(lively.credits):
            entry = lively.credits.pop(number)[0]
            reverse_reward(billing, reward_entry_id=entry, reason="test", clock=clock_at(now))
        else:
            continue
        wallet = lively
        assert reward_balance(billing, "c1") == wallet.balance
