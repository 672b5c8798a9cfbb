"""Restoring a backup over the live database, so that at any instant the live one is the old or the new one in full.

What belongs here: the restore, its plan, its undo. What does not: the statements over whole databases (`databases`).

The backup is loaded into a database beside the live one and compared with its manifest; then both are renamed in one
transaction. The database of before is kept under a dated name, so that nothing is lost and the restore can be undone.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flexpay_pipelines.backups.catalog import Backup, find_backup, locate
from flexpay_pipelines.backups.contents import database_errors, differences, frozen_view, read_contents
from flexpay_pipelines.backups.databases import (
    KEPT,
    RESTORING,
    Locale,
    beside,
    beside_name,
    create_like,
    drop,
    name_of,
    names_beside,
    not_the_same,
    swap,
)
from flexpay_pipelines.backups.files import reading
from flexpay_pipelines.backups.manifest import DUMP, Manifest, damages, read_manifest
from flexpay_pipelines.backups.tools import Tools
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection, advisory_lock, describe, opened, with_database
from flexpay_pipelines.errors import BadInput, CheckFailed, TransientError, disk_errors
from flexpay_pipelines.sandbox import embedded_bin
from flexpay_pipelines.sql import queries

# The group that our own migration makes: a server that is new gets it with the first restore.
ANALYSTS = "flexpay_analyst"


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a restore would do. Sizes in bytes; `free_bytes` is null where the server's disk is not on this machine."""

    backup: Backup
    source: Path
    database: str
    database_exists: bool
    sessions: int
    needs_bytes: int
    free_bytes: int | None
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Restore:
    """A restore that was made. `kept_database` is the name of the database of before; empty if there was none."""

    backup_id: str
    seconds: float
    tables: int
    rows: int
    kept_database: str


def plan_restore(
    control: Connection, backup_id: str | None, billing_url: str, *, backup_folder: Path | None = None
) -> RestorePlan:
    """What restoring this backup, or the newest verified one, would do; nothing is changed.

    Raises:
        BadInput: the backup is unknown or pruned, a role is missing on the server, the control database would be hit.
        CheckFailed: the backup is damaged or its files are gone.
        TransientError: the server's disk lacks space.
        DatabaseUnavailable: the server cannot be reached.
    """
    backup = find_backup(control, backup_id)
    source = locate(backup, backup_folder)
    with reading(source), disk_errors(f"reading {source}"):
        found = damages(source, backup.manifest_sha256)
        if found:
            raise CheckFailed(f"Backup {backup.backup_id} is damaged ({'; '.join(found)}): choose another one.")
        manifest = read_manifest(source)
    name = name_of(billing_url)
    with beside(billing_url) as server, database_errors(f"planning the restore of {describe(billing_url)}"):
        not_the_same(control, server, name)
        missing = [role for role in _missing_roles(server, manifest) if role != ANALYSTS]
        if missing:
            raise BadInput(f"The server of {describe(billing_url)} has no role {', '.join(missing)}: create it first.")
        exists = queries("backups").database(server, name=name) is not None
        sessions = queries("backups").connections_to(server, name=name)
        free = _free_bytes(server)
    if free is not None and free < manifest.database_bytes:
        raise TransientError(
            f"The server's disk has {free:,} bytes free and the restore needs about {manifest.database_bytes:,}: "
            "free some space and run it again; nothing was changed."
        )
    steps = [
        f"restore {manifest.tables} tables and {manifest.rows:,} rows of {backup.backup_id} beside {name}",
        "compare row counts, content hashes and schema with the manifest",
        f"end {sessions} sessions of {name}" if exists else f"make {name}, which is not there",
        *([f"keep today's database as {name}{KEPT}<time> and put the restored one in its place"] if exists else []),
        f"what was written after {backup.started_at:%Y-%m-%d %H:%M:%S} UTC stays in the kept database only",
    ]
    return RestorePlan(backup, source, name, exists, sessions, manifest.database_bytes, free, tuple(steps))


