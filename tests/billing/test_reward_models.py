"""The ledger of rewards against a purse of lots kept in plain Python, under random lives and a moving clock."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from threading import Barrier

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexpay_pipelines.billing import (
    RewardPolicy,
    earn_reward,
    excess_write_offs,
    expire_rewards,
    negative_balances,
    reverse_reward,
    reward_balance,
    reward_entries,
    spend_reward,
)
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.errors import BadInput
from tests.billing.helpers import DAY, NOON, clock_at, make_company

SAMPLE = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SOAK = settings(SAMPLE, max_examples=4000)
CUSTOMERS = ("c1", "c2")

Entry = tuple[str, str, int, datetime, int | None]


@dataclass
class Lot:
    """One credit and what is left of it."""

    entry: int
    left: int
    expires_at: datetime | None


@dataclass
class Purse:
    """The naive ledger: lots in the order in which they came in, and every entry that was written."""

    lots: dict[str, list[Lot]] = field(default_factory=lambda: {ref: [] for ref in CUSTOMERS})
    entries: list[Entry] = field(default_factory=list)

    def balance(self, ref: str) -> int:
        return sum(lot.left for lot in self.lots[ref])

    def usable(self, ref: str, now: datetime) -> int:
        return sum(lot.left for lot in self.lots[ref] if lot.expires_at is None or lot.expires_at > now)

    def expire(self, ref: str, now: datetime) -> None:
        for lot in self.lots[ref]:
            if lot.left and lot.expires_at is not None and lot.expires_at <= now:
                self.entries.append((ref, "expired", lot.left, lot.expires_at, lot.entry))
                lot.left = 0

    def spend(self, ref: str, amount: int, now: datetime) -> None:
        self.entries.append((ref, "spent", amount, now, None))
        for lot in self.lots[ref]:
            taken = min(lot.left, amount)
            lot.left -= taken
            amount -= taken

    def reverse(self, ref: str, lot: Lot, now: datetime) -> None:
        self.entries.append((ref, "reversed", lot.left, now, lot.entry))
        lot.left = 0


customers = st.sampled_from(CUSTOMERS)
lifetimes = st.none() | st.integers(1, 3)
# Days pass slowly and lifetimes are short: many a step falls on the very instant of an expiry.
steps = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, 2]),
        st.one_of(
            st.tuples(st.just("earn"), customers, st.integers(1, 50), lifetimes),
            st.tuples(st.just("late"), customers, st.integers(1, 50), lifetimes),
            st.tuples(st.just("spend"), customers, st.integers(1, 60), st.none()),
            st.tuples(st.just("reverse"), customers, st.integers(0, 4), st.none()),
            st.tuples(st.just("expire"), customers, st.just(0), st.none()),
        ),
    ),
    min_size=10,
    max_size=24,
)


def run_model(billing: Connection, history: list[tuple[int, tuple[str, str, int, int | None]]]) -> None:
    with billing.transaction(force_rollback=True):
        make_company(billing, 2)
        purse, now = Purse(), NOON
        for halves, (what, ref, number, days) in history:
            now += halves * DAY / 2
            expires_at = None if days is None else now + days * DAY
            if what == "earn":
                entry = earn_reward(
                    billing, customer_ref=ref, amount_minor=number, reason="bonus", clock=clock_at(now),
                    expires_at=expires_at,
                )  # fmt: skip
                purse.lots[ref].append(Lot(entry, number, expires_at))
                purse.entries.append((ref, "earned", number, now, None))
            elif what == "late":
                late(billing, purse, ref, number, at=now - 10 * DAY, expires_at=expires_at)
            elif what == "spend":
                spend(billing, purse, ref, number, now)
            elif what == "reverse" and number < len(purse.lots[ref]):
                reverse(billing, purse, ref, purse.lots[ref][number], now)
            elif what == "expire":
                for each in CUSTOMERS:
                    purse.expire(each, now)
                expire_rewards(billing, clock=clock_at(now), policy=RewardPolicy(), progress=lambda _: None)
            agree(billing, purse)


def late(
    billing: Connection, purse: Purse, ref: str, amount: int, *, at: datetime, expires_at: datetime | None
) -> None:
    """Credit of an older date, as a late settlement or an import brings it."""
    row = billing.execute(
        "INSERT INTO billing.reward_entries (customer_id, occurred_at, kind, amount_minor, expires_at)"
        " SELECT customer_id, %s, 'earned', %s, %s FROM billing.customers WHERE customer_ref = %s"
        " RETURNING reward_entry_id",
        (at, amount, expires_at, ref),
    ).fetchone()
    assert row is not None
    purse.lots[ref].append(Lot(row["reward_entry_id"], amount, expires_at))
    purse.entries.append((ref, "earned", amount, at, None))


def spend(billing: Connection, purse: Purse, ref: str, amount: int, now: datetime) -> None:
    if purse.usable(ref, now) < amount:
        with pytest.raises(BadInput, match=f"has {purse.usable(ref, now)} minor units"):
            spend_reward(billing, customer_ref=ref, amount_minor=amount, reason="invoice", clock=clock_at(now))
        return
    spend_reward(billing, customer_ref=ref, amount_minor=amount, reason="invoice", clock=clock_at(now))
    purse.expire(ref, now)
    purse.spend(ref, amount, now)


def reverse(billing: Connection, purse: Purse, ref: str, lot: Lot, now: datetime) -> None:
    if not lot.left or (lot.expires_at is not None and lot.expires_at <= now):
        with pytest.raises(BadInput, match="Nothing of credit"):
            reverse_reward(billing, reward_entry_id=lot.entry, reason="?", clock=clock_at(now))
        return
    assert reverse_reward(billing, reward_entry_id=lot.entry, reason="?", clock=clock_at(now)) == lot.left
    purse.expire(ref, now)
    purse.reverse(ref, lot, now)


def agree(billing: Connection, purse: Purse) -> None:
    """Every entry, every credit's rest, both balances; and the parts of each credit sum up."""
    found: list[Entry] = []
    for ref in CUSTOMERS:
        rows = reward_entries(billing, ref)
        found += [(ref, r["kind"], r["amount_minor"], r["occurred_at"], r["credit_id"]) for r in rows]
        rest = {row["reward_entry_id"]: row["left_minor"] for row in rows if row["kind"] == "earned"}
        assert rest == {lot.entry: lot.left for lot in purse.lots[ref]}
        assert reward_balance(billing, ref) == purse.balance(ref) >= 0
    assert sorted(found, key=str) == sorted(purse.entries, key=str)
    assert negative_balances(billing) == excess_write_offs(billing) == []
    uneven = billing.execute(
        "SELECT * FROM billing.reward_credits((SELECT array_agg(customer_id) FROM billing.customers))"
        " WHERE amount_minor <> written_off_minor + spent_minor + left_minor OR least(spent_minor, left_minor) < 0"
    ).fetchall()
    assert uneven == []


