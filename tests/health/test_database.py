"""The health of the databases: each property is broken for real once, and said by name."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from flexpay_pipelines.alerts import raise_alert
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.health import Finding, HealthLimits, check_health, failing
from flexpay_pipelines.sandbox import Cluster, scratch_cluster

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
CLOCK = FixedClock(NOW)


def _backup(control: Connection, *, ago: timedelta, verified: bool, kind: str = "daily") -> None:
    finished = NOW - ago
    control.execute(
        """INSERT INTO ops.backups
        (backup_id, kind, started_at, finished_at, size_bytes, path, manifest_sha256, server_version, verified_at)
        VALUES (%s, %s, %s, %s, 1, 'x', 'x', '18', %s)""",
        (f"{finished.isoformat()}-{kind}", kind, finished, finished, finished if verified else None),
    )


@pytest.fixture
def healthy(control: Connection) -> Connection:
    """A control database with a fresh, proven backup."""
    _backup(control, ago=timedelta(hours=1), verified=True)
    return control


def _bad(billing: Connection, control: Connection, limits: HealthLimits | None = None) -> dict[str, Finding]:
    return {found.name: found for found in failing(check_health(billing, control, clock=CLOCK, limits=limits))}


def _only(bad: dict[str, Finding], name: str) -> Finding:
    assert list(bad) == [name]
    assert bad[name].remedy
    return bad[name]


def _subscription(billing: Connection) -> int:
    row = billing.execute(
        """WITH plan AS (INSERT INTO billing.plans VALUES ('basic', 'Basic') RETURNING plan),
        customer AS (
            INSERT INTO billing.customers (customer_ref, currency) VALUES ('c', 'EUR') RETURNING customer_id, currency
        )
        INSERT INTO billing.subscriptions
        (subscription_ref, customer_id, plan, status, amount_minor, currency, started_at, billing_anchor)
        SELECT 's', customer_id, plan, 'active', 100, currency, '2026-01-01', '2026-01-01' FROM customer, plan
        RETURNING subscription_id"""
    ).fetchone()
    assert row is not None
    return int(row["subscription_id"])


def test_all_is_well_on_a_fresh_deploy(billing: Connection, healthy: Connection) -> None:
    found = check_health(billing, healthy, clock=CLOCK)
    assert failing(found) == ()
    assert len({one.name for one in found}) == len(found) == 21


def test_an_invalid_index_is_named(billing: Connection, healthy: Connection) -> None:
    _subscription(billing)
    billing.execute("INSERT INTO billing.plans VALUES ('basic2', 'Basic')")
    with pytest.raises(psycopg.errors.UniqueViolation):
        billing.execute("CREATE UNIQUE INDEX CONCURRENTLY plans_name ON billing.plans (name)")
    assert _only(_bad(billing, healthy), "billing indexes").detail == "billing.plans_name"


def test_a_disabled_trigger_is_named(billing: Connection, healthy: Connection) -> None:
    billing.execute("ALTER TABLE billing.subscriptions DISABLE TRIGGER subscriptions_history_update")
    finding = _only(_bad(billing, healthy), "billing triggers")
    assert finding.detail == "subscriptions_history_update on billing.subscriptions"
    assert finding.severity == "critical"


def test_an_unvalidated_constraint_is_named(billing: Connection, healthy: Connection) -> None:
    billing.execute("ALTER TABLE billing.plans ADD CONSTRAINT named CHECK (name <> '') NOT VALID")
    finding = _only(_bad(billing, healthy), "billing constraints")
    assert (finding.detail, finding.severity) == ("named on billing.plans", "warning")


def test_a_session_idle_in_a_transaction_is_named(billing: Connection, billing_url: str, healthy: Connection) -> None:
    with opened(billing_url, purpose="sleeper") as sleeper, sleeper.transaction():
        sleeper.execute("SELECT 1")
        bad = _bad(billing, healthy, HealthLimits(idle_in_transaction=timedelta(microseconds=1)))
        assert "flexpay sleeper" in _only(bad, "billing idle transactions").detail
        assert _bad(billing, healthy) == {}


def test_dead_rows_and_old_transaction_ids_are_named(billing: Connection, healthy: Connection) -> None:
    bad = _bad(billing, healthy, HealthLimits(transaction_id_age=1))
    assert set(bad) == {"billing transaction ids", "control transaction ids"}
    assert "postgres: " in bad["billing transaction ids"].detail
    billing.execute("ALTER TABLE billing.plans SET (autovacuum_enabled = off)")
    billing.execute("INSERT INTO billing.plans SELECT n::text, 'x' FROM generate_series(1, 100) AS n")
    billing.execute("DELETE FROM billing.plans")
    billing.execute("SELECT pg_stat_force_next_flush()")
    detail = _only(_bad(billing, healthy, HealthLimits(dead_rows=50)), "billing dead rows").detail
    assert detail == "billing.plans: 100 dead, 0 live"


def test_an_old_stripe_command_and_a_parked_one_are_counted(billing: Connection, healthy: Connection) -> None:
    subscription = _subscription(billing)
    insert = """INSERT INTO billing.stripe_commands
    (idempotency_key, subscription_id, operation, created_at, state, last_error)
    VALUES (%s, %s, 'pause', %s, %s, %s)"""
    billing.execute(insert, ("1", subscription, NOW - timedelta(minutes=59), "pending", None))
    assert _bad(billing, healthy) == {}
    billing.execute(insert, ("2", subscription, NOW - timedelta(minutes=61), "pending", None))
    finding = _only(_bad(billing, healthy), "billing Stripe outbox")
    assert finding.detail == "2 waiting, the oldest since 2026-11-22 10:59:00+00"
    billing.execute("UPDATE billing.stripe_commands SET state = 'parked', last_error = 'no such subscription'")
    parked = _only(_bad(billing, healthy), "billing parked Stripe commands")
    assert (parked.detail, parked.severity) == ('pause: 2, such as "no such subscription"', "warning")


def test_a_late_sweep_is_seen_by_both_ends_of_a_pause(billing: Connection, healthy: Connection) -> None:
    subscription = _subscription(billing)
    insert = """INSERT INTO billing.subscription_pauses (pause_ref, subscription_id, starts_at, ends_at, kind, state)
    VALUES (%s, %s, %s, %s, 'customer', %s)"""
    hour = timedelta(hours=1)
    billing.execute(insert, ("p1", subscription, NOW - 9 * hour, NOW - 3 * hour, "active"))
    billing.execute(insert, ("p2", subscription, NOW - 2.5 * hour, NOW - 2.2 * hour, "scheduled"))
    detail = _only(_bad(billing, healthy), "billing due pauses").detail
    assert detail == (
        "1 to start, the oldest due at 2026-11-22 09:30:00+00; 1 to end, the oldest due at 2026-11-22 09:00:00+00"
    )
    billing.execute("UPDATE billing.subscription_pauses SET state = 'completed'")
    assert _bad(billing, healthy) == {}


def test_undelivered_alerts_are_counted(billing: Connection, healthy: Connection) -> None:
    early = FixedClock(NOW - timedelta(minutes=16))
    raise_alert(healthy, fingerprint="f", severity="warning", title="t", body="b", context={}, clock=early)
    waiting = _only(_bad(billing, healthy), "control alert outbox")
    assert waiting.detail == "1 for slack, the oldest since 2026-11-22 11:44:00+00"
    healthy.execute("UPDATE ops.alert_deliveries SET state = 'parked', last_error = 'invalid_auth'")
    assert _only(_bad(billing, healthy), "control parked alerts").detail == '1 for slack, such as "invalid_auth"'


def test_a_backup_must_be_there_fresh_and_proven(billing: Connection, control: Connection) -> None:
    bad = _bad(billing, control)
    assert {name: found.detail for name, found in bad.items()} == {
        "control backups": "there is none",
        "control verified backups": "none was proven",
    }
    _backup(control, ago=timedelta(hours=51), verified=True)
    assert set(_bad(billing, control)) == {"control backups", "control verified backups"}
    _backup(control, ago=timedelta(hours=25), verified=False)
    finding = _only(_bad(billing, control), "control verified backups")
    assert finding.detail == "the newest proven is of 2026-11-20 09:00:00+00"
    _backup(control, ago=timedelta(hours=24), verified=True)
    assert _bad(billing, control) == {}
    control.execute("UPDATE ops.backups SET pruned_at = now()")
    assert set(_bad(billing, control)) == {"control backups", "control verified backups"}


def test_a_component_that_is_not_deployed_is_no_fault_but_core_is(
    billing: Connection, cluster: Cluster, healthy: Connection
) -> None:
    billing.execute("ALTER TABLE billing.subscription_pauses SET SCHEMA archive")
    found = {one.name: one for one in check_health(billing, healthy, clock=CLOCK)}
    assert found["billing due pauses"].ok
    assert found["billing due pauses"].detail == "component pauses is not deployed"
    with opened(cluster.url(), purpose="test") as empty:
        bad = _bad(empty, empty)
    assert {"billing Stripe outbox", "control alert outbox", "control backups"} <= set(bad)
    assert "deploy" in bad["billing Stripe outbox"].remedy


def test_long_lists_are_cut(billing: Connection, healthy: Connection) -> None:
    for number in range(8):
        billing.execute(f"ALTER TABLE billing.plans ADD CONSTRAINT c{number} CHECK (name <> '') NOT VALID".encode())
    assert _only(_bad(billing, healthy), "billing constraints").detail.endswith("c4 on billing.plans and 3 more")


def test_what_cannot_be_looked_at_is_a_finding(billing: Connection, healthy: Connection) -> None:
    billing.close()
    found = check_health(billing, healthy, clock=CLOCK)
    broken = [one for one in found if one.name.startswith("billing ")]
    assert broken
    assert all(not one.ok and one.severity == "critical" and "cannot be looked at" in one.detail for one in broken)
    assert all(one.ok for one in found if one.name.startswith("control "))


@pytest.fixture(scope="module")
def replicating(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[Cluster]:
    """A cluster of its own: a replication slot concerns a whole server."""
    with scratch_cluster(tmp_path_factory.mktemp("slots"), bin_folder=cluster.bin_folder) as running:
        yield running


def test_a_slot_that_holds_wal_back_is_named(replicating: Cluster) -> None:
    with opened(replicating.url(), purpose="test") as connection:
        connection.execute("SELECT pg_create_physical_replication_slot('standby', true)")
        connection.execute("CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
        found: dict[str, Any] = _bad(connection, connection, HealthLimits(retained_wal_bytes=1000))
        assert found["billing replication slots"].detail.startswith("standby: ")
        assert "billing replication slots" not in _bad(connection, connection)
