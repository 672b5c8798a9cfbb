"""The pause sweep: starts what is due to start, ends what is due to end, suspends whose grace period ran out.

What belongs here: due transitions in bulk, right whenever and however often it runs. What does not: asking for a pause
(`pauses`), telling Stripe (`flexpay_pipelines.payments`; the sweep writes the commands beside the change that asks
for them).

Work is chosen by "due by now and not done". A batch is one transaction; whoever is killed leaves whole batches
behind, and the next sweep does the rest. Transitions carry the time at which they were due.

What Stripe is told: a customer or admin pause that starts: `pause` until its end; that ends: `resume`. A grace period
that starts: nothing, Stripe keeps retrying. One that runs out: `pause` without an end, so that no new invoice is made
while the invoices that exist stay payable; a payment brings the subscription back. A pause that began and ended since
the last sweep: only that the payment has moved; both events are in history.

Who owes a payment that failed before or in a pause is past due when it ends, and has a grace period from then on. Where
that has run out as well (the sweep is late), the next round of the same sweep suspends: each event at its own time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from flexpay_pipelines.billing.features import feature_enabled, has_table
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import queries

PAUSES = "pauses"


@dataclass(frozen=True, slots=True)
class SweepPolicy:
    """How a sweep treats what it finds.

    Attributes:
        moves_next_payment: the next payment date moves by the time that was paused; otherwise dates keep their
            calendar and those that fell into the pause are left out.
        pause_mode: `collection` (pause_collection) or `subscription` (/pause and /resume), handed on to Stripe.
        batch_size: transitions per transaction.
        grace_days: how long a subscription that owes a payment when its pause ends is past due until it is suspended.
    """

    moves_next_payment: bool = True
    pause_mode: str = "collection"
    batch_size: int = 20_000
    grace_days: int = 7


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What a sweep would do. A pause that began and ended since the last sweep counts as a start and as an end."""

    to_start: int
    to_end: int
    to_suspend: int
    oldest_due_at: datetime | None

    @property
    def due(self) -> int:
        """All transitions due."""
        return self.to_start + self.to_end + self.to_suspend


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What a sweep did: `due == started + ended + suspended + sum(skipped.values())`.

    Attributes:
        due: transitions that it found due.
        started: pauses and grace periods begun.
        ended: customer and admin pauses ended, their subscriptions active again; past due, with a grace period, where a
            payment is owed.
        suspended: grace periods that ran out.
        skipped: transitions that changed no subscription, by reason.
        commands: Stripe commands written.
        oldest_lag: how late the oldest transition was made; None where nothing was due.
        batches: transactions that did some work.
    """

    due: int
    started: int
    ended: int
    suspended: int
    skipped: dict[str, int]
    commands: int
    oldest_lag: timedelta | None
    batches: int


@dataclass
class _Tally:
    started: int = 0
    ended: int = 0
    suspended: int = 0
    commands: int = 0
    batches: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    oldest_due_at: datetime | None = None

    def add(self, rows: list[dict[str, Any]]) -> None:
        """One batch: what each of its statements says that it did."""
        self.batches += 1
        for row in rows:
            self.started += row.get("changed", 0)
            self.ended += row.get("ended", 0)
            self.suspended += row.get("suspended", 0)
            self.commands += row["commands"]
            self.skipped.update(row["skipped"])
            seen = [instant for instant in (self.oldest_due_at, row["oldest_due_at"]) if instant is not None]
            self.oldest_due_at = min(seen, default=None)

    def result(self, now: datetime) -> SweepResult:
        done = self.started + self.ended + self.suspended
        return SweepResult(
            due=done + self.skipped.total(),
            started=self.started,
            ended=self.ended,
            suspended=self.suspended,
            skipped=dict(self.skipped),
            commands=self.commands,
            oldest_lag=None if self.oldest_due_at is None else now - self.oldest_due_at,
            batches=self.batches,
        )


def plan_sweep(connection: Connection, *, clock: Clock, up_to: datetime | None = None) -> SweepPlan:
    """What `sweep_pauses` would find due by `up_to` (default: now). Changes nothing; empty where pauses are off."""
    if not feature_enabled(connection, PAUSES):
        return SweepPlan(0, 0, 0, None)
    row = queries("billing_sweep").planned_sweep(connection, up_to=up_to or clock.now())
    return SweepPlan(row["to_start"], row["to_end"], row["to_suspend"], row["oldest_due_at"])


def sweep_pauses(
    connection: Connection,
    *,
    clock: Clock,
    policy: SweepPolicy,
    up_to: datetime | None = None,
    progress: Callable[[str], None],
) -> SweepResult:
    """Make every transition that is due by `up_to` (default: now) and not done, each once however many sweeps run.

    Where pauses are off or not deployed nothing is done, and `skipped` says how much was due.
    """
    now = clock.now()
    due_by = up_to or now
    tally = _Tally()
    if not feature_enabled(connection, PAUSES):
        tally.skipped["feature off"] = _due(connection, due_by)
        progress("Pauses are off or not deployed: nothing was swept.")
        return tally.result(now)
    sweep = _Sweep(connection, due_by, policy, tally, progress)
    while sweep.round():
        # An end can make way for a start that waited for it: only a round that finds nothing is the last.
        continue
    left = _due(connection, due_by)
    if left:
        # Locked by another sweep or by somebody at work on the subscription; still due: the next sweep sees it again.
        tally.skipped["left to whoever holds it"] = left
    progress(
        f"Swept pauses due by {due_by.isoformat()}: {tally.started:,} started, {tally.ended:,} ended, "
        f"{tally.suspended:,} suspended, {tally.skipped.total():,} skipped, {tally.commands:,} commands for Stripe."
    )
    return tally.result(now)


def pauses_by_hour(connection: Connection, *, start: datetime, end: datetime) -> list[dict[str, Any]]:
    """Transitions by the hour in which they were due: rows of `hour` (UTC), `due`, `done`, empty hours included."""
    if not has_table(connection, "billing.subscription_pauses"):
        return []
    return list(queries("billing_sweep").pauses_by_hour(connection, since=start, until=end))


def _due(connection: Connection, up_to: datetime) -> int:
    if not has_table(connection, "billing.subscription_pauses"):
        return 0
    return int(queries("billing_sweep").planned_sweep(connection, up_to=up_to)["due"])


_Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class _Sweep:
    connection: Connection
    up_to: datetime
    policy: SweepPolicy
    tally: _Tally
    progress: Callable[[str], None]

    def round(self) -> bool:
        """Every batch of every kind, a transaction each; whether anything was found to do."""
        before, sql = self.tally.batches, queries("billing_sweep")
        starts, ends = sql.due_starts.sql, sql.due_ends.sql
        self._sweep(starts, {"up_to": self.up_to, "passed": True}, self._start_passed)
        self._sweep(starts, {"up_to": self.up_to, "passed": False}, lambda ids: [self._start(ids, passed=False)])
        self._sweep(ends, {"up_to": self.up_to}, lambda ids: [self._end(ids)])
        return self.tally.batches > before

    def _sweep(self, due: str, parameters: dict[str, object], make: Callable[[list[int]], _Rows]) -> None:
        for pause_ids in self._due_in_batches(due, parameters):
            with self.connection.transaction():
                queries("billing_sweep").forget_plans(self.connection)
                queries("billing_sweep").plan_for_batches(self.connection)
                rows = make(pause_ids)
            # Counted only once it is committed.
            if any(row["due"] for row in rows):
                self.tally.add(rows)
                self.progress(
                    f"Batch {self.tally.batches}: {self.tally.started:,} started, {self.tally.ended:,} ended, "
                    f"{self.tally.suspended:,} suspended, {self.tally.skipped.total():,} skipped so far."
                )

    def _due_in_batches(self, due: str, parameters: dict[str, object]) -> Iterator[list[int]]:
        """What is due, by the server's own list: here there is never more of it than a batch."""
        with self.connection.cursor("due_pauses", withhold=True) as cursor:
            cursor.execute(due.encode(), parameters)
            while rows := cursor.fetchmany(self.policy.batch_size):
                yield [row["pause_id"] for row in rows]

    def _start(self, pause_ids: list[int], *, passed: bool) -> dict[str, Any]:
        return start_pauses(self.connection, pause_ids, up_to=self.up_to, policy=self.policy, passed=passed)

    def _start_passed(self, pause_ids: list[int]) -> _Rows:
        row = self._start(pause_ids, passed=True)
        if not row["pause_ids"]:
            return [row]
        # Begun and over since the last sweep: its end belongs to the same transaction, or Stripe would have to be told.
        return [row, self._end(row["pause_ids"], quiet=True)]

    def _end(self, pause_ids: list[int], *, quiet: bool = False) -> dict[str, Any]:
        return end_pauses(self.connection, pause_ids, up_to=self.up_to, policy=self.policy, quiet=quiet)


