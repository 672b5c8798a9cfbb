"""How likely each customer is to leave, and why: for now by a documented rule.

What belongs here: scoring a day. What does not: alerting on it. The rule stands in docs/metrics.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

from flexpay_pipelines.analytics.policy import midnight
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import queries

MODEL = "rule-1"
HIGH = 0.7
PAUSED_CHURN_DAYS = 90


@dataclass(frozen=True, slots=True)
class ChurnRisk:
    """Customers scored for a day, and how many of them at high risk (score 0.7 and above)."""

    scored: int
    high: int


def refresh_churn_risk(
    connection: Connection, *, day: date, clock: Clock, paused_churn_days: int | None = PAUSED_CHURN_DAYS
) -> ChurnRisk:
    """Score every customer who is with us at the end of `day`, from the stored intervals and the payments.

    Running it again replaces the day's scores.
    """
    named = queries("analytics_risk")
    with connection.transaction():
        named.drop_scores(connection, day=day)
        named.keep_scores(
            connection,
            day=day,
            at=midnight(day + timedelta(days=1)),
            model=MODEL,
            now=clock.now(),
            paused_churn_days=paused_churn_days,
        )
        counts = named.score_counts(connection, day=day)
    return ChurnRisk(counts["scored"], counts["high"])
