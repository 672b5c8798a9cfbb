"""`flexpay rollback`: go back by hand, see what was taken back, undo it.

What belongs here: the rollback commands. What does not: what a rollback does (`rollback`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from flexpay_pipelines.cli.output import AsJson, PlanOnly, Yes, planned, show
from flexpay_pipelines.cli.runs import recorder, require, run_job
from flexpay_pipelines.session import session

LISTED = ("rollback_id", "component", "state", "requested_at", "actor", "reason")
EXAMPLES = """
Examples:

- `flexpay rollback frequencies --plan` : what would be taken back

- `flexpay rollback pauses --reason "customers cannot resume" --yes`

- `flexpay rollback undo 3`
"""
rollback = typer.Typer(
    help="Turn a component off and take its effects on live rows back. Nothing is deleted, and each can be undone.",
    no_args_is_help=True,
    epilog=EXAMPLES,
)
Reason = Annotated[str, typer.Option(help="Why; kept with the rollback and in the audit log.")]
Schema = Annotated[bool, typer.Option("--schema", help="Also set the component's tables aside (archive).")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(rollback, name="rollback")


def _roll_back(component: str, reason: str, *, schema: bool, plan: bool, yes: bool, as_json: bool) -> None:
    from flexpay_pipelines.rollback import plan_rollback

    with recorder() as on:
        with session("plan rollback") as opened:
            will = plan_rollback(opened.billing, component)
        if planned(will, plan_only=plan, yes=yes, as_json=as_json, question=f"Roll {component} back?"):
            from flexpay_pipelines.defs.rollback import JOB_OF

            config = {"reason": reason, "revert_schema": schema}
            job = JOB_OF[component]
            outcome = require(run_job(job, on=on, ops={f"{job}_steps": config, f"{job}_schema": config}))
            show({"run_id": outcome.run_id, **outcome.outputs[f"{job}_steps"]}, as_json=as_json, title="Rolled back")


WHAT_IT_DOES = {
    "frequencies": "Everybody pays monthly again, at the plan's monthly price; the terms of before are archived.",
    "pauses": "Paused subscriptions resume, scheduled pauses are canceled; all of them are archived.",
    "rewards": "No reward is earned, spent or expired any more; the ledger and its balances stay.",
    "complete": "Frequencies, pauses and rewards, all three.",
}


def _command(component: str) -> Callable[..., None]:
    def command(
        reason: Reason = "asked for by a person",
        schema: Schema = False,
        plan: PlanOnly = False,
        yes: Yes = False,
        as_json: AsJson = False,
    ) -> None:
        _roll_back(component, reason, schema=schema, plan=plan, yes=yes, as_json=as_json)

    return command


for _component, _what in WHAT_IT_DOES.items():
    rollback.command(_component, help=_what)(_command(_component))


@rollback.command("list")
def list_(as_json: AsJson = False) -> None:
    """The rollbacks that there were, newest first."""
    from flexpay_pipelines.rollback import list_rollbacks

    with session("list rollbacks") as opened:
        show(list(list_rollbacks(opened.control)), as_json=as_json, title="Rollbacks", columns=LISTED)


@rollback.command("undo", epilog="Example: `flexpay rollback undo 3`")
def undo(
    rollback_id: Annotated[int, typer.Argument(help="The rollback, as `flexpay rollback list` shows it.")],
    plan: PlanOnly = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Put back what a rollback took away, wherever it was not changed since."""
    from flexpay_pipelines.rollback import plan_undo

    with recorder() as on:
        with session("plan undo") as opened:
            will = plan_undo(opened.billing, opened.control, rollback_id)
        if planned(will, plan_only=plan, yes=yes, as_json=as_json, question=f"Undo rollback {rollback_id}?"):
            outcome = require(run_job("undo_rollback", on=on, ops={"undo": {"rollback_id": rollback_id}}))
            show({"run_id": outcome.run_id, **outcome.outputs["undo"]}, as_json=as_json, title="Undone")
