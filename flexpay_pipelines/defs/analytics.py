"""Analytics: MRR movements and what is read off them, day by day, and the report that people read.

What belongs here: the assets of run rate, risk and the report, job and schedule. What does not: any formula
(`analytics`), payments and balances (`analytics_balances`), checks (`analytics_checks`).
"""

from collections.abc import Iterator
from datetime import date
from typing import TYPE_CHECKING

import dagster as dg

from flexpay_pipelines.defs.billing import PAUSE_SWEEP
from flexpay_pipelines.defs.migrations import schema_key
from flexpay_pipelines.defs.presentation import figures, table
from flexpay_pipelines.defs.resources import FlexPay

if TYPE_CHECKING:
    from flexpay_pipelines.analytics import ChurnModel, Judgement

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
    from flexpay_pipelines.analytics import MetricPolicy, key_figures, refresh

    with flexpay.step(context, "compute", "subscription metrics") as step:
        start, end = days_of(context)
        result = refresh(
            step.billing,
            start=start,
            end=end,
            clock=step.clock,
            policy=MetricPolicy(reporting_currency=step.settings.reporting_currency),
            progress=step.progress,
        )
        shown = key_figures(step.billing, day=end, reporting_currency=step.settings.reporting_currency)
        step.details = {"start": start.isoformat(), "end": end.isoformat()}
    for key in (MOVEMENTS, SUMMARY, CHURN, COHORTS):
        yield dg.MaterializeResult(asset_key=key, metadata={**figures(result), **figures(shown)})


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
        result = refresh_churn_risk(step.billing, day=day, clock=step.clock, progress=step.progress)
        model = churn_model(step.billing, day)
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
                step.billing,
                day=date.fromisoformat(key),
                folder=step.settings.home / "reports" / key,
                clock=step.clock,
                reporting_currency=currency,
            )
            step.progress(f"The report of {key} is {files.html}.")
        last = date.fromisoformat(context.partition_keys[-1])
        return dg.MaterializeResult(
            metadata={
                **figures(key_figures(step.billing, day=last, reporting_currency=currency)),
                "report": dg.MetadataValue.path(files.html),
                "trend": dg.MetadataValue.md(trend_svg(step.billing, day=last, reporting_currency=currency)),
            }
        )


daily_analytics = dg.define_asset_job(
    "daily_analytics",
    selection=dg.AssetSelection.groups(GROUP),
    description="Compute the day's MRR, churn, cohorts and balances, score the customers at risk, write the report.",
)

defs = dg.Definitions(
    assets=[subscription_metrics, churn_risk, daily_report],
    jobs=[daily_analytics],
    schedules=[dg.build_schedule_from_partitioned_job(daily_analytics, name="daily_analytics_at_02_00", hour_of_day=2)],
)
