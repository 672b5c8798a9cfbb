"""`flexpay backup` and `flexpay restore`.

What belongs here: the commands over backups. What does not: how a backup is made or restored.
"""

from __future__ import annotations

from typing import Annotated

import typer

from flexpay_pipelines.cli.output import AsJson, PlanOnly, Yes, plain, planned, say, show
from flexpay_pipelines.cli.runs import recorder, require, run_job
from flexpay_pipelines.session import session

backup = typer.Typer(help="Back the billing database up, list, prove and prune backups.", no_args_is_help=True)
LISTED = ("backup_id", "size_bytes", "rows", "verified_at", "offsite_at")
RESTORE_EXAMPLES = """
Examples:

- `flexpay restore --plan` : what the newest proven backup would bring back

- `flexpay restore 20261122T030000Z-daily-4f2a91` : restore that one, after a question
"""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(backup, name="backup")
    app.command("restore", epilog=RESTORE_EXAMPLES)(restore)


@backup.command("create", epilog="Example: `flexpay backup create --yes`")
def create(plan: PlanOnly = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """Take a backup now, copy it elsewhere, and remove what is past its retention."""
    with recorder() as on:
        with session("plan backup") as opened:
            will = {"folder": opened.settings.backups, "copy": opened.settings.backups_offsite,
                    "kept for days": opened.settings.backup_retention_days}  # fmt: skip
        if planned(will, plan_only=plan, yes=yes, as_json=as_json, question="Take a backup now?"):
            outcome = require(run_job("daily_backup", on=on))
            show({"run_id": outcome.run_id, **outcome.outputs["backups/daily"]}, as_json=as_json, title="Backed up")


@backup.command("list")
def list_(as_json: AsJson = False) -> None:
    """The backups that there are, newest first, and which of them are proven."""
    from flexpay_pipelines.backups import list_backups

    with session("list backups") as opened:
        show([plain(b) for b in list_backups(opened.control)], as_json=as_json, title="Backups", columns=LISTED)


@backup.command("verify", epilog="Example: `flexpay backup verify` proves the newest backup by restoring it.")
def verify(
    backup_id: Annotated[str | None, typer.Argument(help="The backup to prove; none: the newest.")] = None,
    as_json: AsJson = False,
) -> None:
    """Restore a backup into a scratch cluster and compare it with its manifest. The live database is not touched."""
    with recorder() as on:
        outcome = run_job(
            "backup_verification", on=on, ops={"backups__verified": {"backup_id": backup_id} if backup_id else {}}
        )
        if outcome.succeeded and "backups/verified" in outcome.outputs:
            show({"run_id": outcome.run_id, **outcome.outputs["backups/verified"]}, as_json=as_json, title="Proof")
        require(outcome)


@backup.command("prune")
def prune(plan: PlanOnly = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """Remove backups past their retention; the newest proven one always stays."""
    from flexpay_pipelines.backups import prune_backups

    with recorder() as on:
        with session("plan prune") as opened:
            old = prune_backups(
                opened.control,
                folder=opened.settings.backups,
                offsite_folder=opened.settings.backups_offsite,
                retention_days=opened.settings.backup_retention_days,
                clock=opened.clock,
                plan=True,
            )
        if planned({"remove": old}, plan_only=plan, yes=yes, as_json=as_json, question="Remove these backups?"):
            outcome = require(run_job("prune_backups", on=on))
            show({"run_id": outcome.run_id, **outcome.outputs["prune"]}, as_json=as_json, title="Pruned")


def restore(
    backup_id: Annotated[str | None, typer.Argument(help="The backup; none: the newest that was proven.")] = None,
    plan: PlanOnly = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup in the place of the billing database. The database of before is kept beside it."""
    from flexpay_pipelines.backups import plan_restore

    with recorder() as on:
        with session("plan restore") as opened:
            will = plan_restore(opened.control, backup_id, opened.settings.billing)
        if planned(
            will, plan_only=plan, yes=yes, as_json=as_json, question="Replace the billing database by this backup?"
        ):
            outcome = require(
                run_job("restore_backup", on=on, ops={"restore": {"backup_id": backup_id} if backup_id else {}})
            )
            show({"run_id": outcome.run_id, **outcome.outputs["restore"]}, as_json=as_json, title="Restored")
            say("Run `flexpay health` next, and `flexpay reconcile` to compare with Stripe.")
