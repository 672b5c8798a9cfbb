"""Asking for a pause, taking it back, ending it early: one subscription at a time.

What belongs here: the rules by which a pause is granted. What does not: making due transitions (`sweep`), the grace
period after a failed payment (`outcomes`), days and instants (`moments`).

A pause that begins now has begun when the call returns: the sweep's own statement starts it, in the same transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flexpay_pipelines.billing.features import has_table, require_feature
from flexpay_pipelines.billing.moments import days_after, instant_of
from flexpay_pipelines.billing.sweep import PAUSES, SweepPolicy, end_pauses
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput, TransientError
from flexpay_pipelines.sql import queries

CUSTOMER = "customer"
ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class PausePolicy:
    """What a customer may ask for: the longest pause in days, and how many may begin within 365 days."""

    max_days: int = 90
    max_per_year: int = 4


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause `[starts_at, ends_at)` and what it does to its subscription.

    Attributes:
        ends_at: the first instant on again; None: until somebody ends it.
        state: scheduled, active, completed or canceled.
        time_zone: the customer's.
        next_payment_at: as it stands; a payment that the pause holds up is moved when the pause ends.
    """

    pause_ref: str
    subscription_ref: str
    kind: str
    state: str
    starts_at: datetime
    ends_at: datetime | None
    reason: str | None
    time_zone: str
    subscription_status: str
    next_payment_at: datetime | None


def schedule_pause(
    connection: Connection,
    *,
    subscription_ref: str,
    starts_at: datetime | str,
    ends_at: datetime | str | None,
    days: int | None = None,
    kind: str,
    reason: str | None,
    policy: PausePolicy,
    pause_mode: str = "collection",
    clock: Clock,
    dry_run: bool = False,
) -> Pause:
    """Put a pause on the calendar; the next sweep begins it when its time has come, one that begins now begins at once.

    The policy binds customers; `admin` pauses may be longer, more, or without an end.

    Args:
        starts_at: `now`, a day of the customer's, or an instant.
        ends_at: the first day on again, or an instant; None with `days`, or for an admin pause without an end.
        days: how long, in days on the customer's clock, in place of `ends_at`.
        dry_run: check and answer, and change nothing.

    Raises:
        BadInput: with the reason for the refusal; nothing was changed.
    """
    from psycopg.errors import ExclusionViolation  # noqa: PLC0415 - the code location loads without it

    require_feature(connection, PAUSES)
    if kind not in (CUSTOMER, ADMIN):
        raise BadInput(f"'{kind}' is not a kind of pause that can be asked for: use '{CUSTOMER}' or '{ADMIN}'.")
    if days is not None and ends_at is not None:
        raise BadInput("Say when the pause ends or how many days it lasts, not both.")
    now, sql = clock.now(), queries("billing")
    with connection.transaction(force_rollback=dry_run):
        subscription = locked_subscription(connection, subscription_ref)
        zone = subscription["time_zone"]
        begins = instant_of(connection, starts_at, zone=zone, now=now)
        ends = None if ends_at is None else instant_of(connection, ends_at, zone=zone, now=now)
        ends = ends if days is None else days_after(connection, begins, days, zone=zone)
        _check(connection, subscription, kind, policy, begins=begins, ends=ends, now=now)
        try:
            with connection.transaction():
                pause_id = sql.insert_pause(
                    connection, subscription_id=subscription["subscription_id"], starts_at=begins, ends_at=ends,
                    kind=kind, reason=reason, now=now,
                )  # fmt: skip
        except ExclusionViolation:
            raise BadInput(_in_the_way(connection, subscription, begins, ends)) from None
        if begins == now:
            queries("billing_sweep").start_due_pauses(
                connection, pause_ids=[pause_id], up_to=now, passed=False, pause_mode=pause_mode
            )
        return _pause(connection, pause_id)


def _check(
    connection: Connection,
    subscription: dict[str, Any],
    kind: str,
    policy: PausePolicy,
    *,
    begins: datetime,
    ends: datetime | None,
    now: datetime,
) -> None:
    ref, status = subscription["subscription_ref"], subscription["status"]
    if status in ("canceled", "suspended"):
        raise BadInput(f"Subscription '{ref}' is {status}: it cannot be paused.")
    if begins < now:
        raise BadInput(
            f"A pause cannot begin in the past ({begins.isoformat()}): begin it now, or after {now.isoformat()}."
        )
    if ends is not None and ends <= begins:
        raise BadInput("A pause must end after it begins.")
    if kind != CUSTOMER:
        return
    sql = queries("billing")
    if ends is None:
        raise BadInput(
            f"A customer's pause needs an end, at most {policy.max_days} days after it begins: "
            f"say when by --until or --days."
        )
    if sql.local_length(connection, starts_at=begins, ends_at=ends, zone=subscription["time_zone"]) > timedelta(
        days=policy.max_days
    ):
        raise BadInput(f"A customer's pause may last at most {policy.max_days} days: give an earlier end.")
    earlier = sql.pauses_within_a_year(
        connection, subscription_id=subscription["subscription_id"], starts_at=begins
    )  # fmt: skip
    if earlier >= policy.max_per_year:
        raise BadInput(
            f"Subscription '{ref}' has {earlier} pauses within a year of this one, "
            f"and {policy.max_per_year} are allowed."
        )


