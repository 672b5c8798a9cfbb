"""The comparison of 1,000,000 subscriptions with Stripe, against reading the same pages and the same rows and no more.

Each side runs in a process of its own, so that its peak of memory is its own, too. The floor reads every page through
the same gateway, then every row from the database, and forgets both.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.migrations import deploy
from flexpay_pipelines.payments import StripeGateway, reconcile
from flexpay_pipelines.sandbox import scratch_cluster
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox, running_stripe_server
from tests.bench.ratio import Ratio

SUBSCRIPTIONS = int(os.environ.get("BENCH_SUBSCRIPTIONS", "1000000"))
DIFFERENT = SUBSCRIPTIONS // 1_000
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "1"))
LIMIT = 1.5
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)

# The ids that the sandbox derives from the references: linking a million is not what is measured.
COMPANY = (
    "SELECT set_config('flexpay.ledger', 'import', false)",
    "INSERT INTO billing.plans VALUES ('pro', 'Pro')",
    "INSERT INTO billing.plan_prices (plan, payment_frequency, currency, amount_minor)"
    " VALUES ('pro', 'WEEKLY', 'EUR', 250), ('pro', 'MONTHLY', 'EUR', 1000), ('pro', 'YEARLY', 'EUR', 10000)",
    "INSERT INTO billing.customers (customer_ref, currency, time_zone)"
    " SELECT 'c' || n, 'EUR', 'Europe/Berlin' FROM generate_series(1, %(all)s) AS n",
    "INSERT INTO billing.subscriptions (subscription_ref, customer_id, plan, status, amount_minor, currency,"
    " payment_frequency, started_at, billing_anchor, next_payment_at, stripe_subscription_id, changed_at)"
    " SELECT 's' || c.customer_id, c.customer_id, 'pro', 'active', p.amount_minor, 'EUR', p.payment_frequency,"
    " '2026-01-31', d.due, d.due,"
    " 'sub_' || left(encode(sha256(convert_to('sub' || chr(31) || 's' || c.customer_id, 'UTF8')), 'hex'), 24),"
    " '2026-01-31' FROM billing.customers AS c"
    " CROSS JOIN LATERAL (SELECT %(noon)s::timestamptz + (1 + c.customer_id %% 20) * interval '1 day' AS due) AS d"
    " JOIN billing.plan_prices AS p"
    " ON p.payment_frequency = (ARRAY['WEEKLY', 'MONTHLY', 'YEARLY'])[c.customer_id %% 3 + 1]",
    "VACUUM ANALYZE",
)
DRIFT = "UPDATE billing.subscriptions SET quantity = 2 WHERE subscription_id % 1000 = 0"
ROWS = (
    "SELECT subscription_id, subscription_ref, stripe_subscription_id, status, amount_minor, quantity, currency,"
    " payment_frequency, next_payment_at FROM billing.subscriptions"
)


def _read(connection: Connection, gateway: StripeGateway) -> int:
    """The floor: every page, every row."""
    listed = sum(len(page) for page in gateway.subscriptions())
    with connection.transaction(), connection.cursor("floor") as cursor:
        cursor.itersize = 10_000
        held = sum(1 for _ in cursor.execute(ROWS.encode()))
    return min(listed, held)


def _compare(connection: Connection, gateway: StripeGateway) -> int:
    found = reconcile(connection, gateway, clock=FixedClock(NOON), progress=lambda _: None)
    if len(found.differences) != DIFFERENT:
        raise RuntimeError(f"the comparison found {len(found.differences)} differences where {DIFFERENT} were planted")
    return found.compared


def _peak_megabytes() -> float:
    """The peak of this process. Not getrusage: that of a young process begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _measured(work: Callable[[Connection, StripeGateway], int], url: str, stripe: StripeSandbox) -> tuple[float, float]:
    with opened(url, purpose="bench") as connection:
        started = time.perf_counter()
        number = work(connection, StripeGateway(stripe.api_key, stripe.api_base, requests_per_second=100_000))
        taken = time.perf_counter() - started
    if number != SUBSCRIPTIONS:
        raise RuntimeError(f"{number} subscriptions were read where there are {SUBSCRIPTIONS}")
    return taken, _peak_megabytes()


def _alone(work: Callable[[Connection, StripeGateway], int], url: str, stripe: StripeSandbox) -> tuple[float, float]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_measured, work, url, stripe).result()


def measure() -> list[Ratio]:
    """The seconds of both sides, in turn, and the memory of ours."""
    with (
        tempfile.TemporaryDirectory(prefix="flexpay-bench-") as folder,
        scratch_cluster() as cluster,
        running_stripe_server(Path(folder)) as stripe,
    ):
        deploy(cluster.url(), ["core", "frequencies", "pauses"], record=lambda _: None, progress=lambda _: None)
        stripe.set_clock(NOON)
        stripe.set_rate_limit(1_000_000)
        with opened(cluster.url(), purpose="bench") as connection:
            for statement in COMPANY:
                values = {"all": SUBSCRIPTIONS, "noon": NOON} if "%(" in statement else None
                connection.execute(statement.encode(), values)
            stripe.seed_from_billing(connection)
            connection.execute(DRIFT.encode())
        pairs = [(_alone(_compare, cluster.url(), stripe), _alone(_read, cluster.url(), stripe)) for _ in range(ROUNDS)]
    ours, floor, most, least = (
        statistics.median(pair[side][figure] for pair in pairs) for figure in (0, 1) for side in (0, 1)
    )
    return [
        Ratio(f"reconciliation of {SUBSCRIPTIONS:,} subscriptions", ours, "its pages and rows read", floor, LIMIT),
        Ratio(f"reconciliation of {SUBSCRIPTIONS:,}: memory", most, "its pages and rows read", least, LIMIT, "MB"),
    ]
