"""The product against the naive reference, on random histories."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexpay_pipelines.analytics import MetricPolicy, movements, summary
from flexpay_pipelines.database import Connection
from tests.analytics.ledger import DAYS, ORIGIN, histories, write
from tests.analytics.reference import Event, History, all_movements, day_ends, levels, month_ends

FIRST = ORIGIN.date()
LAST = (ORIGIN + timedelta(days=DAYS + 110)).date()
PERIODS = {"day": day_ends, "month": month_ends}
TYPES = ("new", "reactivation", "expansion", "contraction", "churn", "paused", "resumed", "transfer", "fx")

random_histories = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def compare_movements(
    connection: Connection, grain: Literal["day", "month"], events: list[Event], known: int | None, paused_days: int
) -> None:
    known_at = None if known is None else ORIGIN + timedelta(days=known)
    first = FIRST + timedelta(days=31)
    with connection.transaction(force_rollback=True):
        write(connection, events)
        rows = movements(
            connection,
            start=first,
            end=LAST,
            grain=grain,
            known_at=known_at,
            policy=MetricPolicy(paused_churn_days=paused_days),
        )
    found = [(r["period"], r["customer_id"], r["movement"], int(r["annualised_minor"])) for r in rows]
    wanted = all_movements(History(events, paused_days, known_at), FIRST, first, LAST, PERIODS[grain])
    assert len(found) == len(set(found))
    assert set(found) == wanted


random_knowledge = st.one_of(st.none(), st.integers(0, DAYS))
random_policy = st.sampled_from([90, 90, 20])


@pytest.mark.parametrize("grain", ["day", "month"])
@random_histories
@given(events=histories(), known=random_knowledge, paused_days=random_policy)
def test_movements(
    billing: Connection, grain: Literal["day", "month"], events: list[Event], known: int | None, paused_days: int
) -> None:
    compare_movements(billing, grain, events, known, paused_days)


@pytest.mark.soak
@pytest.mark.parametrize("grain", ["day", "month"])
@settings(random_histories, max_examples=2_000)
@given(events=histories(max_events=60), known=random_knowledge, paused_days=random_policy)
def test_movements_of_thousands_of_histories(
    billing: Connection, grain: Literal["day", "month"], events: list[Event], known: int | None, paused_days: int
) -> None:
    compare_movements(billing, grain, events, known, paused_days)


def compare_summary(
    rows: list[dict[str, Any]], total: list[dict[str, Any]], history: History, periods: list[Any], by: str
) -> None:
    found: dict[tuple[str, str, str], dict[str, Any]] = {(r["period"], r["segment"], r["currency"]): r for r in rows}
    wanted_keys = set()
    for label, start, end in periods:
        before, after = levels(history, start, by), levels(history, end, by)
        for key in {key for key, figures in before.items() if figures[0]} | after.keys():
            wanted_keys.add((label, key[0], key[1]))
            row = found[label, key[0], key[1]]
            assert row["start"] == before.get(key, (0,))[0]
            figures = tuple(
                int(row[c]) for c in ("end", "customers", "paying_customers", "subscriptions", "paused_subscriptions")
            )
            assert figures == after.get(key, (0, 0, 0, 0, 0))
    assert all(row["end"] == row["start"] + sum(row[t] for t in TYPES) for row in rows)
    for idle in found.keys() - wanted_keys:  # nothing stands there, so something must have moved
        assert any(found[idle][t] for t in TYPES)
    for whole in total:
        parts = [r for r in rows if (r["period"], r["currency"]) == (whole["period"], whole["currency"])]
        for column in ("start", "end", *TYPES):
            assert sum(r[column] for r in parts) == whole[column]
        assert whole["transfer"] == 0


@pytest.mark.parametrize("grain", ["day", "month"])
@random_histories
@given(events=histories())
def test_summary(billing: Connection, grain: Literal["day", "month"], events: list[Event]) -> None:
    first = FIRST + timedelta(days=40)
    with billing.transaction(force_rollback=True):
        write(billing, events)
        total, by_plan, by_frequency = (
            summary(billing, start=first, end=LAST, grain=grain, by=by) for by in (None, "plan", "payment_frequency")
        )
    history, periods = History(events), list(PERIODS[grain](first, LAST))
    for by, rows in (("total", total), ("plan", by_plan), ("payment_frequency", by_frequency)):
        compare_summary(rows, total, history, periods, by)
