"""What a restore refuses, and that the live database is left alone when it does."""

from __future__ import annotations

import json
import shutil

import pytest

from flexpay_pipelines.backups import Backup, prune_backups
from flexpay_pipelines.backups.files import sha256
from flexpay_pipelines.database import advisory_lock, opened
from flexpay_pipelines.errors import BadInput, CheckFailed, TransientError
from tests.backups.helpers import Site, spoiled, untouched


def test_refusals_leave_the_live_database_alone(site: Site, control_url: str) -> None:
    made = spoiled(site)
    with pytest.raises(BadInput, match="There is no backup 'x'"):
        site.restore("x")
    with pytest.raises(BadInput, match="There is no verified backup"):
        site.restore()
    with pytest.raises(BadInput, match="is the control database"):
        site.restore(made.backup_id, billing_url=control_url)
    with (
        opened(site.beside("postgres"), purpose="test") as other,
        advisory_lock(other, f"restore of {site.database}"),
        pytest.raises(TransientError, match="Another process is at 'restore of"),
    ):
        site.restore(made.backup_id)
    (made.path / "dump" / "toc.dat").write_bytes(b"")
    with pytest.raises(CheckFailed, match=r"is damaged \(dump/toc.dat has 0 bytes instead of \d+\): choose another"):
        site.restore(made.backup_id)
    shutil.rmtree(made.path)
    with pytest.raises(CheckFailed, match="are gone"):
        site.restore(made.backup_id)
    assert untouched(site)


def retold(site: Site, made: Backup, old: str, new: str) -> None:
    """Change the manifest, and its checksum in the catalog with it."""
    path = made.path / "manifest.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    site.control.execute("UPDATE ops.backups SET manifest_sha256 = %s", (sha256(path),))


def test_a_restore_that_differs_from_its_manifest_is_not_swapped_in(site: Site) -> None:
    made = spoiled(site)
    retold(site, made, '"rows": 2000', '"rows": 2001')
    with pytest.raises(
        CheckFailed, match=r"billing.payments has 2000 rows instead of 2001\): the live database was not"
    ):
        site.restore(made.backup_id)
    assert untouched(site)


def test_a_server_without_room_is_refused(site: Site) -> None:
    made = spoiled(site)
    size = json.loads((made.path / "manifest.json").read_text())["database_bytes"]
    retold(site, made, f'"database_bytes": {size}', f'"database_bytes": {10**17}')
    with pytest.raises(TransientError, match=r"bytes free and the restore needs about 100,000,000,000,000,000"):
        site.restore(made.backup_id)
    assert untouched(site)


def test_a_server_without_a_role_of_the_backup_is_refused(site: Site) -> None:
    made = spoiled(site)
    retold(site, made, '"roles": [', '"roles": ["ledger_clerk", ')
    with pytest.raises(BadInput, match="has no role ledger_clerk: create it first"):
        site.restore(made.backup_id)
    assert untouched(site)


def test_a_pruned_backup_is_refused(site: Site) -> None:
    made = spoiled(site)
    site.clock.instant = site.clock.instant.replace(year=2027)
    site.backup()
    given = {"folder": site.folder, "offsite_folder": None, "retention_days": 30, "clock": site.clock}
    assert prune_backups(site.control, **given) == (made.backup_id,)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"was pruned at 2027-11-22 03:00 UTC"):
        site.restore(made.backup_id)
    assert untouched(site)
