"""Parked commands: what Stripe refused for good, until a person has mended the reason.

What belongs here: listing them, telling somebody once, trying them again. What does not: parking (`delivery`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from flexpay_pipelines.alerts import alert_raised, raise_alert
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    from flexpay_pipelines.clock import Clock
    from flexpay_pipelines.database import Connection

_REASONS_TOLD = 5


@dataclass(frozen=True, slots=True)
class ParkedCommand:
    """A command that was given up: what it asks for, why Stripe refused, and when somebody was told (None: not yet)."""

    command_id: int
    subscription_ref: str
    operation: str
    attempts: int
    created_at: datetime
    reason: str | None
    alerted_at: datetime | None


@dataclass(frozen=True, slots=True)
class Retried:
    """Commands that are pending again, and those that a later command has made superfluous."""

    retried: int
    superseded: int


def parked_commands(connection: Connection) -> tuple[ParkedCommand, ...]:
    """Every parked command, oldest first."""
    return tuple(ParkedCommand(**row) for row in queries("payments_delivery").parked_commands(connection))


def retry_parked(connection: Connection, command_ids: Sequence[int] | None) -> Retried:
    """Put parked commands (None: all of them) back into the outbox; the next delivery looks at the object, then sends.

    Raises:
        BadInput: one of them is not parked; nothing was changed.
    """
    with connection.transaction():
        if command_ids is not None:
            unknown = set(command_ids) - {command.command_id for command in parked_commands(connection)}
            if unknown:
                names = ", ".join(str(one) for one in sorted(unknown))
                raise BadInput(f"Not parked: command {names}. `flexpay stripe parked` lists those that are.")
        row = queries("payments_delivery").retry_parked(
            connection, command_ids=None if command_ids is None else list(command_ids)
        )
    return Retried(**row)


def alert_parked(connection: Connection, control: Connection, *, clock: Clock, progress: Callable[[str], None]) -> int:
    """Raise one alert for all commands that were parked since the last one; each command is told of once.

    The alert's name is stored in the billing database before it is raised in the control database, and both are looked
    at again after a kill in between.

    Returns:
        How many alerts were raised.
    """
    catalogue, raised = queries("payments_delivery"), 0
    catalogue.assign_alert(connection)
    for row in list(catalogue.untold_alerts(connection)):
        if not alert_raised(control, row["alert"]):
            shown = row["reasons"][:_REASONS_TOLD]
            raise_alert(
                control,
                fingerprint=row["alert"],
                severity="warning",
                title=f"Stripe refuses {row['commands']} of our changes",
                body="They are parked: customers may be billed otherwise than the database says. "
                "`flexpay stripe parked` lists them; once that is mended, `flexpay stripe retry --all` sends them.",
                context={
                    f"{number}. {one['operation']} ({one['commands']})": one["reason"]
                    for number, one in enumerate(shown, start=1)
                },
                clock=clock,
            )
            progress(f"Alerted: {row['commands']} commands are parked.")
            raised += 1
        catalogue.mark_alerted(connection, alert=row["alert"], now=clock.now())
    return raised
