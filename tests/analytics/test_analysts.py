"""The schema analysts read: everything in it says what it is, and the role reads that and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime

import psycopg
import pytest
from psycopg import sql

from flexpay_pipelines.analytics import dunning, payments_health, refresh
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import MIGRATIONS_ROOT
from tests.analytics.ledger import write
from tests.analytics.money import DAY, Payment, pay, started
from tests.analytics.reference import Event

AT = datetime(2026, 1, 5, tzinfo=UTC)
REFUSED = psycopg.errors.InsufficientPrivilege


@pytest.fixture
def company(billing: Connection) -> Connection:
    at = AT + DAY
    write(billing, [started("ann-1", AT), started("bob-1", AT), Event("bob-1", "bob", "paused", at, at)])
    pay(
        billing,
        [
            Payment("ann-1", AT, outcome="failed", failure_class="block"),
            Payment("ann-1", AT + 2 * DAY, attempt=2),
            Payment("bob-1", AT, outcome="failed"),
        ],
    )
    refresh(billing, start=AT.date(), end=AT.date() + 3 * DAY, clock=FixedClock(AT + 5 * DAY))
    return billing


@pytest.fixture
def analyst(company: Connection) -> Iterator[Connection]:
    company.execute("SET ROLE flexpay_analyst")
    yield company
    company.execute("RESET ROLE")


def relations(connection: Connection) -> list[str]:
    rows = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'analytics'::regnamespace"
        " AND relkind IN ('r', 'v', 'm', 'p')"
    ).fetchall()
    return [row["relname"] for row in rows]


def test_everything_says_what_it_is(billing: Connection) -> None:
    """Of the whole schema, whichever migration made it: tables, views, columns, functions, the schema itself."""
    silent = billing.execute(
        "SELECT c.relname || coalesce('.' || a.attname, '') AS name FROM pg_class AS c"
        " LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
        " WHERE c.relnamespace = 'analytics'::regnamespace AND c.relkind IN ('r', 'v', 'm', 'p', 'f')"
        " AND (obj_description(c.oid, 'pg_class') IS NULL OR col_description(c.oid, a.attnum) IS NULL)"
        " UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'analytics'::regnamespace"
        " AND obj_description(oid, 'pg_proc') IS NULL"
        " UNION ALL SELECT nspname FROM pg_namespace WHERE nspname = 'analytics'"
        " AND obj_description(oid, 'pg_namespace') IS NULL"
    ).fetchall()
    assert [row["name"] for row in silent] == []


def test_nothing_in_the_schema_is_personal(billing: Connection) -> None:
    columns = billing.execute(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'analytics'"
        " AND (column_name ~ 'mail|phone|address|birth|stripe_customer' OR column_name IN ('name', 'full_name'))"
    ).fetchall()
    assert columns == []


def test_an_analyst_reads_everything_in_the_schema(analyst: Connection) -> None:
    names = relations(analyst)
    assert {"mrr_summary", "churn_risk", "customers", "current_mrr", "rewards_liability"} <= set(names)
    for name in names:
        analyst.execute(sql.SQL("SELECT * FROM analytics.{} LIMIT 1").format(sql.Identifier(name)))
    rows = analyst.execute("SELECT customer_ref, mrr FROM analytics.current_subscriptions WHERE counts").fetchall()
    assert rows == [{"customer_ref": "ann", "mrr": 1000}]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT email FROM billing.customers",
        "SELECT 1 FROM billing.payments",
        "SELECT 1 FROM billing.subscription_events",
        "DELETE FROM analytics.churn_risk",
        "UPDATE analytics.mrr_summary SET end_minor = 0",
        "INSERT INTO analytics.balance_days VALUES ('2026-01-01', now())",
        "INSERT INTO analytics.customers (customer_ref) VALUES ('x')",
        "TRUNCATE analytics.mrr_movements",
        "CREATE TABLE analytics.mine (a int)",
        "DROP VIEW analytics.customers",
    ],
)
def test_an_analyst_neither_writes_nor_sees_people(analyst: Connection, statement: str) -> None:
    with pytest.raises(REFUSED):
        analyst.execute(statement.encode())


def test_later_tables_can_be_read_too(company: Connection) -> None:
    company.execute("CREATE TABLE analytics.later (a int)")
    company.execute("SET ROLE flexpay_analyst")
    assert company.execute("SELECT * FROM analytics.later").fetchall() == []
    company.execute("RESET ROLE")


def test_the_views_agree_with_the_figures(company: Connection) -> None:
    january = {"start": date(2026, 1, 1), "end": date(2026, 1, 31), "grain": "month"}
    (health,) = payments_health(company, **january)  # type: ignore[arg-type]
    (won,) = dunning(company, **january)  # type: ignore[arg-type]
    attempts = company.execute(
        "SELECT payment_frequency, count(*) AS attempts FROM analytics.payment_attempts GROUP BY 1"
    ).fetchall()
    episodes = company.execute(
        "SELECT count(*) AS episodes, count(recovered_at) AS recovered,"
        " percentile_disc(0.5) WITHIN GROUP (ORDER BY days_to_recovery) AS median_days FROM analytics.dunning_episodes"
    ).fetchone()
    mrr = company.execute(
        "SELECT subscriptions, customers, annualised_minor, mrr FROM analytics.current_mrr"
    ).fetchall()
    assert attempts == [{name: health[name] for name in ("payment_frequency", "attempts")}]
    assert episodes == {name: won[name] for name in ("episodes", "recovered", "median_days")}
    assert mrr == [{"subscriptions": 1, "customers": 1, "annualised_minor": 12_000, "mrr": 1000}]


def test_who_may_not_make_roles_is_told_what_to_do(billing: Connection) -> None:
    """And goes on: the role is let in when it is there."""
    path = next((MIGRATIONS_ROOT / "analytics").glob("*_analysts.deploy.sql"))
    body = path.read_text(encoding="utf-8").split("CREATE FUNCTION analytics.admit_analysts()")[1].split("$$;")[0]
    with billing.transaction(force_rollback=True):
        # Another name stands for a cluster in which nobody has made the role yet.
        made = f"CREATE FUNCTION analytics.admit_others(){body}$$".replace("flexpay_analyst", "flexpay_absent")
        billing.execute(made.encode())
        billing.execute("CREATE ROLE flexpay_deployer; GRANT ALL ON SCHEMA analytics TO flexpay_deployer")
        billing.execute("SET LOCAL ROLE flexpay_deployer")
        said = billing.execute("SELECT analytics.admit_others() AS said").fetchone()
        assert said == {
            "said": "flexpay_deployer may not create roles: create the role flexpay_absent (NOLOGIN); "
            "the next daily analytics lets it in."
        }
        billing.execute("RESET ROLE; CREATE ROLE flexpay_absent NOLOGIN")
        assert billing.execute("SELECT analytics.admit_others() AS said").fetchone() == {
            "said": "flexpay_absent may read schema analytics."
        }
        billing.execute("SET LOCAL ROLE flexpay_absent")
        assert billing.execute("SELECT * FROM analytics.churn").fetchall() == []


def test_going_back_leaves_the_role_to_others(billing: Connection) -> None:
    path = next((MIGRATIONS_ROOT / "analytics").glob("*_analysts.revert.sql"))
    billing.execute(path.read_bytes())
    kept = billing.execute(
        "SELECT has_schema_privilege('flexpay_analyst', 'analytics', 'USAGE') AS usage FROM pg_roles"
        " WHERE rolname = 'flexpay_analyst'"
    ).fetchone()
    assert kept == {"usage": False}
    billing.execute(path.with_name(path.name.replace("revert", "deploy")).read_bytes())
    billing.execute("SET ROLE flexpay_analyst")
    assert billing.execute("SELECT * FROM analytics.deferred_revenue").fetchall() == []
    billing.execute("RESET ROLE")
