"""The analytics component goes back and comes again with what it held, and its verification can fail."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg
import pytest

from flexpay_pipelines.analytics import refresh
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import MIGRATIONS_ROOT
from tests.analytics.ledger import write
from tests.analytics.reference import Event

AT = datetime(2026, 1, 5, tzinfo=UTC)


def run(connection: Connection, kind: str) -> None:
    for path in sorted((MIGRATIONS_ROOT / "analytics").glob(f"*.{kind}.sql"), reverse=kind == "revert"):
        connection.execute(path.read_bytes())


def test_back_and_forth_keeps_the_figures(billing: Connection) -> None:
    write(billing, [Event("ann-1", "ann", "started", AT, AT)])
    refresh(billing, start=AT.date(), end=AT.date(), clock=FixedClock(AT))
    run(billing, "revert")
    gone = billing.execute("SELECT to_regnamespace('analytics') AS schema").fetchone()
    assert gone == {"schema": None}
    run(billing, "deploy")
    run(billing, "verify")
    again = refresh(billing, start=AT.date(), end=AT.date(), clock=FixedClock(AT))
    assert (again.subscriptions, again.movements) == (0, 0)
    kept = billing.execute("SELECT movement, annualised_minor FROM analytics.mrr_movements").fetchall()
    assert kept == [{"movement": "new", "annualised_minor": 12_000}]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ("DROP INDEX analytics.run_rate_intervals_customer", "run_rate_intervals_customer"),
        ("COMMENT ON COLUMN analytics.churn.nrr IS NULL", "churn.nrr"),
        ("DROP TABLE analytics.cohorts", "cohorts"),
    ],
)
def test_verification_finds_what_is_wrong(billing: Connection, damage: str, complaint: str) -> None:
    run(billing, "verify")
    billing.execute(damage.encode())
    with pytest.raises(psycopg.Error, match=complaint):
        run(billing, "verify")
