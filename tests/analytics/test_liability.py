"""Rewards liability: by hand, against plain loops on random ledgers, and against what billing says is left."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexpay_pipelines.analytics import rewards_liability
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from tests.analytics.ledger import ORIGIN, write
from tests.analytics.money import DAY, Entry, aged, book, lots_left, started

AT = datetime(2026, 1, 1, 9, tzinfo=UTC)
FLOWS = ("opening", "earned", "spent", "expired", "reversed", "closing")
AGES = ("overdue", "within_30_days", "within_90_days", "within_365_days", "later", "never")


def flows(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(row[name]) for name in FLOWS)


def ages(row: dict[str, Any]) -> dict[str, int]:
    return {name: int(row[name]) for name in AGES if row[name]}


def test_a_year_of_credit(billing: Connection) -> None:
    write(billing, [started("ann-1", AT)])
    book(
        billing,
        [
            Entry("ann", AT, "earned", 1000, AT + 100 * DAY),
            Entry("ann", AT + 10 * DAY, "earned", 500),
            Entry("ann", AT + 40 * DAY, "spent", 300),
            Entry("ann", AT + 102 * DAY, "expired", 700),
        ],
    )
    rows = rewards_liability(billing, start=date(2026, 1, 1), end=date(2026, 4, 30), grain="month")
    assert [(row["period"], *flows(row)) for row in rows] == [
        ("2026-01", 0, 1500, 0, 0, 0, 1500),
        ("2026-02", 1500, 0, 300, 0, 0, 1200),
        ("2026-03", 1200, 0, 0, 0, 0, 1200),
        ("2026-04", 1200, 0, 0, 700, 0, 500),
    ]
    assert [ages(row) for row in rows] == [
        {"within_90_days": 1000, "never": 500},
        {"within_90_days": 700, "never": 500},
        {"within_30_days": 700, "never": 500},
        {"never": 500},
    ]
    assert [row["customers"] for row in rows] == [1, 1, 1, 1]


def test_credit_that_ran_out_and_was_not_written_off_is_overdue(billing: Connection) -> None:
    write(billing, [started("ann-1", AT)])
    book(billing, [Entry("ann", AT, "earned", 1000, AT + 5 * DAY)])
    rows = rewards_liability(billing, start=date(2026, 1, 5), end=date(2026, 1, 6), grain="day")
    assert [ages(row) for row in rows] == [{"within_30_days": 1000}, {"overdue": 1000}]


def test_currencies_are_not_added(billing: Connection) -> None:
    write(billing, [started("ann-1", AT), started("bob-1", AT, currency="USD")])
    book(billing, [Entry("ann", AT, "earned", 1), Entry("bob", AT, "earned", 2)])
    rows = rewards_liability(billing, start=date(2026, 1, 1), end=date(2026, 1, 1), grain="day")
    assert [(row["currency"], row["closing"]) for row in rows] == [("EUR", 1), ("USD", 2)]


def test_without_a_reward_ledger_it_says_so(billing: Connection) -> None:
    billing.execute("DROP FUNCTION billing.reward_credits")
    with pytest.raises(BadInput, match="no reward ledger in this database: run flexpay deploy"):
        rewards_liability(billing, start=date(2026, 1, 1), end=date(2026, 1, 1), grain="day")


@st.composite
def ledgers(draw: st.DrawFn) -> list[Entry]:
    """Credit of two customers, spent and expired without ever more than there is; some known late."""
    entries: list[Entry] = []
    for customer in ("ann", "cid"):
        balance, at = 0, ORIGIN
        for _ in range(draw(st.integers(0, 9))):
            at += draw(st.integers(0, 30)) * DAY
            if balance and draw(st.booleans()):
                amount = draw(st.integers(1, balance))
                entries.append(Entry(customer, at, "spent", amount))
                balance -= amount
            else:
                amount = draw(st.integers(1, 1000))
                expires = draw(st.sampled_from([None, 1, 29, 30, 31, 89, 90, 364, 365, 366, 800]))
                entries.append(Entry(customer, at, "earned", amount, None if expires is None else at + expires * DAY))
                balance += amount
    if draw(st.booleans()):
        # Everything comes in at once, as an import does.
        entries = [replace(e, recorded_at=ORIGIN + 400 * DAY) for e in entries]
    return entries


@pytest.mark.parametrize("examples", [20, pytest.param(2_000, marks=pytest.mark.soak)])
def test_every_day_agrees_with_plain_loops(billing: Connection, examples: int) -> None:
    first, last = ORIGIN.date() + 20 * DAY, ORIGIN.date() + 110 * DAY
    write(billing, [started("ann-1", ORIGIN), started("cid-1", ORIGIN)])

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(ledgers(), st.sampled_from([None, 60, 500]))
    def compare(entries: list[Entry], known_days: int | None) -> None:
        known_at = None if known_days is None else ORIGIN + known_days * DAY
        with billing.transaction(force_rollback=True):
            book(billing, entries)
            asked: dict[str, Any] = {"start": first, "end": last, "known_at": known_at}
            days = rewards_liability(billing, grain="day", **asked)
            months = rewards_liability(billing, grain="month", **asked)
        known = [e for e in entries if known_at is None or e.known_at <= known_at]
        found = {row["period"]: row for row in days}
        for n in range((last - first).days + 1):
            day = first + n * DAY
            end = datetime(day.year, day.month, day.day, tzinfo=UTC) + DAY
            buckets = aged(known, ("ann", "cid"), end)
            row = found.get(day.isoformat())
            assert (ages(row) if row else {}) == {name: left for name, left in buckets.items() if left}
            assert (row["customers"] if row else 0) == sum(
                any(left for _, left in lots_left([e for e in known if e.customer == c], end)) for c in ("ann", "cid")
            )
        for row in (*days, *months):
            opening, earned, spent, expired, reversed_, closing = flows(row)
            assert opening + earned - spent - expired - reversed_ == closing == sum(ages(row).values())
        for column in ("earned", "spent"):
            whole = sum(row[column] for row in months if row["period"] in ("2025-02", "2025-03"))
            assert whole == sum(row[column] for row in days if row["period"][:7] in ("2025-02", "2025-03"))

    compare()


def test_what_is_left_is_what_billing_says(billing: Connection) -> None:
    """Also where reversals and expiries name their credit, and where one that names none must be explained."""
    write(billing, [started("ann-1", AT), started("cid-1", AT)])
    book(
        billing,
        [
            Entry("ann", AT, "earned", 1000, AT + 50 * DAY),
            Entry("ann", AT + DAY, "earned", 700, AT + 300 * DAY),
            Entry("ann", AT + 2 * DAY, "earned", 300),
            Entry("ann", AT + 3 * DAY, "spent", 400),
            Entry("cid", AT, "earned", 250, AT + 20 * DAY),
            Entry("cid", AT, "earned", 150, AT + 90 * DAY),
            Entry("cid", AT + 21 * DAY, "expired", 250),
        ],
    )
    billing.execute(
        "INSERT INTO billing.reward_entries (customer_id, occurred_at, recorded_at, kind, amount_minor, credit_id)"
        " SELECT e.customer_id, %(at)s, %(at)s, v.how, v.amount, e.reward_entry_id FROM billing.reward_entries AS e"
        " JOIN (VALUES (700, 'reversed', 200), (1000, 'expired', 600)) AS v (of, how, amount) ON e.amount_minor = v.of",
        {"at": AT + 55 * DAY},
    )
    (row,) = rewards_liability(billing, start=date(2026, 3, 1), end=date(2026, 3, 1), grain="day")
    left = billing.execute(
        "SELECT expires_at, left_minor FROM"
        " billing.reward_credits((SELECT array_agg(customer_id) FROM billing.customers))"
    ).fetchall()
    end = datetime(2026, 3, 2, tzinfo=UTC)
    wanted: Counter[str] = Counter()
    for credit in left:
        name = next(
            n
            for n, days in zip(AGES, (0, 30, 90, 365, None, None), strict=True)
            if (days is None and (credit["expires_at"] is None) == (n == "never"))
            or (days is not None and credit["expires_at"] is not None and credit["expires_at"] < end + days * DAY)
        )
        wanted[name] += credit["left_minor"]
    assert ages(row) == {name: amount for name, amount in wanted.items() if amount}
    assert flows(row) == (950, 0, 0, 0, 0, 950)
