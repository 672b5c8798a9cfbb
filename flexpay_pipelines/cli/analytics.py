"""`flexpay analytics run` and `flexpay export`.

What belongs here: the commands over analytics. What does not: any figure.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from flexpay_pipelines.cli.output import AsJson, PlanOnly, Yes, planned, show
from flexpay_pipelines.cli.runs import instance, require, run_job
from flexpay_pipelines.clock import parse_instant
from flexpay_pipelines.defs.resources import session
from flexpay_pipelines.errors import BadInput

analytics = typer.Typer(help="Compute MRR, churn and cohorts, and export them.", no_args_is_help=True)
RUN_EXAMPLES = """
Examples:

- `flexpay analytics run` : yesterday, with its report

- `flexpay analytics run --from 2026-01-01 --to 2026-03-31 --yes` : a quarter again
"""
EXPORT_EXAMPLES = """
Examples:

- `flexpay export mrr-summary --from 2026-01 --to 2026-12 --grain month --out mrr.csv`

- `flexpay export churn --from 2026-10-01 --to 2026-10-31 --format parquet --out churn.parquet`

- `flexpay export payments-health --by attempt --from 2026-01 --to 2026-06 --grain month --out attempts.csv`

- `flexpay export deferred-revenue --from 2026-01 --to 2026-12 --grain month --out deferred.csv`

- `flexpay export mrr-movements --from 2026-01 --to 2026-03 --grain month --known-at 2026-04-01T00:00Z --out q1.csv`
"""
DATASET_HELP = (
    "mrr-movements, mrr-summary, churn, cohorts, payments-health, dunning, rewards-liability, deferred-revenue "
    "or paused-revenue."
)
SEGMENT_HELP = (
    "customer, plan, payment_frequency, country or currency; of payments also attempt and failure_class. "
    "Which of them a dataset has is said when another is asked for."
)
From = Annotated[str | None, typer.Option("--from", metavar="DAY", help="First day, 2026-01-31; default: yesterday.")]
To = Annotated[str | None, typer.Option("--to", metavar="DAY", help="Last day; default: yesterday.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(analytics, name="analytics")
    analytics.command("run", epilog=RUN_EXAMPLES)(run)
    analytics.command("export", epilog=EXPORT_EXAMPLES)(export)
    app.command("export", epilog=EXPORT_EXAMPLES)(export)


def parse_day(text: str) -> date:
    """A day written 2026-01-31.

    Raises:
        BadInput: it is written otherwise.
    """
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise BadInput(f"'{text}' is not a day: write it as 2026-01-31.") from None


def run(start: From = None, end: To = None, plan: PlanOnly = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """Compute the days' figures again, and the report of the last one."""
    from flexpay_pipelines.defs.analytics import BALANCES, CHURN, COHORTS, MOVEMENTS, SUMMARY

    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    last = parse_day(end) if end else yesterday
    first = parse_day(start) if start else last
    if first > last:
        raise BadInput(f"--from {first} is after --to {last}: swap them.")
    if last > yesterday:
        raise BadInput(f"{last} has not ended yet: the last day with figures is {yesterday}.")
    will = {"from": first, "to": last, "days": (last - first).days + 1, "report": last}
    with instance() as on:
        if planned(will, plan_only=plan, yes=yes, as_json=as_json, question="Compute these days?"):
            days = (first.isoformat(), last.isoformat())
            if first < last:
                stored = [MOVEMENTS, SUMMARY, CHURN, COHORTS, BALANCES]
                require(run_job("daily_analytics", on=on, partitions=days, selection=stored))
            outcome = require(run_job("daily_analytics", on=on, partitions=(days[1], days[1])))
            show(
                {"run_id": outcome.run_id, **outcome.outputs["analytics/daily_report"]},
                as_json=as_json,
                title="Computed",
            )


def export(
    dataset: Annotated[str, typer.Argument(help=DATASET_HELP)],
    start: Annotated[str, typer.Option("--from", help="First period: 2026-01-31 or 2026-01.")],
    end: Annotated[str, typer.Option("--to", help="Last period.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    grain: Annotated[str, typer.Option(help="day or month.")] = "day",
    by: Annotated[str | None, typer.Option(help=SEGMENT_HELP)] = None,
    currency: Annotated[str | None, typer.Option(help="Report in this currency; default: native ones.")] = None,
    known_at: Annotated[str | None, typer.Option(help="The figures as they were known at this time, ISO-8601.")] = None,
    format_: Annotated[str, typer.Option("--format", help="csv or parquet.")] = "csv",
    as_json: AsJson = False,
) -> None:
    """Write a dataset of the data contract to a file."""
    from flexpay_pipelines.analytics import export_dataset

    with session("export") as opened:
        rows = export_dataset(
            opened.billing,
            dataset=dataset,
            start=start,
            end=end,
            grain=grain,
            by=by,
            currency=currency,
            known_at=parse_instant(known_at) if known_at else None,
            format=format_,
            out=out,
        )
    show({"file": out, "rows": rows}, as_json=as_json, title="Exported")
