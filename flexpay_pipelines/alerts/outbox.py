"""The outbox: alerts are written here in one transaction with what caused them.

What belongs here: raising an alert and reading what was raised. What does not: sending (`delivery`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flexpay_pipelines.alerts.channels import ROUTES, SEVERITIES, Alert, Severity
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.security import redact, redact_json
from flexpay_pipelines.sql import queries

LOG = logging.getLogger(__name__)

_LOG_LEVEL = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.CRITICAL}


@dataclass(frozen=True, slots=True)
class Delivery:
    """How far one channel has come with one alert."""

    channel: str
    state: str
    attempts: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class AlertRecord:
    """An alert and what became of it."""

    alert: Alert
    deliveries: tuple[Delivery, ...]


def raise_alert(
    control: Connection,
    *,
    fingerprint: str,
    severity: Severity,
    title: str,
    body: str,
    context: Mapping[str, Any],
    clock: Clock,
    routes: Mapping[str, tuple[str, ...]] = ROUTES,
) -> int:
    """Write an alert, and a delivery for each channel of its severity; return its alert_id.

    Within an hour of an alert with the same fingerprint, and at least its severity, it counts as a repeat of that one:
    no second delivery, whoever else raises it at the same moment. Card numbers and secrets are removed before anything
    is stored. In the caller's transaction the alert commits, or goes, with the deed.

    Raises:
        BadInput: an unknown severity, or no fingerprint or title.
    """
    if severity not in SEVERITIES:
        raise BadInput(f"'{severity}' is no severity: use one of {', '.join(SEVERITIES)}.")
    if not fingerprint.strip() or not title.strip():
        raise BadInput("An alert needs a fingerprint and a title: say what is wrong, and what makes it the same again.")
    from psycopg.types.json import Jsonb  # noqa: PLC0415 - the code location loads without it

    kept_fingerprint, kept_title = redact(fingerprint), redact(title)
    with control.transaction():
        # In a statement of its own: the next one's snapshot must see what the last holder of the lock has committed.
        queries("alerts").lock_fingerprint(control, fingerprint=kept_fingerprint)
        row = queries("alerts").raise_alert(
            control,
            fingerprint=kept_fingerprint,
            severity=severity,
            title=kept_title,
            body=redact(body),
            context=Jsonb(redact_json(context)),
            now=clock.now(),
            channels=list(routes.get(severity, ())),
        )
    LOG.log(_LOG_LEVEL[severity], "alert %s%s: %s", row["alert_id"], " again" if row["repeats"] else "", kept_title)
    alert_id: int = row["alert_id"]
    return alert_id


def alert_raised(control: Connection, fingerprint: str) -> bool:
    """Whether an alert of this fingerprint was ever raised, however long ago."""
    return bool(queries("alerts").alert_raised(control, fingerprint=redact(fingerprint)))


def list_alerts(control: Connection, *, limit: int) -> tuple[AlertRecord, ...]:
    """The newest alerts, newest first, at most `limit`, each with its deliveries by channel."""
    return tuple(
        AlertRecord(
            alert=alert_of(row),
            deliveries=tuple(Delivery(**delivery) for delivery in row["deliveries"]),
        )
        for row in queries("alerts").newest_alerts(control, at_most=limit)
    )


def pending_deliveries(control: Connection, *, due_by: datetime | None = None) -> int:
    """How many deliveries are still to be made; with `due_by`, only those that may be tried by then."""
    count: int = queries("alerts").pending_deliveries(control, due_by=due_by)
    return count


def alert_of(row: Mapping[str, Any]) -> Alert:
    """The alert of a row that holds the columns of ops.alerts."""
    return Alert(**{name: row[name] for name in Alert.__slots__})
