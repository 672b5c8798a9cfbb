"""Analytics: MRR, churn and cohorts that reconcile to the minor unit and can be restated for any day.

What belongs here: figures derived from the ledger of subscription events, their checks, their export, the daily
report. What does not: changing billing data, judging releases (`monitoring`), Dagster's view of all this (`defs`).
Every formula stands in docs/metrics.md.
"""

from flexpay_pipelines.analytics.checks import freshness, identity_breaks, interval_breaks
from flexpay_pipelines.analytics.churn_risk import ChurnRisk, refresh_churn_risk
from flexpay_pipelines.analytics.export import DATASETS, FORMATS, export_dataset
from flexpay_pipelines.analytics.figures import SEGMENTS, churn, cohorts, movements, payments_health, summary
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
    "ChurnRisk",
    "MetricPolicy",
    "RefreshResult",
    "ReportFiles",
    "churn",
    "cohorts",
    "daily_report",
    "export_dataset",
    "freshness",
    "identity_breaks",
    "interval_breaks",
    "key_figures",
    "movements",
    "payments_health",
    "refresh",
    "refresh_churn_risk",
    "summary",
    "trend_svg",
]
