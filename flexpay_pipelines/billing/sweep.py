"""The pause sweep: starts what is due to start, ends what is due to end, suspends whose grace period ran out.

What belongs here: due transitions in bulk, right whenever and however often it runs. What does not: asking for a pause
(`pauses`), telling Stripe (`flexpay_pipelines.payments`; the sweep writes the commands beside the change that asks
for them).

Work is chosen by "due by now and not done". A batch is one transaction; whoever is killed leaves whole batches
behind, and the next sweep does the rest. Transitions carry the time at which they were due.

What Stripe is told: a customer or admin pause that starts: `pause` until its end; that ends: `resume`. A grace period
that
starts: nothing, Stripe keeps retrying. One that runs out: `pause` without an end, so that no new invoice is made
    while the
invoices that exist stay payable; a payment brings the subscription back. A pause that began and ended since the last
sweep: nothing, both events are in history.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
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
    """

    moves_next_payment: bool = True
    pause_mode: str = "collection"
    batch_size: int = 10_000


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
        ended: customer and admin pauses ended, their subscriptions active again.
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

    def add(self, row: dict[str, Any]) -> None:
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
    while _sweep_round(connection, due_by, policy, tally, progress):
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


def _sweep_round(
    connection: Connection, up_to: datetime, policy: SweepPolicy, tally: _Tally, progress: Callable[[str], None]
) -> bool:
    """Every batch of every kind, a transaction each; whether anything was found to do."""
    before = tally.batches
    for make in (_start_passed, _start, _end):
        while _batch(connection, make, up_to, policy, tally):
            tally.batches += 1
            progress(
                f"Batch {tally.batches}: {tally.started:,} started, {tally.ended:,} ended, "
                f"{tally.suspended:,} suspended, {tally.skipped.total():,} skipped so far."
            )
    return tally.batches > before


_Rows = list[dict[str, Any]]


def _batch(
    connection: Connection,
    make: Callable[[Connection, datetime, SweepPolicy], _Rows],
    up_to: datetime,
    policy: SweepPolicy,
    tally: _Tally,
) -> bool:
    with connection.transaction():
        queries("billing_sweep").forget_plans(connection)
        queries("billing_sweep").plan_for_batches(connection)
        rows = make(connection, up_to, policy)
    # Counted only once it is committed.
    for row in rows:
        tally.add(row)
    return any(row["due"] for row in rows)


def _start(connection: Connection, up_to: datetime, policy: SweepPolicy) -> _Rows:
    return [_start_due(connection, up_to, policy, passed=False)]


def _start_passed(connection: Connection, up_to: datetime, policy: SweepPolicy) -> _Rows:
    row = _start_due(connection, up_to, policy, passed=True)
    if not row["pause_ids"]:
        return [row]
    # Begun and over since the last sweep: its end belongs to the same transaction, or Stripe would have to be told.
    return [row, end_pauses(connection, up_to=up_to, policy=policy, pause_ids=row["pause_ids"], quiet=True)]


def _start_due(connection: Connection, up_to: datetime, policy: SweepPolicy, *, passed: bool) -> dict[str, Any]:
    row: dict[str, Any] = queries("billing_sweep").start_due_pauses(
        connection, up_to=up_to, passed=passed, pause_mode=policy.pause_mode, batch_size=policy.batch_size
    )
    return row


def _end(connection: Connection, up_to: datetime, policy: SweepPolicy) -> _Rows:
    return [end_pauses(connection, up_to=up_to, policy=policy)]


def end_pauses(
    connection: Connection,
    *,
    up_to: datetime,
    policy: SweepPolicy,
    pause_ids: list[int] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """End one batch of due pauses inside the caller's transaction (for this package: `pauses` ends one by it)."""
    row: dict[str, Any] = queries("billing_sweep").end_due_pauses(
        connection,
        up_to=up_to,
        pause_ids=pause_ids,
        quiet=quiet,
        pause_mode=policy.pause_mode,
        move_next_payment=policy.moves_next_payment,
        batch_size=policy.batch_size,
    )
    return row
