"""The stored balances are the computed ones, are mended by late entries, and are known to add up."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest

from flexpay_pipelines.analytics import (
    balance_breaks,
    deferred_revenue,
    paused_revenue,
    refresh,
    refresh_balances,
    rewards_liability,
    stored_balances,
)
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from tests.analytics.ledger import write
from tests.analytics.money import DAY, Entry, Payment, book, pay, started
from tests.analytics.reference import Event

AT = datetime(2026, 1, 1, 9, tzinfo=UTC)
CLOCK = FixedClock(AT + 40 * DAY)
FIRST, LAST = date(2026, 1, 1), date(2026, 1, 31)


@pytest.fixture
def company(billing: Connection) -> Connection:
    at = AT + 12 * DAY
    write(
        billing, [started("ann-1", AT), Event("ann-1", "ann", "paused", at, at), started("bob-1", AT, currency="USD")]
    )
    pay(billing, [Payment("ann-1", AT, 3100), Payment("bob-1", AT + 3 * DAY, 999)])
    book(billing, [Entry("ann", AT, "earned", 500, AT + 60 * DAY), Entry("ann", AT + 5 * DAY, "spent", 120)])
    refresh(billing, start=FIRST, end=LAST, clock=CLOCK)
    return billing


def computed(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    asked: dict[str, Any] = {"start": FIRST, "end": LAST, "grain": "day"}
    return {
        "rewards-liability": rewards_liability(connection, **asked),
        "deferred-revenue": deferred_revenue(connection, **asked),
        "paused-revenue": paused_revenue(connection, **asked),
    }


def test_stored_is_computed(company: Connection) -> None:
    result = refresh_balances(company, start=FIRST, end=LAST, clock=CLOCK)
    assert (result.days, result.days_again, result.rewards) == (31, 0, True)
    stored = stored_balances(company, first=FIRST, last=LAST)
    assert stored == computed(company)
    assert all(stored.values())
    assert result.rows == sum(len(rows) for rows in stored.values())
    assert balance_breaks(company, start=FIRST, end=LAST) == []
    assert refresh_balances(company, start=FIRST, end=LAST, clock=CLOCK).rows == result.rows


def test_a_late_entry_mends_the_days_since(company: Connection) -> None:
    refresh_balances(company, start=FIRST, end=LAST - DAY, clock=CLOCK)
    before = stored_balances(company, first=FIRST, last=LAST)
    late = CLOCK.now() + DAY
    company.execute(
        "INSERT INTO billing.payments (payment_ref, subscription_id, occurred_at, recorded_at, amount_minor, currency,"
        " outcome) SELECT 'late', subscription_id, %s, %s, 700, 'USD', 'succeeded' FROM billing.subscriptions"
        " WHERE subscription_ref = 'bob-1'",
        (AT + 20 * DAY, late),
    )
    book(company, [Entry("ann", AT + 25 * DAY, "spent", 80, recorded_at=late)])
    result = refresh_balances(company, start=LAST, end=LAST, clock=FixedClock(late + DAY))
    assert (result.days, result.days_again) == (1, 10)
    after = stored_balances(company, first=FIRST, last=LAST)
    assert after == computed(company)
    for dataset in before:
        changed = {row["period"] for row in after[dataset] if row not in before[dataset]}
        assert all(day >= "2026-01-21" for day in changed)
    assert balance_breaks(company, start=FIRST, end=LAST) == []


def test_days_between_stored_ones_stay_unstored(company: Connection) -> None:
    refresh_balances(company, start=FIRST, end=FIRST, clock=CLOCK)
    refresh_balances(company, start=LAST, end=LAST, clock=CLOCK)
    company.execute("UPDATE billing.payments SET recorded_at = %s", (CLOCK.now(),))
    refresh_balances(company, start=LAST, end=LAST, clock=CLOCK)
    days = {row["period"] for rows in stored_balances(company, first=FIRST, last=LAST).values() for row in rows}
    assert days == {"2026-01-01", "2026-01-31"}
    assert balance_breaks(company, start=FIRST, end=LAST) == []


def test_without_rewards_the_others_are_stored(company: Connection) -> None:
    """And nothing is wrong with the days before a rollback, of it, and after it was undone."""
    refresh_balances(company, start=FIRST, end=LAST - 2 * DAY, clock=CLOCK)
    with company.transaction(force_rollback=True):
        company.execute("DROP FUNCTION billing.reward_credits")
        result = refresh_balances(company, start=LAST - DAY, end=LAST - DAY, clock=FixedClock(CLOCK.now() + DAY))
        assert (result.rewards, result.rows) == (False, 3)
        assert balance_breaks(company, start=FIRST, end=LAST) == []
    company.execute("INSERT INTO analytics.balance_days VALUES (%s, now())", (LAST - DAY,))
    refresh_balances(company, start=LAST, end=LAST, clock=FixedClock(CLOCK.now() + 2 * DAY))
    assert [row["balance"] for row in balance_breaks(company, start=FIRST, end=LAST)].count("rewards-liability") == 0


@pytest.mark.parametrize(
    ("damage", "balance", "problems"),
    [
        (
            "UPDATE analytics.rewards_liability SET closing_minor = closing_minor + 1 WHERE day = '2026-01-10'",
            "rewards-liability",
            {
                ("2026-01-10", "closing is not opening plus what came less what went"),
                ("2026-01-10", "parts do not sum to the closing"),
                ("2026-01-11", "opening is not the closing of the day before"),
            },
        ),
        (
            "DELETE FROM analytics.deferred_revenue WHERE day = '2026-01-10' AND currency = 'EUR'",
            "deferred-revenue",
            {
                ("2026-01-10", "opening is not the closing of the day before"),
                ("2026-01-11", "opening is not the closing of the day before"),
            },
        ),
        (
            "UPDATE analytics.paused_revenue SET longer_minor = 7 WHERE day = '2026-01-20'",
            "paused-revenue",
            {("2026-01-20", "parts do not sum to the closing")},
        ),
    ],
)
def test_balances_that_do_not_add_up_are_named(
    company: Connection, damage: str, balance: str, problems: set[tuple[str, str]]
) -> None:
    refresh_balances(company, start=FIRST, end=LAST, clock=CLOCK)
    company.execute(damage.encode())
    found = balance_breaks(company, start=FIRST, end=LAST)
    assert {row["balance"] for row in found} == {balance}
    assert {(row["day"].isoformat(), row["problem"]) for row in found} == problems


def test_months_are_the_sums_of_their_days(company: Connection) -> None:
    refresh_balances(company, start=FIRST, end=LAST, clock=CLOCK)
    stored = stored_balances(company, first=FIRST, last=LAST)
    asked: dict[str, Any] = {"start": FIRST, "end": LAST, "grain": "month"}
    for month in rewards_liability(company, **asked) + deferred_revenue(company, **asked):
        dataset = "rewards-liability" if "earned" in month else "deferred-revenue"
        days = [row for row in stored[dataset] if row["currency"] == month["currency"]]
        for flow in {"earned", "spent", "expired", "reversed", "received", "recognised"} & month.keys():
            assert month[flow] == sum(row[flow] for row in days)
        assert (month["opening"], month["closing"]) == (days[0]["opening"], days[-1]["closing"])
