"""Rolling back a component, and undoing that: archive, never delete; each step can be stopped and run again.

What belongs here: taking back what a component did to live rows. What does not: deciding that it must be
(`monitoring`), reverting its schema (`migrations`, on a person's order), restoring a backup (`backups`).
"""

from __future__ import annotations

from flexpay_pipelines.rollback.engine import RollbackResult, roll_back
from flexpay_pipelines.rollback.plan import Component, RollbackPlan, plan_rollback
from flexpay_pipelines.rollback.undo import UndoResult, list_rollbacks, plan_undo, undo_rollback

__all__ = [
    "Component",
    "RollbackPlan",
    "RollbackResult",
    "UndoResult",
    "list_rollbacks",
    "plan_rollback",
    "plan_undo",
    "roll_back",
    "undo_rollback",
]
