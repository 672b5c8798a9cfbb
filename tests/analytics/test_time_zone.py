"""Days that begin at midnight in another time zone: against the naive reference, where clocks change, and forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexpay_pipelines.analytics import (
    day_of,
    deferred_revenue,
    identity_breaks,
    movements,
    payments_health,
    refresh,
    refresh_balances,
    stored_balances,
    use_time_zone,
)
from flexpay_pipelines.analytics.days import midnight
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from tests.analytics.ledger import DAYS, ORIGIN, histories, write
from tests.analytics.money import Payment, pay
from tests.analytics.reference import Event, History, Periods, all_movements

# Clocks change at 2 o'clock, at midnight forwards (there is none), at 1 o'clock back to midnight (it comes twice).
ZONES = ("America/New_York", "Pacific/Auckland", "America/Santiago", "America/Havana", "Asia/Kolkata")
CLOCK = FixedClock(datetime(2026, 6, 1, tzinfo=UTC))


def day_ends_in(zone: str) -> Periods:
    def begins(day: date) -> datetime:
        return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).astimezone(UTC)

    def ends(first: date, last: date) -> Iterator[tuple[str, datetime, datetime]]:
        for n in range((last - first).days + 1):
            day = first + timedelta(days=n)
            yield day.isoformat(), begins(day), begins(day + timedelta(days=1))

    return ends


def event(name: str, at: datetime, **changes: object) -> Event:
    return replace(Event("ann-1", "ann", name, at, at), **changes)  # type: ignore[arg-type]


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(events=histories(), zone=st.sampled_from(ZONES), shift=st.integers(0, 24))
def test_any_history_in_any_zone(billing: Connection, events: list[Event], zone: str, shift: int) -> None:
    moved = [replace(e, occurred_at=e.occurred_at + timedelta(hours=shift)) for e in events]
    first, last = ORIGIN.date() + timedelta(days=20), ORIGIN.date() + timedelta(days=DAYS + 100)
    wanted = all_movements(
        History(moved),
        ORIGIN.date() - timedelta(days=2),
        first,
        last,
        day_ends_in(zone),
    )
    with billing.transaction(force_rollback=True):
        use_time_zone(billing, zone)
        write(billing, moved)
        rows = movements(billing, start=first, end=last, grain="day")
        refresh(billing, start=first, end=last, clock=CLOCK)
        assert identity_breaks(billing, start=first, end=last) == []
        stored = billing.execute("SELECT count(*) AS n FROM analytics.mrr_movements").fetchone()
        use_time_zone(billing, "UTC")
    assert {(r["period"], r["customer_id"], r["movement"], int(r["annualised_minor"])) for r in rows} == wanted
    assert stored == {"n": len(wanted)}


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("UTC", date(2026, 3, 8), 24),
        ("America/New_York", date(2026, 3, 8), 23),
        ("America/New_York", date(2026, 11, 1), 25),
        ("America/Santiago", date(2026, 9, 6), 23),
        ("America/Havana", date(2026, 11, 1), 25),
    ],
)
def test_a_day_on_which_clocks_change(billing: Connection, zone: str, day: date, hours: int) -> None:
    """Its first and last microsecond belong to it, those around it do not."""
    use_time_zone(billing, zone)
    begins, ends = (midnight(billing, each).astimezone(UTC) for each in (day, day + timedelta(days=1)))
    tick = timedelta(microseconds=1)
    assert ends - begins == timedelta(hours=hours)
    assert [day_of(billing, at) for at in (begins - tick, begins, ends - tick, ends)] == [
        day - timedelta(days=1),
        day,
        day,
        day + timedelta(days=1),
    ]
    write(
        billing,
        [
            event("started", begins - tick),
            event("changed", begins, amount_minor=2000),
            event("changed", ends - tick, amount_minor=3000),
            event("changed", ends, amount_minor=4000),
        ],
    )
    rows = movements(billing, start=day - timedelta(days=1), end=day + timedelta(days=1), grain="day")
    assert [(r["period"], int(r["annualised_minor"])) for r in rows] == [
        ((day - timedelta(days=1)).isoformat(), 12_000),
        (day.isoformat(), 24_000),
        ((day + timedelta(days=1)).isoformat(), 12_000),
    ]


def test_payments_and_balances_follow(billing: Connection) -> None:
    """23:30 of 31 January in New York is already February in UTC."""
    at = datetime(2026, 2, 1, 4, 30, tzinfo=UTC)
    write(billing, [event("started", at)])
    pay(billing, [Payment("ann-1", at, amount=2800)])
    found = {}
    for zone in ("UTC", "America/New_York"):
        use_time_zone(billing, zone)
        health = payments_health(billing, start=date(2026, 1, 1), end=date(2026, 2, 28), grain="month")
        deferred = deferred_revenue(billing, start=date(2026, 1, 31), end=date(2026, 2, 1), grain="day")
        found[zone] = ([r["period"] for r in health], [(r["period"], r["received"], r["recognised"]) for r in deferred])
    assert found == {
        "UTC": (["2026-02"], [("2026-02-01", 2800, 100)]),
        "America/New_York": (["2026-01"], [("2026-01-31", 2800, 100), ("2026-02-01", 0, 100)]),
    }


def test_another_time_zone_forgets_what_is_stored(billing: Connection) -> None:
    write(billing, [event("started", datetime(2026, 2, 1, 4, 30, tzinfo=UTC))])
    first, last = date(2026, 1, 25), date(2026, 2, 5)
    for zone in ("UTC", "America/New_York"):
        use_time_zone(billing, zone)
        start = first if zone == "UTC" else first + timedelta(days=3)
        refresh(billing, start=start, end=last, clock=CLOCK)
        refresh_balances(billing, start=start, end=last, clock=CLOCK)
    kept = billing.execute("SELECT min(day) AS first, min(time_zone) AS zone FROM analytics.snapshots").fetchone()
    assert kept == {"first": first + timedelta(days=3), "zone": "America/New_York"}
    moved = billing.execute("SELECT day, movement FROM analytics.mrr_movements").fetchall()
    assert moved == [{"day": date(2026, 1, 31), "movement": "new"}]
    balances = billing.execute(
        "SELECT min(day) AS first, min(time_zone) AS zone FROM analytics.balance_days"
    ).fetchone()
    assert balances == kept
    assert stored_balances(billing, first=first, last=first)["deferred-revenue"] == []
