"""How long backups are kept, and removing those past it.

What belongs here: which backups may go, and taking them away so that a kill leaves no lie in the catalog.
What does not: when that runs.
"""

from __future__ import annotations

import fcntl
from datetime import timedelta
from pathlib import Path

from flexpay_pipelines.backups.catalog import list_backups
from flexpay_pipelines.backups.files import held, remove, sweep
from flexpay_pipelines.backups.manifest import NAME
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import PermanentError, disk_errors
from flexpay_pipelines.sql import queries


def prune_backups(
    control: Connection,
    *,
    folder: Path,
    offsite_folder: Path | None,
    retention_days: int,
    clock: Clock,
    plan: bool = False,
) -> tuple[str, ...]:
    """Remove backups that ended more than `retention_days` ago, with their copies; return their ids, oldest first.

    Never the newest one nor the newest verified one (of those whose files are there). A row stays, with `pruned_at`.
    A backup in use is left for the next time. With `plan`, nothing is changed.

    Raises:
        PermanentError: the folder is not there, or files cannot be removed.
    """
    if not folder.is_dir():
        raise PermanentError(f"The backup folder {folder} is not there: mount it, or set FLEXPAY_BACKUP_FOLDER.")
    before = clock.now() - timedelta(days=retention_days)
    due = queries("backups").prunable_backups(control, before=before, keep=_protected(control))
    if plan:
        return tuple(row["backup_id"] for row in due)
    pruned = []
    with disk_errors("removing old backups"):
        for row in list(due):
            # The catalog gives a backup up before its files go: it never promises what is half removed.
            if not _in_use(Path(row["path"])) and queries("backups").record_pruned(
                control, backup_id=row["backup_id"], pruned_at=clock.now(), before=before
            ):
                pruned.append(row["backup_id"])
        _remove_files(control)
        for place in (folder, offsite_folder):
            if place is not None and place.is_dir():
                sweep(place)
    return tuple(pruned)


def _protected(control: Connection) -> list[str]:
    there = [b for b in list_backups(control) if (b.path / NAME).is_file()]
    newest = [b.backup_id for b in there[:1]]
    verified = [b.backup_id for b in there if b.verified_at is not None][:1]
    return newest + verified


def _remove_files(control: Connection) -> None:
    """Remove what is left of every backup given up just now, or by a run that was killed or found no mount."""
    for row in queries("backups").pruned_backups(control):
        for place in (row["path"], row["offsite_path"]):
            if place is not None and Path(place).is_dir() and not _in_use(Path(place)):
                remove(Path(place))


def _in_use(place: Path) -> bool:
    if not place.is_dir():
        return False
    try:
        with held(place, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
    except BlockingIOError:
        return True