@SAMPLE
@given(steps)
def test_the_ledger_agrees_with_a_purse_of_lots(
    billing: Connection, history: list[tuple[int, tuple[str, str, int, int | None]]]
) -> None:
    run_model(billing, history)


@pytest.mark.soak
@SOAK
@given(steps)
def test_the_ledger_agrees_with_a_purse_of_lots_thousands(
    billing: Connection, history: list[tuple[int, tuple[str, str, int, int | None]]]
) -> None:
    run_model(billing, history)


def run_race(billing_url: str, billing: Connection, balance: int, first: int, second: int) -> None:
    """Two who together ask for more than there is, though each alone could have it."""
    if not billing.execute("SELECT 1 FROM billing.customers").fetchall():
        make_company(billing, 1)
    left = reward_balance(billing, "c1")
    if left:
        spend_reward(billing, customer_ref="c1", amount_minor=left, reason="before", clock=clock_at())
    earn_reward(billing, customer_ref="c1", amount_minor=balance, reason="bonus", clock=clock_at())
    start = Barrier(2)

    def run(amount: int) -> int:
        with opened(billing_url, purpose="test") as connection:
            start.wait(timeout=30)
            try:
                spend_reward(connection, customer_ref="c1", amount_minor=amount, reason="race", clock=clock_at())
            except BadInput:
                return 0
            return amount

    with ThreadPoolExecutor(2) as pool:
        spent = list(pool.map(run, (first, second)))
    assert sorted(spent) in ([0, first], [0, second])
    assert reward_balance(billing, "c1") == balance - sum(spent)


balances = st.integers(1, 100).flatmap(
    lambda b: st.tuples(st.just(b), st.integers(1, b), st.just(0)).flatmap(
        lambda t: st.tuples(st.just(t[0]), st.just(t[1]), st.integers(t[0] - t[1] + 1, t[0]))
    )
)


@settings(SAMPLE, max_examples=8)
@given(balances)
def test_of_two_spenders_at_once_exactly_one_wins(
    billing_url: str, billing: Connection, amounts: tuple[int, int, int]
) -> None:
    run_race(billing_url, billing, *amounts)


@pytest.mark.soak
@settings(SOAK, max_examples=1000)
@given(balances)
def test_of_two_spenders_at_once_exactly_one_wins_a_thousand_times(
    billing_url: str, billing: Connection, amounts: tuple[int, int, int]
) -> None:
    run_race(billing_url, billing, *amounts)
