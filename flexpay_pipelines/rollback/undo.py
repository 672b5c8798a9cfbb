"""Undoing a rollback: every subject that is still as the rollback left it gets back what it had.

A subject counts as changed where what the rollback set has another value now (its terms, its pause); that a payment or
a Stripe event has touched the row since is no reason to keep the customer from what they had chosen.

What belongs here: the way back from a rollback. What does not: rolling back (`engine`), putting a schema back
(`migrations`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.rollback.batches import BATCH_SIZE, Progress, alone, explained, one_pass
from flexpay_pipelines.rollback.plan import COMPLETE, affected_components
from flexpay_pipelines.sql import queries


@dataclass(frozen=True, slots=True)
class UndoResult:
    """What an undo restored, and what it left alone.

    Attributes:
        restored: number by subject (`subscription`, `frequency_change`, `pause`, `reward_balance`, `feature`).
        left_alone: number by "subject: reason".
    """

    restored: dict[str, int]
    left_alone: dict[str, int]


def undo_rollback(
    billing: Connection,
    control: Connection,
    *,
    rollback_id: int,
    actor: str,
    clock: Clock,
    progress: Progress = lambda _: None,
    batch_size: int = BATCH_SIZE,
) -> UndoResult:
    """Put back what a rollback took; its features go on again last. Killed or called twice, it is done once.

    Raises:
        BadInput: no such rollback, one that is not finished, one that a later rollback stands upon, or a component
            whose schema is not deployed.
        TransientError: another rollback is running, or the database stopped this one.
    """
    with explained(f"The undoing of rollback {rollback_id}"), alone(billing):
        record = queries("rollback_record")
        row = _known(control, rollback_id)
        if row["state"] == "undone":
            progress(f"Rollback {rollback_id} was undone already.")
            return _result(billing, rollback_id)
        components = _undoable(billing, control, row)
        _run(billing, row, components, clock, progress, batch_size=batch_size)
        result = _result(billing, rollback_id)
        details = {"undone_by": actor, "restored": result.restored, "left_alone": result.left_alone}
        record.mark_undone(control, rollback_id=rollback_id, now=clock.now(), details=json.dumps(details))
        progress(f"Rollback {rollback_id} is undone.")
        return result


def plan_undo(billing: Connection, control: Connection, rollback_id: int) -> dict[str, int]:
    """How many of each subject an undo would look at; those changed since are left alone. Changes nothing.

    Raises:
        BadInput: as `undo_rollback`; also one that was undone already.
    """
    row = _known(control, rollback_id)
    if row["state"] == "undone":
        raise BadInput(f"Rollback {rollback_id} was undone already, at {row['undone_at']:%Y-%m-%d %H:%M} UTC.")
    _undoable(billing, control, row)
    counts: dict[str, int] = {}
    for entry in queries("rollback_record").archived_counts(billing, rollback_id=rollback_id):
        counts[entry["subject"]] = counts.get(entry["subject"], 0) + entry["entries"]
    return counts


def list_rollbacks(control: Connection, *, limit: int = 50) -> tuple[dict[str, Any], ...]:
    """The rollbacks, newest first: rollback_id, component, state, actor, reason and the times of its life."""
    return tuple(queries("rollback_record").newest_rollbacks(control, at_most=limit))


def _known(control: Connection, rollback_id: int) -> dict[str, Any]:
    row: dict[str, Any] | None = queries("rollback_record").rollback_by_id(control, rollback_id=rollback_id)
    if row is None:
        raise BadInput(f"There is no rollback {rollback_id}: `flexpay rollback list` shows those that there were.")
    return row


def _undoable(billing: Connection, control: Connection, row: dict[str, Any]) -> tuple[str, ...]:
    if row["state"] != "done":
        raise BadInput(
            f"Rollback {row['rollback_id']} is {row['state']}: run the rollback again to finish it, then undo it."
        )
    touched = [*COMPLETE, "complete"] if row["component"] == "complete" else [row["component"], "complete"]
    later = queries("rollback_record").later_rollback(control, rollback_id=row["rollback_id"], components=touched)
    if later is not None:
        raise BadInput(
            f"Rollback {later['rollback_id']} of '{later['component']}' came later and is in force: undo it first."
        )
    components: list[str] = row["details"]["components"]
    for component in components:
        affected_components(billing, component)
    return tuple(component for component in COMPLETE if component in components)


def _run(
    billing: Connection,
    row: dict[str, Any],
    components: tuple[str, ...],
    clock: Clock,
    progress: Progress,
    *,
    batch_size: int,
) -> None:
    sql, rollback_id, now = queries("rollback_undo"), row["rollback_id"], clock.now()
    reason = f"undo of rollback {rollback_id}"

    def batches(says: str, statement: Callable[..., dict[str, Any]], **more: Any) -> None:
        one_pass(
            billing, says, progress, statement, rollback_id=rollback_id, now=now, batch_size=batch_size, **more
        )  # fmt: skip

    queries("rollback").analyze_archive(billing)
    # The other way round than the rollback came: what it took last is given back first.
    for component in reversed(components):
        if component == "frequencies":
            batches("{} subscriptions looked at for their terms.", sql.undo_terms, reason=reason)
            batches("{} scheduled frequency changes looked at.", sql.undo_frequency_changes)
        elif component == "pauses":
            mode = row["details"]["pause_mode"]
            batches("{} pauses looked at.", sql.undo_pauses, reason=reason, pause_mode=mode)
        else:
            batches("{} reward balances looked at.", sql.undo_reward_balances)
    for component in reversed(components):
        with billing.transaction():
            sql.undo_feature(billing, rollback_id=rollback_id, component=component, now=now)
        progress(f"The feature '{component}' stands as it did.")


def _result(billing: Connection, rollback_id: int) -> UndoResult:
    restored: dict[str, int] = {}
    left_alone: dict[str, int] = {}
    for row in queries("rollback_record").archived_counts(billing, rollback_id=rollback_id):
        if row["outcome"] == "restored":
            restored[row["subject"]] = restored.get(row["subject"], 0) + row["entries"]
        elif row["outcome"] == "left_alone":
            name = f"{row['subject']}: {row['left_because']}"
            left_alone[name] = left_alone.get(name, 0) + row["entries"]
    return UndoResult(restored, left_alone)
