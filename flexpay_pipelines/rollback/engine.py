"""Taking a component's effects back: its switch goes off, then its live rows go back to life without it.

Nothing is deleted: what each row held is archived in the transaction that changes it. A rollback that is killed stays
`running` in ops.rollbacks; the next call for the same incident (or component, or id) goes on with it, and each subject
is changed once. The schema stays: reverting it needs a person (docs/decisions/0002).

What belongs here: the steps of a rollback. What does not: plans (`plan`), the way back (`undo`), deciding
(`monitoring`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from flexpay_pipelines.billing import SweepPolicy, settle_due_changes, take_pauses_back
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.rollback.batches import (
    BATCH_SIZE,
    Progress,
    alone,
    explained,
    in_keyed_batches,
    one_pass,
)
from flexpay_pipelines.rollback.plan import affected_components, summed_changes
from flexpay_pipelines.sql import queries

PAUSE_MODES = ("collection", "subscription")


@dataclass(frozen=True, slots=True)
class RollbackResult:
    """What a rollback did.

    Attributes:
        changes: the kinds of `RollbackPlan.changes`, over all attempts.
        seconds: of this call.
    """

    rollback_id: int
    component: str
    changes: dict[str, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class _Job:
    """One rollback under way."""

    billing: Connection
    rollback_id: int
    clock: Clock
    policy: SweepPolicy
    batch_size: int
    progress: Progress

    @property
    def reason(self) -> str:
        return f"rollback {self.rollback_id}"


def roll_back(
    billing: Connection,
    control: Connection,
    *,
    component: str,
    actor: str,
    reason: str,
    incident_id: int | None,
    run_id: str | None,
    clock: Clock,
    pause_mode: str = "collection",
    progress: Progress = lambda _: None,
    rollback_id: int | None = None,
    moves_next_payment: bool = True,
    grace_days: int = 7,
    batch_size: int = BATCH_SIZE,
) -> RollbackResult:
    """Turn a component (or with `complete` all of them) off and take back its effects on live rows.

    An unfinished rollback of the same incident (without one: of the same component; or the one named) is finished; one
    that is done already is returned as it is.

    Args:
        pause_mode: `collection` or `subscription`: how Stripe is told that a pause ends.
        moves_next_payment: whether a payment date moves by the time for which its subscription was paused.
        grace_days: how long a subscription that owes a payment when its pause is ended is past due.

    Raises:
        BadInput: unknown or not deployed component, unknown incident or rollback, or one of another component.
        TransientError: another rollback is running, or the database stopped this one.
    """
    begun = time.perf_counter()
    if pause_mode not in PAUSE_MODES:
        raise BadInput(f"There is no pause mode '{pause_mode}': choose one of {', '.join(PAUSE_MODES)}.")
    if batch_size < 1:
        raise BadInput(f"A batch holds at least one row, not {batch_size}.")
    with explained(f"The rollback of '{component}'"), alone(billing):
        components = affected_components(billing, component)
        row = _begun(
            billing, control, component=component, actor=actor, reason=reason, incident_id=incident_id, run_id=run_id,
            clock=clock, pause_mode=pause_mode, rollback_id=rollback_id,
        )  # fmt: skip
        found = int(row["rollback_id"])
        if row["state"] == "done":
            progress(f"Rollback {found} of '{component}' is done already.")
            return RollbackResult(found, component, _changes(billing, found), time.perf_counter() - begun)
        policy = SweepPolicy(moves_next_payment=moves_next_payment, pause_mode=pause_mode, grace_days=grace_days)
        job = _Job(billing, found, clock, policy, batch_size, progress)
        try:
            _run(job, components)
        except Exception as error:
            problem = " ".join(str(error).split())
            queries("rollback_record").fail_rollback(control, rollback_id=found, problem=problem)
            raise
        changes = _changes(billing, found)
        details = {
            "changes": changes,
            "components": list(components),
            "derived_prices": list(queries("rollback_record").derived_prices(billing, rollback_id=found)),
        }
        queries("rollback_record").finish_rollback(
            control, rollback_id=found, now=clock.now(), details=json.dumps(details)
        )
        progress(f"Rollback {found} of '{component}' is done.")
        return RollbackResult(found, component, changes, time.perf_counter() - begun)


def _begun(
    billing: Connection,
    control: Connection,
    *,
    component: str,
    actor: str,
    reason: str,
    incident_id: int | None,
    run_id: str | None,
    clock: Clock,
    pause_mode: str,
    rollback_id: int | None,
) -> dict[str, Any]:
    """The row of ops.rollbacks to work on: an unfinished or finished one, or a new one."""
    record = queries("rollback_record")
    if incident_id is not None and not record.incident_known(control, incident_id=incident_id):
        raise BadInput(f"There is no incident {incident_id} in the control database.")
    if rollback_id is None:
        known = record.rollback_to_resume(control, component=component, incident_id=incident_id)
    else:
        known = record.rollback_by_id(control, rollback_id=rollback_id)
        if known is None:
            raise BadInput(f"There is no rollback {rollback_id} in the control database.")
        if known["state"] == "undone":
            raise BadInput(f"Rollback {rollback_id} was undone: start a new one instead of finishing it.")
    if known is not None and known["component"] != component:
        raise BadInput(
            f"Rollback {known['rollback_id']} takes back '{known['component']}', not '{component}': "
            "name its component to finish it, or leave the incident out to start another."
        )
    if known is not None and known["state"] == "done":
        return dict(known)
    now = clock.now()
    if known is not None:
        record.resume_rollback(control, rollback_id=known["rollback_id"], run_id=run_id, now=now)
        return {**known, "state": "running"}
    details = {"attempts": 1, "attempt_started_at": now.isoformat(), "pause_mode": pause_mode}
    with control.transaction():
        record.raise_rollback_ids(control, floor=record.highest_archived(billing))
        new = record.start_rollback(
            control, component=component, incident_id=incident_id, actor=actor, reason=reason, run_id=run_id, now=now,
            details=json.dumps(details),
        )  # fmt: skip
    return {"rollback_id": new, "state": "running"}


def _run(job: _Job, components: tuple[str, ...]) -> None:
    # Every switch goes off before the first row moves: nothing may use a feature while it is being taken back.
    for component in components:
        with job.billing.transaction():
            queries("rollback").turn_feature_off(
                job.billing,
                rollback_id=job.rollback_id,
                component=component,
                reason=job.reason,
                now=job.clock.now(),
            )
        job.progress(f"The feature '{component}' is off.")
    for component in components:
        _STEPS[component](job)


def _frequencies(job: _Job) -> None:
    sql, now = queries("rollback"), job.clock.now()
    # What Stripe has changed by itself by now is taken down first: taken back it would be billed twice.
    settle_due_changes(job.billing, clock=job.clock, progress=job.progress)
    in_keyed_batches(
        job.billing, "{} scheduled frequency changes canceled.", job.progress, sql.cancel_frequency_changes,
        rollback_id=job.rollback_id, now=now, batch_size=job.batch_size,
    )  # fmt: skip
    in_keyed_batches(
        job.billing, "{} subscriptions moved to monthly payment.", job.progress, sql.move_to_monthly,
        rollback_id=job.rollback_id, reason=job.reason, now=now, batch_size=job.batch_size,
    )  # fmt: skip


def _pauses(job: _Job) -> None:
    sql, now = queries("rollback"), job.clock.now()
    in_keyed_batches(
        job.billing, "{} scheduled pauses canceled.", job.progress, sql.cancel_pauses,
        rollback_id=job.rollback_id, now=now, batch_size=job.batch_size,
    )  # fmt: skip
    in_keyed_batches(
        job.billing, "{} pauses ended.", job.progress, partial(_end_pauses, job=job), now=now, batch_size=job.batch_size
    )  # fmt: skip


def _end_pauses(billing: Connection, *, job: _Job, **batch: Any) -> dict[str, Any]:
    """One batch of pauses ends, by the sweep's rule: what a payment that failed means for the date and the status."""
    sql, changed = queries("rollback"), 0
    found = sql.cut_pauses(billing, rollback_id=job.rollback_id, **batch)
    if pause_ids := found["pause_ids"]:
        changed = take_pauses_back(billing, pause_ids, up_to=found["up_to"], policy=job.policy, reason=job.reason)
        sql.archive_ended_pauses(billing, rollback_id=job.rollback_id, pause_ids=pause_ids)
    return {"changed": changed, "last_id": found["last_id"]}


def _rewards(job: _Job) -> None:
    one_pass(
        job.billing, "{} reward balances archived.", job.progress, queries("rollback").archive_reward_balances,
        rollback_id=job.rollback_id, now=job.clock.now(), batch_size=job.batch_size,
    )  # fmt: skip


_STEPS: dict[str, Callable[[_Job], None]] = {"frequencies": _frequencies, "pauses": _pauses, "rewards": _rewards}


def _changes(billing: Connection, rollback_id: int) -> dict[str, int]:
    return summed_changes(queries("rollback_record").archived_counts(billing, rollback_id=rollback_id))
