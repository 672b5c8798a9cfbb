"""Asking for a pause, taking it back, ending it early: one subscription at a time.

What belongs here: the rules by which a pause is granted. What does not: making due transitions (`sweep`), the grace
period after a failed payment (`outcomes`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flexpay_pipelines.billing.features import require_feature
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


def schedule_pause(
    connection: Connection,
    *,
    subscription_ref: str,
    starts_at: datetime,
    ends_at: datetime | None,
    kind: str,
    reason: str | None,
    policy: PausePolicy,
    clock: Clock,
) -> str:
    """Put a pause `[starts_at, ends_at)` on the calendar; the next sweep after `starts_at` begins it.

    The policy binds customers; `admin` pauses may be longer, more, or without an end.

    Returns:
        The pause's reference.

    Raises:
        BadInput: with the reason for the refusal; nothing was changed.
    """
    from psycopg.errors import ExclusionViolation  # noqa: PLC0415 - the code location loads without it

    require_feature(connection, PAUSES)
    now = clock.now()
    _check_dates(starts_at, ends_at, kind, policy, now)
    sql = queries("billing")
    try:
        with connection.transaction():
            subscription = locked_subscription(connection, subscription_ref)
            if subscription["status"] in ("canceled", "suspended"):
                raise BadInput(f"Subscription '{subscription_ref}' is {subscription['status']}: it cannot be paused.")
            subscription_id = subscription["subscription_id"]
            if kind == CUSTOMER:
                earlier = sql.pauses_within_a_year(connection, subscription_id=subscription_id, starts_at=starts_at)
                if earlier >= policy.max_per_year:
                    raise BadInput(
                        f"Subscription '{subscription_ref}' has {earlier} pauses within a year of this one, "
                        f"and {policy.max_per_year} are allowed."
                    )
            pause_ref: str = sql.insert_pause(
                connection,
                subscription_id=subscription_id,
                starts_at=starts_at,
                ends_at=ends_at,
                kind=kind,
                reason=reason,
                now=now,
            )
            return pause_ref
    except ExclusionViolation:
        raise BadInput(
            f"Subscription '{subscription_ref}' has another pause in that time: cancel or end that one first."
        ) from None


def _check_dates(starts_at: datetime, ends_at: datetime | None, kind: str, policy: PausePolicy, now: datetime) -> None:
    if kind not in (CUSTOMER, ADMIN):
        raise BadInput(f"'{kind}' is not a kind of pause that can be asked for: use '{CUSTOMER}' or '{ADMIN}'.")
    if any(instant is not None and instant.tzinfo is None for instant in (starts_at, ends_at)):
        raise BadInput("A pause needs its start and end with an offset from UTC, such as 2026-01-31T09:00:00+00:00.")
    if starts_at < now:
        raise BadInput(
            f"A pause cannot begin in the past ({starts_at.isoformat()}): begin it at {now.isoformat()} or later."
        )
    if ends_at is not None and ends_at <= starts_at:
        raise BadInput("A pause must end after it begins.")
    if kind == CUSTOMER and (ends_at is None or ends_at - starts_at > timedelta(days=policy.max_days)):
        raise BadInput(f"A customer's pause may last at most {policy.max_days} days: give an earlier end.")


def cancel_pause(connection: Connection, *, pause_ref: str, clock: Clock) -> None:
    """Take a pause back that has not begun.

    Raises:
        BadInput: there is no such pause, or it has begun or is over.
    """
    require_feature(connection, PAUSES)
    sql = queries("billing")
    if sql.cancel_pause(connection, pause_ref=pause_ref, now=clock.now()):
        return
    state = sql.pause_state(connection, pause_ref=pause_ref)
    if state is None:
        raise BadInput(f"There is no pause '{pause_ref}'.")
    advice = ": end it instead of canceling it" if state == "active" else ""
    raise BadInput(f"Pause '{pause_ref}' is {state}, only a scheduled one can be canceled{advice}.")


def end_pause_now(
    connection: Connection,
    *,
    subscription_ref: str,
    clock: Clock,
    policy: SweepPolicy = SweepPolicy(),  # noqa: B008 - frozen
) -> None:
    """End the customer or admin pause that holds a subscription: active again, Stripe told, in one transaction.

    Raises:
        BadInput: no such subscription, or it is not held by such a pause.
        TransientError: a sweep is at work on it.
    """
    require_feature(connection, PAUSES)
    now = clock.now()
    with connection.transaction():
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


def locked_subscription(connection: Connection, subscription_ref: str) -> dict[str, Any]:
    """One subscription's row, locked until the caller's transaction ends (for this package).

    Raises:
        BadInput: there is no such subscription.
    """
    row: dict[str, Any] | None = queries("billing").lock_subscription(connection, subscription_ref=subscription_ref)
    if row is None:
        raise BadInput(f"There is no subscription '{subscription_ref}'.")
    return row
