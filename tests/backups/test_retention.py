"""Old backups go, but never the newest nor the newest proven one; copies are equal to what they are copies of."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from flexpay_pipelines.backups import Backup, copy_offsite, list_backups, prune_backups
from flexpay_pipelines.backups.files import reading
from flexpay_pipelines.backups.manifest import damages
from flexpay_pipelines.errors import BadInput, CheckFailed, PermanentError
from tests.backups.helpers import Site


def copied(site: Site, backup: Backup) -> Path:
    """Copy a backup to the far folder."""
    return copy_offsite(
        site.control, backup.backup_id, folder=site.home / "far", clock=site.clock, progress=site.said.append
    )


def prune(site: Site, *, plan: bool = False) -> tuple[str, ...]:
    """Prune what is older than thirty days."""
    return prune_backups(
        site.control,
        folder=site.folder,
        offsite_folder=site.home / "far",
        retention_days=30,
        clock=site.clock,
        plan=plan,
    )


def mark_verified(site: Site, backup: Backup) -> None:
    """What a proof that passed writes."""
    site.control.execute(
        "UPDATE ops.backups SET verified_at = %s WHERE backup_id = %s", (site.clock.now(), backup.backup_id)
    )


def made_daily(site: Site, days: int) -> list[Backup]:
    """A backup each day, oldest first; the clock then stands at the last."""
    backups = []
    for _ in range(days):
        site.clock.advance(timedelta(days=1))
        backups.append(site.backup(kind="daily"))
    return backups


def test_what_is_older_than_the_retention_goes_with_its_copy_and_its_row_stays(site: Site) -> None:
    first, second, third = made_daily(site, 3)
    place = copied(site, first)
    site.clock.advance(timedelta(days=28))
    assert prune(site) == (), "thirty days to the second are not more than thirty days"
    site.clock.advance(timedelta(seconds=1))
    assert prune(site, plan=True) == (first.backup_id,)
    assert first.path.is_dir()
    assert prune(site) == (first.backup_id,)
    assert not first.path.exists()
    assert not place.exists()
    assert [b.backup_id for b in list_backups(site.control)] == [third.backup_id, second.backup_id]
    rows = {b.backup_id: b.pruned_at for b in list_backups(site.control, with_pruned=True)}
    assert rows[first.backup_id] == site.clock.now()
    assert prune(site) == ()


def test_the_newest_proven_and_the_newest_stay_however_old(site: Site) -> None:
    backups = made_daily(site, 4)
    mark_verified(site, backups[0])
    mark_verified(site, backups[1])
    site.clock.advance(timedelta(days=400))
    assert prune(site) == (backups[0].backup_id, backups[2].backup_id)
    assert {b.backup_id for b in list_backups(site.control)} == {backups[1].backup_id, backups[3].backup_id}


def test_the_only_one_stays(site: Site) -> None:
    (only,) = made_daily(site, 1)
    site.clock.advance(timedelta(days=400))
    assert prune(site) == ()
    assert damages(only.path, only.manifest_sha256) == ()


def test_a_newer_backup_whose_files_are_gone_does_not_cost_the_last_good_one(site: Site) -> None:
    good, lost = made_daily(site, 2)
    mark_verified(site, good)
    mark_verified(site, lost)
    shutil.rmtree(lost.path)
    site.clock.advance(timedelta(days=400))
    assert prune(site) == (lost.backup_id,)
    assert damages(good.path, good.manifest_sha256) == ()


def test_a_folder_that_is_not_mounted_costs_nothing(site: Site) -> None:
    made_daily(site, 3)
    site.clock.advance(timedelta(days=400))
    site.folder.rename(site.home / "unmounted")
    with pytest.raises(PermanentError, match=r"The backup folder .* is not there: mount it"):
        prune(site)
    assert len(list_backups(site.control)) == 3


def test_a_copy_out_of_reach_is_removed_when_it_is_back(site: Site) -> None:
    first, _second = made_daily(site, 2)
    place = copied(site, first)
    far = site.home / "far"
    far.rename(site.home / "unmounted")
    site.clock.advance(timedelta(days=400))
    assert prune(site) == (first.backup_id,)
    (site.home / "unmounted").rename(far)
    assert place.exists()
    assert prune(site) == ()
    assert not place.exists()


def test_a_backup_that_is_being_read_is_left_for_the_next_time(site: Site) -> None:
    first, _second = made_daily(site, 2)
    site.clock.advance(timedelta(days=400))
    with reading(first.path):
        assert prune(site) == ()
    assert prune(site) == (first.backup_id,)


def test_a_copy_is_equal_recorded_and_made_once(site: Site) -> None:
    made = site.backup()
    place = copied(site, made)
    assert damages(place, made.manifest_sha256) == ()
    (known,) = list_backups(site.control)
    assert (known.offsite_path, known.offsite_at) == (place, site.clock.now())
    inode = place.stat().st_ino
    assert copied(site, made) == place
    assert place.stat().st_ino == inode


def test_a_damaged_copy_is_made_again_and_a_damaged_backup_is_not_copied(site: Site) -> None:
    made = site.backup()
    place = copied(site, made)
    (place / "dump" / "toc.dat").write_bytes(b"")
    copied(site, made)
    assert damages(place, made.manifest_sha256) == ()
    other = site.backup()
    (other.path / "dump" / "toc.dat").write_bytes(b"")
    with pytest.raises(CheckFailed, match=r"is not equal to what was made \(dump/toc.dat has 0 bytes"):
        copied(site, other)
    assert list((site.home / "far").iterdir()) == [place]


def test_a_copy_into_the_same_folder_is_refused(site: Site) -> None:
    made = site.backup()
    with pytest.raises(BadInput, match="already lies"):
        copy_offsite(site.control, made.backup_id, folder=site.folder, clock=site.clock, progress=site.said.append)
    assert damages(made.path, made.manifest_sha256) == ()
