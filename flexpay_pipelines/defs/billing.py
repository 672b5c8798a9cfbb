"""Billing: due pauses swept by the hour, due changes made, and data imported.

What belongs here: the billing assets, checks and jobs. What does not: any rule of billing (`billing`).
"""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
from pydantic import Field

from flexpay_pipelines.defs.migrations import schema_key
from flexpay_pipelines.defs.presentation import figures, table
from flexpay_pipelines.defs.resources import FlexPay

GROUP = "billing"
FIRST_HOUR = "2025-01-01-00:00"
HOURS = dg.HourlyPartitionsDefinition(start_date=FIRST_HOUR)
STRIPE_EVENTS = dg.AssetKey(["billing", "stripe_events"])
PAUSE_SWEEP = dg.AssetKey(["billing", "pause_sweep"])
FREQUENCY_CHANGES = dg.AssetKey(["billing", "frequency_changes"])
# Without the mapping Dagster would look at every hour that there ever was.
LAST_SWEEP = dg.AssetDep(PAUSE_SWEEP, partition_mapping=dg.LastPartitionMapping())


OVERDUE = dg.AssetCheckSpec(
    "nothing_overdue",
    asset=PAUSE_SWEEP,
    blocking=True,
    description="After a sweep no pause is left that was due an hour ago or earlier.",
)
CHANGE_OVERDUE = dg.AssetCheckSpec(
    "no_change_overdue",
    asset=FREQUENCY_CHANGES,
    description="No change of plan or frequency is left that was due an hour ago or earlier.",
)
LATE = timedelta(hours=1)


# The hourly job is short: its checks are made in their assets' steps, since a step costs more than such a check.
@dg.asset(
    key=PAUSE_SWEEP,
    deps=[STRIPE_EVENTS, schema_key("pauses")],
    group_name=GROUP,
    kinds={"postgres"},
    pool="billing_db",
    partitions_def=HOURS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=[OVERDUE],
)
def pause_sweep(context: dg.AssetExecutionContext, flexpay: FlexPay) -> Iterator[dg.MaterializeResult[None]]:
    """Every pause due by now and not yet done, whichever hour it fell due in: started, ended, or suspended."""
    from flexpay_pipelines.billing import SweepPolicy, pauses_by_hour, plan_sweep, sweep_pauses

    with flexpay.step(context, "sweep", context.partition_key_range.end) as step:
        window = context.partition_time_window
        result = sweep_pauses(
            step.billing,
            clock=step.clock,
            policy=SweepPolicy(
                moves_next_payment=step.settings.pause_moves_next_payment,
                pause_mode=step.settings.stripe_pause_mode,
                grace_days=step.settings.pause_grace_days,
            ),
            progress=step.progress,
        )
        step.details = {"started": result.started, "ended": result.ended, "suspended": result.suspended}
        lag = result.oldest_lag or timedelta()
        hours = pauses_by_hour(step.billing, start=min(window.start, step.clock.now() - lag), end=window.end)
        # After an outage also the hours that were caught up with; those in which nothing was due say nothing.
        by_hour = [hour for hour in hours if hour["due"] or hour["hour"] >= window.start]
        left = plan_sweep(step.billing, clock=step.clock, up_to=step.clock.now() - LATE)
        yield dg.MaterializeResult(
            # The lag once more as a number, which the UI plots over the hours.
            metadata={**figures(result), "oldest_lag_seconds": lag.total_seconds(), "by_hour": table(by_hour)},
            check_results=[
                dg.AssetCheckResult(check_name=OVERDUE.name, passed=left.oldest_due_at is None, metadata=figures(left))
            ],
        )


@dg.asset(
    key=FREQUENCY_CHANGES,
    deps=[LAST_SWEEP, schema_key("frequencies")],
    group_name=GROUP,
    kinds={"postgres"},
    pool="billing_db",
    check_specs=[CHANGE_OVERDUE],
)
def frequency_changes(context: dg.AssetExecutionContext, flexpay: FlexPay) -> Iterator[dg.MaterializeResult[None]]:
    """Every change of plan or frequency whose period has ended: the new terms hold, as Stripe bills them already."""
    from flexpay_pipelines.billing import apply_due_frequency_changes, overdue_frequency_changes

    with flexpay.step(context, "change frequencies", "due changes") as step:
        result = apply_due_frequency_changes(step.billing, clock=step.clock, progress=step.progress)
        step.details = {"applied": result.applied, "postponed": result.postponed, "dropped": result.dropped}
        left = overdue_frequency_changes(step.billing, up_to=step.clock.now() - LATE)
        yield dg.MaterializeResult(
            metadata=figures(result),
            check_results=[
                dg.AssetCheckResult(check_name=CHANGE_OVERDUE.name, passed=left == 0, metadata={"overdue": left})
            ],
        )


class ImportConfig(dg.Config):
    """Where the files are."""

    folder: str = Field(description="Folder with the CSV files of the data contract.")


@dg.op(pool="billing_db")
def import_files(context: dg.OpExecutionContext, config: ImportConfig, flexpay: FlexPay) -> None:
    """Load a folder of CSV files in one transaction: all of it or, if a row is bad, none of it."""
    from flexpay_pipelines.billing import import_directory

    with flexpay.step(context, "import", Path(config.folder).name) as step:
        result = import_directory(step.billing, Path(config.folder), clock=step.clock, progress=step.progress)
        counts = {name: {"rows": c.rows, "new": c.new, "known": c.known} for name, c in result.files.items()}
        step.details = {"files": counts}
        context.add_output_metadata(
            {"files": table({"file": name, **count} for name, count in counts.items()), "seconds": result.seconds}
        )


@dg.job(description="Import customers, history, payments, pauses, rewards and exchange rates from CSV files.")
def import_data() -> None:
    """The job of `flexpay import`."""
    import_files()


defs = dg.Definitions(assets=[pause_sweep, frequency_changes], jobs=[import_data])
