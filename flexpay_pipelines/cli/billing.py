"""`flexpay sweep`, `flexpay import`, `flexpay reconcile`.

What belongs here: the commands over billing and payments. What does not: their rules.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from flexpay_pipelines.cli.output import AsJson, PlanOnly, Yes, planned, say, show
from flexpay_pipelines.cli.runs import recorder, require, run_job
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.session import session

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
RECONCILE_EXAMPLES = """
Examples:

- `flexpay reconcile` : what differs; exit code 1 if anything does

- `flexpay reconcile --mend --plan` : how each difference would be mended, and by whom

- `flexpay reconcile --mend --kind price --kind quantity --yes`

Decisions (pauses, prices, frequencies, quantities, cancellations by us) are taken from the database; what concerns
money (paid, past due, canceled there), from Stripe. No mend charges anybody at once.
"""
# As many differences as a person reads; all of them are in billing.reconciliation_differences.
LISTED = 1_000


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("sweep", epilog=SWEEP_EXAMPLES)(sweep)
    app.command("import", epilog=IMPORT_EXAMPLES)(import_)
    app.command("reconcile", epilog=RECONCILE_EXAMPLES)(reconcile)


def last_full_hour(now: datetime) -> str:
    """The partition of the last hour that has ended."""
    return (now.astimezone(UTC) - timedelta(hours=1)).strftime(HOUR_FORMAT)


def sweep(plan: PlanOnly = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """Start, end and suspend every pause that is due, make every change that is, whenever it was, and tell Stripe."""
    from flexpay_pipelines.billing import plan_sweep

    with recorder() as on:
        with session("plan sweep") as opened:
            due = plan_sweep(opened.billing, clock=opened.clock)
            hour = last_full_hour(opened.clock.now())
        if planned(due, plan_only=plan, yes=yes, as_json=as_json, question="Carry these transitions out?"):
            outcome = require(run_job("hourly_pause_sweep", on=on, partitions=(hour, hour)))
            show(
                {"run_id": outcome.run_id, **outcome.outputs["billing/pause_sweep"],
                 **{f"changes_{k}": v for k, v in outcome.outputs["billing/frequency_changes"].items()},
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

    folder = folder.resolve()
    if not folder.is_dir():
        raise BadInput(f"There is no folder {folder}: name the folder that holds the CSV files.")
    with recorder() as on:
        if plan or not yes:
            with session("plan import") as opened:
                would = import_directory(opened.billing, folder, clock=opened.clock, progress=say, dry_run=True)
            files = [{"file": name, **asdict(counts)} for name, counts in would.files.items()]
            if not planned(files, plan_only=plan, yes=yes, as_json=as_json, question="Import these rows?"):
                return
        outcome = require(run_job("import_data", on=on, ops={"import_files": {"folder": str(folder)}}))
        show({"run_id": outcome.run_id, **outcome.outputs["import_files"]}, as_json=as_json, title="Imported")


def reconcile(
    mend: Annotated[bool, typer.Option("--mend", help="Make the two agree, after showing how.")] = False,
    kind: Annotated[list[str] | None, typer.Option(help="Only this kind of difference; may be repeated.")] = None,
    plan: PlanOnly = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Compare every subscription with Stripe and list the differences; exits with 1 if there are any (left)."""
    from flexpay_pipelines.payments import KINDS

    if (plan or yes) and not mend:
        raise BadInput("--plan and --yes go with --mend: a comparison alone changes nothing.")
    if unknown := sorted(set(kind or ()) - set(KINDS)):
        raise BadInput(f"There is no kind of difference '{unknown[0]}': use one of {', '.join(KINDS)}.")
    with recorder() as on:
        outcome = run_job("stripe_reconciliation", on=on)
        if not outcome.succeeded:
            require(outcome)
        compared = {"run_id": outcome.run_id, **outcome.outputs["billing/reconciliation"]}
        found = _open_differences(kind)
        if not mend:
            _show_comparison(compared, found, as_json=as_json)
            require(outcome)
        elif not any(one["by"] == "flexpay" for one in found) and not compared["in_flight"]:
            _show_comparison(compared, found, as_json=as_json)
            say("Nothing is to be mended." if not found else "Nothing of this can be mended but by a person.")
            require(outcome)
        elif planned(found, plan_only=plan, yes=yes, as_json=as_json, question=_question(compared, found)):
            config = {"planned": compared["pass"], "kinds": kind or None}
            done = run_job("mend_stripe_differences", on=on, ops={"mend": config})
            if done.succeeded:
                left = _open_differences(None)
                _show_comparison({"run_id": done.run_id, **done.outputs["mend"]}, left, as_json=as_json, title="Mended")
            require(done)


def _question(compared: dict[str, Any], found: list[dict[str, Any]]) -> str:
    mended = sum(one["by"] == "flexpay" for one in found)
    waiting = f" {compared['in_flight']} subscriptions are on their way to Stripe." if compared["in_flight"] else ""
    return f"{mended} of {compared['differences']} differences can be mended.{waiting} Mend them, and tell Stripe?"


def _open_differences(kinds: list[str] | None) -> list[dict[str, Any]]:
    """What the newest pass has found, as rows."""
    from flexpay_pipelines.payments import open_differences

    with session("list differences") as opened:
        found = open_differences(opened.billing, kinds=tuple(kinds) if kinds else None, limit=LISTED)
    return [asdict(one) for one in found]


def _show_comparison(
    figures: dict[str, Any], found: list[dict[str, Any]], *, as_json: bool, title: str = "Compared"
) -> None:
    if as_json:
        show({**figures, "which": found}, as_json=True)
        return
    show(figures, as_json=False, title=title)
    if found:
        show(found, as_json=False, title="Differences")
