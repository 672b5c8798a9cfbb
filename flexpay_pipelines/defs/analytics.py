"""Analytics: MRR movements and what is read off them, day by day, and the report that people read.

What belongs here: the assets of run rate, risk and the report, job and schedule. What does not: any formula
(`analytics`), payments and balances (`analytics_balances`), checks (`analytics_checks`).
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import dagster as dg

from flexpay_pipelines.defs.billing import PAUSE_SWEEP
from flexpay_pipelines.defs.migrations import schema_key
from flexpay_pipelines.defs.presentation import ROWS_SHOWN, figures, table
from flexpay_pipelines.defs.resources import FlexPay

if TYPE_CHECKING:
    from flexpay_pipelines.analytics import ChurnModel, Judgement, Restatement
    from flexpay_pipelines.database import Connection
    from flexpay_pipelines.defs.resources import Step
    from flexpay_pipelines.session import Session

GROUP = "analytics"
DAYS = dg.DailyPartitionsDefinition(start_date="2024-01-01")
MOVEMENTS = dg.AssetKey(["analytics", "mrr_movements"])
SUMMARY = dg.AssetKey(["analytics", "mrr_summary"])
CHURN = dg.AssetKey(["analytics", "churn"])
COHORTS = dg.AssetKey(["analytics", "cohorts"])
CHURN_RISK = dg.AssetKey(["analytics", "churn_risk"])
PAYMENT_HEALTH = dg.AssetKey(["analytics", "payment_health"])
BALANCES = dg.AssetKey(["analytics", "balances"])
REPORT = dg.AssetKey(["analytics", "daily_report"])
ONE_RUN = dg.BackfillPolicy.single_run()
CALIBRATED = dg.AssetCheckSpec(
    "churn_model_is_calibrated",
    asset=CHURN_RISK,
    description="As many customers leave as the model expects, in each band of risk, on days that it has not seen.",
)
NO_DRIFT = dg.AssetCheckSpec(
    "churn_model_fits_todays_customers",
    asset=CHURN_RISK,
    description="The customers that are scored are like those that the model was trained on.",
)


def days_of(context: dg.AssetExecutionContext) -> tuple[date, date]:
    """The first and the last day of the run."""
    keys = context.partition_key_range
    return date.fromisoformat(keys.start), date.fromisoformat(keys.end)


def reporting(at: "Session | Step") -> "Connection":
    """The billing database, in which days begin at midnight in the reporting time zone."""
    from flexpay_pipelines.analytics import use_time_zone

    use_time_zone(at.billing, at.settings.reporting_time_zone)
    return at.billing


def named(rows: "Sequence[Mapping[str, Any]]", total: int | None = None, *, empty: str = "nothing") -> dg.MetadataValue:
    """The first of many rows as a table that says how many more there are; `total` counts all of them."""
    whole = len(rows) if total is None else total
    shown = [{name: value for name, value in row.items() if name not in ("total", "compared")} for row in rows]
    value = table(shown[:ROWS_SHOWN], empty=empty)
    more = whole - min(len(shown), ROWS_SHOWN)
    return dg.MetadataValue.md(f"{value.value}\n\n… and {more:,} more") if more > 0 else value


def _spec(key: dg.AssetKey, deps: list[dg.AssetKey], description: str) -> dg.AssetSpec:
    return dg.AssetSpec(
        key, deps=deps, description=description, group_name=GROUP, kinds={"postgres"}, partitions_def=DAYS
    )


@dg.multi_asset(
    name="subscription_metrics",
    specs=[
        _spec(
            MOVEMENTS,
            [PAUSE_SWEEP, schema_key("analytics")],
            "What changed each customer's run rate, and into which movement it falls.",
        ),
        _spec(SUMMARY, [MOVEMENTS], "MRR at start and end of the day with every movement between, by segment."),
        _spec(CHURN, [SUMMARY], "Customer and MRR churn, retention, quick ratio, ARPA and LTV, by their definition."),
        _spec(COHORTS, [MOVEMENTS], "Of those who first paid in a month, how many and how much is left."),
    ],
    pool="billing_db",
    backfill_policy=ONE_RUN,
)
def subscription_metrics(context: dg.AssetExecutionContext, flexpay: FlexPay) -> Iterator[dg.MaterializeResult[None]]:
    """All figures of the days in one transaction, so that no reader sees one of them older than another."""
    from flexpay_pipelines.analytics import MetricPolicy, key_figures, refresh, restatements

    with flexpay.step(context, "compute", "subscription metrics") as step:
        start, end = days_of(context)
        result = refresh(
            reporting(step),
            start=start,
            end=end,
            clock=step.clock,
            policy=MetricPolicy(reporting_currency=step.settings.reporting_currency),
            progress=step.progress,
        )
        shown = key_figures(reporting(step), day=end, reporting_currency=step.settings.reporting_currency)
        changed = restatements(reporting(step), first=date.min, last=date.max, newest=1) if result.restated else []
        step.details = {"start": start.isoformat(), "end": end.isoformat(), "restated": result.restated}
    for key in (MOVEMENTS, SUMMARY, CHURN, COHORTS):
        more = _restated(changed[0]) if changed and key in (MOVEMENTS, SUMMARY) else {}
        yield dg.MaterializeResult(asset_key=key, metadata={**figures(result), **figures(shown), **more})


def _restated(what: "Restatement") -> dict[str, dg.MetadataValue]:
    """What the run changed in days that were stored before, and why."""
    totals, causes = what.totals, what.causes
    return {
        "restated_days": dg.MetadataValue.text(f"{what.days} days from {what.first_day} to {what.last_day}"),
        "restated_totals": named(totals, totals[0]["total"] if totals else 0, empty="no total is otherwise"),
        "restated_because_of": named(
            causes,
            causes[0]["total"] if causes else 0,
            empty="the whole ledger was read anew" if what.events is None else "no new event",
        ),
    }


@dg.asset(
    key=CHURN_RISK,
    deps=[CHURN],
    group_name=GROUP,
    kinds={"postgres", "scikitlearn"},
    partitions_def=DAYS,
    backfill_policy=ONE_RUN,
    check_specs=[CALIBRATED, NO_DRIFT],
)
def churn_risk(context: dg.AssetExecutionContext, flexpay: FlexPay) -> Iterator[dg.MaterializeResult[None]]:
    """How likely each customer is to leave, with the reasons; 0.7 and above is high. Trained anew from history."""
    from flexpay_pipelines.analytics import calibration, churn_model, drift, refresh_churn_risk

    with flexpay.step(context, "score", "churn risk") as step:
        day = days_of(context)[1]
        result = refresh_churn_risk(reporting(step), day=day, clock=step.clock, progress=step.progress)
        model = churn_model(reporting(step), day)
        step.details = {"day": day.isoformat(), "model": result.model, "why": result.why}
        yield dg.MaterializeResult(
            metadata={**figures(result), **_model_shown(model)},
            check_results=[_judged(CALIBRATED, calibration(model)), _judged(NO_DRIFT, drift(model))],
        )


def _model_shown(model: "ChurnModel | None") -> dict[str, dg.MetadataValue]:
    from flexpay_pipelines.analytics import calibration_svg, comparison, lift_svg, weights_in_words

    if model is None:
        return {}
    pictures = {"calibration": calibration_svg(model), "lift": lift_svg(model)}
    return {
        "weights": table(weights_in_words(model)),
        "comparison": table(comparison(model), empty="nothing was compared"),
        **{name: dg.MetadataValue.md(svg) for name, svg in pictures.items() if svg},
    }


def _judged(check: dg.AssetCheckSpec, judgement: "Judgement") -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=check.name,
        passed=judgement.passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=judgement.message,
        metadata={**figures({"error": judgement.error, "limit": judgement.limit}), "rows": table(judgement.rows)},
    )


@dg.asset(
    key=REPORT,
    deps=[SUMMARY, CHURN, COHORTS, CHURN_RISK, PAYMENT_HEALTH, BALANCES],
    group_name=GROUP,
    kinds={"html", "parquet"},
    partitions_def=DAYS,
    backfill_policy=ONE_RUN,
)
def daily_report(context: dg.AssetExecutionContext, flexpay: FlexPay) -> dg.MaterializeResult[None]:
    """The day on one page for people, and the same figures as Parquet and CSV for analysts."""
    from flexpay_pipelines.analytics import daily_report as write_report
    from flexpay_pipelines.analytics import key_figures, trend_svg

    with flexpay.step(context, "report", "daily report") as step:
        currency = step.settings.reporting_currency
        for key in context.partition_keys:
            files = write_report(
                reporting(step),
                day=date.fromisoformat(key),
                folder=step.settings.home / "reports" / key,
                clock=step.clock,
                reporting_currency=currency,
            )
            step.progress(f"The report of {key} is {files.html}.")
        last = date.fromisoformat(context.partition_keys[-1])
        return dg.MaterializeResult(
            metadata={
                **figures(key_figures(reporting(step), day=last, reporting_currency=currency)),
                "report": dg.MetadataValue.path(files.html),
                "trend": dg.MetadataValue.md(trend_svg(reporting(step), day=last, reporting_currency=currency)),
            }
        )


daily_analytics = dg.define_asset_job(
    "daily_analytics",
    selection=dg.AssetSelection.groups(GROUP),
    description="Compute the day's MRR, churn, cohorts and balances, score the customers at risk, write the report.",
)

NIGHT = timedelta(hours=2)


def day_to_compute(tick: datetime, time_zone: str) -> date | None:
    """The day that is computed at this full hour: two hours after its end, in UTC and in the reporting time zone.

    None: no day's hour. Both count, since a partition ends with the UTC day of its name.
    """
    for back in (1, 2):
        day = tick.astimezone(UTC).date() - timedelta(days=back)
        following = day + timedelta(days=1)
        ends = [datetime(*following.timetuple()[:3], tzinfo=zone) for zone in (UTC, ZoneInfo(time_zone))]
        due = max(end.astimezone(UTC) for end in ends) + NIGHT
        if due <= tick < due + timedelta(hours=1):
            return day
    return None


@dg.schedule(
    job=daily_analytics,
    name="daily_analytics_at_02_00",
    cron_schedule="0 * * * *",
    description="The day before, at 02:00 in UTC and in the reporting time zone, whichever comes later.",
)
def daily_analytics_at_02_00(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """Looks every hour, so that the reporting time zone and its clock changes are followed."""
    from flexpay_pipelines.settings import load_settings

    zone = load_settings().reporting_time_zone
    day = day_to_compute(context.scheduled_execution_time, zone)
    if day is None:
        yield dg.SkipReason(f"It is not the hour of any day: 02:00 in UTC and in {zone}.")
    else:
        yield dg.RunRequest(partition_key=day.isoformat())


defs = dg.Definitions(
    assets=[subscription_metrics, churn_risk, daily_report],
    jobs=[daily_analytics],
    schedules=[daily_analytics_at_02_00],
)
