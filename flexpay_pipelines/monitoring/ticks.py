"""Payments as five-minute ticks: how many first attempts, how many failed, and what they were exposed to.

What belongs here: reading billing.payments as counts. What does not: verdicts (`payment_failures`, `judge`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.monitoring.decision import Exposure
from flexpay_pipelines.sql import queries

TICK = timedelta(minutes=5)
RESUMED_WITHIN = timedelta(days=7)
SPENT_WITHIN = timedelta(days=1)
EXPOSURES = {"non_monthly": "frequencies", "resumed_lately": "pauses", "reward_applied": "rewards"}
"""What a payment may be exposed to, and the component that is answerable for it."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Failures among attempts."""

    attempts: int
    failures: int


@dataclass(frozen=True, slots=True)
class PaymentTick:
    """The first attempts at `[tick_at, tick_at + tick)`, UTC.

    Attributes:
        failures: failed, of every class but `issuer_decline` and `block`; a failure without a class accuses nobody.
        exposures: `non_monthly`, `resumed_lately` (a pause ended in the 7 days before), `reward_applied` (a reward was
            spent in the day before): these may overlap; `none`: exposed to none of them.
    """

    tick_at: datetime
    attempts: int
    failures: int
    issuer_declines: int
    exposures: dict[str, Counts]


def payment_ticks(
    billing: Connection, *, start: datetime, end: datetime, tick: timedelta = TICK
) -> tuple[PaymentTick, ...]:
    """The ticks of `[start, end)`, counted from `start`, empty ones included; the last begins before `end`.

    Raises:
        BadInput: `end` before `start`, or a tick that is not positive.
    """
    if end < start or tick <= timedelta(0):
        raise BadInput(f"Ticks of {tick} from {start} to {end} cannot be made: give an end after the start.")
    statements = queries("monitoring")
    spent: dict[str, Any] = {"customers": [], "instants": []}
    if statements.rewards_deployed(billing):
        spent = statements.rewards_spent(billing, start=start - SPENT_WITHIN, until=end)
    rows = statements.payment_ticks(
        billing,
        start=start,
        until=whole_ticks_end(start, end, tick),
        tick=tick,
        resumed_within=RESUMED_WITHIN,
        spent_by=spent["customers"],
        spent_at=spent["instants"],
        spent_within=SPENT_WITHIN,
    )
    return tuple(_payment_tick(row) for row in rows)


def payment_counts(
    billing: Connection, *, start: datetime, end: datetime, tick: timedelta = TICK
) -> list[dict[str, Any]]:
    """Rows (tick_at, attempts, failures, issuer_declines, unclassed) of the complete ticks of `[start, end)`."""
    until = start + tick * ((end - start) // tick)
    if until <= start:
        return []
    return list(queries("monitoring").payment_counts(billing, start=start, until=until, tick=tick))


def exposures(ticks: Sequence[PaymentTick], components: Sequence[str]) -> tuple[Exposure, ...]:
    """For each component that can be rolled back: how payments exposed to it fared against all others."""
    attempts, failures = sum(t.attempts for t in ticks), sum(t.failures for t in ticks)
    found = []
    for name, component in EXPOSURES.items():
        if component not in components:
            continue
        exposed_attempts = sum(t.exposures[name].attempts for t in ticks)
        exposed_failures = sum(t.exposures[name].failures for t in ticks)
        found.append(
            Exposure(
                component, exposed_failures, exposed_attempts, failures - exposed_failures, attempts - exposed_attempts
            )
        )
    return tuple(found)


def source_hash(name: str) -> str:
    """The SHA-256 of a monitoring statement: what exactly was counted, for the record."""
    return hashlib.sha256(getattr(queries("monitoring"), name).sql.encode()).hexdigest()


def whole_ticks_end(start: datetime, end: datetime, tick: timedelta) -> datetime:
    """The end of the tick, counted from `start`, that holds the last instant before `end`."""
    return start + tick * -((start - end) // tick)


def _payment_tick(row: dict[str, Any]) -> PaymentTick:
    counts = {name: Counts(row[f"{name}_attempts"], row[f"{name}_failures"]) for name in (*EXPOSURES, "none")}
    return PaymentTick(row["tick_at"], row["attempts"], row["failures"], row["issuer_declines"], counts)
