"""Reward credits: what is earned, spent, taken back, expired; never below zero."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

from flexpay_pipelines.billing import (
    RewardAction,
    RewardChange,
    RewardPolicy,
    apply_reward_change,
    earn_reward,
    expire_rewards,
    reverse_reward,
    reward_balance,
    reward_entries,
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


def expire(connection: Connection, at: datetime) -> int:
    done = expire_rewards(connection, clock=clock_at(at), policy=RewardPolicy(), progress=lambda _: None)
    assert bool(done.entries) == bool(done.amount_minor)
    return done.entries


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
    assert expire(billing, NOON + 9 * DAY) == 0
    assert expire(billing, NOON + 20 * DAY) == 1
    assert expire(billing, NOON + 21 * DAY) == 0
    assert reward_balance(billing, "c1") == 200
    row = billing.execute(
        "SELECT occurred_at, amount_minor FROM billing.reward_entries WHERE kind = 'expired'"
    ).fetchone()
    assert row == {"occurred_at": NOON + 10 * DAY, "amount_minor": 200}


def test_expiry_takes_nothing_from_older_or_later_credit(billing: Connection) -> None:
    make_company(billing)
    earn(billing, 100, NOON)
    earn(billing, 50, NOON + DAY, NOON + 5 * DAY)
    assert expire(billing, NOON + 6 * DAY) == 1
    earn(billing, 70, NOON + 7 * DAY, NOON + 9 * DAY)
    assert expire(billing, NOON + 8 * DAY) == 0
    assert expire(billing, NOON + 9 * DAY) == 1
    assert reward_balance(billing, "c1") == 100


def test_credit_earned_after_a_spending_still_expires(billing: Connection) -> None:
    make_company(billing)
    earn(billing, 100)
    spend(billing, 100)
    earn(billing, 50, NOON + DAY, NOON + 2 * DAY)
    assert expire(billing, NOON + 3 * DAY) == 1
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
    assert expire(billing, NOON + 6 * DAY) == 1
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
    assert expire(billing, NOON) == 0
    assert reward_balance(billing, "c1") == 0
    with pytest.raises(BadInput, match="no customer 'x'"):
        reward_entries(billing, "x")


def test_an_older_schema_and_none_at_all_are_told_apart(billing: Connection) -> None:
    make_company(billing)
    billing.execute((MIGRATIONS_ROOT / "rewards" / "0002_reward_sources.revert.sql").read_bytes())
    for act in (earn, spend):
        with pytest.raises(BadInput, match="older than this release: run `flexpay deploy`"):
            act(billing, 1)
    with pytest.raises(BadInput, match="older than this release"):
        reward_balance(billing, "c1")
    assert expire(billing, NOON) == 0
    billing.execute((MIGRATIONS_ROOT / "rewards" / "0001_reward_ledger.revert.sql").read_bytes())
    with pytest.raises(BadInput, match="not deployed"):
        reward_balance(billing, "c1")


def refer(connection: Connection, referred: str | None, by: str = "c1") -> int:
    return earn_reward(
        connection,
        customer_ref=by,
        amount_minor=100,
        reason="brought a customer",
        clock=clock_at(),
        source="referral",
        referred_customer_ref=referred,
    )


def test_a_customer_is_referred_once_by_somebody_else(billing: Connection) -> None:
    make_company(billing)
    entry = refer(billing, "c2")
    for referred, by, says in (
        ("c2", "c1", "'c2' was referred already, by 'c1'"),
        ("c2", "c3", "'c2' was referred already, by 'c1'"),
        ("c3", "c3", "cannot refer himself"),
        ("c9", "c1", "no customer 'c9'"),
        (None, "c1", "names the customer who was referred"),
    ):
        with pytest.raises(BadInput, match=says):
            refer(billing, referred, by)
    assert ledger(billing) == [("earned", 100)]
    refer(billing, "c1", by="c2")
    [row] = reward_entries(billing, "c1")
    assert (row["reward_entry_id"], row["source"], row["referred"], row["left_minor"]) == (entry, "referral", "c2", 100)


def test_two_referrers_at_once_cannot_both_be_rewarded(billing_url: str, billing: Connection) -> None:
    make_company(billing, 7)

    def run(by: int) -> bool:
        with opened(billing_url, purpose="test") as connection:
            try:
                refer(connection, "c7", f"c{by}")
            except BadInput:
                return False
            return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(run, range(1, 7))) == 1
    assert len(ledger(billing)) == 1


def test_credit_is_spent_as_it_came_in_also_where_it_is_dated_back(billing: Connection) -> None:
    make_company(billing)
    earn(billing, 100, NOON, NOON + 5 * DAY)
    spend(billing, 60, NOON + DAY)
    billing.execute(
        "INSERT INTO billing.reward_entries (customer_id, occurred_at, kind, amount_minor)"
        " SELECT customer_id, %s, 'earned', 50 FROM billing.customers WHERE customer_ref = 'c1'",
        (NOON - DAY,),
    )
    assert expire(billing, NOON + 5 * DAY) == 1
    assert reward_balance(billing, "c1") == 50
    assert [(row["amount_minor"], row["left_minor"]) for row in reward_entries(billing, "c1")] == [
        (50, 50), (100, 0), (60, None), (40, None),
    ]  # fmt: skip


def test_write_offs_that_name_no_credit_are_counted_all_the_same(billing: Connection) -> None:
    make_company(billing)
    earn(billing, 100, NOON, NOON + 5 * DAY)
    earn(billing, 80, NOON + DAY)
    billing.execute(
        "INSERT INTO billing.reward_entries (customer_id, occurred_at, kind, amount_minor)"
        " SELECT customer_id, e.at, e.kind, e.amount FROM billing.customers, (VALUES"
        " (%s::timestamptz, 'expired', 70), (%s, 'reversed', 10), (%s, 'expired', 5)) AS e (at, kind, amount)"
        " WHERE customer_ref = 'c1'",
        (NOON + 5 * DAY, NOON + 3 * DAY, NOON - DAY),
    )
    unspent = [row["left_minor"] for row in reward_entries(billing, "c1") if row["kind"] == "earned"]
    assert unspent == [15, 80]
    assert expire(billing, NOON + 6 * DAY) == 1
    assert (reward_balance(billing, "c1"), ledger(billing)[-1]) == (80, ("expired", 15))


def test_an_older_reversal_finds_its_credit_again(billing: Connection) -> None:
    make_company(billing)
    kept, taken = earn(billing, 100), earn(billing, 70)
    reverse_reward(billing, reward_entry_id=taken, reason="left: for good", clock=clock_at(NOON + DAY))
    refer(billing, "c2")
    rows = reward_entries(billing, "c1")
    files = MIGRATIONS_ROOT / "rewards"
    billing.execute((files / "0002_reward_sources.revert.sql").read_bytes())
    billing.execute("UPDATE archive.reward_entry_links SET credit_id = NULL")
    billing.execute((files / "0002_reward_sources.deploy.sql").read_bytes())
    assert reward_entries(billing, "c1") == rows
    assert [row["credit_id"] for row in rows if row["kind"] == "reversed"] == [taken]
    assert [row["left_minor"] for row in rows if row["reward_entry_id"] == kept] == [100]
    with pytest.raises(Exception, match="append-only"):
        billing.execute("UPDATE billing.reward_entries SET reason = 'x'")


def test_the_usual_referral_reward_is_that_of_the_customers_currency(billing: Connection) -> None:
    make_company(billing, 3)
    billing.execute("INSERT INTO billing.customers (customer_ref, currency) VALUES ('yen', 'JPY'), ('franc', 'CHF')")
    policy = RewardPolicy(referral_minor=None, referral_of={"EUR": 500, "JPY": 800})

    def refer(customer: str, referred: str, amount: int | None = None) -> int:
        change = RewardChange(RewardAction.earn, "brought one", customer, amount, referred=referred)
        return int(apply_reward_change(billing, change, clock=clock_at(), policy=policy)["balance_minor"])

    assert (refer("c1", "c2"), refer("yen", "c1"), refer("franc", "yen", 7)) == (500, 800, 7)
    with pytest.raises(BadInput, match="Name the amount: the settings name no referral reward in CHF"):
        refer("franc", "c3")
    with pytest.raises(BadInput, match="There is no customer 'nobody'"):
        refer("nobody", "c3")
    assert RewardPolicy().referral("CHF") == 500
