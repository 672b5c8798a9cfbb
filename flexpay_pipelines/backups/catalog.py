"""The catalog of backups in the control database, and where a backup's files lie.

What belongs here: rows of `ops.backups`. What does not: making, proving or removing what they stand for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from flexpay_pipelines.backups.files import PARTIAL, PRUNING, files_below, sha256
from flexpay_pipelines.backups.manifest import NAME, Manifest, read_manifest
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput, CheckFailed
from flexpay_pipelines.sql import queries


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup of the catalog. Sizes in bytes, instants in UTC; `verified_at` is null unless its last proof passed.

    `tables` and `rows` come from the manifest: null where its files cannot be read.
    """

    backup_id: str
    kind: str
    path: Path
    size_bytes: int
    started_at: datetime
    finished_at: datetime
    manifest_sha256: str
    tables: int | None = None
    rows: int | None = None
    verified_at: datetime | None = None
    offsite_at: datetime | None = None
    offsite_path: Path | None = None
    pruned_at: datetime | None = None


def list_backups(control: Connection, *, with_pruned: bool = False) -> tuple[Backup, ...]:
    """The catalog, newest first; without the backups that were pruned unless asked."""
    return tuple(_counted(_backup(row)) for row in queries("backups").backups(control, with_pruned=with_pruned))


def find_backup(control: Connection, backup_id: str | None) -> Backup:
    """A backup by its id, or the newest verified one.

    Raises:
        BadInput: there is none, or it was pruned.
    """
    if backup_id is None:
        row = queries("backups").newest_verified_backup(control)
        if row is None:
            raise BadInput("There is no verified backup: run flexpay backup verify, or name a backup.")
        return _backup(row)
    row = queries("backups").backup(control, backup_id=backup_id)
    if row is None:
        raise BadInput(f"There is no backup '{backup_id}': flexpay backup list shows those that there are.")
    if row["pruned_at"] is not None:
        raise BadInput(f"Backup {backup_id} was pruned at {row['pruned_at']:%Y-%m-%d %H:%M} UTC: choose a newer one.")
    return _backup(row)


def locate(backup: Backup, folder: Path | None = None) -> Path:
    """Where a backup's files lie: where they were made, else below `folder`, else in the copy elsewhere.

    Raises:
        CheckFailed: in none of these places.
    """
    places = [
        backup.path,
        *([folder / backup.backup_id] if folder else []),
        *([backup.offsite_path] if backup.offsite_path else []),
    ]
    for place in places:
        if (place / NAME).is_file():
            return place
    raise CheckFailed(
        f"The files of backup {backup.backup_id} are gone (looked in {', '.join(map(str, places))}): choose another."
    )


def record_backup(control: Connection, manifest: Manifest, path: Path) -> Backup:
    """Enter the finished backup at `path` into the catalog; once, however often it is called."""
    backup = Backup(
        backup_id=manifest.backup_id,
        kind=manifest.kind,
        path=path,
        size_bytes=sum((path / name).stat().st_size for name in files_below(path)),
        started_at=manifest.started_at,
        finished_at=manifest.finished_at,
        manifest_sha256=sha256(path / NAME),
        tables=manifest.tables,
        rows=manifest.rows,
    )
    queries("backups").record_backup(
        control,
        backup_id=backup.backup_id,
        kind=backup.kind,
        started_at=backup.started_at,
        finished_at=backup.finished_at,
        size_bytes=backup.size_bytes,
        path=str(backup.path),
        manifest_sha256=backup.manifest_sha256,
        server_version=manifest.server_version,
    )
    return backup


def adopt_backups(control: Connection, folder: Path) -> tuple[str, ...]:
    """Enter finished backups that the catalog does not know: their maker was killed just then, or it was lost."""
    known = {row["backup_id"] for row in queries("backups").known_backups(control)}
    adopted = []
    for place in sorted(path.parent for path in folder.glob(f"*/{NAME}")):
        if place.name in known or place.name.startswith((PARTIAL, PRUNING)):
            continue
        try:
            manifest = read_manifest(place)
        except CheckFailed:
            continue  # not one of ours, or damaged: left where it is, never entered
        if manifest.backup_id == place.name:
            record_backup(control, manifest, place)
            adopted.append(place.name)
    return tuple(adopted)


def _backup(row: dict[str, Any]) -> Backup:
    offsite = row["offsite_path"]
    return Backup(**{**row, "path": Path(row["path"]), "offsite_path": Path(offsite) if offsite else None})


def _counted(backup: Backup) -> Backup:
    try:
        manifest = read_manifest(locate(backup))
    except CheckFailed:
        return backup  # a listing shows what is known; verify says what is wrong
    return replace(backup, tables=manifest.tables, rows=manifest.rows)
