"""The manifest of a backup: what it holds, from where, made by what, and the checksum of each of its files.

What belongs here: its fields, its JSON form, comparing it with the files. What does not: comparing it with a database
(`contents`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flexpay_pipelines.backups.contents import Contents, TableContent
from flexpay_pipelines.backups.files import files_below, sha256
from flexpay_pipelines.errors import CheckFailed

FORMAT = 1
LOGICAL = "logical"
NAME = "manifest.json"
DUMP = "dump"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a backup: size in bytes, SHA-256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup is. `method` tells how it was made: `logical` is a pg_dump directory in `dump/`."""

    backup_id: str
    kind: str
    method: str
    actor: str
    database: str
    started_at: datetime
    finished_at: datetime
    server_version: str
    server_major: int
    tool_version: str
    tool_major: int
    database_bytes: int
    encoding: str
    lc_collate: str
    lc_ctype: str
    provider: str
    locale: str | None
    roles: tuple[str, ...]
    contents: Contents
    files: Mapping[str, FileEntry]

    @property
    def tables(self) -> int:
        """How many tables it holds."""
        return len(self.contents.tables)

    @property
    def rows(self) -> int:
        """How many rows it holds in all."""
        return sum(table.rows for table in self.contents.tables.values())


def entries(folder: Path) -> dict[str, FileEntry]:
    """Each file of a backup's folder but the manifest itself."""
    names = [name for name in files_below(folder) if name != NAME]
    return {name: FileEntry((folder / name).stat().st_size, sha256(folder / name)) for name in names}


def write_manifest(manifest: Manifest, folder: Path) -> str:
    """Write `manifest.json`; return its SHA-256, which the catalog keeps."""
    record = asdict(manifest) | {
        "format": FORMAT,
        "started_at": manifest.started_at.isoformat(),
        "finished_at": manifest.finished_at.isoformat(),
    }
    (folder / NAME).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return sha256(folder / NAME)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a backup's folder.

    Raises:
        CheckFailed: it is missing, not readable, or of a newer format.
    """
    try:
        record: dict[str, Any] = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckFailed(f"{folder.name} is damaged: {NAME} is missing.") from None
    except ValueError:
        raise CheckFailed(f"{folder.name} is damaged: {NAME} is not JSON.") from None
    try:
        known = record.pop("format")
        if known != FORMAT:
            raise CheckFailed(
                f"{folder.name} has a manifest of format {known}: restore it with the release that made it."
            )
        contents = record.pop("contents")
        return Manifest(
            started_at=datetime.fromisoformat(record.pop("started_at")),
            finished_at=datetime.fromisoformat(record.pop("finished_at")),
            roles=tuple(record.pop("roles")),
            contents=Contents(
                schemas=tuple(contents["schemas"]),
                schema_fingerprint=contents["schema_fingerprint"],
                tables={name: TableContent(**table) for name, table in contents["tables"].items()},
            ),
            files={name: FileEntry(**entry) for name, entry in record.pop("files").items()},
            **record,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckFailed(f"{folder.name} is damaged: {NAME} does not hold what it should ({error}).") from error


def damages(folder: Path, manifest_sha256: str) -> tuple[str, ...]:
    """Each way in which the files of a backup differ from its manifest and its manifest from the catalog."""
    if not folder.is_dir():
        return (f"{folder} is not there",)
    try:
        manifest = read_manifest(folder)
    except CheckFailed as failure:
        return (str(failure).rstrip("."),)
    found = []
    if sha256(folder / NAME) != manifest_sha256:
        found.append(f"{NAME} is not the one that the catalog knows")
    present = set(files_below(folder)) - {NAME}
    found += [f"{name} is missing" for name in sorted(set(manifest.files) - present)]
    found += [f"{name} does not belong to the backup" for name in sorted(present - set(manifest.files))]
    for name in sorted(present & set(manifest.files)):
        entry = manifest.files[name]
        size = (folder / name).stat().st_size
        if size != entry.size:
            found.append(f"{name} has {size} bytes instead of {entry.size}")
        elif sha256(folder / name) != entry.sha256:
            found.append(f"{name} has another checksum than when it was made")
    return tuple(found)
