"""The proof that a backup is one: restored for real into a scratch cluster and compared with its manifest.

What belongs here: the steps of the proof and its record. What does not: the suites of expectations (`expectations`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from flexpay_pipelines.backups.catalog import Backup, find_backup, locate
from flexpay_pipelines.backups.contents import database_errors, differences, frozen_view, read_contents
from flexpay_pipelines.backups.expectations import SuiteResult, check_expectations
from flexpay_pipelines.backups.files import reading, staging, sweep
from flexpay_pipelines.backups.manifest import DUMP, Manifest, damages, read_manifest
from flexpay_pipelines.backups.tools import Tools
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.errors import CheckFailed, PermanentError, disk_errors
from flexpay_pipelines.sandbox import Cluster, embedded_bin, scratch_cluster
from flexpay_pipelines.sql import queries

_DATABASE = "restored"


@dataclass(frozen=True, slots=True)
class Verification:
    """How a proof ended: tables and rows found after the restore, a phrase for each thing that was wrong."""

    ok: bool
    tables: int
    rows: int
    seconds: float
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Proof:
    tables: int
    rows: int
    failures: tuple[str, ...]
    suites: tuple[SuiteResult, ...] = ()


def verify_backup(
    control: Connection,
    backup_id: str,
    *,
    scratch_folder: Path,
    clock: Clock,
    progress: Callable[[str], None],
    bin_folder: Path | None = None,
) -> Verification:
    """Prove a backup by restoring it, and record the outcome; a backup that fails its proof gives `ok=False`.

    Raises:
        BadInput: there is no such backup, or it was pruned.
        TransientError, PermanentError: no proof could be made here (full disk, missing tools): nothing is recorded.
    """
    begun = time.monotonic()
    backup = find_backup(control, backup_id)
    with disk_errors(f"verifying backup {backup_id}"):
        proof = _prove(backup, scratch_folder.resolve(), progress, Tools(bin_folder or embedded_bin()))
    outcome = Verification(
        not proof.failures, proof.tables, proof.rows, round(time.monotonic() - begun, 3), proof.failures
    )
    record = asdict(outcome) | {
        "checked_at": clock.now().isoformat(),
        "expectations": [asdict(suite) for suite in proof.suites],
    }
    queries("backups").record_verification(
        control, backup_id=backup_id, verified_at=clock.now() if outcome.ok else None, verification=json.dumps(record)
    )
    if outcome.ok:
        progress(
            f"Backup {backup_id} is proven: {outcome.tables} tables and {outcome.rows:,} rows restored and compared."
        )
    else:
        progress(f"Backup {backup_id} FAILED its proof: {'; '.join(outcome.failures)}.")
    return outcome


def _prove(backup: Backup, scratch: Path, progress: Callable[[str], None], tools: Tools) -> _Proof:
    try:
        place = locate(backup)
    except CheckFailed as failure:
        return _Proof(0, 0, (str(failure).rstrip("."),))
    with reading(place):
        progress(f"Checking the checksums of {backup.backup_id}.")
        found = damages(place, backup.manifest_sha256)
        if found:
            return _Proof(0, 0, found)
        manifest = read_manifest(place)
        tools.at_least("pg_restore", manifest.tool_major, f"read a dump made by pg_dump {manifest.tool_major}")
        tools.at_least("postgres", manifest.server_major, f"hold a backup of PostgreSQL {manifest.server_major}")
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(scratch, first=lambda left: _stop_clusters(left, tools))
        with staging(scratch, backup.backup_id) as folder, scratch_cluster(folder, bin_folder=tools.folder) as cluster:
            return _restore_and_compare(place, manifest, cluster, progress, tools)


def _restore_and_compare(
    place: Path, manifest: Manifest, cluster: Cluster, progress: Callable[[str], None], tools: Tools
) -> _Proof:
    progress("Restoring it into a scratch cluster.")
    url = cluster.url(_DATABASE)
    with database_errors("making a scratch database"), opened(cluster.url(), purpose="verification") as server:
        server.execute(f"CREATE DATABASE {_DATABASE} TEMPLATE template0 ENCODING 'UTF8'")
        server_major = queries("backups").server_version(server)["major"]
    try:
        # Roles belong to a server, not to a database: a scratch cluster has none but its own.
        tools.restore(
            place / DUMP,
            url,
            server_major=server_major,
            options=("--no-owner", "--no-privileges", "--no-security-labels"),
        )
    except PermanentError as failure:
        return _Proof(0, 0, (f"it cannot be restored: {str(failure).rstrip('.')}",))
    progress("Comparing rows, contents and schema with the manifest.")
    with database_errors("comparing the restored backup"), opened(url, purpose="verification") as restored:
        with frozen_view(restored):
            contents = read_contents(restored)
        suites = check_expectations(url, contents.tables, progress)
    failures = differences(manifest.contents, contents) + tuple(f for suite in suites for f in suite.failures)
    return _Proof(len(contents.tables), sum(t.rows for t in contents.tables.values()), failures, suites)


def _stop_clusters(left: Path, tools: Tools) -> None:
    """Stop the scratch cluster of a proof whose process was killed."""
    for folder in left.iterdir():
        Cluster(folder, bin_folder=tools.folder).destroy()
