"""The daily report of a company with 100,000 subscriptions, once its figures stand: against the promise of 3 seconds.

The page: the seconds until it can be opened. With every dataset as CSV and Parquet, which are written after it:
processor time of this process and of the server's backend together, so that a busy machine does not count.
`BENCH_SUBSCRIPTIONS` (a number) measures another size.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from flexpay_pipelines.analytics import daily_report, refresh, refresh_balances, refresh_churn_risk
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.migrations import deploy
from flexpay_pipelines.sandbox import scratch_cluster
from tests.bench.analytics_company import COMPANY, DAYS
from tests.bench.ratio import Ratio

SUBSCRIPTIONS = int(os.environ.get("BENCH_SUBSCRIPTIONS", "100000"))
LAST = date(2024, 1, 1) + timedelta(days=DAYS - 1)
CLOCK = FixedClock(datetime(2026, 1, 1, tzinfo=UTC))
SHOWN_DAYS = 91
PROMISE_SECONDS = 3
ROUNDS = 3

# An attempt a month of whoever has begun, every twentieth declined; a rate a week.
MONEY = (
    "SET session_replication_role = replica",
    "INSERT INTO billing.payments (payment_ref, subscription_id, occurred_at, recorded_at, amount_minor, currency,"
    " outcome, failure_class, failure_code)"
    " SELECT 'p' || subscription_id || '-' || n, subscription_id, at, at, amount_minor, currency,"
    " CASE WHEN (subscription_id + n) %% 20 = 0 THEN 'failed' ELSE 'succeeded' END,"
    " CASE WHEN (subscription_id + n) %% 20 = 0 THEN 'issuer_decline' END,"
    " CASE WHEN (subscription_id + n) %% 20 = 0 THEN 'insufficient_funds' END"
    " FROM billing.subscriptions, generate_series(0, 11) AS n,"
    " LATERAL (SELECT started_at + n * interval '1 month' AS at) AS a"
    " WHERE at < timestamptz '2024-01-01' + %(days)s * interval '1 day'",
    "INSERT INTO billing.fx_rates (date, currency, reporting_currency, rate)"
    " SELECT date '2024-01-01' + 7 * n, currency, 'EUR', 0.9 + n %% 9 * 0.01"
    " FROM generate_series(0, 104) AS n, unnest(ARRAY['USD', 'GBP']) AS currency",
    # Subscriptions are what their events amount to, as in life: nothing is amiss.
    "UPDATE billing.subscriptions AS s SET plan = e.plan, payment_frequency = e.payment_frequency,"
    " amount_minor = e.amount_minor, quantity = e.quantity, status = CASE e.event WHEN 'canceled' THEN 'canceled'"
    " WHEN 'paused' THEN 'paused' WHEN 'suspended' THEN 'suspended' ELSE 'active' END"
    " FROM (SELECT DISTINCT ON (subscription_id) * FROM billing.subscription_events"
    " ORDER BY subscription_id, occurred_at DESC, recorded_at DESC, event_id DESC) AS e"
    " WHERE s.subscription_id = e.subscription_id",
    "SET session_replication_role = origin",
    "ANALYZE",
)


def _processor_seconds(connection: Connection) -> float:
    """What this process and the server's backend have used so far."""
    fields = Path(f"/proc/{connection.info.backend_pid}/stat").read_text().rsplit(")", 1)[1].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _report(connection: Connection, folder: Path) -> tuple[float, float]:
    """Seconds until the page stands, and of processor time for everything."""
    # Workers of a parallel plan would count for nobody.
    connection.execute("SET max_parallel_workers_per_gather = 0")
    began, started = time.time(), _processor_seconds(connection)
    files = daily_report(connection, day=LAST, folder=folder, clock=CLOCK, reporting_currency="EUR")
    return files.html.stat().st_mtime - began, _processor_seconds(connection) - started


def measure() -> list[Ratio]:
    """One company; the report several times, the first one with what a process imports once."""
    with scratch_cluster() as cluster, tempfile.TemporaryDirectory() as folder:
        components = ["core", "frequencies", "rewards", "analytics"]
        deploy(cluster.url(), components, record=lambda _: None, progress=lambda _: None)
        with opened(cluster.url(), purpose="bench") as connection:
            for statement in (*COMPANY, *MONEY):
                values = {"all": SUBSCRIPTIONS, "days": DAYS}
                connection.execute(statement.encode(), values if "%" in statement else None)
            first = LAST - timedelta(days=SHOWN_DAYS)
            refresh(connection, start=first, end=LAST, clock=CLOCK)
            refresh_balances(connection, start=first, end=LAST, clock=CLOCK)
            refresh_churn_risk(connection, day=LAST, clock=CLOCK)
        with opened(cluster.url(), purpose="bench") as connection:
            pages, taken = zip(*(_report(connection, Path(folder)) for _ in range(ROUNDS)), strict=True)
    of = f"{SUBSCRIPTIONS:,} subscriptions"
    return [
        Ratio(f"report: the page, imports included, {of}", pages[0], "the promise", PROMISE_SECONDS, 1),
        Ratio(f"report: the page, {of}", statistics.median(pages[1:]), "the promise", PROMISE_SECONDS, 1),
        Ratio(f"report: page and datasets, {of}", statistics.median(taken[1:]), "the promise", PROMISE_SECONDS, 1),
    ]
