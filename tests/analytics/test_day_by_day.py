"""A day on top of the day before: as if everything had been computed at once, by looking at who changes only."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexpay_pipelines.analytics import MetricPolicy, interval_breaks, refresh
from flexpay_pipelines.database import Connection
from tests.analytics.ledger import CURRENCY, histories, write
from tests.analytics.reference import Event
from tests.analytics.test_refresh import CLOCK, FIRST, TABLES, contents, event

BEGUN = FIRST + timedelta(days=50)
POLICIES = (MetricPolicy(), MetricPolicy(paused_churn_days=2), MetricPolicy(paused="included", paused_churn_days=5))


def anew(billing: Connection, last: date, policy: MetricPolicy) -> dict[str, list[tuple[object, ...]]]:
    """What is stored when all days are computed at once."""
    for table in (*TABLES, "interval_progress", "snapshots"):
        billing.execute(f"DELETE FROM analytics.{table}")  # noqa: S608
    refresh(billing, start=FIRST, end=last, clock=CLOCK, policy=policy)
    return contents(billing)


@pytest.mark.parametrize("examples", [6, pytest.param(300, marks=pytest.mark.soak)])
def test_day_by_day_gives_what_one_refresh_gives(billing: Connection, examples: int) -> None:
    """Each day is built on the day before: its summary, its windows of 30 days, the cohorts of its month."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        events=histories(max_events=40),
        late=st.integers(0, 8),
        days=st.integers(6, 40 if examples > 6 else 12),
        policy=st.sampled_from(POLICIES),
    )
    def check(events: list[Event], late: int, days: int, policy: MetricPolicy) -> None:
        last = BEGUN + timedelta(days=days)
        tardy, punctual = events[:late], events[late:]
        with billing.transaction(force_rollback=True):
            # Rates of days before the first customer of a currency have no row: all are known from the start.
            write(
                billing,
                [
                    replace(event("changed", 0), subscription=f"{name}-0", customer=name, currency=CURRENCY[name])
                    for name in CURRENCY
                ],
            )
            write(billing, [e for e in punctual if e.occurred_at.date() <= BEGUN])
            refresh(billing, start=FIRST, end=BEGUN, clock=CLOCK, policy=policy)
            for number in range(1, days + 1):
                day = BEGUN + timedelta(days=number)
                write(billing, [e for e in punctual if e.occurred_at.date() == day])
                write(billing, tardy[number - 1 :: days])
                refresh(billing, start=day, end=day, clock=CLOCK, policy=policy)
            in_steps = contents(billing)
            assert anew(billing, last, policy) == in_steps

    check()


def looked_at(billing: Connection, day: date) -> set[str]:
    """The customers whom a refresh of that day looks up."""
    looked: set[str] = set()

    def listen(sentence: str) -> None:
        if sentence == "Computing rates.":
            rows = billing.execute(
                "SELECT DISTINCT customer_ref FROM metric_looked_up JOIN billing.customers USING (customer_id)"
            )
            looked.update(row["customer_ref"] for row in rows)

    refresh(billing, start=day, end=day, clock=CLOCK, progress=listen)
    return looked


@pytest.fixture
def company(billing: Connection) -> Connection:
    """Ann changes on day 20, Bob has paused on day 10, Cid is new on day 25; stored until day 49."""
    write(
        billing,
        [
            event("started", 1),
            event("started", 2, subscription="bob-1", customer="bob", currency="USD"),
            event("paused", 10, subscription="bob-1", customer="bob", currency="USD"),
            event("changed", 20, amount_minor=1500),
            event("started", 25, subscription="cid-1", customer="cid"),
        ],
    )
    refresh(billing, start=FIRST, end=FIRST + timedelta(days=49), clock=CLOCK)
    return billing


def test_only_who_changes_on_a_day_is_looked_at(company: Connection) -> None:
    """Not even the customers whose changes leave the 30 days; and whoever's pause ages out, without any event."""
    assert looked_at(company, FIRST + timedelta(days=50)) == set()
    write(company, [event("changed", 51, amount_minor=900)])
    assert looked_at(company, FIRST + timedelta(days=51)) == {"ann"}
    for number in range(52, 100):
        refresh(company, start=FIRST + timedelta(days=number), end=FIRST + timedelta(days=number), clock=CLOCK)
    assert looked_at(company, FIRST + timedelta(days=100)) == {"bob"}
    in_steps = contents(company)
    assert anew(company, FIRST + timedelta(days=100), MetricPolicy()) == in_steps


def test_days_whose_steps_are_not_stored_are_no_base_and_get_them(company: Connection) -> None:
    """As after an upgrade from a release that kept none."""
    company.execute("DELETE FROM analytics.churn_steps")
    assert looked_at(company, FIRST + timedelta(days=50)) == {"ann", "cid"}
    assert looked_at(company, FIRST + timedelta(days=51)) == set()
    in_steps = {table: rows for table, rows in contents(company).items() if table != "churn_steps"}
    complete = anew(company, FIRST + timedelta(days=51), MetricPolicy())
    assert {table: rows for table, rows in complete.items() if table != "churn_steps"} == in_steps


def test_beginning_anew_sees_a_currency_that_is_new(company: Connection) -> None:
    write(company, [event("started", 50, subscription="dot-1", customer="dot", currency="JPY")])
    company.execute("DELETE FROM analytics.interval_progress")
    refresh(company, start=FIRST + timedelta(days=50), end=FIRST + timedelta(days=50), clock=CLOCK)
    found = company.execute("SELECT DISTINCT currency FROM analytics.churn_amounts WHERE new_minor > 0").fetchall()
    assert {row["currency"] for row in found} == {"EUR", "USD", "JPY"}


def test_a_pause_lasts_since_it_was_asked_for_however_often_it_is_gone_on_with(company: Connection) -> None:
    """What the replay goes on from knows the beginning of the pause, not only of the last interval."""
    for day in (50, 60, 70):
        write(company, [event("changed", day, subscription="bob-1", customer="bob", currency="USD", amount_minor=day)])
        refresh(company, start=FIRST + timedelta(days=day), end=FIRST + timedelta(days=day), clock=CLOCK)
    begun = company.execute(
        "SELECT DISTINCT paused_since FROM analytics.run_rate_intervals WHERE status = 'paused'"
    ).fetchall()
    assert begun == [{"paused_since": event("paused", 10).occurred_at}]
    write(company, [event("resumed", 80, subscription="bob-1", customer="bob", currency="USD")])
    refresh(company, start=FIRST + timedelta(days=80), end=FIRST + timedelta(days=80), clock=CLOCK)
    last = company.execute(
        "SELECT status, paused_since FROM analytics.run_rate_intervals WHERE valid_to IS NULL AND event_id ="
        " (SELECT max(event_id) FROM billing.subscription_events)"
    ).fetchall()
    assert last == [{"status": "active", "paused_since": None}]


def test_a_wrong_stored_interval_is_found_and_mended_by_beginning_anew(company: Connection) -> None:
    """What the runbook says."""
    last = FIRST + timedelta(days=49)
    before = contents(company)
    company.execute("UPDATE analytics.run_rate_intervals SET valid_to = valid_to - interval '1 hour', plan = 'wrong'")
    assert "gap" in {each["problem"] for each in interval_breaks(company)}
    company.execute("DELETE FROM analytics.interval_progress")
    refresh(company, start=last, end=last, clock=CLOCK)
    assert "gap" not in {each["problem"] for each in interval_breaks(company)}
    assert contents(company) == before
