"""Making a backup: pg_dump at one exported snapshot, with counts and hashes of the same instant, complete or not there.

What belongs here: the steps from a live database to a row in the catalog. What does not: proving it (`verification`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flexpay_pipelines.backups.catalog import Backup, adopt_backups, record_backup
from flexpay_pipelines.backups.contents import LOCK_WAIT, Contents, database_errors, frozen_view, read_contents
from flexpay_pipelines.backups.files import publish, staging, sweep
from flexpay_pipelines.backups.manifest import DUMP, LOGICAL, Manifest, entries, write_manifest
from flexpay_pipelines.backups.tools import JOBS, Tools
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection, describe, opened
from flexpay_pipelines.errors import BadInput, disk_errors
from flexpay_pipelines.sandbox import embedded_bin
from flexpay_pipelines.sql import queries

KINDS = ("daily", "pre_deploy", "manual", "pre_restore")


def create_backup(
    billing_url: str,
    control: Connection,
    *,
    folder: Path,
    kind: str,
    clock: Clock,
    progress: Callable[[str], None],
    bin_folder: Path | None = None,
    actor: str,
) -> Backup:
    """Back the billing database up into `folder/<backup_id>` and enter it into the catalog.

    Args:
        kind: `daily`, `pre_deploy`, `manual` or `pre_restore`.
        bin_folder: the folder of pg_dump; unset: the embedded one.

    Raises:
        BadInput: an unknown kind.
        DatabaseUnavailable: the billing database cannot be reached.
        TransientError: the disk is full, a deploy holds its locks; nothing is left behind.
        PermanentError: pg_dump is missing, older than the server, or fails; nothing is left behind.
    """
    if kind not in KINDS:
        raise BadInput(f"'{kind}' is not a kind of backup: it is one of {', '.join(KINDS)}.")
    tools = Tools(bin_folder or embedded_bin())
    what = f"backing up {describe(billing_url)}"
    with opened(billing_url, purpose="backup") as billing, database_errors(what), disk_errors(what):
        server = queries("backups").server_version(billing)
        tools.at_least("pg_dump", server["major"], f"back up a PostgreSQL {server['major']} server")
        folder = folder.resolve()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in sweep(folder):
            progress(f"Removed {name}, left behind by a process that was killed.")
        for name in adopt_backups(control, folder):
            progress(f"Entered {name} into the catalog: it was finished but not recorded.")

        started_at = clock.now()
        backup_id = f"{started_at:%Y%m%dT%H%M%SZ}-{kind}-{secrets.token_hex(3)}"
        with staging(folder, backup_id) as partial:
            contents, facts, roles = _dump(tools, billing, billing_url, partial, progress)
            manifest = Manifest(
                backup_id=backup_id,
                kind=kind,
                method=LOGICAL,
                actor=actor,
                database=describe(billing_url),
                started_at=started_at,
                finished_at=clock.now(),
                server_version=server["version"],
                server_major=server["major"],
                tool_version=tools.version("pg_dump"),
                tool_major=tools.major("pg_dump"),
                database_bytes=facts["bytes"],
                **{name: facts[name] for name in ("encoding", "lc_collate", "lc_ctype", "provider", "locale")},
                roles=roles,
                contents=contents,
                files=entries(partial),
            )
            write_manifest(manifest, partial)
            publish(partial, folder / backup_id)
            # Still locked: the next process does not take it for one that was forgotten.
            backup = record_backup(control, manifest, folder / backup_id)
    progress(f"Backup {backup_id}: {manifest.tables} tables, {manifest.rows:,} rows, {backup.size_bytes:,} bytes.")
    return backup


def _dump(
    tools: Tools, billing: Connection, billing_url: str, partial: Path, progress: Callable[[str], None]
) -> tuple[Contents, dict[str, Any], tuple[str, ...]]:
    with frozen_view(billing) as snapshot:
        progress(f"Dumping {describe(billing_url)} at one snapshot and counting what it holds.")
        arguments = (
            "--format=directory", f"--jobs={JOBS}", "--compress=1", f"--snapshot={snapshot}",
            f"--lock-wait-timeout={LOCK_WAIT}", f"--file={partial / DUMP}",
        )  # fmt: skip
        with tools.started("pg_dump", *arguments, url=billing_url) as finish:
            contents = read_contents(billing)
            facts = queries("backups").database_facts(billing)
            roles = tuple(row["role_name"] for row in queries("backups").roles_used(billing))
            finish()
    return contents, facts, roles
