"""The stored figures: complete, repeatable, restated by late events and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexpay_pipelines.analytics import (
    MetricPolicy,
    identity_breaks,
    interval_breaks,
    movements,
    refresh,
    summary,
)
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, advisory_lock, opened
from flexpay_pipelines.errors import BadInput, TransientError
from tests.analytics.ledger import DAYS, ORIGIN, histories, write
from tests.analytics.reference import Event

CLOCK = FixedClock(datetime(2026, 1, 1, tzinfo=UTC))
FIRST = ORIGIN.date()
LAST = FIRST + timedelta(days=DAYS + 110)
TABLES = ("run_rate_intervals", "mrr_movements", "mrr_summary", "churn", "churn_amounts", "churn_steps", "cohorts")


def contents(connection: Connection) -> dict[str, list[tuple[object, ...]]]:
    found = {}
    for table in TABLES:
        rows = connection.execute(f"SELECT t.*::text AS line FROM analytics.{table} AS t ORDER BY 1").fetchall()  # noqa: S608
        found[table] = [tuple(row.values()) for row in rows]
    return found


def event(name: str, day: int, **changes: object) -> Event:
    at = ORIGIN + timedelta(days=day, hours=9)
    return replace(Event("ann-1", "ann", name, at, at), **changes)  # type: ignore[arg-type]


def killing(victim: Callable[[], Connection], *, at: str, url: str) -> Callable[[str], None]:
    """A listener to progress that kills a session of this process when it hears the sentence that begins so."""

    def kill(sentence: str) -> None:
        if sentence.startswith(at):
            with psycopg.connect(url, autocommit=True) as killer:
                killer.execute("SELECT pg_terminate_backend(%s, 5000)", (victim().info.backend_pid,))

    return kill


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    events=histories(),
    cut=st.integers(0, 24),
    windows=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 60)), max_size=3),
)
def test_any_order_of_refreshes_and_arrivals_gives_the_same(
    billing: Connection, events: list[Event], cut: int, windows: list[tuple[int, int]]
) -> None:
    """Part of the history, some refreshes, the rest, a whole refresh: as one refresh of everything."""
    with billing.transaction(force_rollback=True):
        write(billing, events[:cut])
        for offset, length in windows:
            start = FIRST + timedelta(days=offset)
            refresh(billing, start=start, end=start + timedelta(days=length), clock=CLOCK)
        write(billing, events[cut:])
        for offset, length in reversed(windows):
            start = FIRST + timedelta(days=offset)
            refresh(billing, start=start, end=start + timedelta(days=length), clock=CLOCK)
            stored = billing.execute("SELECT min(day) AS a, max(day) AS b FROM analytics.snapshots").fetchone()
            assert stored is not None
            assert identity_breaks(billing, start=stored["a"], end=stored["b"]) == []
        refresh(billing, start=FIRST, end=LAST, clock=CLOCK)
        in_steps = contents(billing)
        for table in (*TABLES, "interval_progress", "snapshots"):
            billing.execute(f"DELETE FROM analytics.{table}")  # noqa: S608
        refresh(billing, start=FIRST, end=LAST, clock=CLOCK)
        assert contents(billing) == in_steps
        gaps = [b for b in interval_breaks(billing) if b["problem"] != "current state differs"]
        assert gaps == []
        shown = {
            (r["period"], r["segment"], r["currency"]): int(r["end"])
            for r in summary(billing, start=FIRST, end=LAST, grain="day", by="plan")
        }
        kept = {
            (str(r["day"]), r["segment"], r["currency"]): r["end_minor"]
            for r in billing.execute("SELECT * FROM analytics.mrr_summary WHERE segment_kind = 'plan'")
        }
        assert kept == shown
        assert len(movements(billing, start=FIRST, end=LAST, grain="day")) == len(in_steps["mrr_movements"])


def test_a_second_refresh_changes_nothing(billing: Connection) -> None:
    write(billing, [event("started", 1), event("paused", 5), event("resumed", 9), event("canceled", 30)])
    first = refresh(billing, start=FIRST, end=FIRST + timedelta(days=40), clock=CLOCK)
    before = contents(billing)
    second = refresh(billing, start=FIRST, end=FIRST + timedelta(days=40), clock=CLOCK)
    assert contents(billing) == before
    assert (first.days, first.movements, first.restated, first.subscriptions) == (41, 4, 0, 1)
    assert (second.days, second.movements, second.restated, second.subscriptions) == (41, 0, 0, 0)


def test_a_late_event_restates_just_the_days_it_touches(billing: Connection) -> None:
    write(billing, [event("started", 1), event("canceled", 30)])
    refresh(billing, start=FIRST, end=FIRST + timedelta(days=40), clock=CLOCK)
    late = FixedClock(CLOCK.now() + timedelta(days=1))
    write(billing, [event("changed", 20, amount_minor=1500, recorded_at=late.now())])
    result = refresh(billing, start=FIRST + timedelta(days=41), end=FIRST + timedelta(days=41), clock=late)
    restated = [
        row["day"]
        for row in billing.execute("SELECT day FROM analytics.snapshots WHERE restated_at IS NOT NULL ORDER BY day")
    ]
    assert restated == [FIRST + timedelta(days=n) for n in range(20, 31)]
    assert result.restated == 11
    amount = billing.execute("SELECT annualised_minor FROM analytics.mrr_movements WHERE movement = 'churn'").fetchone()
    assert amount == {"annualised_minor": -18_000}


def test_an_event_committed_late_with_a_smaller_id_is_not_missed(billing: Connection, billing_url: str) -> None:
    write(billing, [event("started", 1)])
    with opened(billing_url, purpose="slow writer") as slow, slow.transaction():
        slow.execute(
            "INSERT INTO billing.subscription_events (subscription_id, customer_id, event, occurred_at, plan,"
            " payment_frequency, amount_minor, quantity, currency)"
            " SELECT subscription_id, customer_id, 'changed', %s, plan, 'MONTHLY', 4000, 1, 'EUR'"
            " FROM billing.subscriptions",
            (ORIGIN + timedelta(days=3),),
        )
        write(billing, [event("changed", 2, amount_minor=2000)])
        refresh(billing, start=FIRST, end=FIRST + timedelta(days=5), clock=CLOCK)
    result = refresh(billing, start=FIRST, end=FIRST + timedelta(days=5), clock=CLOCK)
    assert result.subscriptions == 1
    row = billing.execute(
        "SELECT end_minor FROM analytics.mrr_summary WHERE segment_kind = 'total' ORDER BY day DESC LIMIT 1"
    ).fetchone()
    assert row == {"end_minor": 48_000}


def progress_of(connection: Connection) -> dict[str, object]:
    row = connection.execute(
        "SELECT gaps::text, cardinality(writers) AS writers FROM analytics.interval_progress"
    ).fetchone()
    assert row is not None
    return row


def test_a_slow_writer_is_waited_for_until_it_ends_and_a_rolled_back_one_is_forgotten(
    billing: Connection, billing_url: str
) -> None:
    changed = (
        "INSERT INTO billing.subscription_events (subscription_id, customer_id, event, occurred_at, plan,"
        " payment_frequency, amount_minor, quantity, currency)"
        " SELECT subscription_id, customer_id, 'changed', %s, plan, 'MONTHLY', %s, 1, 'EUR' FROM billing.subscriptions"
    )
    day = FIRST + timedelta(days=9)
    write(billing, [event("started", 1)])
    with opened(billing_url, purpose="slow") as slow, opened(billing_url, purpose="gives up") as other:
        with slow.transaction():
            slow.execute(changed, (ORIGIN + timedelta(days=3), 3000))
            with other.transaction(force_rollback=True):
                other.execute(changed, (ORIGIN + timedelta(days=4), 9000))
                write(billing, [event("changed", 2, amount_minor=2000)])
                refresh(billing, start=FIRST, end=day, clock=CLOCK)
                assert progress_of(billing) == {"gaps": "{[2,4)}", "writers": 2}
            assert refresh(billing, start=FIRST, end=day, clock=CLOCK).subscriptions == 0
            assert progress_of(billing) == {"gaps": "{[2,4)}", "writers": 1}
        assert refresh(billing, start=FIRST, end=day, clock=CLOCK).subscriptions == 1
        assert progress_of(billing) == {"gaps": "{}", "writers": 0}
    ended = billing.execute(
        "SELECT end_minor FROM analytics.mrr_summary WHERE segment_kind = 'total' AND day = %s", (day,)
    )
    assert ended.fetchone() == {"end_minor": 36_000}
    assert refresh(billing, start=FIRST, end=day, clock=CLOCK).subscriptions == 0


def test_an_event_of_another_ledger_begins_anew(billing: Connection) -> None:
    write(billing, [event("started", 1)])
    refresh(billing, start=FIRST, end=FIRST, clock=CLOCK)
    billing.execute("UPDATE analytics.interval_progress SET event_high_water = 1000")
    assert refresh(billing, start=FIRST, end=FIRST, clock=CLOCK).subscriptions == 1


def test_another_policy_starts_afresh(billing: Connection) -> None:
    write(billing, [event("started", 1), event("paused", 5)])
    refresh(billing, start=FIRST, end=FIRST + timedelta(days=9), clock=CLOCK)
    refresh(
        billing,
        start=FIRST + timedelta(days=5),
        end=FIRST + timedelta(days=9),
        clock=CLOCK,
        policy=MetricPolicy(paused="included"),
    )
    days = billing.execute("SELECT count(*) AS n FROM analytics.snapshots").fetchone()
    kinds = billing.execute("SELECT movement FROM analytics.mrr_movements").fetchall()
    assert days == {"n": 5}
    assert kinds == []


def test_a_customer_who_moves_country_takes_the_history_along(billing: Connection) -> None:
    write(billing, [event("started", 1)])
    refresh(billing, start=FIRST, end=FIRST + timedelta(days=9), clock=CLOCK)
    billing.execute("UPDATE billing.customers SET country = 'AT'")
    refresh(billing, start=FIRST, end=FIRST + timedelta(days=9), clock=CLOCK)
    rows = billing.execute(
        "SELECT DISTINCT segment FROM analytics.mrr_summary WHERE segment_kind = 'country'"
    ).fetchall()
    assert rows == [{"segment": "AT"}]


def test_two_refreshes_at_once_are_refused(billing: Connection, billing_url: str) -> None:
    with (
        opened(billing_url, purpose="other") as other,
        advisory_lock(other, "flexpay analytics refresh"),
        pytest.raises(TransientError, match="Another process"),
    ):
        refresh(billing, start=FIRST, end=FIRST, clock=CLOCK)


def test_a_refresh_that_is_killed_leaves_what_was(billing: Connection, billing_url: str) -> None:
    write(billing, [event("started", 1), event("canceled", 7)])
    refresh(billing, start=FIRST, end=FIRST + timedelta(days=3), clock=CLOCK)
    before = contents(billing)
    with opened(billing_url, purpose="victim") as victim, pytest.raises(psycopg.OperationalError):
        kill = killing(lambda: victim, at="Computing rates.", url=billing_url)
        refresh(victim, start=FIRST, end=FIRST + timedelta(days=9), clock=CLOCK, progress=kill)
    assert contents(billing) == before
    assert refresh(billing, start=FIRST, end=FIRST + timedelta(days=9), clock=CLOCK).days == 10


def test_a_day_before_the_first_customer_has_rates_of_nothing(billing: Connection) -> None:
    """The same rows whether the day is computed while nobody is there or again when somebody is."""
    assert refresh(billing, start=FIRST, end=FIRST, clock=CLOCK).days == 1
    shown = "SELECT definition, customers_start, customers_churned, customer_churn_rate, nrr FROM analytics.churn"
    shown += " ORDER BY definition"
    before = billing.execute(shown).fetchall()
    assert [tuple(row.values()) for row in before] == [("flexpay-1", 0, 0, None, None), ("stripe", 0, 0, None, None)]
    assert identity_breaks(billing, start=FIRST, end=FIRST) == []
    write(billing, [event("started", 1)])
    refresh(billing, start=FIRST, end=FIRST, clock=CLOCK)
    assert billing.execute(shown).fetchall() == before


def test_days_before_a_second_currency_need_no_exchange_rate(billing: Connection) -> None:
    """Rates in money of these days are the same whether they are computed before or after its first customer came."""
    shown = "SELECT * FROM analytics.churn WHERE definition = 'flexpay-1' ORDER BY day"
    until = FIRST + timedelta(days=40)
    write(billing, [event("started", 1), event("canceled", 12)])
    write(billing, [event("started", 3, subscription="cid-1", customer="cid")])
    refresh(billing, start=FIRST, end=FIRST + timedelta(days=19), clock=CLOCK)
    alone = billing.execute(shown).fetchall()
    write(billing, [event("started", 20, subscription="bob-1", customer="bob", currency="USD")])
    for table in (*TABLES, "interval_progress", "snapshots"):
        billing.execute(f"DELETE FROM analytics.{table}")  # noqa: S608
    refresh(billing, start=FIRST, end=until, clock=CLOCK)
    both = billing.execute(shown).fetchall()
    assert both[:20] == alone
    assert [row["arpa"] is None for row in both] == [not 1 <= n < 20 for n in range(41)]
    billing.execute("INSERT INTO billing.fx_rates VALUES ('2025-01-21', 'USD', 'EUR', 0.9)")
    refresh(billing, start=FIRST, end=until, clock=CLOCK)
    told = billing.execute(shown).fetchall()
    assert told[:20] == alone
    assert [row["arpa"] is None for row in told] == [n < 1 for n in range(41)]


def test_a_range_that_ends_before_it_starts(billing: Connection) -> None:
    with pytest.raises(BadInput, match=r"ends .* before it starts"):
        refresh(billing, start=date(2026, 1, 2), end=date(2026, 1, 1), clock=CLOCK)
