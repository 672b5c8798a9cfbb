"""The health of both databases: what a deploy may have left behind, and what grows when nobody looks.

What belongs here: one statement for each property, with its limit. What does not: mending, alerting, rates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import BILLING, CONTROL, Connection
from flexpay_pipelines.health.findings import Finding, Severity, fine, judged
from flexpay_pipelines.sql import queries

SHOWN = 5


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """From where on something is unhealthy.

    Attributes:
        idle_in_transaction: how long a session may hold a transaction open and do nothing.
        retained_wal_bytes: how much WAL a replication slot may hold back.
        stripe_command_age, alert_age: how long the oldest message of an outbox may wait.
        pause_lag: how late the oldest due pause may be (the sweep is hourly).
        dead_rows, dead_ratio: a table is bloated with more dead rows than both, the ratio being to the live ones.
        transaction_id_age: transactions since the last freeze; PostgreSQL stops at about 2,000,000,000.
        backup_age, verification_age: how old the newest backup, and the newest verified one, may be.
    """

    idle_in_transaction: timedelta = timedelta(minutes=5)
    retained_wal_bytes: int = 5 * 1024**3
    stripe_command_age: timedelta = timedelta(hours=1)
    alert_age: timedelta = timedelta(minutes=15)
    pause_lag: timedelta = timedelta(hours=2)
    dead_rows: int = 100_000
    dead_ratio: float = 0.2
    transaction_id_age: int = 500_000_000
    backup_age: timedelta = timedelta(hours=26)
    verification_age: timedelta = timedelta(hours=50)


@dataclass(frozen=True, slots=True)
class _Check:
    """One property. Its statement returns a row, `{"what": text}`, for each thing that is wrong with it."""

    name: str
    statement: str
    parameters: Mapping[str, Any]
    healthy: str
    remedy: str
    severity: Severity = "critical"
    needs: str | None = None
    component: str | None = None


def check_health(
    billing: Connection, control: Connection, *, clock: Clock, limits: HealthLimits | None = None
) -> tuple[Finding, ...]:
    """Look at both databases and say of each property whether it is as it must be. Changes nothing.

    Never raises for what it finds: a property that cannot be looked at is a finding that is not ok. Each statement
    stands alone, so one that fails leaves the others their say.
    """
    chosen = limits or HealthLimits()
    findings: list[Finding] = []
    for role, connection, checks in (
        (BILLING, billing, _billing(clock, chosen)),
        (CONTROL, control, _control(clock, chosen)),
    ):
        findings += [_look(role, connection, check) for check in (*_server(chosen), *checks)]
    return tuple(findings)


def _look(role: str, connection: Connection, check: _Check) -> Finding:
    import psycopg  # noqa: PLC0415 - the code location loads without it

    name = f"{role} {check.name}"
    try:
        if check.needs is not None and not queries("health").relation_exists(connection, relation=check.needs):
            return _not_deployed(name, check)
        statement: Callable[..., Sequence[dict[str, Any]]] = getattr(queries("health"), check.statement)
        wrong = [row["what"] for row in statement(connection, **check.parameters)]
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        return Finding(name, False, "critical", f"It cannot be looked at: {reason}", "Mend that, then look again.")
    more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    detail = "; ".join(wrong[:SHOWN]) + more if wrong else check.healthy
    return judged(name, not wrong, detail, check.remedy, check.severity)


def _not_deployed(name: str, check: _Check) -> Finding:
    if check.component is not None:
        return fine(name, f"component {check.component} is not deployed")
    return Finding(name, False, "critical", f"{check.needs} is missing", "Deploy the schema: flexpay deploy.")


def _server(limits: HealthLimits) -> tuple[_Check, ...]:
    return (
        _Check(
            "indexes", "invalid_indexes", {}, "every index is valid",
            "REINDEX INDEX CONCURRENTLY each of them, or drop what a failed CREATE INDEX CONCURRENTLY left behind.",
        ),
        _Check(
            "triggers", "disabled_triggers", {}, "every trigger is enabled",
            "ALTER TABLE … ENABLE TRIGGER: history is not written while it is off; restate what was changed meanwhile.",
        ),
        _Check(
            "constraints", "unvalidated_constraints", {}, "every constraint is validated",
            "ALTER TABLE … VALIDATE CONSTRAINT, after mending the rows that break it.", "warning",
        ),
        _Check(
            "idle transactions", "idle_transactions", {"longest": limits.idle_in_transaction}, "none stays open",
            "Find out what the session waits for; pg_terminate_backend(pid) ends it and frees its locks.", "warning",
        ),
        _Check(
            "replication slots", "lagging_slots", {"most_bytes": limits.retained_wal_bytes}, "none holds WAL back",
            "Start the consumer again, or pg_drop_replication_slot(name): WAL fills the disk until then.",
        ),
        _Check(
            "dead rows", "bloated_tables", {"dead_rows": limits.dead_rows, "dead_ratio": limits.dead_ratio},
            "vacuum keeps up", "VACUUM (ANALYZE) the table, and look for what keeps autovacuum from it.", "warning",
        ),
        _Check(
            "transaction ids", "old_transaction_ids", {"most": limits.transaction_id_age}, "freezing keeps up",
            "VACUUM (FREEZE) the oldest tables before PostgreSQL stops taking writes.",
        ),
    )  # fmt: skip


def _billing(clock: Clock, limits: HealthLimits) -> tuple[_Check, ...]:
    now = clock.now()
    return (
        _Check(
            "Stripe outbox", "waiting_commands", {"now": now, "oldest": limits.stripe_command_age},
            "nothing waits too long", "Run billing/stripe_delivery, and read last_error of what waits.", "warning",
            needs="billing.stripe_commands",
        ),
        _Check(
            "parked Stripe commands", "parked_commands", {}, "none", "Mend the cause, then: flexpay stripe retry.",
            "warning", needs="billing.stripe_commands",
        ),
        _Check(
            "due pauses", "late_pauses", {"now": now, "longest": limits.pause_lag}, "swept in time",
            "Run the sweep: flexpay sweep. It catches up.", "warning",
            needs="billing.subscription_pauses", component="pauses",
        ),
    )  # fmt: skip


def _control(clock: Clock, limits: HealthLimits) -> tuple[_Check, ...]:
    now = clock.now()
    return (
        _Check(
            "alert outbox", "waiting_alerts", {"now": now, "oldest": limits.alert_age}, "nothing waits too long",
            "Deliver them: flexpay alerts deliver; read last_error of what waits.", "warning",
            needs="ops.alert_deliveries",
        ),
        _Check(
            "parked alerts", "parked_alerts", {}, "none", "Mend the reason named, then requeue them.", "warning",
            needs="ops.alert_deliveries",
        ),
        _Check(
            "backups", "stale_backups", {"now": now, "oldest": limits.backup_age}, "fresh",
            "Make one: flexpay backup create.", needs="ops.backups",
        ),
        _Check(
            "verified backups", "unverified_backups", {"now": now, "oldest": limits.verification_age},
            "proven by a restore", "Prove the newest: flexpay backup verify.", "warning", needs="ops.backups",
        ),
    )  # fmt: skip
