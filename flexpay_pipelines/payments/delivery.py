"""The relay: tells Stripe what the outbox asks for, in order, at a steady pace, each command once.

What belongs here: choosing, sending side by side, retrying, parking. What does not: writing commands (`billing`,
`rollback`), what a command means (`sending`), how a call is made and paced (`stripe_gateway`), what becomes of parked
commands (`parking`).

One relay works on a database at a time. It keeps a window of commands in flight, at most one of each subscription, and
marks them as their answers come: a slow call holds up nobody. Killed anywhere, what it had not marked is pending, and
the next run sends it with the same idempotency key, to which Stripe gives its first answer again.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from flexpay_pipelines.database import advisory_lock
from flexpay_pipelines.errors import TransientError
from flexpay_pipelines.payments.failures import StripeTransient
from flexpay_pipelines.payments.sending import Outcome, send
from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    from flexpay_pipelines.clock import Clock
    from flexpay_pipelines.database import Connection
    from flexpay_pipelines.payments.stripe_gateway import StripeGateway

RELAY = "flexpay stripe delivery"
FIRST_RETRY = timedelta(seconds=2)
LONGEST_RETRY = timedelta(hours=1)
_LONGEST_EXPONENT = 12
_TOLD_EVERY_SECONDS = 5.0
# Enough calls side by side to keep the pace while each takes half a second.
_SIDE_BY_SIDE_SECONDS = 0.5
_FEWEST_SIDE_BY_SIDE = 4
MOST_SIDE_BY_SIDE = 64


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """What a run of the relay did. Counts are commands; `remaining` are still pending, those to be retried included."""

    delivered: int
    retried: int
    parked: int
    superseded: int
    remaining: int
    seconds: float


def pending_commands(connection: Connection) -> int:
    """How many commands wait in the outbox."""
    return int(queries("payments_delivery").pending_commands(connection))


def deliver_commands(
    connection: Connection,
    gateway: StripeGateway,
    *,
    clock: Clock,
    progress: Callable[[str], None],
    limit: int | None = None,
    jitter: Callable[[], float] = random.random,
) -> DeliveryResult:
    """Send what is pending and may be sent by now; commands of one subscription in their order.

    What fails and may succeed later waits for its time; what Stripe refuses is parked with the reason, and blocks
    nothing. Where another relay is at work on the database, this one leaves everything to it.

    Args:
        gateway: keeps the pace.
        limit: at most so many commands.
        jitter: draws 0 to 1; a wait is its half to one and a half.

    Raises:
        StripeTransient: Stripe cannot be reached at all; nothing was changed.
        StripeRefusesUs: the key is wrong or lacks a right; what was under way stays pending.
    """
    started, totals = time.monotonic(), Counter[str]()
    with ExitStack() as stack:
        try:
            stack.enter_context(advisory_lock(connection, RELAY))
        except TransientError:
            progress("Another relay is at work: it delivers what waits.")
        else:
            totals["superseded"] = queries("payments_delivery").supersede_commands(connection)
            if pending_commands(connection):
                gateway.ping()
                relay = _Relay(
                    connection=connection, gateway=gateway, clock=clock, progress=progress, jitter=jitter, totals=totals
                )
                relay.run(limit)
    return DeliveryResult(
        delivered=totals["delivered"], retried=totals["pending"], parked=totals["parked"],
        superseded=totals["superseded"], remaining=pending_commands(connection), seconds=time.monotonic() - started,
    )  # fmt: skip


class _Relay:
    """One run. The connection is used by the thread that runs it alone; the others only speak with Stripe."""

    def __init__(
        self, *, connection: Connection, gateway: StripeGateway, clock: Clock, progress: Callable[[str], None],
        jitter: Callable[[], float], totals: Counter[str],
    ) -> None:  # fmt: skip
        self._connection = connection
        self._gateway = gateway
        self._clock = clock
        self._progress = progress
        self._jitter = jitter
        self._totals = totals
        wanted = math.ceil(gateway.requests_per_second * _SIDE_BY_SIDE_SECONDS)
        self._side_by_side = min(max(wanted, _FEWEST_SIDE_BY_SIDE), MOST_SIDE_BY_SIDE)
        self._window = 2 * self._side_by_side
        self._in_flight: dict[Future[Outcome], int] = {}
        self._answered: SimpleQueue[Future[Outcome]] = SimpleQueue()
        self._exhausted = False
        self._unreachable = 0
        self._failure: BaseException | None = None
        self._told_at = time.monotonic()

    def run(self, limit: int | None) -> None:
        left = math.inf if limit is None else limit
        threads = ThreadPoolExecutor(self._side_by_side, thread_name_prefix="stripe")
        try:
            with self._connection.transaction():
                left -= self._claim(threads, left)
            while self._in_flight:
                outcomes = self._next_answers()
                with self._connection.transaction():
                    self._mark(outcomes)
                    left -= self._claim(threads, left)
                self._tell()
        finally:
            threads.shutdown(cancel_futures=True)
        if self._failure is not None:
            raise self._failure
        self._tell(last=True)

    def _claim(self, threads: ThreadPoolExecutor, most: float) -> int:
        """Put commands in flight, where the window is half empty; those behind one in flight wait until it lands."""
        room = int(min(self._window - len(self._in_flight), most))
        full = len(self._in_flight) > self._side_by_side or (self._exhausted and self._in_flight)
        if room <= 0 or full or self._stopping:
            return 0
        now, catalogue = self._clock.now(), queries("payments_delivery")
        catalogue.walk_the_queue(self._connection)
        commands = list(
            catalogue.next_commands(self._connection, now=now, in_flight=list(self._in_flight.values()), most=room)
        )
        for command in commands:
            future = threads.submit(self._send, command, now)
            self._in_flight[future] = command["subscription_id"]
            future.add_done_callback(self._answered.put)
        self._exhausted = len(commands) < room
        return len(commands)

    @property
    def _stopping(self) -> bool:
        return self._failure is not None or self._unreachable >= self._side_by_side

    def _next_answers(self) -> list[Outcome]:
        futures = [self._answered.get()]
        while not self._answered.empty():
            futures.append(self._answered.get())
        outcomes = []
        for future in futures:
            del self._in_flight[future]
            if future.cancelled():
                continue
            if (error := future.exception()) is not None:
                self._failure = self._failure or error
                continue
            outcome = future.result()
            self._unreachable = self._unreachable + 1 if outcome.unreachable else 0
            outcomes.append(outcome)
        if self._stopping:
            for future in tuple(self._in_flight):
                future.cancel()
        return outcomes

    def _send(self, command: dict[str, Any], now: datetime) -> Outcome:
        try:
            return send(command, self._gateway, now=now)
        except StripeTransient as error:
            return Outcome(
                command["command_id"], "pending", error=str(error), attempts=command["attempts"],
                retry_after=error.retry_after, key_is_spent=error.key_is_spent, unreachable=error.unreachable,
                generation=command["parameters"].get("key_generation", 0),
            )  # fmt: skip

    def _mark(self, outcomes: Sequence[Outcome]) -> None:
        if outcomes:
            now = self._clock.now()
            queries("payments_delivery").mark_commands(
                self._connection, outcomes=json.dumps([self._row(outcome, now) for outcome in outcomes])
            )
            self._totals.update(outcome.state for outcome in outcomes)

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
        drawn: timedelta = min(grown, LONGEST_RETRY) * (0.5 + self._jitter())
        asked = timedelta(seconds=outcome.retry_after or 0)
        return max(drawn, asked)

    def _tell(self, *, last: bool = False) -> None:
        if last or time.monotonic() - self._told_at > _TOLD_EVERY_SECONDS:
            self._told_at = time.monotonic()
            waiting = pending_commands(self._connection)
            self._progress(f"Told Stripe {self._totals['delivered']} changes; {waiting} to go.")
            if self._unreachable >= self._side_by_side:
                self._progress("Stripe has stopped answering: the rest waits for the next run.")
