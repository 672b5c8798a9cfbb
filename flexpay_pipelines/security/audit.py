"""The audit trail: who did what to what, and how it ended.

What belongs here: writing and reading ops.audit_log. What does not: deciding who somebody is (callers pass the actor).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.security.redaction import redact, redact_json
from flexpay_pipelines.sql import queries

Outcome = Literal["planned", "done", "failed", "refused"]


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the trail; `occurred_at` is the control database's own clock, UTC."""

    audit_id: int
    occurred_at: datetime
    actor: str
    action: str
    subject: str
    outcome: str
    run_id: str | None
    details: dict[str, Any]


def record(
    control: Connection,
    *,
    actor: str,
    action: str,
    subject: str,
    outcome: Outcome,
    details: Mapping[str, Any],
    run_id: str | None = None,
) -> int:
    """Append an entry, redacted, and return its audit_id. In the caller's transaction it commits with the deed.

    Raises:
        BadInput: actor, action or subject is empty: an entry that names nobody proves nothing.
    """
    for name, value in (("actor", actor), ("action", action), ("subject", subject)):
        if not value.strip():
            raise BadInput(f"An audit entry needs the {name}: pass who did what to what.")
    from psycopg.types.json import Jsonb  # noqa: PLC0415 - the code location loads without it

    audit_id: int = queries("security").append_audit_entry(
        control,
        actor=redact(actor),
        action=redact(action),
        subject=redact(subject),
        outcome=outcome,
        run_id=run_id,
        details=Jsonb(redact_json(details)),
    )
    return audit_id


def entries(control: Connection, *, since: datetime, limit: int, subject: str | None = None) -> tuple[AuditEntry, ...]:
    """The entries since an instant, newest first, at most `limit`; of one subject, where one is named."""
    rows = queries("security").audit_entries(control, since=since, at_most=limit, subject=subject)
    return tuple(AuditEntry(**row) for row in rows)
