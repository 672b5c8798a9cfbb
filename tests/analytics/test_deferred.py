"""Deferred and paused revenue: by hand, and against a day-by-day reference on random histories."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexpay_pipelines.analytics import deferred_revenue, paused_revenue
from flexpay_pipelines.database import Connection
from tests.analytics.ledger import DAYS, ORIGIN, histories, write
from tests.analytics.money import DAY, Payment, deferred_by_day, known, pay, started
from tests.analytics.reference import PER_YEAR, Event, History

AT = datetime(2026, 1, 1, 9, tzinfo=UTC)
MONTH: dict[str, Any] = {"start": date(2026, 1, 1), "end": date(2026, 3, 31), "grain": "month"}


def event(name: str, day: int, **changes: object) -> Event:
    return replace(started("ann-1", AT + day * DAY, **changes), event=name)


def closings(rows: list[dict[str, Any]], column: str = "closing") -> dict[str, int]:
    return {row["period"]: int(row[column]) for row in rows}


def figures(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(row[name]) for name in ("opening", "received", "recognised", "closing", "closing_paused"))


def test_a_month_is_recognised_by_the_day(billing: Connection) -> None:
    """1000 over the 31 days of January: after n days 1000 n / 31, half up."""
    write(billing, [started("ann-1", AT)])
    pay(billing, [Payment("ann-1", AT)])
    rows = deferred_revenue(billing, start=date(2026, 1, 1), end=date(2026, 2, 1), grain="day")
    assert [figures(row) for row in rows[:2]] == [(0, 1000, 32, 968, 0), (968, 0, 33, 935, 0)]
    assert [int(row["recognised"]) for row in rows][2:7] == [32, 32, 32, 33, 32]
    assert sum(row["recognised"] for row in rows) == 1000
    assert (rows[-1]["period"], rows[-1]["closing"]) == ("2026-01-31", 0)


def test_a_year_is_recognised_over_its_months(billing: Connection) -> None:
    write(billing, [started("ann-1", AT, payment_frequency="YEARLY", amount_minor=36500)])
    pay(billing, [Payment("ann-1", AT, 36500)])
    rows = deferred_revenue(billing, **MONTH)
    assert [figures(row) for row in rows] == [
        (0, 36500, 3100, 33400, 0),
        (33400, 0, 2800, 30600, 0),
        (30600, 0, 3100, 27500, 0),
    ]


def test_a_period_stands_still_while_paused(billing: Connection) -> None:
    """Ten days of 31 are used; from 11 January to 20 February nothing is; then the other 21."""
    write(billing, [started("ann-1", AT), event("paused", 10), event("resumed", 51)])
    pay(billing, [Payment("ann-1", AT, 3100)])
    rows = deferred_revenue(billing, start=date(2026, 1, 10), end=date(2026, 3, 20), grain="day")
    found = closings(rows)
    assert (found["2026-01-10"], found["2026-02-20"], found["2026-02-21"], found["2026-03-12"]) == (
        2100,
        2100,
        2000,
        100,
    )
    paused = closings(rows, "closing_paused")
    assert (paused["2026-01-10"], paused["2026-01-11"], paused["2026-02-20"], paused["2026-02-21"]) == (
        0,
        2100,
        2100,
        0,
    )


def test_what_is_over_is_recognised_at_once(billing: Connection) -> None:
    write(billing, [started("ann-1", AT), event("canceled", 10)])
    pay(billing, [Payment("ann-1", AT, 3100)])
    rows = deferred_revenue(billing, start=date(2026, 1, 10), end=date(2026, 1, 11), grain="day")
    assert [figures(row) for row in rows] == [(2200, 0, 100, 2100, 0), (2100, 0, 2100, 0, 0)]


def test_a_late_attempt_is_for_the_period_it_was_due_for(billing: Connection) -> None:
    """Due on 1 February, won on the 5th: four days of February have passed when the money comes."""
    due = AT + 31 * DAY
    write(billing, [started("ann-1", AT)])
    pay(
        billing,
        [
            Payment("ann-1", due, 2800, "failed", failure_class="issuer_decline"),
            Payment("ann-1", due + 4 * DAY, 2800, attempt=2),
        ],
    )
    rows = deferred_revenue(billing, start=date(2026, 2, 1), end=date(2026, 2, 28), grain="day")
    assert figures(rows[0]) == (0, 2800, 500, 2300, 0)
    assert (rows[0]["period"], rows[-1]["period"], rows[-1]["closing"]) == ("2026-02-05", "2026-02-28", 0)


def test_month_ends_are_counted_from_the_anchor(billing: Connection) -> None:
    """Of a subscription of the 31st the payment of 28 February is for the 31 days up to 31 March."""
    anchor = datetime(2026, 1, 31, 9, tzinfo=UTC)
    write(billing, [started("ann-1", anchor)])
    pay(billing, [Payment("ann-1", datetime(2026, 2, 28, 9, tzinfo=UTC), 3100)])
    rows = deferred_revenue(billing, start=date(2026, 2, 1), end=date(2026, 3, 31), grain="month")
    assert [figures(row) for row in rows] == [(0, 3100, 100, 3000, 0), (3000, 0, 3000, 0, 0)]


def test_a_payment_that_a_pause_moved_has_a_period_of_its_own(billing: Connection) -> None:
    write(billing, [started("ann-1", AT), event("paused", 10), event("resumed", 20)])
    pay(billing, [Payment("ann-1", AT + 41 * DAY, 2800)])
    rows = deferred_revenue(billing, start=date(2026, 2, 1), end=date(2026, 3, 31), grain="month")
    assert [figures(row) for row in rows] == [(0, 2800, 1800, 1000, 0), (1000, 0, 1000, 0, 0)]


def test_days_are_those_of_the_customers_calendar(billing: Connection) -> None:
    """Paid at 00:30 in Auckland on 1 July: in UTC the period runs from 30 June to 31 July."""
    write(billing, [started("ann-1", datetime(2026, 6, 30, 12, 30, tzinfo=UTC))])
    billing.execute("UPDATE billing.customers SET time_zone = 'Pacific/Auckland'")
    pay(billing, [Payment("ann-1", datetime(2026, 6, 30, 12, 30, tzinfo=UTC), 3100)])
    rows = deferred_revenue(billing, start=date(2026, 6, 30), end=date(2026, 7, 31), grain="day")
    assert (len(rows), rows[-1]["period"]) == (31, "2026-07-30")


def test_known_at_shows_what_was_known(billing: Connection) -> None:
    write(billing, [started("ann-1", AT)])
    pay(billing, [Payment("ann-1", AT, recorded_at=AT + 5 * DAY)])
    asked: dict[str, Any] = {"start": date(2026, 1, 2), "end": date(2026, 1, 2), "grain": "day"}
    assert deferred_revenue(billing, **asked, known_at=AT + DAY) == []
    assert [figures(row) for row in deferred_revenue(billing, **asked)] == [(968, 0, 33, 935, 0)]


def test_currencies_are_not_added(billing: Connection) -> None:
    write(billing, [started("ann-1", AT), started("bob-1", AT, currency="USD")])
    pay(billing, [Payment("ann-1", AT, 3100), Payment("bob-1", AT, 6200)])
    rows = deferred_revenue(billing, start=date(2026, 1, 1), end=date(2026, 1, 1), grain="day")
    assert [(row["currency"], int(row["closing"])) for row in rows] == [("EUR", 3000), ("USD", 6000)]


def test_paused_run_rate_by_age(billing: Connection) -> None:
    write(billing, [started("ann-1", AT), event("paused", 5), event("changed", 20, amount_minor=2000)])
    rows = {
        row["period"]: tuple(int(row[n]) for n in ("annualised_minor", "up_to_30_days", "up_to_90_days", "longer"))
        for row in paused_revenue(billing, start=date(2026, 1, 5), end=date(2026, 4, 30), grain="day")
    }
    assert min(rows) == "2026-01-06"
    assert rows["2026-01-20"] == (12_000, 12_000, 0, 0)
    assert rows["2026-01-21"] == (24_000, 24_000, 0, 0)
    assert (rows["2026-02-04"], rows["2026-02-05"]) == ((24_000, 24_000, 0, 0), (24_000, 0, 24_000, 0))
    assert (rows["2026-04-05"], rows["2026-04-06"]) == ((24_000, 0, 24_000, 0), (24_000, 0, 0, 24_000))


@st.composite
def payments_of(draw: st.DrawFn, events: list[Event]) -> list[Payment]:
    subscriptions = sorted({event.subscription for event in events if event.currency == "EUR"})
    found = []
    for _ in range(draw(st.integers(0, 8)) if subscriptions else 0):
        at = ORIGIN + timedelta(days=draw(st.integers(0, DAYS)), hours=draw(st.sampled_from([0, 6, 23])))
        if draw(st.booleans()):
            at = draw(st.sampled_from(events)).occurred_at
        found.append(
            Payment(
                draw(st.sampled_from(subscriptions)),
                at,
                draw(st.sampled_from([1, 7, 1000, 12_345, 100_001])),
                draw(st.sampled_from(["succeeded", "succeeded", "failed"])),
                draw(st.sampled_from([1, 1, 2, 3])),
                at + draw(st.sampled_from([0, 0, 20])) * DAY,
            )
        )
    return found


@pytest.mark.parametrize("examples", [15, pytest.param(2_000, marks=pytest.mark.soak)])
def test_every_day_agrees_with_the_reference(billing: Connection, examples: int) -> None:
    first, last = ORIGIN.date() + 40 * DAY, ORIGIN.date() + 240 * DAY

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def compare(data: st.DataObject) -> None:
        events = data.draw(histories(max_events=10))
        payments = data.draw(payments_of(events))
        known_at = data.draw(st.one_of(st.none(), st.integers(0, DAYS).map(lambda n: ORIGIN + n * DAY)))
        with billing.transaction(force_rollback=True):
            write(billing, events)
            pay(billing, payments)
            asked: dict[str, Any] = {"start": first, "end": last, "known_at": known_at}
            days = deferred_revenue(billing, grain="day", **asked)
            months = deferred_revenue(billing, grain="month", **asked)
        history = History(events, known_at=known_at)
        wanted = deferred_by_day(history, known(payments, known_at), first - DAY, last)
        found = {row["period"]: row for row in days if row["currency"] == "EUR"}
        for day, (received, recognised, standing) in list(wanted.items())[1:]:
            before = wanted[day - DAY]
            row = (
                before[0] - before[1], received - before[0], recognised - before[1], received - recognised, standing
            )  # fmt: skip
            assert (figures(found[day.isoformat()]) if day.isoformat() in found else (0,) * 5) == row
        for each in (*days, *months):
            assert each["opening"] + each["received"] - each["recognised"] == each["closing"]
        for month in (row for row in months if row["period"] not in (f"{first:%Y-%m}", f"{last:%Y-%m}")):
            parts = [row for row in days if row["period"].startswith(month["period"])]
            assert month["received"] == sum(row["received"] for row in parts)
            assert month["recognised"] == sum(row["recognised"] for row in parts)

    compare()


def test_every_frequency_has_a_period(billing: Connection) -> None:
    write(billing, [started(f"{name}-1", AT, payment_frequency=name) for name in PER_YEAR])
    pay(billing, [Payment(f"{name}-1", AT, 36_500) for name in PER_YEAR])
    rows = deferred_revenue(billing, start=date(2026, 1, 1), end=date(2027, 1, 2), grain="day")
    assert [row["period"] for row in rows][-1] == "2026-12-31"
    assert sum(int(row["recognised"]) for row in rows) == sum(int(row["received"]) for row in rows) == 5 * 36_500
