"""Health: the weekly clean-up.

What belongs here: jobs that keep the control plane tidy. What does not: the checks themselves (`health`).
"""

import dagster as dg

from flexpay_pipelines.defs.presentation import figures
from flexpay_pipelines.defs.resources import FlexPay


@dg.op
def clean_logs(context: dg.OpExecutionContext, flexpay: FlexPay) -> None:
    """Remove old tick records, settled alert deliveries and log files of runs."""
    from flexpay_pipelines.health import clean_up

    with flexpay.step(context, "clean up", "logs") as step:
        result = clean_up(
            step.control, logs=step.settings.home / "dagster" / "storage", clock=step.clock, progress=step.progress
        )
        step.details = {"files": result.files, "decisions": result.decisions, "deliveries": result.deliveries}
        context.add_output_metadata(figures(result))


@dg.job(description="Remove what is older than 90 days and no evidence: healthy ticks, settled deliveries, logs.")
def weekly_log_cleanup() -> None:
    """The job of the weekly schedule."""
    clean_logs()


defs = dg.Definitions(
    jobs=[weekly_log_cleanup],
    schedules=[
        dg.ScheduleDefinition(name="weekly_log_cleanup_on_sunday", job=weekly_log_cleanup, cron_schedule="0 5 * * 0")
    ],
)
