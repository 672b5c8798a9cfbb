"""Watching a release: metrics in ticks, the rule that decides, the guards that restrain it, and the incidents it opens.

What belongs here: judging. What does not: rolling back (`rollback`), telling people (`alerts`), analysts' figures
(`analytics`). A judge changes nothing but the control database's deploys, decisions, incidents and cursors.
"""

from __future__ import annotations

from flexpay_pipelines.monitoring.business import Breach, Thresholds, business_health, response_seconds
from flexpay_pipelines.monitoring.database_performance import (
    DatabaseSample,
    judge_database_performance,
    sample_database,
    take_database_baseline,
)
from flexpay_pipelines.monitoring.decision import (
    DATABASE_SLOWDOWN,
    PAYMENT_FAILURES,
    SYSTEM_ERRORS,
    DecisionRule,
    Exposure,
    Tick,
    smallest_rollback,
)
from flexpay_pipelines.monitoring.deploys import Deploy, newest_deploy, record_deploy
from flexpay_pipelines.monitoring.judgement import Judgement
from flexpay_pipelines.monitoring.payment_failures import judge_issuer_declines, judge_payment_failures
from flexpay_pipelines.monitoring.system_errors import judge_system_errors
from flexpay_pipelines.monitoring.ticks import Counts, PaymentTick, payment_ticks
from flexpay_pipelines.monitoring.vulnerabilities import (
    Advisory,
    Finding,
    judge_vulnerabilities,
    keep_lock,
    previous_lock,
    read_advisories,
    vulnerabilities,
)

__all__ = [
    "DATABASE_SLOWDOWN",
    "PAYMENT_FAILURES",
    "SYSTEM_ERRORS",
    "Advisory",
    "Breach",
    "Counts",
    "DatabaseSample",
    "DecisionRule",
    "Deploy",
    "Exposure",
    "Finding",
    "Judgement",
    "PaymentTick",
    "Thresholds",
    "Tick",
    "business_health",
    "judge_database_performance",
    "judge_issuer_declines",
    "judge_payment_failures",
    "judge_system_errors",
    "judge_vulnerabilities",
    "keep_lock",
    "newest_deploy",
    "payment_ticks",
    "previous_lock",
    "read_advisories",
    "record_deploy",
    "response_seconds",
    "sample_database",
    "smallest_rollback",
    "take_database_baseline",
    "vulnerabilities",
]
