"""Going back: a job for each component and one for all, each of which can be undone.

What belongs here: the rollback jobs. What does not: when to roll back (`monitoring`), how (`rollback`).
"""

import dagster as dg
from pydantic import Field

from flexpay_pipelines.defs.payments import tell_stripe
from flexpay_pipelines.defs.presentation import figures
from flexpay_pipelines.defs.resources import FlexPay

COMPONENTS = ("frequencies", "pauses", "rewards", "complete")
JOB_OF = {name: "complete_rollback" if name == "complete" else f"rollback_{name}" for name in COMPONENTS}


class RollbackConfig(dg.Config):
    """Why this goes back, and how far."""

    reason: str = Field(
        default="asked for by a person", description="Why; kept with the rollback and in the audit log."
    )
    incident_id: int | None = Field(default=None, description="The incident that a sensor opened.")
    revert_schema: bool = Field(
        default=False, description="Also set the component's tables aside. Only a person may ask for this."
    )


def _rollback_job(component: str) -> dg.JobDefinition:
    @dg.op(name=f"{JOB_OF[component]}_steps", pool="billing_db")
    def steps(context: dg.OpExecutionContext, config: RollbackConfig, flexpay: FlexPay) -> None:
        from flexpay_pipelines.rollback import roll_back

        with flexpay.step(context, "roll back", component) as step:
            done = roll_back(
                step.billing,
                step.control,
                component=component,
                actor=step.actor,
                reason=config.reason,
                incident_id=config.incident_id,
                run_id=step.run_id,
                clock=step.clock,
                pause_mode=step.settings.stripe_pause_mode,
                moves_next_payment=step.settings.pause_moves_next_payment,
                grace_days=step.settings.pause_grace_days,
                progress=step.progress,
            )
            step.details = {"rollback_id": done.rollback_id, "reason": config.reason, "changes": done.changes}
            context.add_output_metadata(figures(done))

    @dg.op(name=f"{JOB_OF[component]}_schema", ins={"start": dg.In(dg.Nothing)}, pool="billing_db")
    def schema(context: dg.OpExecutionContext, config: RollbackConfig, flexpay: FlexPay) -> None:
        from flexpay_pipelines import migrations
        from flexpay_pipelines.errors import PermanentError

        if not config.revert_schema:
            context.log.info("The schema stays: the feature is off, and its tables keep their data.")
            return
        with flexpay.step(context, "revert schema", component) as step:
            if config.incident_id is not None:
                raise PermanentError("A sensor may not revert a schema: ask a person to run flexpay rollback --schema.")
            for name in COMPONENTS[:-1] if component == "complete" else (component,):
                if name in migrations.deployed(step.settings.billing):
                    migrations.revert(
                        step.settings.billing,
                        name,
                        record=lambda done: step.audit(
                            "done",
                            {"sha256": done.sha256},
                            action="migrate",
                            subject=f"{done.component}/{done.revision} {done.direction}",
                        ),
                        progress=step.progress,
                    )

    def graph() -> None:
        done = steps()
        tell_stripe(start=done)
        schema(start=done)

    what = "every component" if component == "complete" else f"component `{component}`"
    return dg.job(
        name=JOB_OF[component], description=f"Turn {what} off and take its effects on live rows back; can be undone."
    )(graph)


class UndoConfig(dg.Config):
    """Which rollback to undo."""

    rollback_id: int = Field(description="The rollback to undo, as `flexpay rollback list` shows it.")


@dg.op(pool="billing_db")
def undo(context: dg.OpExecutionContext, config: UndoConfig, flexpay: FlexPay) -> None:
    """Put back what a rollback took away, wherever it was not changed since."""
    from flexpay_pipelines.rollback import undo_rollback as put_back

    with flexpay.step(context, "undo rollback", str(config.rollback_id)) as step:
        done = put_back(
            step.billing,
            step.control,
            rollback_id=config.rollback_id,
            actor=step.actor,
            clock=step.clock,
            progress=step.progress,
        )
        step.details = {"restored": done.restored, "left_alone": done.left_alone}
        context.add_output_metadata(figures(done))


@dg.job(description="Undo a rollback: flags on again, and what it took back is put back where nobody changed it since.")
def undo_rollback() -> None:
    """The job of `flexpay rollback undo`."""
    tell_stripe(start=undo())


JOBS = {name: _rollback_job(name) for name in COMPONENTS}

defs = dg.Definitions(jobs=[*JOBS.values(), undo_rollback])
