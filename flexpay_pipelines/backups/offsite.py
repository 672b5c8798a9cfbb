"""The copy of a backup in another place.

What belongs here: copying and comparing. What does not: removing copies (`retention`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from flexpay_pipelines.backups.catalog import find_backup
from flexpay_pipelines.backups.files import publish, reading, remove, staging, sweep
from flexpay_pipelines.backups.manifest import damages
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput, CheckFailed, disk_errors
from flexpay_pipelines.sql import queries


def copy_offsite(
    control: Connection, backup_id: str, *, folder: Path, clock: Clock, progress: Callable[[str], None]
) -> Path:
    """Copy a backup into `folder/<backup_id>`, compare every checksum of the copy, record it; again is no more work.

    Raises:
        BadInput: there is no such backup, it was pruned, or `folder` is where it already lies.
        CheckFailed: the backup or its copy is damaged; no copy is left behind.
        TransientError: the disk is full; no copy is left behind.
    """
    backup = find_backup(control, backup_id)
    folder = folder.resolve()
    final = folder / backup_id
    if final == backup.path:
        raise BadInput(
            f"{folder} is where backup {backup_id} already lies: set FLEXPAY_BACKUP_OFFSITE_FOLDER to another place."
        )
    with disk_errors(f"copying backup {backup_id}"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(folder)
        if final.exists() and damages(final, backup.manifest_sha256):
            progress(f"The copy in {final} is damaged and is made again.")
            remove(final)
        if not final.exists():
            _copy(backup.path, final, backup.manifest_sha256)
    queries("backups").record_offsite(control, backup_id=backup_id, offsite_at=clock.now(), offsite_path=str(final))
    progress(f"Backup {backup_id} is copied to {final}, every checksum equal.")
    return final


def _copy(source: Path, final: Path, manifest_sha256: str) -> None:
    if not source.is_dir():
        raise CheckFailed(f"The files of backup {source.name} are gone (looked in {source}): copy another one.")
    with reading(source), staging(final.parent, final.name) as partial:
        shutil.copytree(source, partial, dirs_exist_ok=True)
        wrong = damages(partial, manifest_sha256)
        if wrong:
            raise CheckFailed(
                f"The copy of {source.name} is not equal to what was made ({'; '.join(wrong)}): verify the backup."
            )
        publish(partial, final)
