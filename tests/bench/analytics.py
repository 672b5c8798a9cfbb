"""Run rate of a million subscriptions: the rebuild against one sort and against the common spine; one new day.

Rebuild: from the ledger to stored intervals, movements and summaries of every day of 24 months, in one transaction;
the rates over 30 days and the cohorts, which the same refresh computes, are measured with it and apart. The floor sorts
every event by customer and time and writes as many rows. The spine is one row for each customer and month, as in dbt's
MRR playbook; a new day costs it all of that again. A new day is the median of five in a row. `BENCH_SUBSCRIPTIONS`
(a number) measures another size.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from flexpay_pipelines.analytics import identity_breaks, refresh
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.migrations import deploy
from flexpay_pipelines.sandbox import scratch_cluster
from tests.bench.analytics_company import COMPANY, DAYS, FLOOR, NEW_DAY, SPINE, TIDYING
from tests.bench.ratio import Ratio

SUBSCRIPTIONS = int(os.environ.get("BENCH_SUBSCRIPTIONS", "1000000"))
NEW_EVENTS = 5_000
FIRST = date(2024, 1, 1)
LAST = FIRST + timedelta(days=DAYS - 1)
CLOCK = FixedClock(datetime(2026, 1, 1, tzinfo=UTC))
FLOOR_ROUNDS = 3
DAY_ROUNDS = 5
FLOOR_LIMIT = 2.5
SPINE_SHARE = 1 / 4
DAY_SHARE = 1 / 100
MEGABYTES = 500


def _run(connection: Connection, statements: tuple[str, ...], day: int = 0) -> None:
    values = {"all": SUBSCRIPTIONS, "days": DAYS, "new": NEW_EVENTS, "day": day}
    for statement in statements:
        connection.execute(statement.encode(), values if "%" in statement else None)


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _table(connection: Connection, statement: str, name: str) -> float:
    with connection.transaction():
        connection.execute("SET LOCAL work_mem = '256MB'")
        taken = _timed(lambda: _run(connection, (statement,)))
    connection.execute(f"DROP TABLE {name}".encode())
    return taken


def _refresh(connection: Connection, first: date, last: date) -> tuple[float, float]:
    """Seconds of the whole refresh, and of what comes before rates and cohorts."""
    at: dict[str, float] = {}
    started = time.perf_counter()

    def note(sentence: str) -> None:
        at[sentence] = time.perf_counter() - started

    refresh(connection, start=first, end=last, clock=CLOCK, progress=note)
    whole = time.perf_counter() - started
    if breaks := identity_breaks(connection, start=max(first, last - timedelta(days=30)), end=last):
        raise RuntimeError(f"the figures do not add up: {breaks[0]}")
    return whole, at["Computing rates."]


def _new_day(url: str, number: int) -> float:
    day = LAST + timedelta(days=1 + number)
    with opened(url, purpose="bench") as connection:
        _run(connection, TIDYING + NEW_DAY, number)
    with opened(url, purpose="bench") as connection:
        return _refresh(connection, day, day)[0]


def _peak_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure() -> list[Ratio]:
    """One company, each way of computing it once, the floor and a new day several times."""
    with scratch_cluster() as cluster:
        deploy(cluster.url(), ["core", "frequencies", "analytics"], record=lambda _: None, progress=lambda _: None)
        with opened(cluster.url(), purpose="bench") as connection:
            _run(connection, COMPANY + TIDYING)
        with opened(cluster.url(), purpose="bench") as connection:
            floor = statistics.median(_table(connection, FLOOR, "floor") for _ in range(FLOOR_ROUNDS))
            spine = _table(connection, SPINE, "spine")
            whole, rebuild = _refresh(connection, FIRST, LAST)
        day = statistics.median(_new_day(cluster.url(), number) for number in range(DAY_ROUNDS))
    of = f"{SUBSCRIPTIONS:,} subscriptions"
    return [
        Ratio(f"analytics: rebuild of {DAYS} days, {of}", rebuild, "one sort, as many rows", floor, FLOOR_LIMIT),
        Ratio(f"analytics: rebuild of {DAYS} days, {of}", rebuild, "the monthly spine", spine, SPINE_SHARE),
        Ratio(f"analytics: rebuild with rates and cohorts, {of}", whole, "the monthly spine", spine, SPINE_SHARE),
        Ratio(f"analytics: one new day of {NEW_EVENTS:,} events, {of}", day, "the whole rebuild", whole, DAY_SHARE),
        Ratio(f"analytics: one new day of {NEW_EVENTS:,} events, {of}", day, "the monthly spine", spine, DAY_SHARE),
        Ratio(f"analytics: peak memory of the process, {of}", _peak_megabytes(), "the promise", MEGABYTES, 1, "MB"),
    ]
