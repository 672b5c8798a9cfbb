"""`flexpay analytics run` and `flexpay export`.

What belongs here: the commands over analytics. What does not: any figure.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

import typer

from flexpay_pipelines.cli.output import AsJson, PlanOnly, Yes, planned, show
from flexpay_pipelines.cli.runs import recorder, require, run_job
from flexpay_pipelines.clock import parse_instant
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.session import session
from flexpay_pipelines.settings import load_settings

analytics = typer.Typer(help="Compute MRR, churn and cohorts, and export them.", no_args_is_help=True)
RUN_EXAMPLES = """
Examples:

- `flexpay analytics run` : yesterday, with its report

- `flexpay analytics run --from 2026-01-01 --to 2026-03-31 --yes` : a quarter again
"""
REPORT_EXAMPLES = """
Examples:

- `flexpay analytics report --day 2026-01-31 --out report` : the page and its datasets

- `flexpay analytics report --day 2026-01-31 --out report --addresses` : with whole e-mail addresses
"""
EXPORT_EXAMPLES = """
Examples:

- `flexpay export mrr-summary --from 2026-01 --to 2026-12 --grain month --out mrr.csv`

- `flexpay export churn --from 2026-10-01 --to 2026-10-31 --format parquet --out churn.parquet`

- `flexpay export payments-health --by attempt --from 2026-01 --to 2026-06 --grain month --out attempts.csv`

- `flexpay export deferred-revenue --from 2026-01 --to 2026-12 --grain month --out deferred.csv`

- `flexpay export restatements --from 2026-01-01 --to 2026-03-31 --out changed.csv` : what late events changed

- `flexpay export mrr-movements --from 2026-01 --to 2026-03 --grain month --known-at 2026-04-01T00:00Z --out q1.csv`
"""
DATASET_HELP = (
    "mrr-movements, mrr-summary, churn, cohorts, payments-health, dunning, rewards-liability, deferred-revenue, "
    "paused-revenue or restatements."
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
    analytics.command("report", epilog=REPORT_EXAMPLES)(report)
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


def _yesterday() -> date:
    """The last day that has ended, in UTC and in the reporting time zone: partitions are named by UTC days."""
    now = datetime.now(UTC)
    zone = ZoneInfo(load_settings().reporting_time_zone)
    return min(now.date(), now.astimezone(zone).date()) - timedelta(days=1)


def run(start: From = None, end: To = None, plan: PlanOnly = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """Compute the days' figures again, and the report of the last one."""
    from flexpay_pipelines.defs.analytics import BALANCES, CHURN, COHORTS, MOVEMENTS, SUMMARY

    yesterday = _yesterday()
    last = parse_day(end) if end else yesterday
    first = parse_day(start) if start else last
    if first > last:
        raise BadInput(f"--from {first} is after --to {last}: swap them.")
    if last > yesterday:
        raise BadInput(f"{last} has not ended yet: the last day with figures is {yesterday}.")
    will = {"from": first, "to": last, "days": (last - first).days + 1, "report": last}
    with recorder() as on:
        if planned(will, plan_only=plan, yes=yes, as_json=as_json, question="Compute these days?"):
            days = (first.isoformat(), last.isoformat())
            if first < last:
                stored = [MOVEMENTS, SUMMARY, CHURN, COHORTS, BALANCES]
                require(run_job("daily_analytics", on=on, partitions=days, selection=stored))
            outcome = require(run_job("daily_analytics", on=on, partitions=(days[1], days[1])))
            figures = outcome.outputs["analytics/daily_report"]
            show(
                {"run_id": outcome.run_id, **figures},
                as_json=as_json,
                title="Computed",
            )


def report(
    out: Annotated[Path, typer.Option(help="The folder to write to; it is made where it is missing.")],
    day: Annotated[str | None, typer.Option(metavar="DAY", help="2026-01-31; default: yesterday.")] = None,
    addresses: Annotated[
        bool, typer.Option("--addresses", help="Show the e-mail addresses of customers at risk whole.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the report of a day whose figures are stored, once more, to a folder of your own."""
    from flexpay_pipelines.analytics import daily_report, use_time_zone

    wanted = parse_day(day) if day else _yesterday()
    with session("report") as opened:
        use_time_zone(opened.billing, opened.settings.reporting_time_zone)
        files = daily_report(
            opened.billing,
            day=wanted,
            folder=out,
            clock=opened.clock,
            reporting_currency=opened.settings.reporting_currency,
            masked=not addresses,
        )
    show({"report": files.html, "datasets": len(files.csv)}, as_json=as_json, title="Written")


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
    from flexpay_pipelines.analytics import export_dataset, use_time_zone

    with session("export") as opened:
        use_time_zone(opened.billing, opened.settings.reporting_time_zone)
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
