"""Each refresh says what it changed in stored days and why, and changes nothing else."""

from __future__ import annotations

import csv
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexpay_pipelines.analytics import daily_report, export_dataset, refresh, restatements
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from tests.analytics.ledger import DAYS, ORIGIN, histories, write
from tests.analytics.reference import Event

FIRST = ORIGIN.date()
LAST = FIRST + timedelta(days=40)
CLOCK = FixedClock(datetime(2026, 1, 1, tzinfo=UTC))
LATER = FixedClock(datetime(2026, 1, 2, tzinfo=UTC))
FIGURES = (
    *("start", "new", "reactivation", "expansion", "contraction", "churn", "paused", "resumed", "transfer", "end"),
    *("customers", "paying_customers", "subscriptions", "paused_subscriptions"),
)


def event(name: str, day: int, subscription: str = "ann-1", **changes: object) -> Event:
    at = ORIGIN + timedelta(days=day, hours=9)
    return replace(Event(subscription, subscription.partition("-")[0], name, at, at), **changes)  # type: ignore[arg-type]


def rows_by_version(connection: Connection) -> dict[tuple[str, date, str], str]:
    """Which transaction wrote each stored row."""
    found = {}
    for table in ("mrr_movements", "mrr_summary"):
        for row in connection.execute(
            f"SELECT day, xmin::text AS version, t.*::text AS line FROM analytics.{table} AS t"  # noqa: S608
        ):
            found[table, row["day"], row["line"]] = row["version"]
    return found


def figures(connection: Connection) -> dict[tuple[object, ...], int]:
    """Every stored figure that is not 0, as restated_figures names it."""
    found: dict[tuple[object, ...], int] = {}
    for row in connection.execute("SELECT * FROM analytics.mrr_summary"):
        for name in FIGURES:
            amount = row.get(f"{name}_minor", row.get(name))
            if amount:
                found[row["day"], row["segment_kind"], row["segment"], row["currency"], name] = amount
    for row in connection.execute("SELECT * FROM analytics.mrr_movements WHERE annualised_minor <> 0"):
        found[row["day"], "customer", str(row["customer_id"]), row["currency"], row["movement"]] = row[
            "annualised_minor"
        ]
    return found


def recorded(connection: Connection) -> dict[tuple[object, ...], tuple[int, int]]:
    """What the newest restatement says changed."""
    return {
        (r["day"], r["segment_kind"], r["segment"], r["currency"], r["figure"]): (r["before_amount"], r["after_amount"])
        for r in connection.execute(
            "SELECT * FROM analytics.restated_figures"
            " WHERE restatement_id = (SELECT max(restatement_id) FROM analytics.restatements)"
        )
    }


def test_a_late_event_changes_just_the_days_it_touches_and_is_named(billing: Connection) -> None:
    write(billing, [event("started", 1), event("canceled", 30), event("started", 2, "bob-1", currency="USD")])
    refresh(billing, start=FIRST, end=LAST, clock=CLOCK)
    before = rows_by_version(billing)
    write(billing, [event("changed", 20, amount_minor=1500, recorded_at=LATER.now())])
    write(billing, [event("changed", 41, "bob-1", currency="USD", amount_minor=2000)])
    assert refresh(billing, start=LAST + timedelta(days=1), end=LAST + timedelta(days=1), clock=LATER).restated == 11
    touched = [FIRST + timedelta(days=n) for n in range(20, 31)]
    after = rows_by_version(billing)
    rewritten = {day for (_, day, line), version in after.items() if before.get((_, day, line)) != version}
    assert rewritten == {*touched, LAST + timedelta(days=1)}
    found = restatements(billing, first=FIRST, last=LAST)
    assert [(r.days, r.first_day, r.last_day, r.events, r.moved_customers) for r in found] == [
        (11, touched[0], touched[-1], 1, 0)
    ]
    assert found[0].restated_at == LATER.now()
    totals = [(r["day"], r["currency"], r["end_before"], r["end_after"], r["changes"]) for r in found[0].totals]
    assert totals[0] == (touched[0], "EUR", 12_000, 18_000, "expansion +6000")
    assert totals[1] == (touched[1], "EUR", 12_000, 18_000, None)
    assert totals[-1] == (touched[-1], "EUR", None, None, "churn -6000")
    cause = found[0].causes[0]
    assert (cause["cause"], cause["subscription_id"], cause["event"]) == ("event", "ann-1", "changed")
    assert cause["occurred_at"] == ORIGIN + timedelta(days=20, hours=9)
    assert cause["recorded_at"] == LATER.now()
    assert found[0].first_events == str(cause["event_id"])


