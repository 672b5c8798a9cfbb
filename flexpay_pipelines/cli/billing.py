"""`flexpay sweep`, `flexpay import`, `flexpay reconcile`.

What belongs here: the commands over billing and payments. What does not: their rules.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from flexpay_pipelines.cli.output import AsJson, PlanOnly, Yes, planned, say, show
from flexpay_pipelines.cli.runs import instance, require, run_job
from flexpay_pipelines.errors import BadInput

HOUR_FORMAT = "%Y-%m-%d-%H:00"
SWEEP_EXAMPLES = """
Examples:

- `flexpay sweep --plan` : how many pauses are due

- `flexpay sweep --yes` : carry out all that is due, and tell Stripe
"""
IMPORT_EXAMPLES = """
Examples:

- `flexpay import ./export-of-march --plan` : validate every row, load nothing

- `flexpay import ./export-of-march --yes`

The files and their columns: docs/data-contract.md
"""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("sweep", epilog=SWEEP_EXAMPLES)(sweep)
    app.command("import", epilog=IMPORT_EXAMPLES)(import_)
    app.command("reconcile")(reconcile)


def last_full_hour(now: datetime) -> str:
    """The partition of the last hour that has ended."""
    return (now.astimezone(UTC) - timedelta(hours=1)).strftime(HOUR_FORMAT)


def sweep(plan: PlanOnly = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """Start, end and suspend every pause that is due, whenever it was due, and tell Stripe."""
    from flexpay_pipelines.billing import plan_sweep
    from flexpay_pipelines.defs.resources import session

    with instance() as on:
        with session("plan sweep") as opened:
            due = plan_sweep(opened.billing, clock=opened.clock)
            hour = last_full_hour(opened.clock.now())
        if planned(due, plan_only=plan, yes=yes, as_json=as_json, question="Carry these transitions out?"):
            outcome = require(run_job("hourly_pause_sweep", on=on, partitions=(hour, hour)))
            show(
                {"run_id": outcome.run_id, **outcome.outputs["billing/pause_sweep"],
                 **{f"stripe_{k}": v for k, v in outcome.outputs["billing/stripe_delivery"].items()}},
                as_json=as_json, title="Swept",
            )  # fmt: skip


def import_(
    folder: Annotated[Path, typer.Argument(help="Folder with the CSV files of the data contract.", metavar="DIR")],
    plan: PlanOnly = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Import customers, history, payments, pauses, rewards and rates: all of the folder or nothing."""
    from flexpay_pipelines.billing import import_directory
    from flexpay_pipelines.defs.resources import session

    folder = folder.resolve()
    if not folder.is_dir():
        raise BadInput(f"There is no folder {folder}: name the folder that holds the CSV files.")
    with instance() as on:
        if plan or not yes:
            with session("plan import") as opened:
                would = import_directory(opened.billing, folder, clock=opened.clock, progress=say, dry_run=True)
            files = [{"file": name, **asdict(counts)} for name, counts in would.files.items()]
            if not planned(files, plan_only=plan, yes=yes, as_json=as_json, question="Import these rows?"):
                return
        outcome = require(run_job("import_data", on=on, ops={"import_files": {"folder": str(folder)}}))
        show({"run_id": outcome.run_id, **outcome.outputs["import_files"]}, as_json=as_json, title="Imported")


def reconcile(as_json: AsJson = False) -> None:
    """Compare every subscription with Stripe and list the differences; exits with 1 if there are any."""
    with instance() as on:
        outcome = run_job("stripe_reconciliation", on=on)
        if outcome.succeeded:
            show(
                {"run_id": outcome.run_id, **outcome.outputs["billing/reconciliation"]},
                as_json=as_json,
                title="Compared",
            )
        require(outcome)
