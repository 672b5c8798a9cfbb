"""A proof holds for a good backup, and fails, naming what is wrong, for every kind of bad one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexpay_pipelines.backups import Backup, find_backup, list_backups
from flexpay_pipelines.backups.files import sha256
from flexpay_pipelines.errors import BadInput, PermanentError
from tests.backups.helpers import Site


def record(site: Site, backup: Backup) -> dict[str, Any]:
    """What the catalog keeps of the last proof."""
    row = site.control.execute(
        "SELECT verified_at, verification FROM ops.backups WHERE backup_id = %s", (backup.backup_id,)
    ).fetchone()
    assert row is not None
    return row


def retell(site: Site, backup: Backup, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest so that its checksum in the catalog still holds: a backup that lies about its contents."""
    path = backup.path / "manifest.json"
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))
    site.control.execute(
        "UPDATE ops.backups SET manifest_sha256 = %s WHERE backup_id = %s", (sha256(path), backup.backup_id)
    )


def test_a_good_backup_is_proven_and_recorded(site: Site) -> None:
    made = site.backup()
    proof = site.verify(made)
    assert proof.failures == ()
    assert (proof.ok, proof.tables, proof.rows) == (True, made.tables, made.rows)
    row = record(site, made)
    assert row["verified_at"] == site.clock.now()
    suites = {suite["table"]: suite for suite in row["verification"]["expectations"]}
    assert set(suites) == {
        "billing.customers", "billing.subscriptions", "billing.payments", "billing.subscription_events",
        "billing.reward_entries",
    }  # fmt: skip
    assert all(suite["evaluated"] >= 2 and suite["failures"] == [] for suite in suites.values())
    assert list(site.scratch.iterdir()) == [], "the scratch cluster is gone"


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def append(path: Path) -> None:
    """Add a blank to the end of a file."""
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("damage", "phrase"),
    [
        (lambda b: flip(max((b.path / "dump").glob("*.gz"), key=lambda p: p.stat().st_size)), "another checksum"),
        (lambda b: (b.path / "dump" / "toc.dat").unlink(), "dump/toc.dat is missing"),
        (lambda b: (b.path / "dump" / "more").write_text("x"), "dump/more does not belong to the backup"),
        (lambda b: append(b.path / "dump" / "toc.dat"), "bytes instead of"),
        (lambda b: (b.path / "manifest.json").unlink(), "gone"),
        (lambda b: (b.path / "manifest.json").write_text("{"), "not JSON"),
        (lambda b: append(b.path / "manifest.json"), "not the one that the catalog knows"),
        (lambda b: b.path.rename(b.path.with_name("elsewhere")), "gone"),
    ],
)
def test_damaged_files_are_found(site: Site, damage: Callable[[Backup], object], phrase: str) -> None:
    made = site.backup()
    damage(made)
    proof = site.verify(made)
    assert not proof.ok
    assert phrase in proof.failures[0]
    assert record(site, made)["verified_at"] is None
    assert record(site, made)["verification"]["failures"] == list(proof.failures)


def lie(told: dict[str, Any]) -> None:
    """Tell something wrong of every table that a manifest tells of."""
    tables = told["contents"]["tables"]
    tables["billing.payments"]["rows"] -= 1
    tables["billing.subscriptions"]["content_hash"] += "1"
    del tables["billing.customers"]
    tables["billing.phantom"] = {"rows": 0, "content_hash": "0"}


@pytest.mark.parametrize(
    ("name", "told", "phrase"),
    [
        (
            "schema_fingerprint",
            "0" * 64,
            "the definitions of tables, constraints, indexes, triggers, functions or views differ",
        ),
        ("schemas", ["phantom"], "the schemas are"),
    ],
)
def test_a_restore_that_differs_from_the_manifest_is_found(site: Site, name: str, told: object, phrase: str) -> None:
    made = site.backup()
    retell(site, made, lie)
    retell(site, made, lambda manifest: manifest["contents"].update({name: told}))
    proof = site.verify(made)
    assert not proof.ok
    wrong = (
        "table billing.payments has 2000 rows instead of 1999",
        "table billing.subscriptions has other contents in its 200 rows",
        "table billing.customers should not be there",
        "table billing.phantom is missing",
        phrase,
    )
    # Each once, and nothing else.
    assert all(any(found.startswith(each) for found in proof.failures) for each in wrong), proof.failures
    assert len(proof.failures) == len(wrong)


def test_a_dump_that_cannot_be_restored_is_found_and_the_mark_of_an_earlier_proof_goes(site: Site) -> None:
    made = site.backup()
    assert site.verify(made).ok
    data = max((made.path / "dump").glob("*.gz"), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[:100])
    name = f"dump/{data.name}"
    retell(site, made, lambda told: told["files"].update({name: {"size": 100, "sha256": sha256(data)}}))
    proof = site.verify(made)
    assert proof.failures[0].startswith("it cannot be restored: ")
    assert find_backup(site.control, made.backup_id).verified_at is None


BREACHES = (
    "ALTER TABLE billing.reward_entries DISABLE TRIGGER ALL;"
    "INSERT INTO billing.reward_entries (customer_id, occurred_at, kind, amount_minor)"
    "SELECT customer_id, now(), 'spent', 501 FROM billing.customers WHERE customer_ref = 'c1'",
    "ALTER TABLE billing.payments DROP CONSTRAINT payments_amount_minor_check;"
    "UPDATE billing.payments SET amount_minor = -1 WHERE payment_ref IN ('p1', 'p2')",
    "ALTER TABLE billing.customers DROP CONSTRAINT customers_currency_check;"
    "INSERT INTO billing.customers (customer_ref, currency) VALUES ('odd', 'eur')",
    "ALTER TABLE billing.subscriptions DROP CONSTRAINT subscriptions_status_check;"
    "UPDATE billing.subscriptions SET status = 'lost' WHERE subscription_ref = 's4'",
    "SET session_replication_role = replica;"
    "DELETE FROM billing.subscriptions WHERE subscription_ref = 's3'; RESET session_replication_role;"
    "ALTER TABLE billing.subscription_events DROP CONSTRAINT subscription_events_subscription_id_fkey;"
    "ALTER TABLE billing.payments DROP CONSTRAINT payments_subscription_id_fkey",
)


def test_data_that_breaks_an_invariant_is_found(site: Site) -> None:
    for breach in BREACHES:
        site.billing.execute(breach.encode())
    proof = site.verify(site.backup())
    for phrase in (
        "billing.reward_entries: reward balances are not negative: 1 rows do not",
        "billing.payments: amounts are not negative: 2 rows do not",
        "billing.customers: currencies are ISO 4217 codes: 1 rows do not",
        "billing.subscriptions: statuses are known ones: 1 rows do not",
        "billing.subscription_events: events belong to subscriptions",
    ):
        assert [found for found in proof.failures if found.startswith(phrase)], (phrase, proof.failures)


def test_no_proof_here_is_no_verdict(site: Site, tmp_path: Path) -> None:
    made = site.backup()
    site.tools = tmp_path
    with pytest.raises(PermanentError, match=r"pg_restore is not in .*FLEXPAY_POSTGRES_BIN"):
        site.verify(made)
    assert record(site, made) == {"verified_at": None, "verification": None}


def test_an_unknown_backup_is_bad_input(site: Site) -> None:
    with pytest.raises(BadInput, match="There is no backup 'nothing'"):
        find_backup(site.control, "nothing")
    with pytest.raises(BadInput, match="There is no verified backup"):
        find_backup(site.control, None)
    assert list_backups(site.control) == ()
