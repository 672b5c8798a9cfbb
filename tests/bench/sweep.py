"""The pause sweep of every tenth subscription, against bare SQL that changes the same rows; and of a thousand of them.

The floor writes the same states, the same history (the ledger's trigger) and the same commands, in one transaction and
without any of the sweep's guards: no locks, no re-checked predicates, no batches. `BENCH_SUBSCRIPTIONS` (a number)
measures that size alone.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from flexpay_pipelines.billing import SweepPolicy, sweep_pauses
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.migrations import deploy
from flexpay_pipelines.sandbox import Cluster, scratch_cluster
from tests.bench.ratio import Ratio

ONLY = os.environ.get("BENCH_SUBSCRIPTIONS")
SIZES = [int(ONLY)] if ONLY else [1_000_000, 10_000_000]
# A small company is swept in a few seconds, which other work on the machine disturbs.
ROUNDS = {1_000_000: 3}
LIMIT = 1.3
FEW = 1_000
FEW_SECONDS = 0.5
# A batch of ids, whatever the number due.
MEMORY_LIMIT = 1.3
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
LATER = NOON + timedelta(days=3)
APART = timedelta(milliseconds=30)
# Coprime to the number of subscriptions: due ones lie all over the table, as they do in life.
STRIDE = 7919

COMPANY = (
    # Keys and history are right as written below: checking them row by row would take most of the loading.
    "SET session_replication_role = replica",
    "INSERT INTO billing.plans VALUES ('pro', 'Pro')",
    "INSERT INTO billing.customers (customer_ref, currency, time_zone)"
    " SELECT 'c' || n, 'EUR', 'Europe/Berlin' FROM generate_series(1, %(all)s) AS n",
    "INSERT INTO billing.subscriptions (subscription_ref, customer_id, plan, status, amount_minor, currency,"
    " started_at, billing_anchor, next_payment_at, stripe_subscription_id, changed_at)"
    " SELECT 's' || customer_id, customer_id, 'pro', 'active', 1000, 'EUR', '2026-01-31', '2026-01-31', '2026-03-31',"
    " 'sub_' || customer_id, '2026-01-31' FROM billing.customers",
    "INSERT INTO billing.subscription_events (subscription_id, customer_id, event, occurred_at, plan,"
    " payment_frequency, amount_minor, quantity, currency)"
    " SELECT subscription_id, customer_id, 'started', started_at, plan, 'MONTHLY', 1000, 1, 'EUR'"
    " FROM billing.subscriptions",
    "INSERT INTO billing.subscription_pauses (pause_ref, subscription_id, starts_at, ends_at, kind)"
    " SELECT 'p' || n, 1 + (n::bigint * %(stride)s) %% %(all)s, %(noon)s - n * %(apart)s,"
    " %(noon)s + interval '1 day' + n * interval '10 ms', 'customer' FROM generate_series(1, %(due)s) AS n",
    "VACUUM ANALYZE",
    "CHECKPOINT",
)
FLOOR_STARTS = (
    "UPDATE billing.subscriptions AS s SET status = 'paused', version = s.version + 1, changed_at = p.starts_at,"
    " change_reason = 'pause sweep: customer' FROM billing.subscription_pauses AS p"
    " WHERE p.subscription_id = s.subscription_id AND p.state = 'scheduled' AND p.starts_at <= %(at)s",
    "INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)"
    " SELECT s.subscription_id || ':pause:' || s.version, s.subscription_id, 'pause',"
    " jsonb_build_object('mode', 'collection', 'resumes_at', p.ends_at) FROM billing.subscription_pauses AS p"
    " JOIN billing.subscriptions AS s USING (subscription_id) WHERE p.state = 'scheduled' AND p.starts_at <= %(at)s",
    "UPDATE billing.subscription_pauses SET state = 'active', version = version + 1, changed_at = starts_at"
    " WHERE state = 'scheduled' AND starts_at <= %(at)s",
)
FLOOR_ENDS = (
    "UPDATE billing.subscriptions AS s SET status = 'active', version = s.version + 1, changed_at = p.ends_at,"
    " change_reason = 'pause sweep: customer ended', next_payment_at = s.next_payment_at + (p.ends_at - p.starts_at),"
    " billing_anchor = s.next_payment_at + (p.ends_at - p.starts_at) FROM billing.subscription_pauses AS p"
    " WHERE p.subscription_id = s.subscription_id AND p.state = 'active' AND p.ends_at <= %(at)s",
    "INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)"
    " SELECT s.subscription_id || ':resume:' || s.version, s.subscription_id, 'resume',"
    " jsonb_build_object('mode', 'collection', 'next_payment_at', s.next_payment_at)"
    " FROM billing.subscription_pauses AS p"
    " JOIN billing.subscriptions AS s USING (subscription_id) WHERE p.state = 'active' AND p.ends_at <= %(at)s",
    "UPDATE billing.subscription_pauses SET state = 'completed', version = version + 1, changed_at = ends_at"
    " WHERE state = 'active' AND ends_at <= %(at)s",
)


def _drop(cluster: Cluster, name: str) -> None:
    with opened(cluster.url("template1"), purpose="bench") as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name}".encode())


def _clone(cluster: Cluster, name: str) -> str:
    _drop(cluster, name)
    with opened(cluster.url("template1"), purpose="bench") as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE postgres STRATEGY file_copy".encode())
        connection.execute("CHECKPOINT")
    return cluster.url(name)


def _floor(connection: Connection, statements: tuple[str, ...], at: datetime) -> None:
    with connection.transaction():
        for statement in statements:
            connection.execute(statement.encode(), {"at": at})


def _ours(connection: Connection, at: datetime, due: int) -> None:
    done = sweep_pauses(connection, clock=FixedClock(at), policy=SweepPolicy(), progress=lambda _: None)
    if (done.due, done.commands) != (due, due):
        raise RuntimeError(f"the sweep did other work than the floor: {done}")


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure() -> list[Ratio]:
    """Each size on a cluster of its own."""
    return [ratio for size in SIZES for ratio in _measure(size, ROUNDS.get(size, 1))]


def _measure(subscriptions: int, rounds: int) -> list[Ratio]:
    """Each round sweeps a fresh copy of the company in both ways, starts first, then ends."""
    due = subscriptions // 10
    seconds: dict[str, list[float]] = {"starts": [], "ends": [], "bare starts": [], "bare ends": []}
    with scratch_cluster() as cluster:
        _load(cluster, subscriptions, due)
        before = _megabytes()
        # First, and on a copy just made: its pages are in the machine's memory, as those of a database at work are.
        few_due_at = NOON - (due - FEW + 1) * APART
        with opened(_clone(cluster, "few"), purpose="bench") as connection:
            few = _timed(lambda: _ours(connection, few_due_at, FEW))
        _drop(cluster, "few")
        for _ in range(rounds):
            with opened(_clone(cluster, "bare"), purpose="bench") as connection:
                seconds["bare starts"].append(_timed(lambda c=connection: _floor(c, FLOOR_STARTS, NOON)))  # type: ignore[misc]
                seconds["bare ends"].append(_timed(lambda c=connection: _floor(c, FLOOR_ENDS, LATER)))  # type: ignore[misc]
            with opened(_clone(cluster, "ours"), purpose="bench") as connection:
                seconds["starts"].append(_timed(lambda c=connection: _ours(c, NOON, due)))  # type: ignore[misc]
                seconds["ends"].append(_timed(lambda c=connection: _ours(c, LATER, due)))  # type: ignore[misc]
        after = _megabytes()
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    among = f"among {subscriptions:,}"
    return [
        *(
            Ratio(f"sweep: {due:,} {kind} {among}", median[kind], "bare SQL", median[f"bare {kind}"], LIMIT)
            for kind in ("starts", "ends")
        ),
        Ratio(f"sweep: {FEW:,} starts {among}", few, "the promise", FEW_SECONDS, 1),
        Ratio(f"sweep: peak memory, {due:,} due", after, "before it", before, MEMORY_LIMIT, "MB"),
    ]


def _load(cluster: Cluster, subscriptions: int, due: int) -> None:
    deploy(cluster.url(), ["core", "frequencies", "pauses"], record=lambda _: None, progress=lambda _: None)
    values = {"all": subscriptions, "due": due, "stride": STRIDE, "noon": NOON, "apart": APART}
    with opened(cluster.url(), purpose="bench") as connection:
        for statement in COMPANY:
            connection.execute(statement.encode(), values if "%(" in statement else None)