def test_new_days_and_second_refreshes_restate_nothing(billing: Connection) -> None:
    write(billing, [event("started", 1)])
    for _ in range(2):
        refresh(billing, start=FIRST, end=LAST, clock=CLOCK)
    write(billing, [event("changed", 41, amount_minor=1500)])
    refresh(billing, start=LAST + timedelta(days=1), end=LAST + timedelta(days=1), clock=LATER)
    assert restatements(billing, first=FIRST, last=LAST + timedelta(days=1)) == []


def test_what_totals_do_not_show_is_recorded_by_customer(billing: Connection) -> None:
    """One joins a day earlier, another a day later than was thought: the totals are what they were."""
    write(billing, [event("started", 5, "ann-1"), event("started", 5, "cid-1", amount_minor=0)])
    refresh(billing, start=FIRST, end=LAST, clock=CLOCK)
    at = ORIGIN + timedelta(days=5, hours=10)
    write(billing, [event("canceled", 5, "ann-1", occurred_at=at), event("changed", 5, "cid-1", occurred_at=at)])
    refresh(billing, start=FIRST, end=LAST, clock=LATER)
    changed = {key[1:]: amounts for key, amounts in recorded(billing).items() if key[1] == "customer"}
    ids = {r["customer_ref"]: str(r["customer_id"]) for r in billing.execute("SELECT * FROM billing.customers")}
    assert changed == {
        ("customer", ids["ann"], "EUR", "new"): (12_000, 0),
        ("customer", ids["cid"], "EUR", "new"): (0, 12_000),
    }


def test_a_move_to_another_country_is_a_cause(billing: Connection) -> None:
    write(billing, [event("started", 39)])
    refresh(billing, start=FIRST, end=LAST, clock=CLOCK)
    billing.execute("UPDATE billing.customers SET country = 'AT'")
    refresh(billing, start=LAST, end=LAST, clock=LATER)
    found = restatements(billing, first=FIRST, last=LAST)
    assert [(r.days, r.events, r.moved_customers) for r in found] == [(2, 0, 1)]
    assert [(c["cause"], c["customer_id"]) for c in found[0].causes] == [("country", "ann")]
    assert {key[1] for key in recorded(billing)} == {"country"}


def _rate(billing: Connection, currency: str, day: int, rate: float) -> None:
    billing.execute(
        "INSERT INTO billing.fx_rates (date, currency, reporting_currency, rate) VALUES (%s, %s, 'EUR', %s)"
        " ON CONFLICT (date, currency, reporting_currency) DO UPDATE SET rate = excluded.rate",
        (FIRST + timedelta(days=day), currency, rate),
    )


def _money(billing: Connection) -> dict[date, str]:
    """The stored rates by day, whose windows begin on a stored day."""
    return {
        row["day"]: row["line"]
        for row in billing.execute(
            "SELECT day, string_agg(c::text, ' ' ORDER BY definition) AS line FROM analytics.churn AS c"
            " WHERE day >= %s GROUP BY day",
            (FIRST + timedelta(days=30),),
        )
    }


def test_other_exchange_rates_restate_the_rates_of_the_days_that_they_touch(
    billing: Connection, tmp_path: Path
) -> None:
    write(
        billing,
        [
            event("started", 1, currency="EUR"),
            event("started", 2, "bob-1", currency="USD"),
            event("started", 3, "cid-1", currency="USD"),
            event("canceled", 38, "cid-1", currency="USD"),
            event("changed", 36, amount_minor=1500, currency="EUR"),
        ],
    )
    # The dollar has no rate at first: no rate of money over both currencies.
    refresh(billing, start=FIRST, end=LAST, clock=CLOCK)
    assert restatements(billing, first=FIRST, last=LAST) == []

    def after(clock: FixedClock) -> set[date]:
        """The days whose rates another refresh of the last day changed; as if all had been computed with today's."""
        before = _money(billing)
        refresh(billing, start=LAST, end=LAST, clock=clock)
        now = _money(billing)
        with billing.transaction(force_rollback=True):
            refresh(billing, start=FIRST, end=LAST, clock=clock)
            assert _money(billing) == now
        return {day for day in now if now[day] != before[day]}

    for day in range(0, 40, 5):
        _rate(billing, "USD", day, 0.9 + day / 100)
    # The last day was asked for, so it was computed: it is not restated, though it is otherwise.
    valued = {FIRST + timedelta(days=day) for day in range(30, 40)}
    assert after(LATER) - {LAST} == valued
    found = restatements(billing, first=FIRST, last=LAST)
    assert [(r.first_day, r.days, r.events, r.moved_customers, r.totals) for r in found] == [
        (FIRST + timedelta(days=30), 10, 0, 0, [])
    ]
    page = daily_report(billing, day=LAST, folder=tmp_path, clock=LATER, reporting_currency="EUR").html.read_text()
    assert "<td>other exchange rates</td>" in page
    assert after(LATER) == set()
    # A correction touches the windows that end after it; of those that begin with it, that of the last day is computed.
    _rate(billing, "USD", 35, 1.3)
    corrected = FixedClock(LATER.now() + timedelta(days=1))
    assert after(corrected) - {LAST} == {FIRST + timedelta(days=day) for day in range(35, 40)}
    marked = billing.execute(
        "SELECT count(*) AS days FROM analytics.snapshots WHERE restated_at = %s", (corrected.now(),)
    ).fetchone()
    assert marked == {"days": 5}
    billing.execute("DELETE FROM billing.fx_rates WHERE date = %s", (FIRST + timedelta(days=35),))
    assert FIRST + timedelta(days=34) not in after(corrected)


