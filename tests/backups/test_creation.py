"""A backup is of one instant, complete or not there, and says in one sentence why it could not be made."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from flexpay_pipelines.backups import Backup, adopt_backups, contents, create_backup, list_backups
from flexpay_pipelines.backups.manifest import damages, read_manifest
from flexpay_pipelines.database import opened
from flexpay_pipelines.errors import BadInput, DatabaseUnavailable, FlexPayError, PermanentError, TransientError
from flexpay_pipelines.sandbox import Cluster, embedded_bin, scratch_cluster
from tests.backups.helpers import Site

OLDER_TOOLS = embedded_bin().parents[1] / "pginstall" / "bin"


def test_a_backup_is_in_the_catalog_and_its_manifest_says_what_it_holds(site: Site) -> None:
    made = site.backup(kind="pre_deploy")
    assert made.backup_id.startswith("20261122T030000Z-pre_deploy-")
    assert made.path == site.folder / made.backup_id
    assert list_backups(site.control) == (made,)
    assert damages(made.path, made.manifest_sha256) == ()
    manifest = read_manifest(made.path)
    assert manifest.contents.tables["billing.customers"].rows == 200
    assert manifest.contents.tables["billing.payments"].rows == 2000
    assert manifest.contents.tables["billing.subscription_events"].rows == 200 + 28
    assert made.rows == sum(t.rows for t in manifest.contents.tables.values())
    assert made.tables == len(manifest.contents.tables)
    assert (manifest.actor, manifest.method, manifest.started_at) == ("tester", "logical", site.clock.now())
    assert made.size_bytes == sum(p.stat().st_size for p in made.path.rglob("*") if p.is_file())
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700, "a backup holds personal data"


def test_a_backup_is_of_one_instant_while_others_write(site: Site) -> None:
    def write_meanwhile(sentence: str) -> None:
        if sentence.startswith("Dumping"):
            with opened(site.billing_url, purpose="writer") as writer:
                writer.execute("UPDATE billing.payments SET amount_minor = 1")
                writer.execute("INSERT INTO billing.customers (customer_ref, currency) VALUES ('late', 'EUR')")

    made = site.backup(progress=write_meanwhile)
    assert site.count("billing.customers") == 201
    assert read_manifest(made.path).contents.tables["billing.customers"].rows == 200
    assert site.verify(made).failures == ()


def test_the_same_rows_have_the_same_hash_in_any_order_and_other_rows_another(site: Site) -> None:
    first = read_manifest(site.backup().path).contents
    site.billing.execute("CLUSTER billing.payments USING payments_occurred")
    site.billing.execute(f"ALTER DATABASE {site.database} SET datestyle TO 'SQL, DMY'".encode())
    assert read_manifest(site.backup().path).contents == first
    site.billing.execute("UPDATE billing.payments SET amount_minor = amount_minor + 1 WHERE payment_ref = 'p77'")
    third = read_manifest(site.backup().path).contents
    assert {name for name in first.tables if first.tables[name] != third.tables[name]} == {"billing.payments"}


def test_a_database_without_tables_can_be_backed_up_and_proven(site: Site, cluster: Cluster) -> None:
    site.billing.execute("CREATE DATABASE empty_one TEMPLATE template0")
    made = site.backup(cluster.url("empty_one"))
    assert (made.tables, made.rows) == (0, 0)
    assert site.verify(made).ok


def test_two_backups_at_once_are_both_made(site: Site) -> None:
    def one(number: int) -> Backup:
        with opened(site.control_url, purpose="test") as own:
            return create_backup(
                site.billing_url,
                own,
                folder=site.folder,
                kind="manual",
                clock=site.clock,
                progress=site.said.append,
                bin_folder=site.tools,
                actor=f"tester {number}",
            )

    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(one, range(2)))
    assert len({b.backup_id for b in made}) == 2
    assert all(damages(b.path, b.manifest_sha256) == () for b in made)


def test_a_finished_backup_that_nobody_recorded_is_adopted_and_rubbish_is_not(site: Site) -> None:
    made = site.backup()
    site.control.execute("DELETE FROM ops.backups")
    (site.folder / "rubbish").mkdir()
    (site.folder / "rubbish" / "manifest.json").write_text("{}")
    assert adopt_backups(site.control, site.folder) == (made.backup_id,)
    assert list_backups(site.control) == (made,)
    assert adopt_backups(site.control, site.folder) == ()
    assert (site.folder / "rubbish" / "manifest.json").exists()


def test_an_unknown_kind_is_refused(site: Site) -> None:
    with pytest.raises(BadInput, match="'weekly' is not a kind of backup: it is one of daily"):
        site.backup(kind="weekly")
    assert site.nothing_left()


def test_a_database_that_is_not_there_is_named(site: Site, cluster: Cluster) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"nowhere.*FLEXPAY_BILLING_URL"):
        site.backup(cluster.url("nowhere"))
    assert site.nothing_left()


def test_missing_tools_are_named(site: Site, tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"pg_dump is not in .*: set FLEXPAY_POSTGRES_BIN"):
        site.backup(bin_folder=tmp_path)
    assert site.nothing_left()


def test_tools_older_than_the_server_are_refused(site: Site, tmp_path: Path) -> None:
    refusal = "pg_dump 16 .* cannot back up a PostgreSQL 18 server.* 18 or newer"
    with scratch_cluster(tmp_path / "newer") as newer, pytest.raises(PermanentError, match=refusal):
        site.backup(newer.url(), bin_folder=OLDER_TOOLS)
    assert site.nothing_left()


def test_a_locked_table_is_waited_for_and_then_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contents.VIEW_SETTINGS, "lock_timeout", "100ms")
    with opened(site.billing_url, purpose="deploy") as deploy, deploy.transaction():
        deploy.execute("LOCK TABLE billing.payments IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(TransientError, match=r"holds a lock while backing up .* run it again"):
            site.backup()
    assert site.nothing_left()


@pytest.fixture
def guarded(site: Site, tmp_path: Path) -> Iterator[str]:
    """The URL, without a password, of a database whose server asks for one (SCRAM)."""
    with scratch_cluster(tmp_path / "guarded", bin_folder=site.tools) as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE ROLE payer LOGIN PASSWORD 'right p@ss'")
            connection.execute("CREATE DATABASE ledger OWNER payer")
            (server.data / "pg_hba.conf").write_text("local all payer scram-sha-256\nlocal all all trust\n")
            connection.execute("SELECT pg_reload_conf()")
        yield server.url("ledger").replace("flexpay@", "payer@")


def test_a_wrong_password_is_told_without_showing_it(site: Site, guarded: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="password authentication failed") as refused:
        site.backup(guarded.replace("payer@", "payer:not%20th%40t@"))
    assert "th@t" not in str(refused.value)
    assert "th%40t" not in str(refused.value)
    assert site.nothing_left()


@pytest.mark.parametrize("place", ["login", "query"])
def test_the_password_reaches_pg_dump_but_not_its_command_line(
    site: Site, guarded: str, tmp_path: Path, place: str
) -> None:
    real = site.tools or embedded_bin()
    spied = tmp_path / "bin"
    spied.mkdir()
    (spied / "pg_dump").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/seen\nexec {real}/pg_dump "$@"\n')
    (spied / "pg_dump").chmod(0o755)
    secret = "right%20p%40ss"
    url = guarded.replace("payer@", f"payer:{secret}@") if place == "login" else f"{guarded}&password={secret}"
    made = site.backup(url, bin_folder=spied)
    seen = (tmp_path / "seen").read_text()
    assert "--dbname=" in seen
    assert "right" not in seen
    assert "right" not in (made.path / "manifest.json").read_text()


LIMITED = """
import resource, sys
from pathlib import Path
from flexpay_pipelines.backups import create_backup
from flexpay_pipelines.clock import SystemClock
from flexpay_pipelines.database import opened
from flexpay_pipelines.errors import TransientError
url, control_url, folder, tools = sys.argv[1:5]
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
with opened(control_url, purpose="test") as control:
    try:
        create_backup(url, control, folder=Path(folder), kind="manual", clock=SystemClock(), progress=lambda _: None,
                      bin_folder=Path(tools), actor="tester")
    except TransientError as error:
        print(error)
"""


def test_a_file_that_may_not_grow_is_one_sentence_and_leaves_nothing(site: Site) -> None:
    arguments = [site.billing_url, site.control_url, str(site.folder), str(site.tools or embedded_bin())]
    done = subprocess.run([sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, check=True)
    said = "The disk is full, or a file may not grow: pg_dump stopped; free some space and run it again.\n"
    assert done.stdout == said
    assert site.nothing_left()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"only root may mount a small file system here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["/bin/umount", str(place)], check=True)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(site: Site, small_disk: Path) -> None:
    with pytest.raises(TransientError, match=r"The disk is full.*free some space and run it again"):
        site.backup(folder=small_disk)
    assert site.nothing_left(small_disk)
    assert os.statvfs(small_disk).f_bfree > 0


def test_each_refusal_is_one_sentence(site: Site, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for given in (
        {"bin_folder": tmp_path},
        {"kind": ""},
        {"url": cluster.url("nowhere")},
        {"folder": tmp_path / "file"},
    ):
        with pytest.raises(FlexPayError) as refused:
            site.backup(**given)
        assert "\n" not in str(refused.value)
        assert str(refused.value).endswith(".")