def start_pauses(
    connection: Connection, pause_ids: list[int], *, up_to: datetime, policy: SweepPolicy, passed: bool = False
) -> dict[str, Any]:
    """Start these pauses, where due, inside the caller's transaction (for this package).

    Args:
        passed: those that are over by `up_to`, and only those; Stripe is not told that they began.
    """
    row: dict[str, Any] = queries("billing_sweep").start_due_pauses(
        connection, pause_ids=pause_ids, up_to=up_to, passed=passed, pause_mode=policy.pause_mode
    )
    return row


def end_pauses(
    connection: Connection,
    pause_ids: list[int],
    *,
    up_to: datetime,
    policy: SweepPolicy,
    quiet: bool = False,
    taken_back: str | None = None,
) -> dict[str, Any]:
    """End these pauses, where due, inside the caller's transaction (for this package: `pauses` ends one by it).

    Args:
        taken_back: the reason of a rollback, which ends them although pauses are off.
    """
    row: dict[str, Any] = queries("billing_sweep").end_due_pauses(
        connection,
        pause_ids=pause_ids,
        up_to=up_to,
        quiet=quiet,
        pause_mode=policy.pause_mode,
        move_next_payment=policy.moves_next_payment,
        grace_days=policy.grace_days,
        taken_back=taken_back,
    )
    return row


def take_pauses_back(
    connection: Connection, pause_ids: list[int], *, up_to: datetime, policy: SweepPolicy, reason: str
) -> int:
    """End these pauses, all due by `up_to`, for a rollback, inside its transaction; returns how many were ended.

    Dates, payments that are owed and Stripe's commands: as by the sweep, for it is the sweep's statement.
    """
    queries("billing_sweep").forget_plans(connection)
    queries("billing_sweep").plan_for_batches(connection)
    row = end_pauses(connection, pause_ids, up_to=up_to, policy=policy, taken_back=reason)
    return int(row["due"])
