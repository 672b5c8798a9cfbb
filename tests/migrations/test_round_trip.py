"""The product's own migrations: every component out and in again, with its data, and the same schema at the end."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from flexpay_pipelines.database import BILLING, Connection, opened
from flexpay_pipelines.migrations import (
    COMPONENTS,
    SCHEMAS,
    Step,
    deploy,
    deployed,
    history,
    revert,
    schema_drift,
    schema_fingerprint,
    verify,
)
from flexpay_pipelines.sandbox import Cluster
from flexpay_pipelines.sql import MIGRATIONS_ROOT

Write = Callable[..., Path]

ON_BILLING = [component.name for component in COMPONENTS.values() if component.database == BILLING]
WATCHED = (*SCHEMAS[BILLING], "archive")

COMPANY = """
INSERT INTO billing.customers (customer_ref, currency) SELECT 'c' || n, 'EUR' FROM generate_series(1, 20) AS n;
INSERT INTO billing.plans (plan, name) VALUES ('basic', 'Basic');
INSERT INTO billing.subscriptions
    (subscription_ref, customer_id, plan, status, amount_minor, currency, started_at, billing_anchor, payment_frequency)
SELECT 's' || customer_id, customer_id, 'basic', 'active', 1000, 'EUR', now(), now(),
       (ARRAY['WEEKLY', 'MONTHLY', 'YEARLY'])[1 + customer_id % 3]
FROM billing.customers;
UPDATE billing.subscriptions SET quantity = 2 WHERE customer_id < 5;
INSERT INTO billing.subscription_pauses (pause_ref, subscription_id, starts_at, kind)
SELECT 'p' || subscription_id, subscription_id, now(), 'customer' FROM billing.subscriptions WHERE customer_id < 9;
INSERT INTO billing.reward_entries (customer_id, occurred_at, kind, amount_minor)
SELECT customer_id, now(), 'earned', 100 FROM billing.customers;
INSERT INTO billing.frequency_changes
    (subscription_id, from_frequency, to_frequency, amount_minor, requested_at, effective_at, currency, state)
