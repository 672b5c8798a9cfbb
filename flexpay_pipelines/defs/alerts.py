"""Alerts: failed runs become alerts, and alerts reach their channels.

What belongs here: the delivery job, the sensors that start it or feed it. What does not: routing, channels (`alerts`).
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from pydantic import Field

from flexpay_pipelines.clock import parse_instant
from flexpay_pipelines.defs.payments import OUTBOUND
from flexpay_pipelines.defs.presentation import figures
from flexpay_pipelines.defs.resources import FlexPay, Step

FIRST_LOOK = timedelta(hours=1)
RUNS_PER_LOOK = 100


def _channels(step: Step) -> dict[str, Any]:
    from flexpay_pipelines.alerts import SlackChannel

    settings = step.settings
    if settings.slack_token is None:
        return {}
    return {
        "slack": SlackChannel(settings.slack_token.get_secret_value(), settings.slack_channel, settings.slack_api_base)
    }


class DeliveryConfig(dg.Config):
    """What to send."""

    retry_parked: bool = Field(
        default=False, description="Also send what a channel refused for good, once it is mended."
    )


@dg.op(retry_policy=OUTBOUND)
def deliver(context: dg.OpExecutionContext, config: DeliveryConfig, flexpay: FlexPay) -> None:
    """Send every alert that a channel still has to be told of."""
    from flexpay_pipelines.alerts import deliver_alerts as send_waiting
    from flexpay_pipelines.alerts import requeue_parked

    with flexpay.step(context, "deliver", "alerts") as step:
        if config.retry_parked:
            step.progress(f"{requeue_parked(step.control)} parked deliveries are tried again.")
        result = send_waiting(step.control, _channels(step), clock=step.clock, progress=step.progress)
        step.details = {"delivered": result.delivered, "parked": result.parked}
        context.add_output_metadata(figures(result))


@dg.job(description="Send the alerts that are waiting; a channel that does not answer is tried again later.")
def deliver_alerts() -> None:
    """The job behind the sensor `alert_delivery` and `flexpay alerts deliver`."""
    deliver()


@dg.sensor(job=deliver_alerts, minimum_interval_seconds=30)
def alert_delivery(flexpay: FlexPay) -> dg.RunRequest | dg.SkipReason:
    """Start the delivery while an alert waits for a channel that may be tried again."""
    from flexpay_pipelines.alerts import pending_deliveries

    with flexpay.session("alert delivery") as session:
        waiting = pending_deliveries(session.control, due_by=session.clock.now())
    # No run key: a used one would block the retries for ever. Two deliveries at once send each alert once.
    return dg.RunRequest() if waiting else dg.SkipReason("No alert is waiting.")


@dg.sensor(minimum_interval_seconds=60)
def run_failures(context: dg.SensorEvaluationContext, flexpay: FlexPay) -> dg.SkipReason:
    """Turn each failed run into an alert, once; the outbox delivers it even if this process dies."""
    from flexpay_pipelines.alerts import raise_alert

    now = datetime.now(UTC)
    since = parse_instant(context.cursor) if context.cursor else now - FIRST_LOOK
    records = context.instance.get_run_records(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=since), limit=RUNS_PER_LOOK, ascending=True,
        order_by="update_timestamp",
    )  # fmt: skip
    if not records:
        return dg.SkipReason(f"No run failed since {since:%H:%M}.")
    with flexpay.session("run failures") as session:
        for record in records:
            run = record.dagster_run
            raise_alert(
                session.control,
                fingerprint=f"run-failure:{run.job_name}",
                severity="critical" if run.job_name.endswith(("rollback", "backup", "verification")) else "warning",
                title=f"Job {run.job_name} failed",
                body=f"Run {run.run_id} failed. The UI shows its log: mend the cause, then re-execute it there.",
                context={"job": run.job_name, "run_id": run.run_id},
                clock=session.clock,
            )
    context.update_cursor(records[-1].update_timestamp.astimezone(UTC).isoformat())
    return dg.SkipReason(f"{len(records)} failed run(s) became alerts.")


defs = dg.Definitions(jobs=[deliver_alerts], sensors=[alert_delivery, run_failures])
