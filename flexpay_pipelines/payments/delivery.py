"""The relay: tells Stripe what the outbox asks for, in order, at a steady pace, each command once.

What belongs here: claiming, pacing, sending, retrying, parking. What does not: writing commands (`billing`,
`rollback`), how a call is made (`stripe_gateway`).

A batch is claimed, sent side by side and marked in one transaction: killed anywhere in it, every one of its commands is
pending again, and the next run sends it with the same idempotency key, to which Stripe gives its first answer again.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from flexpay_pipelines.payments.failures import StripeTransient
from flexpay_pipelines.payments.sending import Outcome, send
from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    from flexpay_pipelines.clock import Clock
    from flexpay_pipelines.database import Connection
    from flexpay_pipelines.payments.stripe_gateway import StripeGateway

BATCH = 100
SIDE_BY_SIDE = 8
FIRST_RETRY = timedelta(seconds=2)
LONGEST_RETRY = timedelta(hours=1)
_LONGEST_EXPONENT = 12


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """What a run of the relay did. Counts are commands; `remaining` are still pending, those to be retried included."""

    delivered: int
    retried: int
    parked: int
    superseded: int
    remaining: int
    seconds: float


class Pace:
    """A token bucket without a burst: calls are let through one after the other, evenly. Safe for several threads."""

    def __init__(self, per_second: float, sleep: Callable[[float], None]) -> None:
        self._interval = 1 / per_second
        self._sleep = sleep
        self._lock = threading.Lock()
        self._next = time.monotonic()

    def wait(self) -> None:
        """Return when the next call may be made."""
        with self._lock:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + self._interval
        if mine > now:
            self._sleep(mine - now)


def pending_commands(connection: Connection) -> int:
    """How many commands wait in the outbox."""
    return int(queries("payments_delivery").pending_commands(connection))


def deliver_commands(
    connection: Connection,
    gateway: StripeGateway,
    *,
    clock: Clock,
    requests_per_second: float,
    progress: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    limit: int | None = None,
    jitter: Callable[[], float] = random.random,
) -> DeliveryResult:
    """Send what is pending and may be sent by now; commands of one subscription in their order.

    Several relays may run at once. What fails and may succeed later waits for its time; what Stripe refuses is parked
    with the reason, and blocks nothing.

    Args:
        requests_per_second: the pace of all requests together.
        limit: at most so many commands.
        jitter: draws 0 to 1; a wait is its half to one and a half.

    Raises:
        StripeTransient: Stripe cannot be reached at all; nothing was changed.
        StripeRefusesUs: the key is wrong or lacks a right; what was under way stays pending.
    """
    started = time.monotonic()
    catalogue = queries("payments_delivery")
    totals: Counter[str] = Counter(superseded=catalogue.supersede_commands(connection))
    if pending_commands(connection):
        gateway.ping()
        relay = _Relay(connection, gateway, clock, Pace(requests_per_second, sleep), jitter)
        with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="stripe") as threads:
            relay.run(threads, limit, totals, progress)
    return DeliveryResult(
        delivered=totals["delivered"], retried=totals["pending"], parked=totals["parked"],
        superseded=totals["superseded"], remaining=pending_commands(connection), seconds=time.monotonic() - started,
    )  # fmt: skip


@dataclass(frozen=True)
class _Relay:
    connection: Connection
    gateway: StripeGateway
    clock: Clock
    pace: Pace
    jitter: Callable[[], float]

    def run(
        self, threads: ThreadPoolExecutor, limit: int | None, totals: Counter[str], progress: Callable[[str], None]
    ) -> None:
        sent = 0
        while limit is None or sent < limit:
            outcomes = self._batch(threads, BATCH if limit is None else min(BATCH, limit - sent))
            if not outcomes:
                return
            sent += len(outcomes)
            totals.update(outcome.state for outcome in outcomes)
            progress(f"Told Stripe {totals['delivered']} changes; {pending_commands(self.connection)} to go.")
            if all(outcome.unreachable for outcome in outcomes):
                progress("Stripe has stopped answering: the rest waits for the next run.")
                return

    def _batch(self, threads: ThreadPoolExecutor, most: int) -> Sequence[Outcome]:
        catalogue, now = queries("payments_delivery"), self.clock.now()
        with self.connection.transaction():
            commands = list(catalogue.claim_commands(self.connection, now=now, most=most))
            if not commands:
                return ()
            outcomes = list(threads.map(lambda command: self._send(command, now), commands))
            catalogue.mark_commands(
                self.connection, outcomes=json.dumps([self._row(outcome, now) for outcome in outcomes])
            )
        return outcomes

    def _send(self, command: dict[str, Any], now: datetime) -> Outcome:
        try:
            return send(command, self.gateway, pace=self.pace.wait, now=now)
        except StripeTransient as error:
            return Outcome(
                command["command_id"], "pending", error=str(error), attempts=command["attempts"],
                retry_after=error.retry_after, key_is_spent=error.key_is_spent, unreachable=error.unreachable,
                generation=command["parameters"].get("key_generation", 0),
            )  # fmt: skip

    def _row(self, outcome: Outcome, now: datetime) -> dict[str, Any]:
        retried = outcome.state == "pending"
        return {
            "command_id": outcome.command_id, "state": outcome.state, "tries": 1, "error": outcome.error,
            "not_before": (now + self._wait(outcome)).isoformat() if retried else None,
            "delivered_at": now.isoformat() if outcome.state == "delivered" else None,
            "remember": {"key_generation": outcome.generation + 1} if outcome.key_is_spent else None,
        }  # fmt: skip

    def _wait(self, outcome: Outcome) -> timedelta:
        grown: timedelta = FIRST_RETRY * 2 ** min(outcome.attempts, _LONGEST_EXPONENT)
        drawn: timedelta = min(grown, LONGEST_RETRY) * (0.5 + self.jitter())
        asked = timedelta(seconds=outcome.retry_after or 0)
        return max(drawn, asked)
