"""The vocabulary of churn risk: the terms that are looked at, and the scorecards that weigh them.

What belongs here: names, words, the documented rule. What does not: how a term is computed
(sql/queries/analytics_features) or how weights are learnt (`churn_training`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

HORIZON_DAYS = 30

# Each group of terms gives at most one reason. A term is true or false; later terms of a group add to the earlier ones.
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "past_due": ("past_due",),
        "failed": ("failed_1", "failed_2", "failed_3"),
        "failed_before": ("failed_before",),
        "pause": ("is_paused", "paused_30", "ages_out"),
        "pauses": ("pauses_1", "pauses_2"),
        "downgraded": ("downgraded",),
        "upgraded": ("upgraded",),
        "tenure": ("new_30", "new_90", "new_180"),
        "overdue": ("overdue",),
        "renewal": ("renews",),
        "came_back": ("came_back",),
        "several": ("several",),
        "pays": ("pays_little", "pays_much"),
        "credit": ("has_credit",),
    }
)
TERMS = tuple(term for terms in GROUPS.values() for term in terms)
WORDS: Mapping[str, str] = MappingProxyType(
    {
        "past_due": "payment past due",
        "failed_1": "a failed payment in 30 days",
        "failed_2": "a second failed payment in 30 days",
        "failed_3": "a third failed payment in 30 days",
        "failed_before": "a failed payment 30 to 90 days ago",
        "is_paused": "paused",
        "paused_30": "paused for 30 days or more",
        "ages_out": "pause becomes churn within 30 days",
        "pauses_1": "a pause in 180 days",
        "pauses_2": "a second pause in 180 days",
        "downgraded": "downgraded in 90 days",
        "upgraded": "upgraded in 90 days",
        "new_30": "with us for less than 30 days",
        "new_90": "with us for less than 90 days",
        "new_180": "with us for less than 180 days",
        "overdue": "no payment for longer than the frequency",
        "renews": "quarterly or yearly renewal within 30 days",
        "came_back": "left before and came back",
        "several": "several subscriptions",
        "pays_little": "pays less than half the average",
        "pays_much": "pays more than twice the average",
        "has_credit": "has reward credit",
    }
)


@dataclass(frozen=True, slots=True)
class Scorecard:
    """Weights that are summed into a score.

    name: what analytics.churn_risk.model says. logistic: the sum is the log-odds of a probability; else the score
    itself, at most 1. weights: by term; plans, frequencies: by name. base: what each group of terms adds on average; a
    group is a reason where it adds `least` more than that.
    """

    name: str
    logistic: bool
    intercept: float
    least: float
    weights: Mapping[str, float]
    base: Mapping[str, float] = field(default_factory=dict)
    plans: Mapping[str, float] = field(default_factory=dict)
    frequencies: Mapping[str, float] = field(default_factory=dict)

    def parameters(self) -> dict[str, Any]:
        """As the statement that scores wants it: every term and group is there."""
        from psycopg.types.json import Jsonb  # noqa: PLC0415 - the code location loads without it

        groups = (*GROUPS, "plan", "frequency")
        return {
            "model": self.name,
            "logistic": self.logistic,
            "intercept": self.intercept,
            "least": self.least,
            "weights": Jsonb({term: self.weights.get(term, 0.0) for term in TERMS}),
            "base": Jsonb({group: self.base.get(group, 0.0) for group in groups}),
            "plans": Jsonb(dict(self.plans)),
            "frequencies": Jsonb(dict(self.frequencies)),
        }

    def as_json(self) -> dict[str, Any]:
        """What analytics.churn_models.scorecard keeps: enough to score again."""
        return {
            "logistic": self.logistic,
            "intercept": self.intercept,
            "least": self.least,
            "weights": dict(self.weights),
            "base": dict(self.base),
            "plans": dict(self.plans),
            "frequencies": dict(self.frequencies),
        }


# The rule of docs/metrics.md, a scorecard written by hand.
RULE = Scorecard(
    name="rule-1",
    logistic=False,
    intercept=0.0,
    least=0.01,
    weights=MappingProxyType(
        {
            "past_due": 0.35,
            "failed_1": 0.20,
            "failed_2": 0.15,
            "is_paused": 0.25,
            "paused_30": 0.15,
            "pauses_2": 0.15,
            "downgraded": 0.20,
            "new_90": 0.15,
        }
    ),
)
