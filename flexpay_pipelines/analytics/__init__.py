"""Analytics: MRR, churn and cohorts that reconcile to the minor unit and can be restated for any day.

What belongs here: figures derived from the ledger of subscription events, their checks, their export, the daily
report. What does not: changing billing data, judging releases (`monitoring`), Dagster's view of all this (`defs`).
Every formula stands in docs/metrics.md.
"""

from flexpay_pipelines.analytics.balances import (
    deferred_revenue,
    paused_revenue,
    rewards_deployed,
    rewards_liability,
)
from flexpay_pipelines.analytics.checks import freshness, identity_breaks, interval_breaks
from flexpay_pipelines.analytics.churn_checks import ChurnModel, Judgement, calibration, churn_model, drift
from flexpay_pipelines.analytics.churn_risk import ChurnRisk, refresh_churn_risk
from flexpay_pipelines.analytics.churn_shown import calibration_svg, comparison, lift_svg, weights_in_words
from flexpay_pipelines.analytics.datasets import DATASETS
from flexpay_pipelines.analytics.export import FORMATS, export_dataset
from flexpay_pipelines.analytics.figures import SEGMENTS, churn, cohorts, movements, summary
from flexpay_pipelines.analytics.payment_figures import dunning, payments_health
from flexpay_pipelines.analytics.policy import DEFINITION, GRAINS, STRIPE_DEFINITION, MetricPolicy
from flexpay_pipelines.analytics.refresh import RefreshResult, refresh
from flexpay_pipelines.analytics.report import ReportFiles, daily_report, trend_svg
from flexpay_pipelines.analytics.stored import key_figures

__all__ = [
    "DATASETS",
    "DEFINITION",
    "FORMATS",
    "GRAINS",
    "SEGMENTS",
    "STRIPE_DEFINITION",
    "ChurnModel",
    "ChurnRisk",
    "Judgement",
    "MetricPolicy",
    "RefreshResult",
    "ReportFiles",
    "calibration",
    "calibration_svg",
    "churn",
    "churn_model",
    "cohorts",
    "comparison",
    "daily_report",
    "deferred_revenue",
    "drift",
    "dunning",
    "export_dataset",
    "freshness",
    "identity_breaks",
    "interval_breaks",
    "key_figures",
    "lift_svg",
    "movements",
    "paused_revenue",
    "payments_health",
    "refresh",
    "refresh_churn_risk",
    "rewards_deployed",
    "rewards_liability",
    "summary",
    "trend_svg",
    "weights_in_words",
]
