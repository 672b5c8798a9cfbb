"""Two sessions that share the customers store what one would."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import date, timedelta

import psycopg
import pytest

from flexpay_pipelines.analytics import MetricPolicy, identity_breaks, interval_breaks, refresh, second_session
from flexpay_pipelines.database import Connection, beside, opened
from flexpay_pipelines.errors import DatabaseUnavailable
from tests.analytics.ledger import DAYS, EVENTS, ORIGIN, write
from tests.analytics.reference import Event
from tests.analytics.test_refresh import CLOCK, FIRST, LAST, TABLES, contents, killing

STORED = (*TABLES, "interval_progress", "snapshots")


def company(customers: int = 40) -> list[Event]:
    """Customers with one to three subscriptions in three currencies, some of them computed by either session.

    Every fifth pauses, comes back and is told of the pause once more, all at one instant: it counts once.
    """
    chance = random.Random(4)  # noqa: S311 - not for secrets
    events = []
    for number in range(customers):
        for subscription in range(chance.choice([1, 1, 2, 3])):
            plain = Event(
                subscription=f"c{number}-{subscription}",
                customer=f"c{number}",
                event="started",
                occurred_at=ORIGIN,
                recorded_at=ORIGIN,
                currency=("EUR", "USD", "JPY")[number % 3],
            )
            for _ in range(chance.randint(1, 9)):
                at = ORIGIN + timedelta(days=chance.randint(0, DAYS), hours=chance.choice([0, 5, 12]))
                events.append(
                    replace(
                        plain,
                        event=chance.choice(EVENTS),
                        occurred_at=at,
                        recorded_at=at,
                        plan=chance.choice(["basic", "pro"]),
                        payment_frequency=chance.choice(["WEEKLY", "MONTHLY", "YEARLY"]),
                        amount_minor=chance.choice([0, 100, 1999]),
                    )
                )
        if number % 5 == 0:
            pause = replace(plain, event="paused", occurred_at=ORIGIN + timedelta(days=DAYS))
            events += [pause, replace(pause, event="resumed"), pause]
    return events


@pytest.fixture
def second_sessions(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """Every company is large enough for two; the second sessions that were opened."""
    seen: list[Connection] = []

    def noted(connection: Connection, *, purpose: str) -> Connection:
        seen.append(beside(connection, purpose=purpose))
        return seen[-1]

    monkeypatch.setattr(second_session, "WORTHWHILE", 1)
    monkeypatch.setattr(second_session, "beside", noted)
    return seen


def staged(connection: Connection) -> int:
    row = connection.execute(
        "SELECT (SELECT count(*) FROM analytics.staged_intervals)"
        " + (SELECT count(*) FROM analytics.staged_movements) AS n"
    ).fetchone()
    assert row is not None
    return int(row["n"])


def forget(connection: Connection) -> None:
    for table in STORED:
        # Truncated, as a table is that never held a row.
        connection.execute(f"TRUNCATE analytics.{table}")


@pytest.mark.parametrize("start", [FIRST, FIRST + timedelta(days=60)], ids=["all", "from the middle on"])
@pytest.mark.parametrize("policy", [MetricPolicy(), MetricPolicy(paused="included", paused_churn_days=20)])
def test_two_sessions_store_what_one_does(
    billing: Connection, second_sessions: list[Connection], start: date, policy: MetricPolicy
) -> None:
    write(billing, company())
    two = refresh(billing, start=start, end=LAST, clock=CLOCK, policy=policy)
    by_two = contents(billing)
    assert len(second_sessions) == 1
    assert second_sessions[0].closed
    assert staged(billing) == 0
    marked = billing.execute("SELECT count(*) AS n FROM analytics.run_rate_intervals WHERE event_id < 0").fetchone()
    assert marked == {"n": 0}
    assert identity_breaks(billing, start=start, end=LAST) == []
    assert [b for b in interval_breaks(billing) if b["problem"] != "current state differs"] == []
    forget(billing)
    with billing.transaction():
        # Nobody else could see what this transaction has written: one session does it all.
        one = refresh(billing, start=start, end=LAST, clock=CLOCK, policy=policy)
    assert len(second_sessions) == 1
    assert contents(billing) == by_two
    assert (one.movements, one.subscriptions) == (two.movements, two.subscriptions)


def test_the_next_refresh_needs_no_second_session(billing: Connection, second_sessions: list[Connection]) -> None:
    write(billing, company(6))
    refresh(billing, start=FIRST, end=LAST, clock=CLOCK)
    refresh(billing, start=FIRST, end=LAST + timedelta(days=1), clock=CLOCK)
    assert len(second_sessions) == 1


def test_what_fails_in_the_second_session_fails_and_leaves_nothing(
    billing: Connection, billing_url: str, second_sessions: list[Connection]
) -> None:
    write(billing, company(6))
    kill = killing(lambda: second_sessions[0], at="Computing 261 days", url=billing_url)
    with pytest.raises(psycopg.OperationalError):
        refresh(billing, start=FIRST, end=LAST, clock=CLOCK, progress=kill)
    assert contents(billing) == {table: [] for table in TABLES}
    refresh(billing, start=FIRST, end=LAST, clock=CLOCK)
    assert identity_breaks(billing, start=FIRST, end=LAST) == []


def test_what_a_killed_refresh_has_staged_is_dropped_by_the_next(
    billing: Connection, billing_url: str, second_sessions: list[Connection]
) -> None:
    write(billing, company())
    with opened(billing_url, purpose="victim") as victim, pytest.raises(psycopg.OperationalError):
        refresh(
            victim,
            start=FIRST,
            end=LAST,
            clock=CLOCK,
            progress=killing(lambda: victim, at="Computing rates.", url=billing_url),
        )
    assert staged(billing) > 0
    again = refresh(billing, start=FIRST, end=LAST, clock=CLOCK)
    assert len(second_sessions) == 2
    assert staged(billing) == 0
    stored = billing.execute("SELECT count(*) AS n FROM analytics.mrr_movements").fetchone()
    assert stored == {"n": again.movements}
    assert identity_breaks(billing, start=FIRST, end=LAST) == []


def test_a_session_that_would_not_see_what_is_staged_does_it_all(
    billing: Connection, second_sessions: list[Connection]
) -> None:
    write(billing, company(6))
    billing.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    refresh(billing, start=FIRST, end=LAST, clock=CLOCK)
    assert second_sessions == []
    assert identity_breaks(billing, start=FIRST, end=LAST) == []


@pytest.mark.parametrize(
    "at", ["Replaying the history", "Computing 261 days", "Computing rates.", "Computing cohorts."]
)
def test_a_killed_refresh_takes_the_second_session_with_it(
    billing: Connection, billing_url: str, second_sessions: list[Connection], at: str
) -> None:
    write(billing, company(6))
    with opened(billing_url, purpose="victim") as victim, pytest.raises(psycopg.OperationalError):
        kill = killing(lambda: victim, at=at, url=billing_url)
        refresh(victim, start=FIRST, end=LAST, clock=CLOCK, progress=kill)
    assert second_sessions[0].closed
    assert contents(billing) == {table: [] for table in TABLES}


def test_a_server_that_takes_no_second_session_has_one_do_it_all(
    billing: Connection, second_sessions: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(connection: Connection, *, purpose: str) -> Connection:
        raise DatabaseUnavailable("Cannot open a second session: too many clients already.")

    monkeypatch.setattr(second_session, "beside", full)
    write(billing, company(6))
    refresh(billing, start=FIRST, end=LAST, clock=CLOCK)
    assert identity_breaks(billing, start=FIRST, end=LAST) == []
    assert contents(billing)["mrr_summary"]