def restore_backup(
    control: Connection,
    backup_id: str | None,
    *,
    billing_url: str,
    clock: Clock,
    progress: Callable[[str], None],
    actor: str,
    backup_folder: Path | None = None,
    bin_folder: Path | None = None,
) -> Restore:
    """Restore a backup, or the newest verified one, over the billing database; see the module for how.

    Raises:
        BadInput, CheckFailed, TransientError, DatabaseUnavailable: as `plan_restore`; the live database is untouched.
        CheckFailed: what was restored is not what the manifest says; the live database is untouched.
        TransientError: another restore is at work, or sessions cannot be ended; the live database is untouched.
        PermanentError: pg_restore is missing, too old, or fails; the live database is untouched.
    """
    begun = time.monotonic()
    plan = plan_restore(control, backup_id, billing_url, backup_folder=backup_folder)
    progress(f"Backup {plan.backup.backup_id} is whole: every checksum holds.")
    tools = Tools(bin_folder or embedded_bin())
    live = plan.database
    what = f"restoring {describe(billing_url)}"
    with reading(plan.source), disk_errors(what), database_errors(what), beside(billing_url) as server:
        manifest = read_manifest(plan.source)
        tools.at_least("pg_restore", manifest.tool_major, f"read a dump made by pg_dump {manifest.tool_major}")
        with advisory_lock(server, f"restore of {live}"):
            for left in names_beside(server, live, RESTORING):
                drop(server, left)
                progress(f"Dropped {left}, left behind by a restore that was killed.")
            if ANALYSTS in _missing_roles(server, manifest):
                queries("backups").create_analysts(server)
            at = clock.now()
            new = beside_name(live, RESTORING, at)
            try:
                progress(f"Restoring {manifest.tables} tables into {new}.")
                create_like(server, new, live=live, fallback=_locale(manifest))
                server_major = queries("backups").server_version(server)["major"]
                tools.restore(plan.source / DUMP, with_database(billing_url, new), server_major=server_major)
                _compare(with_database(billing_url, new), manifest)
                progress("The restored database equals the manifest: rows, contents, schema.")
                kept = beside_name(live, KEPT, at, names_beside(server, live, KEPT))
                remark = f"Replaced at {at:%Y-%m-%d %H:%M:%S} UTC by backup {manifest.backup_id}, restored by {actor}"
                existed = queries("backups").database(server, name=live) is not None
                swap(server, live=live, new=new, kept=kept, remark=remark)
            finally:
                if not server.closed:
                    drop(server, new)  # its name is free once it has been swapped in
    if existed:
        progress(f"{live} is now backup {manifest.backup_id}; the database of before is kept as {kept}.")
    else:
        progress(f"{live} was not there; it is now backup {manifest.backup_id}.")
    return Restore(
        manifest.backup_id, time.monotonic() - begun, manifest.tables, manifest.rows, kept if existed else ""
    )


def swap_back(
    control: Connection,
    *,
    billing_url: str,
    kept_database: str,
    clock: Clock,
    progress: Callable[[str], None],
    actor: str,
) -> str:
    """Undo a restore: the kept database becomes the live one again; return the name that the other one is kept under.

    Raises:
        BadInput: there is no such kept database; the message lists those that there are.
        TransientError: a restore is at work, or sessions cannot be ended; nothing was changed.
    """
    live = name_of(billing_url)
    what = f"swapping {describe(billing_url)} back"
    with beside(billing_url) as server, database_errors(what), advisory_lock(server, f"restore of {live}"):
        not_the_same(control, server, live)
        present = names_beside(server, live, KEPT)
        if kept_database not in present:
            raise BadInput(
                f"There is no kept database '{kept_database}' beside {live}: "
                + (f"there is {', '.join(present)}." if present else "no restore has left one.")
            )
        at = clock.now()
        kept = beside_name(live, KEPT, at, present)
        swap(
            server, live=live, new=kept_database, kept=kept,
            remark=f"Replaced at {at:%Y-%m-%d %H:%M:%S} UTC by {kept_database}, swapped back by {actor}",
        )  # fmt: skip
    progress(f"{live} is again what {kept_database} was; the database of before is kept as {kept}.")
    return kept


def kept_databases(billing_url: str) -> tuple[str, ...]:
    """The databases that restores have kept beside the live one, newest first."""
    with beside(billing_url) as server:
        return names_beside(server, name_of(billing_url), KEPT)


def _missing_roles(server: Connection, manifest: Manifest) -> list[str]:
    return [row["role_name"] for row in queries("backups").missing_roles(server, roles=list(manifest.roles))]


def _locale(manifest: Manifest) -> Locale:
    return Locale(manifest.encoding, manifest.lc_collate, manifest.lc_ctype, manifest.provider, manifest.locale)


def _compare(url: str, manifest: Manifest) -> None:
    with opened(url, purpose="restore") as restored:
        with frozen_view(restored):
            found = differences(manifest.contents, read_contents(restored))
        if found:
            raise CheckFailed(
                f"What was restored is not what {manifest.backup_id} recorded ({'; '.join(found)}): "
                "the live database was not touched; choose another backup."
            )
        # A dump carries no statistics: without them the first queries after the swap would be planned blindly.
        restored.execute("ANALYZE")


def _free_bytes(server: Connection) -> int | None:
    """Free space of the server's disk, where it is on this machine: it is reached by a socket."""
    if not server.info.host.startswith("/"):
        return None
    folder = queries("backups").data_directory(server)
    if folder is None or not Path(folder).is_dir():
        return None
    try:
        return shutil.disk_usage(folder).free
    except PermissionError:
        return None
