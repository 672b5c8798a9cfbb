"""The relay against its allowance, also while some calls are slow, and against bare SDK calls of the same requests.

A real outbox, the real SDK, the sandbox over HTTP, the pace shared through the database as in production. The bare
calls know no outbox: no order, no marks, no retries.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import stripe as sdk

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, connect, opened
from flexpay_pipelines.migrations import deploy
from flexpay_pipelines.payments import SharedPace, StripeGateway, deliver_commands, link_subscriptions
from flexpay_pipelines.payments.delivery import MOST_SIDE_BY_SIDE
from flexpay_pipelines.sandbox import scratch_cluster
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox, running_stripe_server
from tests.bench.ratio import Ratio

COMMANDS = int(os.environ.get("BENCH_COMMANDS", "3000"))
PER_SECOND = 100.0
# At least 95 % of what the bucket lets through.
LIMIT = 1 / 0.95
OVERHEAD_SECONDS = 0.001
ROUNDS = 3
SLOW_SHARE, SLOW_SECONDS = 0.05, 1.0
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
COMPANY = (
    "INSERT INTO billing.plans VALUES ('pro', 'Pro')",
    "INSERT INTO billing.plan_prices VALUES ('pro', 'MONTHLY', 'EUR', 1000, NULL)",
    "INSERT INTO billing.customers (customer_ref, currency)"
    " SELECT 'c' || n, 'EUR' FROM generate_series(1, %(all)s) AS n",
    "INSERT INTO billing.subscriptions (subscription_ref, customer_id, plan, status, amount_minor, currency,"
    " started_at, billing_anchor, next_payment_at)"
    " SELECT 's' || customer_id, customer_id, 'pro', 'active', 1000, 'EUR', '2026-02-20', '2026-02-20',"
    " '2026-03-20' FROM billing.customers",
)
OUTBOX = (
    "INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters, created_at)"
    " SELECT subscription_id || ':pause:' || version, subscription_id, 'pause',"
    """ '{"mode": "collection", "resumes_at": null}', %(noon)s FROM billing.subscriptions"""
    " WHERE subscription_id > %(after)s ORDER BY subscription_id LIMIT %(number)s"
)


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class _Bench:
    """A company at both ends; each measure takes the next of its subscriptions."""

    def __init__(self, connection: Connection, stripe: StripeSandbox, pace: SharedPace) -> None:
        self.connection = connection
        self.pace = pace
        self.stripe = stripe
        self.taken = 0

    def take(self, number: int) -> int:
        self.taken += number
        return self.taken - number

    def relay(self, number: int, per_second: float) -> float:
        """Seconds in which the relay delivers so many commands."""
        after = self.take(number)
        self.connection.execute(OUTBOX.encode(), {"noon": NOON, "after": after, "number": number})
        gateway = StripeGateway(
            self.stripe.api_key, self.stripe.api_base, requests_per_second=per_second, shared_pace=self.pace.reserve
        )

        def work() -> None:
            done = deliver_commands(self.connection, gateway, clock=FixedClock(NOON), progress=lambda _: None)
            if done.delivered != number:
                raise RuntimeError(f"the relay did not deliver everything: {done}")

        return _timed(work)

    def bare(self, number: int) -> float:
        """Seconds in which the SDK alone makes the same requests, on as many threads."""
        rows = self.connection.execute(
            "SELECT stripe_subscription_id AS id FROM billing.subscriptions WHERE subscription_id > %s"
            " ORDER BY subscription_id LIMIT %s",
            (self.take(number), number),
        ).fetchall()
        client = sdk.StripeClient(
            self.stripe.api_key, base_addresses={"api": self.stripe.api_base}, http_client=sdk.RequestsClient()
        )

        def pause(row: dict[str, str]) -> None:
            client.raw_request(
                "post", f"/v1/subscriptions/{row['id']}", pause_collection={"behavior": "void"},
                idempotency_key=f"bare {row['id']}",
            )  # fmt: skip

        def work() -> None:
            with ThreadPoolExecutor(MOST_SIDE_BY_SIDE) as threads:
                list(threads.map(pause, rows))

        return _timed(work)


def measure() -> list[Ratio]:
    """At 100 a second, the same with some slow calls, and without a pace in turn with the bare calls."""
    unpaced = COMMANDS // 3
    with (
        tempfile.TemporaryDirectory(prefix="flexpay-bench-") as folder,
        scratch_cluster() as cluster,
        running_stripe_server(Path(folder) / "stripe") as stripe,
        ExitStack() as stack,
    ):
        deploy(cluster.url(), ["core", "frequencies", "pauses"], record=lambda _: None, progress=lambda _: None)
        with opened(cluster.url(), purpose="bench") as connection:
            for statement in COMPANY:
                connection.execute(
                    statement.encode(),
                    {"all": 2 * COMMANDS + (2 * ROUNDS + 1) * unpaced} if "%(" in statement else None,
                )
            stripe.set_clock(NOON)
            stripe.set_rate_limit(1e6)
            stripe.seed_from_billing(connection)
            gateway = StripeGateway(stripe.api_key, stripe.api_base, requests_per_second=1e6)
            link_subscriptions(connection, gateway, progress=lambda _: None)
            connection.execute("VACUUM ANALYZE")
            pace = SharedPace(partial(connect, cluster.url(), purpose="stripe pace"))
            stack.callback(pace.close)
            bench = _Bench(connection, stripe, pace)
            bench.bare(unpaced)
            turns = [(bench.relay(unpaced, 1e6), bench.bare(unpaced)) for _ in range(ROUNDS)]
            paced = bench.relay(COMMANDS, PER_SECOND)
            stripe.order_fault("timeout_after", times=10**9, match="POST", seconds=SLOW_SECONDS, share=SLOW_SHARE)
            slow = bench.relay(COMMANDS, PER_SECOND)
    relay, bare = (statistics.median(side) for side in zip(*turns, strict=True))
    allowed, share = COMMANDS / PER_SECOND, f"{SLOW_SHARE:.0%} of the calls take {SLOW_SECONDS:g} s"
    return [
        Ratio(f"delivery: {COMMANDS:,} commands at {PER_SECOND:g}/s", paced, "allowed", allowed, LIMIT),
        Ratio(f"delivery: the same while {share}", slow, "allowed", allowed, LIMIT),
        Ratio(
            f"delivery: {unpaced:,} commands without a pace", relay, "bare SDK calls and 1 ms each",
            bare + unpaced * OVERHEAD_SECONDS, 1.0,
        ),
    ]  # fmt: skip
