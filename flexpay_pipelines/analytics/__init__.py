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
from flexpay_pipelines.analytics.days import day_of, use_time_zone
from flexpay_pipelines.analytics.expectations import expected_figures, unexpected
from flexpay_pipelines.analytics.export import FORMATS, export_dataset
from flexpay_pipelines.analytics.figures import SEGMENTS, churn, cohorts, movements, summary
from flexpay_pipelines.analytics.payment_figures import dunning, payments_health, recovery
from flexpay_pipelines.analytics.plausible import (
    Freshness,
    event_breaks,
    events_behind,
    how_fresh,
    month_breaks,
    payment_breaks,
    plausible,
)
from flexpay_pipelines.analytics.policy import DEFINITION, GRAINS, STRIPE_DEFINITION, MetricPolicy
from flexpay_pipelines.analytics.refresh import RefreshResult, refresh
from flexpay_pipelines.analytics.report import ReportFiles, daily_report, trend_svg
from flexpay_pipelines.analytics.report_balances import balance_svg, failure_svg
from flexpay_pipelines.analytics.restatements import Restatement, restatements
from flexpay_pipelines.analytics.stored import key_figures
from flexpay_pipelines.analytics.stored_balances import (
    BalanceResult,
    balance_breaks,
    refresh_balances,
    stored_balances,
)

__all__ = [
    "DATASETS",
    "DEFINITION",
    "FORMATS",
    "GRAINS",
    "SEGMENTS",
    "STRIPE_DEFINITION",
    "BalanceResult",
    "ChurnModel",
    "ChurnRisk",
    "Freshness",
    "Judgement",
    "MetricPolicy",
    "RefreshResult",
    "ReportFiles",
    "Restatement",
    "balance_breaks",
    "balance_svg",
    "calibration",
    "calibration_svg",
    "churn",
    "churn_model",
    "cohorts",
    "comparison",
    "daily_report",
    "day_of",
    "deferred_revenue",
    "drift",
    "dunning",
    "event_breaks",
    "events_behind",
    "expected_figures",
    "export_dataset",
    "failure_svg",
    "freshness",
    "how_fresh",
    "identity_breaks",
    "interval_breaks",
    "key_figures",
    "lift_svg",
    "month_breaks",
    "movements",
    "paused_revenue",
    "payment_breaks",
    "payments_health",
    "plausible",
    "recovery",
    "refresh",
    "refresh_balances",
    "refresh_churn_risk",
    "restatements",
    "rewards_deployed",
    "rewards_liability",
    "stored_balances",
    "summary",
    "trend_svg",
    "unexpected",
    "use_time_zone",
    "weights_in_words",
]
