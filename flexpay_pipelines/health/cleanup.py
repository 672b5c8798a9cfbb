"""The weekly clean-up: what nobody reads any more goes, what is history stays.

What belongs here: removing old tick records, settled deliveries and log files. What does not: backups (they have a
retention of their own), the audit log, incidents and the ledger (they are kept for ever).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import disk_errors
from flexpay_pipelines.sql import queries

KEEP = timedelta(days=90)
BATCH = 10_000


@dataclass(frozen=True, slots=True)
class CleanUp:
    """What was removed.

    Attributes:
        decisions: healthy ticks of sensors; those that led to anything are kept.
        deliveries: alert deliveries that were made.
        files: log files of runs; `bytes` their size.
    """

    decisions: int
    deliveries: int
    files: int
    bytes: int


def clean_up(
    control: Connection, *, logs: Path, clock: Clock, progress: Callable[[str], None], keep: timedelta = KEEP
) -> CleanUp:
    """Remove what is older than `keep`, in batches; killed at any point, the next run goes on.

    Raises:
        PermanentError: a log file may not be removed.
    """
    before = clock.now() - keep
    sql = queries("health")
    decisions = _in_batches(lambda: sql.remove_old_decisions(control, before=before, batch_size=BATCH))
    progress(f"{decisions} healthy ticks from before {before:%Y-%m-%d} removed.")
    deliveries = _in_batches(lambda: sql.remove_old_deliveries(control, before=before, batch_size=BATCH))
    progress(f"{deliveries} settled alert deliveries removed.")
    files, size = _remove_files(logs, before.timestamp())
    progress(f"{files} log files ({size / 1e6:.1f} MB) removed.")
    return CleanUp(decisions, deliveries, files, size)


def _in_batches(remove: Callable[[], int]) -> int:
    removed = 0
    while batch := remove():
        removed += batch
    return removed


def _remove_files(folder: Path, before: float) -> tuple[int, int]:
    files = size = 0
    with disk_errors("removing old log files"):
        for parent, _, names in os.walk(folder):
            for name in names:
                path = Path(parent) / name
                facts = path.lstat()
                if facts.st_mtime < before:
                    path.unlink(missing_ok=True)
                    files, size = files + 1, size + facts.st_size
    return files, size
