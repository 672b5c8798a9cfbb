"""Backups of the billing database: made at one snapshot, proven by a restore, copied elsewhere, pruned, restored.

What belongs here: the life of a backup from pg_dump to the swap of a restored database. What does not: when it runs
(`defs`), the control database's own backup, PostgreSQL's life on this machine (`sandbox`).
Backups are logical for now; the manifest's `method` is where physical ones will tell themselves apart.
"""

from flexpay_pipelines.backups.catalog import Backup, adopt_backups, find_backup, list_backups
from flexpay_pipelines.backups.creation import KINDS, create_backup
from flexpay_pipelines.backups.offsite import copy_offsite
from flexpay_pipelines.backups.restoration import (
    Restore,
    RestorePlan,
    kept_databases,
    plan_restore,
    restore_backup,
    swap_back,
)
from flexpay_pipelines.backups.retention import prune_backups
from flexpay_pipelines.backups.verification import Verification, verify_backup

__all__ = [
    "KINDS",
    "Backup",
    "Restore",
    "RestorePlan",
    "Verification",
    "adopt_backups",
    "copy_offsite",
    "create_backup",
    "find_backup",
    "kept_databases",
    "list_backups",
    "plan_restore",
    "prune_backups",
    "restore_backup",
    "swap_back",
    "verify_backup",
]