def test_another_ledger_names_no_event(billing: Connection) -> None:
    write(billing, [event("started", 1)])
    refresh(billing, start=FIRST, end=LAST, clock=CLOCK)
    billing.execute("DELETE FROM analytics.interval_progress")
    write(billing, [event("changed", 39, amount_minor=1500)])
    refresh(billing, start=FIRST, end=LAST, clock=LATER)
    found = restatements(billing, first=FIRST, last=LAST)
    assert [(r.days, r.events, r.causes) for r in found] == [(2, None, [])]


def test_they_are_exported_with_their_causes(billing: Connection, tmp_path: Path) -> None:
    write(billing, [event("started", 1)])
    refresh(billing, start=FIRST, end=LAST, clock=CLOCK)
    write(billing, [event("changed", n, amount_minor=1000 + n) for n in range(10, 40)])
    refresh(billing, start=LAST, end=LAST, clock=LATER)
    file = tmp_path / "restatements.csv"
    ask: dict[str, Any] = {"grain": "day", "by": None, "currency": None, "format": "csv", "out": file}
    day = (FIRST + timedelta(days=11)).isoformat()
    export_dataset(billing, dataset="restatements", start=day, end=day, known_at=None, **ask)
    with file.open(encoding="utf-8") as text:
        rows = {(r["segment_kind"], r["figure"]): r for r in csv.DictReader(text)}
    ids = [str(r["event_id"]) for r in billing.execute("SELECT event_id FROM billing.subscription_events ORDER BY 1")]
    end = rows["total", "end"]
    assert (end["before"], end["after"], end["restated_at"]) == ("12000", "12132", "2026-01-02T00:00:00Z")
    assert (end["events"], end["moved_customers"], end["first_events"]) == ("2", "0", " ".join(ids[1:3]))
    assert rows["customer", "expansion"]["segment"] == "ann"
    whole: dict[str, Any] = {"start": FIRST.isoformat(), "end": LAST.isoformat()}
    assert export_dataset(billing, dataset="restatements", known_at=None, **whole, **ask) > 0
    last = file.read_text(encoding="utf-8").splitlines()[-1].split(",")
    assert (last[8], last[10]) == ("30", " ".join(ids[1:21]))
    assert export_dataset(billing, dataset="restatements", known_at=CLOCK.now(), **whole, **ask) == 0


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(events=histories(), cut=st.integers(0, 24))
def test_the_record_is_the_difference_of_what_was_stored(billing: Connection, events: list[Event], cut: int) -> None:
    """Before plus what is recorded gives after, for every figure and customer, and every day named did change."""
    last = FIRST + timedelta(days=DAYS)
    with billing.transaction(force_rollback=True):
        write(billing, events[:cut])
        refresh(billing, start=FIRST, end=last, clock=CLOCK)
        before = figures(billing)
        write(billing, events[cut:])
        refresh(billing, start=FIRST, end=FIRST, clock=LATER)
        after = figures(billing)
        expected = {
            key: (before.get(key, 0), after.get(key, 0))
            for key in before.keys() | after.keys()
            if before.get(key, 0) != after.get(key, 0)
        }
        named = restatements(billing, first=FIRST, last=last)
        assert (recorded(billing) if named else {}) == expected
        first_event = min((e.occurred_at.date() for e in events[cut:]), default=last)
        assert all(first_event <= date.fromisoformat(str(key[0])) for key in expected)
        restated = billing.execute("SELECT day FROM analytics.snapshots WHERE restated_at IS NOT NULL").fetchall()
        assert {row["day"] for row in restated} >= {key[0] for key in expected}