def _in_the_way(connection: Connection, subscription: dict[str, Any], begins: datetime, ends: datetime | None) -> str:
    ref = subscription["subscription_ref"]
    other = queries("billing").pause_in_the_way(
        connection, subscription_id=subscription["subscription_id"], starts_at=begins, ends_at=ends
    )
    if other["kind"] == "payment_failure":
        return (
            f"Subscription '{ref}' is in the grace period after a failed payment until {other['ends_at'].isoformat()}: "
            "a pause can begin then, or once the payment is made."
        )
    return f"Subscription '{ref}' has another pause in that time ({other['pause_ref']}): cancel or end that one first."


def cancel_pause(connection: Connection, *, pause_ref: str, clock: Clock, dry_run: bool = False) -> Pause:
    """Take a pause back that has not begun.

    Raises:
        BadInput: there is no such pause, or it has begun or is over.
    """
    require_feature(connection, PAUSES)
    sql = queries("billing")
    with connection.transaction(force_rollback=dry_run):
        pause_id = sql.cancel_pause(connection, pause_ref=pause_ref, now=clock.now())
        if pause_id is not None:
            return _pause(connection, pause_id)
        state = sql.pause_state(connection, pause_ref=pause_ref)
    if state is None:
        raise BadInput(f"There is no pause '{pause_ref}': `flexpay pause list` shows those that there are.")
    advice = ": end it instead of canceling it" if state == "active" else ""
    raise BadInput(f"Pause '{pause_ref}' is {state}, only a scheduled one can be canceled{advice}.")


def end_pause_now(
    connection: Connection,
    *,
    subscription_ref: str,
    clock: Clock,
    policy: SweepPolicy = SweepPolicy(),  # noqa: B008 - frozen
    dry_run: bool = False,
) -> Pause:
    """End the customer or admin pause that holds a subscription: active again, or past due with a grace period where it
    owes a payment; Stripe told, in one transaction.

    Raises:
        BadInput: no such subscription, or it is not held by such a pause.
        TransientError: a sweep is at work on it.
    """
    require_feature(connection, PAUSES)
    now = clock.now()
    with connection.transaction(force_rollback=dry_run):
        subscription = locked_subscription(connection, subscription_ref)
        pause_id = queries("billing").cut_active_pause(
            connection, subscription_id=subscription["subscription_id"], now=now
        )
        if pause_id is None:
            raise BadInput(f"Subscription '{subscription_ref}' is not in a pause that could be ended.")
        row = end_pauses(connection, [pause_id], up_to=now + timedelta(microseconds=1), policy=policy)
        if not row["due"]:
            raise TransientError(
                f"An earlier pause of subscription '{subscription_ref}' is still open: sweep first, then try again."
            )
        return _pause(connection, pause_id)


def list_pauses(connection: Connection, *, subscription_ref: str | None = None, limit: int = 50) -> tuple[Pause, ...]:
    """The pauses of a subscription, newest first; without one, all that are active or to come, soonest first.

    Raises:
        BadInput: no such subscription, or pauses are not deployed.
    """
    if not has_table(connection, "billing.subscription_pauses"):
        raise BadInput("Pauses are not deployed: `flexpay deploy` does it.")
    sql = queries("billing")
    if subscription_ref is None:
        return tuple(Pause(**row) for row in sql.open_pauses(connection, at_most=limit))
    if not sql.subscription_known(connection, subscription_ref=subscription_ref):
        raise BadInput(f"There is no subscription '{subscription_ref}'.")
    return tuple(
        Pause(**row) for row in sql.pauses_of(connection, subscription_ref=subscription_ref, at_most=limit)
    )  # fmt: skip


def _pause(connection: Connection, pause_id: int) -> Pause:
    return Pause(**queries("billing").pause_as_it_is(connection, pause_id=pause_id))


def locked_subscription(connection: Connection, subscription_ref: str) -> dict[str, Any]:
    """One subscription's row, locked until the caller's transaction ends (for this package).

    Raises:
        BadInput: there is no such subscription.
    """
    row: dict[str, Any] | None = queries("billing").lock_subscription(connection, subscription_ref=subscription_ref)
    if row is None:
        raise BadInput(f"There is no subscription '{subscription_ref}'.")
    return row
