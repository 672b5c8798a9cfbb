"""A restore swaps in the whole backup or changes nothing, keeps what was there, and can be undone."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from flexpay_pipelines.backups import (
    Restore,
    copy_offsite,
    kept_databases,
    plan_restore,
    restore_backup,
    swap_back,
)
from flexpay_pipelines.backups.databases import KEPT, RESTORING, beside_name
from flexpay_pipelines.database import opened
from flexpay_pipelines.errors import BadInput, TransientError
from flexpay_pipelines.sandbox import scratch_cluster
from tests.backups.helpers import Site, spoiled, untouched


def test_a_restore_brings_back_what_was_lost_and_keeps_what_was_there(site: Site) -> None:
    made = spoiled(site)
    done = site.restore(made.backup_id)
    assert (done.backup_id, done.tables, done.rows) == (made.backup_id, made.tables, made.rows)
    assert done.kept_database == beside_name(site.database, KEPT, site.clock.now())
    assert done.kept_database.endswith("_before_restore_20261122_030000")
    assert site.count("billing.payments") == 2000
    assert site.count("billing.payments", site.beside(done.kept_database)) == 0
    assert site.databases() == {site.database, done.kept_database}
    with opened(site.beside("postgres"), purpose="test") as connection:
        remark = connection.execute(
            "SELECT shobj_description(oid, 'pg_database') AS remark FROM pg_database WHERE datname = %s",
            (done.kept_database,),
        ).fetchone()
    told = f"Replaced at 2026-11-22 03:00:00 UTC by backup {made.backup_id}, restored by tester"
    assert remark == {"remark": told}


def test_a_restored_database_is_still_alive_in_all_its_parts(site: Site) -> None:
    site.restore(spoiled(site).backup_id)
    with opened(site.billing_url, purpose="test") as billing:
        billing.execute("UPDATE billing.subscriptions SET status = 'canceled' WHERE subscription_ref = 's1'")
        newest = billing.execute("SELECT event, event_id FROM billing.subscription_events ORDER BY event_id DESC")
        assert newest.fetchone() == {"event": "canceled", "event_id": 229}
        with pytest.raises(psycopg.errors.RestrictViolation):
            billing.execute("DELETE FROM billing.subscription_events")
        known = billing.execute("SELECT reltuples FROM pg_class WHERE oid = 'billing.payments'::regclass").fetchone()
        assert known == {"reltuples": 2000.0}, "the planner has statistics"


def test_only_sessions_of_the_billing_database_are_ended(site: Site, control_url: str) -> None:
    made = spoiled(site)
    with opened(control_url, purpose="bystander") as bystander, opened(site.billing_url, purpose="user") as user:
        site.restore(made.backup_id)
        assert bystander.execute("SELECT 1 AS one").fetchone() == {"one": 1}
        with pytest.raises(psycopg.OperationalError):
            user.execute("SELECT 1")


def test_clients_that_keep_coming_back_do_not_stop_a_restore(site: Site) -> None:
    made = spoiled(site)
    ended = threading.Event()
    sessions = []

    def come_back() -> None:
        while not ended.is_set():
            try:
                with psycopg.connect(site.billing_url) as client:
                    for _ in range(200):
                        client.execute("SELECT 1")
                    sessions.append(1)
            except psycopg.OperationalError:
                continue

    clients = [threading.Thread(target=come_back) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        site.restore(made.backup_id)
    finally:
        ended.set()
        for client in clients:
            client.join()
    assert site.count("billing.payments") == 2000
    assert len(sessions) > 3


def test_owner_grants_settings_and_limit_of_the_live_database_are_kept(site: Site) -> None:
    live = sql.Identifier(site.database)
    for role in ("ledger_owner", "ledger_reader"):
        site.billing.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
    for statement in (
        "ALTER DATABASE {} OWNER TO ledger_owner",
        "REVOKE ALL ON DATABASE {} FROM PUBLIC",
        "GRANT CONNECT ON DATABASE {} TO ledger_reader WITH GRANT OPTION",
        "ALTER DATABASE {} CONNECTION LIMIT 77",
        "ALTER DATABASE {} SET search_path TO billing, \"Odd, name\", '$user'",
        "ALTER DATABASE {} SET statement_timeout TO '7s'",
        "ALTER ROLE ledger_reader IN DATABASE {} SET work_mem TO '9MB'",
    ):
        site.billing.execute(sql.SQL(statement).format(live))
    site.billing.execute("GRANT SELECT ON billing.payments TO ledger_reader")
    facts = """
        SELECT pg_get_userbyid(datdba) AS owner, datacl::text[] AS grants, datconnlimit AS sessions, datcollate,
               (SELECT array_agg((setrole, setconfig)::text ORDER BY setrole)
                FROM pg_db_role_setting WHERE setdatabase = d.oid) AS settings,
               has_table_privilege('ledger_reader', 'billing.payments', 'SELECT') AS may_read
        FROM pg_database AS d WHERE datname = current_database()
    """
    try:
        before = site.billing.execute(facts).fetchone()
        site.restore(spoiled(site).backup_id)
        with opened(site.billing_url, purpose="test") as restored:
            assert restored.execute(facts).fetchone() == before
            assert restored.execute("SHOW statement_timeout").fetchone() == {"statement_timeout": "7s"}
    finally:
        with opened(site.beside("postgres"), purpose="test") as server:
            for name in site.databases():
                server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
            server.execute("DROP ROLE ledger_owner, ledger_reader")
            server.execute(sql.SQL("CREATE DATABASE {}").format(live))


def test_a_database_that_was_lost_is_made_again(site: Site) -> None:
    made = site.backup()
    site.billing.close()
    with opened(site.beside("postgres"), purpose="test") as server:
        server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(site.database)))
    assert not plan_restore(site.control, made.backup_id, site.billing_url).database_exists
    assert site.restore(made.backup_id).kept_database == ""
    assert site.count("billing.payments") == 2000
    assert site.databases() == {site.database}


def test_a_backup_restores_on_another_server(site: Site, tmp_path: Path) -> None:
    made = site.backup()
    with scratch_cluster(tmp_path / "other", bin_folder=site.tools) as other:
        done = site.restore(made.backup_id, billing_url=other.url("billing"))
        assert done.kept_database == ""
        assert site.count("billing.payments", other.url("billing")) == 2000


def test_a_restore_is_undone_and_the_undoing_too(site: Site) -> None:
    first = site.restore(spoiled(site).backup_id).kept_database

    def undo(kept: str) -> str:
        return swap_back(
            site.control, billing_url=site.billing_url, kept_database=kept, clock=site.clock, progress=site.said.append,
            actor="tester",
        )  # fmt: skip

    second = undo(first)
    assert site.count("billing.payments") == 0
    assert kept_databases(site.billing_url) == (second,)
    assert second != first, "the same second twice is told apart"
    undo(second)
    assert site.count("billing.payments") == 2000
    with pytest.raises(BadInput, match=rf"no kept database 'phantom' beside .*: there is {first}\."):
        undo("phantom")
    with pytest.raises(BadInput, match="no kept database"):
        undo(site.control_url.split("/")[3].split("?")[0])


def test_the_newest_verified_backup_is_the_one_restored(site: Site) -> None:
    good = site.backup()
    assert site.verify(good).ok
    site.billing.execute("DELETE FROM billing.payments")
    site.backup()
    assert plan_restore(site.control, None, site.billing_url).backup.backup_id == good.backup_id
    assert site.restore().backup_id == good.backup_id
    assert site.count("billing.payments") == 2000


def test_a_plan_says_what_would_be_done_and_does_nothing(site: Site) -> None:
    made = spoiled(site)
    plan = plan_restore(site.control, made.backup_id, site.billing_url, backup_folder=site.folder)
    assert (plan.database, plan.database_exists, plan.source) == (site.database, True, made.path)
    assert plan.sessions == 1, "the test's own"
    assert plan.needs_bytes > 1_000_000
    assert plan.free_bytes is not None
    assert f"{made.rows:,} rows" in plan.steps[0]
    assert untouched(site)
    assert site.billing.execute("SELECT 1 AS one").fetchone() == {"one": 1}


def test_the_copy_elsewhere_is_used_when_the_backup_is_gone(site: Site, tmp_path: Path) -> None:
    made = spoiled(site)
    arguments = {"folder": tmp_path / "far", "clock": site.clock, "progress": site.said.append}
    place = copy_offsite(site.control, made.backup_id, **arguments)  # type: ignore[arg-type]
    shutil.rmtree(site.folder)
    assert plan_restore(site.control, made.backup_id, site.billing_url).source == place
    site.restore(made.backup_id)
    assert site.count("billing.payments") == 2000


def test_what_a_killed_restore_left_is_dropped_and_no_neighbour_with_it(site: Site) -> None:
    made = spoiled(site)
    left = beside_name(site.database, RESTORING, site.clock.now())
    neighbours = {left.replace(RESTORING, f"2{RESTORING}"), left.replace("20261122", "neighbour")}
    with opened(site.beside("postgres"), purpose="test") as server:
        for name in (left, *neighbours):
            server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    site.restore(made.backup_id)
    assert site.databases() >= neighbours
    assert left not in site.databases()


def test_names_beside_long_ones_are_allowed_and_told_apart(site: Site) -> None:
    names = ["b" * 63, "b" * 62 + "c", "ü" * 31]
    made = {beside_name(name, KEPT, site.clock.now()) for name in names}
    assert len(made) == 3
    assert all(len(name.encode()) <= 63 for name in made)
    taken: tuple[str, ...] = ()
    for _ in range(99):
        taken += (beside_name(names[0], KEPT, site.clock.now(), taken),)
    assert len(set(taken)) == 99
    assert all(len(name.encode()) <= 63 for name in taken)
    with pytest.raises(TransientError, match="No name is free"):
        beside_name(names[0], KEPT, site.clock.now(), taken)


def test_a_database_with_a_long_and_odd_name_is_restored(site: Site) -> None:
    odd = 'Bill ing%"ü?' + "x" * 45
    with opened(site.beside("postgres"), purpose="test") as server:
        site.billing.close()
        template, new = sql.Identifier(site.database), sql.Identifier(odd)
        server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(new, template))
    url = site.beside(odd)
    made = site.backup(url)
    done: Restore = restore_backup(
        site.control, made.backup_id, billing_url=url, clock=site.clock, progress=site.said.append, actor="tester",
        bin_folder=site.tools,
    )  # fmt: skip
    assert site.count("billing.payments", url) == 2000
    assert kept_databases(url) == (done.kept_database,)


OLDEST = Path("/usr/lib/postgresql/15/bin")


@pytest.mark.skipif(not OLDEST.is_dir(), reason="PostgreSQL 15 is not installed here")
def test_newer_tools_back_up_restore_and_prove_an_older_server(site: Site, tmp_path: Path) -> None:
    with scratch_cluster(tmp_path / "older", bin_folder=OLDEST) as older:
        with opened(older.url(), purpose="test") as server:
            server.execute("CREATE DATABASE ledger")
        with opened(older.url("ledger"), purpose="test") as ledger:
            ledger.execute(
                "CREATE TABLE entries (entry_id bigint PRIMARY KEY, amount bigint NOT NULL CHECK (amount > 0))"
            )
            ledger.execute("INSERT INTO entries SELECT i, i FROM generate_series(1, 1000) AS i")
        site.tools = None
        made = site.backup(older.url("ledger"))
        assert site.verify(made).failures == ()
        with opened(older.url("ledger"), purpose="test") as ledger:
            ledger.execute("DROP TABLE entries")
        site.restore(made.backup_id, billing_url=older.url("ledger"))
        assert site.count("public.entries", older.url("ledger")) == 1000