SELECT subscription_id, 'MONTHLY', 'YEARLY', 9000, now(), now(), 'EUR', 'applied' FROM billing.subscriptions;
INSERT INTO billing.payments (payment_ref, subscription_id, occurred_at, amount_minor, currency, outcome)
SELECT 'pay' || subscription_id, subscription_id, now(), 1000, 'EUR', 'succeeded' FROM billing.subscriptions;
"""


def _quiet(_: object) -> None:
    """Neither recorded nor shown."""


def _rows(connection: Connection) -> dict[str, str]:
    """A hash of the rows of every table of the billing schema, without what a redeploy may set anew."""
    tables = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'billing'::regnamespace AND relkind = 'r' "
        "AND relname <> 'feature_flags' ORDER BY relname"
    ).fetchall()
    statement = sql.SQL(
        "SELECT count(*) || ' ' || md5(coalesce(string_agg(row, '|' ORDER BY row), '')) AS hash "
        "FROM (SELECT (to_jsonb(t) - 'version')::text AS row FROM billing.{} AS t) AS rows"
    )
    hashes = {}
    for table in tables:
        found = connection.execute(statement.format(sql.Identifier(table["relname"]))).fetchone()
        assert found is not None
        hashes[table["relname"]] = found["hash"]
    return hashes


@pytest.mark.parametrize("component", ON_BILLING)
def test_out_and_in_again_leaves_the_schema_and_every_row(
    component: str, billing: Connection, billing_url: str
) -> None:
    billing.execute(COMPANY.encode())
    before, rows = schema_fingerprint(billing, WATCHED), _rows(billing)
    assert rows["subscriptions"].startswith("20 ")
    revisions = deployed(billing_url)

    gone = revert(billing_url, component, cascade=True, record=_quiet, progress=_quiet)
    between = schema_fingerprint(billing, WATCHED)
    left = deployed(billing_url)
    back = deploy(billing_url, ON_BILLING, record=_quiet, progress=_quiet)

    assert component not in left
    assert len(gone) == len(back) >= 1
    assert between != before
    assert schema_fingerprint(billing, WATCHED) == before
    assert _rows(billing) == rows
    assert deployed(billing_url) == revisions
    for name in ON_BILLING:
        verify(billing_url, name)
        assert schema_drift(billing_url, name) == ()


def test_the_control_plane_goes_aside_and_comes_back(control: Connection, control_url: str) -> None:
    before = schema_fingerprint(control, ["ops"])
    control.execute("INSERT INTO ops.audit_log (actor, action, subject, outcome) VALUES ('a', 'b', 'c', 'done')")

    revert(control_url, "ops", record=_quiet, progress=_quiet)
    deploy(control_url, ["ops"], record=_quiet, progress=_quiet)

    assert schema_fingerprint(control, ["ops"]) == before
    verify(control_url, "ops")
    assert schema_drift(control_url, "ops") == ()
    aside = control.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'ops_archived_%'").fetchone()
    assert aside is not None
    kept = control.execute(sql.SQL("SELECT actor FROM {}.audit_log").format(sql.Identifier(aside["nspname"])))
    assert kept.fetchall() == [{"actor": "a"}]


def test_the_order_in_which_revisions_arrived_does_not_matter(
    empty_url: str, billing: Connection, tmp_path: Path
) -> None:
    """First every component's first revision, as an early release had it; later all that came since."""
    for migrations in history(MIGRATIONS_ROOT).values():
        for file in (
            file for migration in migrations[:1] for file in (migration.deploy, migration.revert, migration.verify)
        ):
            if migrations[0].component != "analytics":
                copy = tmp_path / migrations[0].component / file.path.name
                copy.parent.mkdir(exist_ok=True)
                copy.write_text(file.text)
    early: list[Step] = []
    deploy(empty_url, ON_BILLING, record=early.append, progress=_quiet, root=tmp_path)
    assert {step.component for step in early} == {"core", "frequencies", "pauses", "rewards"}

    deploy(empty_url, ON_BILLING, record=_quiet, progress=_quiet)

    with opened(empty_url, purpose="test") as connection:
        assert schema_fingerprint(connection, WATCHED) == schema_fingerprint(billing, WATCHED)


def test_a_dump_restored_elsewhere_has_the_same_fingerprint(
    cluster: Cluster, billing: Connection, billing_url: str, tmp_path: Path
) -> None:
    billing.execute(COMPANY.encode())
    billing.execute("ALTER TABLE billing.plans ADD COLUMN passing int; ALTER TABLE billing.plans DROP COLUMN passing")
    before = schema_fingerprint(billing, WATCHED)
    dump, name = tmp_path / "dump.sql", f"test_{uuid4().hex}"
    subprocess.run([cluster.tool("pg_dump"), "--file", str(dump), "--dbname", billing_url], check=True)
    with psycopg.connect(cluster.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    restore = [cluster.tool("psql"), "-qX", "-v", "ON_ERROR_STOP=1", "-f", str(dump), "-d", cluster.url(name)]
    subprocess.run(restore, check=True, stdout=subprocess.DEVNULL)

    with opened(cluster.url(name), purpose="test") as restored:
        assert schema_fingerprint(restored, WATCHED) == before
        assert deployed(cluster.url(name)) == deployed(billing_url)
        for component in ON_BILLING:
            verify(cluster.url(name), component)
            assert schema_drift(cluster.url(name), component) == ()
        restored.execute("ALTER TABLE billing.payments ALTER COLUMN currency DROP NOT NULL")
        assert schema_fingerprint(restored, WATCHED) != before


def test_the_fingerprint_leaves_the_search_path_of_the_caller_alone(billing: Connection) -> None:
    with billing.transaction():
        billing.execute("SET LOCAL search_path = billing")
        schema_fingerprint(billing, ["billing"])
        assert billing.execute("SHOW search_path").fetchone() == {"search_path": "billing"}
