"""How likely each customer is to leave, and why: by a model that learns from the company's history, or by the rule.

What belongs here: scoring a day and keeping what scored it. What does not: learning (`churn_training`), judging the
model (`churn_checks`), alerting. All of it is told in docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from flexpay_pipelines.analytics.churn_history import first_day, read_history, snapshots, terms_of_today
from flexpay_pipelines.analytics.churn_training import Trained, by_rule, too_little, train
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import queries

PAUSED_CHURN_DAYS = 90


@dataclass(frozen=True, slots=True)
class ChurnRisk:
    """Customers scored for a day, how many of them at high risk (score 0.7 and above), by which model and why that one.

    expected_churn: how many of them will be gone in 30 days, by the model; None where the rule scores.
    """

    scored: int
    high: int
    model: str
    why: str
    expected_churn: float | None = None


def silent(_: str) -> None:
    """Tell nobody."""


def refresh_churn_risk(
    connection: Connection,
    *,
    day: date,
    clock: Clock,
    paused_churn_days: int | None = PAUSED_CHURN_DAYS,
    progress: Callable[[str], None] = silent,
) -> ChurnRisk:
    """Train on what was known by 30 days before `day` and earlier, then score everybody who is with us at its end.

    Reads the stored intervals, payments and rewards. One transaction; running it again replaces the day's scores. The
    same history gives the same scores.
    """
    named = queries("analytics_risk")
    with connection.transaction():
        # Sorts and hashes of all customers; the setting ends with the transaction.
        connection.execute("SELECT set_config('work_mem', '128MB', true)")
        trained = _train(connection, day, paused_churn_days, progress)
        card = trained.scorecard
        with terms_of_today(connection, day=day, paused_churn_days=paused_churn_days):
            named.drop_scores(connection, day=day)
            named.keep_scores(connection, day=day, now=clock.now(), **card.parameters())
            actual = _actual(connection, day, trained.expected) if trained.expected else {}
        _keep_model(connection, day, trained, actual, clock)
        counts = named.score_counts(connection, day=day)
    progress(f"Scored {counts['scored']} customers by {card.name}. {trained.reason}")
    expected = round(counts["total"], 1) if card.logistic else None
    return ChurnRisk(counts["scored"], counts["high"], card.name, trained.reason, expected)


def _train(
    connection: Connection, day: date, paused_churn_days: int | None, progress: Callable[[str], None]
) -> Trained:
    first = first_day(connection)
    if first is None:
        return by_rule("The company has no customers yet.")
    chosen = snapshots(day, first)
    reason = too_little(chosen)
    if reason is not None:
        return by_rule(reason)
    progress(f"Learning from {len(chosen.all)} days, {chosen.all[0]} to {chosen.all[-1]}.")
    rows = read_history(connection, chosen, paused_churn_days=paused_churn_days)
    return train(rows, chosen, name=f"logistic-{day}")


def _actual(connection: Connection, day: date, expected: Mapping[str, Any]) -> dict[str, Any]:
    """The shares of the day that was scored, in the form of those of training."""
    named = queries("analytics_risk")
    terms = dict(named.term_shares(connection))
    terms.pop("customers")
    shares: dict[str, dict[str, float]] = {"plan": {}, "frequency": {}}
    for row in named.plan_and_frequency_shares(connection):
        shares[row["kind"]][row["name"]] = row["share"]
    bands = {row["band"]: row["share"] for row in named.score_shares(connection, day=day, edges=expected["edges"])}
    return {
        "terms": {term: share or 0.0 for term, share in terms.items()},
        **shares,
        "scores": [bands.get(band, 0.0) for band in range(len(expected["edges"]) + 1)],
    }


def _keep_model(connection: Connection, day: date, trained: Trained, actual: Mapping[str, Any], clock: Clock) -> None:
    from psycopg.types.json import Jsonb  # noqa: PLC0415 - the code location loads without it

    stability = {"expected": dict(trained.expected), "actual": dict(actual)} if actual else {}
    rejected = {"rejected": trained.rejected.as_json()} if trained.rejected else {}
    queries("analytics_risk").keep_model(
        connection,
        day=day,
        model=trained.scorecard.name,
        trained_at=clock.now(),
        reason=trained.reason,
        scorecard=Jsonb({**trained.scorecard.as_json(), **rejected}),
        snapshots=Jsonb(dict(trained.counts)),
        evaluation=Jsonb(dict(trained.evaluation)),
        stability=Jsonb(stability),
    )
