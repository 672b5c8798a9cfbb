"""Verification fails, and drift is named, when anything that a component made is missing or wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from flexpay_pipelines.database import BILLING, Connection, opened
from flexpay_pipelines.errors import CheckFailed
from flexpay_pipelines.migrations import COMPONENTS, deploy, history, revert, schema_drift, verify
from flexpay_pipelines.migrations.verification import verify_on
from flexpay_pipelines.sql import MIGRATIONS_ROOT

Write = Callable[..., Path]

ON_BILLING = [component for component in COMPONENTS.values() if component.database == BILLING]
COMPONENTS_BY_DATABASE = [(component.database, component.name) for component in COMPONENTS.values()]

# How to break an object of each kind; {name} stands qualified, {on} is the relation that it hangs on.
BREAK = {
    "table": "DROP TABLE {name} CASCADE",
    "partitioned table": "DROP TABLE {name} CASCADE",
    "view": "DROP VIEW {name} CASCADE",
    "materialized view": "DROP MATERIALIZED VIEW {name} CASCADE",
    "column": "ALTER TABLE {on} DROP COLUMN {last} CASCADE",
    "constraint": "ALTER TABLE {on} DROP CONSTRAINT {first} CASCADE",
    "index": "DROP INDEX {name} CASCADE",
    "trigger": "DROP TRIGGER {first} ON {on}",
    "function": "DROP FUNCTION {name} CASCADE",
    "aggregate": "DROP AGGREGATE {name} CASCADE",
    "enum": "DROP TYPE {name} CASCADE",
    "domain": "DROP DOMAIN {name} CASCADE",
}


def _made_by(connection: Connection, component: str) -> list[dict[str, Any]]:
    made = connection.execute(
        "SELECT kind, name, parent FROM migrations.objects WHERE component = %s AND kind NOT IN ('schema', 'sequence')",
        (component,),
    ).fetchall()
    assert made, f"{component} made nothing"
    return made


def _unnoticed(connection: Connection, component: str, check: Callable[[], None]) -> list[str]:
    """The objects made by the component that can be dropped without `check` failing."""
    survivors = []
    for row in _made_by(connection, component):
        first, last = row["name"].split(" on ")[0], row["name"].rsplit(".", 1)[-1]
        statement = BREAK[row["kind"]].format(name=row["name"], on=row["parent"], first=first, last=last)
        with connection.transaction(force_rollback=True):
            connection.execute(statement.encode())
            try:
                check()
            except (CheckFailed, psycopg.Error):
                continue
            survivors.append(f"{row['kind']} {row['name']}")
    return survivors


@pytest.mark.parametrize(("database", "component"), COMPONENTS_BY_DATABASE)
def test_verify_notices_each_object_that_is_dropped(
    database: str, component: str, request: pytest.FixtureRequest
) -> None:
    connection: Connection = request.getfixturevalue(database)
    files = history(MIGRATIONS_ROOT)
    verify_on(connection, component, files)

    assert _unnoticed(connection, component, lambda: verify_on(connection, component, files)) == []


@pytest.mark.parametrize(("database", "component"), COMPONENTS_BY_DATABASE)
def test_the_verify_files_alone_notice_it_too(database: str, component: str, request: pytest.FixtureRequest) -> None:
    connection: Connection = request.getfixturevalue(database)
    texts = [migration.verify.text.encode() for migration in history(MIGRATIONS_ROOT)[component]]

    def check() -> None:
        for text in texts:
            connection.execute(text)

    assert _unnoticed(connection, component, check) == []


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE billing.subscriptions ALTER COLUMN status DROP NOT NULL",
        "ALTER TABLE billing.subscriptions ALTER COLUMN quantity SET DEFAULT 2",
        "ALTER TABLE billing.subscriptions DISABLE TRIGGER subscriptions_stamp",
        "ALTER TABLE billing.subscriptions ALTER COLUMN change_reason TYPE varchar",
        "CREATE OR REPLACE FUNCTION billing.refuse_history_change() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN RETURN NULL; END'",
    ],
)
def test_verify_names_what_was_changed(billing: Connection, billing_url: str, change: str) -> None:
    billing.execute(change.encode())

    with pytest.raises(CheckFailed, match=r"core .*(subscriptions|payments|refuse_history_change)"):
        verify(billing_url, "core")


def test_a_component_that_is_not_deployed_is_not_verified(empty_url: str) -> None:
    with pytest.raises(CheckFailed, match="pauses is not deployed in the billing database: deploy it first"):
        verify(empty_url, "pauses")


def test_what_a_verify_file_does_is_rolled_back(empty_url: str, write: Write) -> None:
    root = write(verify="INSERT INTO billing.first VALUES (1); SELECT 1 / count(*) FROM billing.first;")
    deploy(empty_url, ["core"], record=lambda _: None, progress=lambda _: None, root=root)

    verify(empty_url, "core", root=root)

    with opened(empty_url, purpose="test") as connection:
        assert connection.execute("SELECT * FROM billing.first").fetchall() == []


def test_drift_is_counted_to_the_component_that_made_what_was_touched(billing: Connection, billing_url: str) -> None:
    before = {component.name: schema_drift(billing_url, component.name) for component in ON_BILLING}
    billing.execute("CREATE INDEX by_hand ON billing.subscription_pauses (kind)")
    billing.execute("ALTER TABLE billing.frequency_changes DROP CONSTRAINT frequency_changes_credit_minor_check")
    billing.execute("CREATE TABLE billing.scratch (id int)")
    billing.execute("ALTER TABLE billing.subscriptions ALTER COLUMN payment_frequency DROP DEFAULT")

    drift = {component.name: schema_drift(billing_url, component.name) for component in ON_BILLING}

    assert set(before.values()) == {()}
    assert drift["core"] == (
        "column billing.scratch.id is not from any migration",
        "table billing.scratch is not from any migration",
    )
    assert drift["pauses"] == ("index billing.by_hand is not from any migration",)
    assert drift["frequencies"] == (
        "column billing.subscriptions.payment_frequency is not as it was deployed",
        "constraint frequency_changes_credit_minor_check on billing.frequency_changes is missing",
    )
    assert drift["rewards"] == ()


def test_drift_made_by_hand_stays_drift_after_the_next_step(billing: Connection, billing_url: str) -> None:
    billing.execute("DROP INDEX billing.payments_occurred")
    billing.execute("CREATE INDEX by_hand ON billing.payments (currency)")

    revert(billing_url, "rewards", record=lambda _: None, progress=lambda _: None)

    assert schema_drift(billing_url, "core") == (
        "index billing.by_hand is not from any migration",
        "index billing.payments_occurred is missing",
    )


def test_drift_needs_something_deployed(empty_url: str) -> None:
    with pytest.raises(CheckFailed, match="Nothing is deployed in the billing database: deploy core first"):
        schema_drift(empty_url, "core")
