"""A scorecard learnt from history, calibrated on later days and compared with simple baselines on later ones still.

What belongs here: fitting, calibration, comparison, and the decision for the model or for the rule. What does not:
reading history (`churn_history`), keeping and showing what came of it (`churn_risk`, `churn_checks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, log, sqrt
from typing import TYPE_CHECKING, Any

from flexpay_pipelines.analytics.churn_history import FEWEST_TRAINING_DAYS, Rows, Snapshots
from flexpay_pipelines.analytics.churn_terms import GROUPS, RULE, TERMS, Scorecard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Below these the rule scores: a weight that few departures support is noise.
FEWEST_CHURNED = {"training": 200, "calibration": 30, "test": 30}
RAREST_TERM = 20
MOST_PLANS = 12
# Penalty of squared weights: scikit-learn's C. A weight that is hardly supported stays close to 0.
INVERSE_PENALTY = 0.5
# How far, as a standard deviation, the calibration may pull the slope of the log-odds from 1.
SLOPE_DEVIATION = 0.25
NEWTON_STEPS = 25
# Better than the base rate by so many standard errors of the difference: one in forty random companies would pass once.
SIGNIFICANT = 2.0
# A reason raises the odds by a quarter or more.
LEAST_REASON = log(1.25)
BANDS = 10
# Bands of risk, as multiples of the mean, in which the scores of later days are compared with those of training.
RISK_BANDS = (0.5, 0.8, 1.25, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Trained:
    """What scores, why, and what it was measured by.

    evaluation: `{model, rule, base_rate: {brier, log_loss, average_precision, auc}, customers, churned, gain,
    level_deviation, deciles}`; empty without a comparison. expected: for stability, `{terms, plan, frequency:
    name -> share, edges, scores}` of the days of training. rejected: a model that did not beat the baselines.
    """

    scorecard: Scorecard
    reason: str
    evaluation: Mapping[str, Any]
    expected: Mapping[str, Any]
    counts: Mapping[str, Any]
    rejected: Scorecard | None = None


def by_rule(reason: str, counts: Mapping[str, Any] | None = None) -> Trained:
    """The rule scores, for this reason."""
    return Trained(RULE, reason, {}, {}, counts or {})


def too_little(chosen: Snapshots) -> str | None:
    """Why a model cannot be trained on these days, if so."""
    if len(chosen.training) < FEWEST_TRAINING_DAYS:
        return "The company has less than six months of history to learn from."
    return None


def train(rows: Rows, chosen: Snapshots, *, name: str) -> Trained:
    """Fit, calibrate, compare; the same rows give the same scorecard."""
    parts = {part: rows.of(getattr(chosen, part)) for part in ("training", "calibration", "test")}
    counts: dict[str, dict[str, Any]] = {
        part: {
            "days": [day.isoformat() for day in getattr(chosen, part)],
            "customers": len(each.churned),
            "churned": _people(each),
        }
        for part, each in parts.items()
    }
    for part, least in FEWEST_CHURNED.items():
        if counts[part]["churned"] < least:
            return by_rule(
                f"Only {counts[part]['churned']} customers left in the {part} days; {least} are needed.", counts
            )
    model = calibrated(fit(parts["training"], name), parts["calibration"])
    if model is None:
        return by_rule("What the model learnt says nothing about the days it was calibrated on.", counts)
    evaluation = compare(model, parts["calibration"], parts["test"])
    refused = _verdict(evaluation)
    expected = _expected(model, parts["training"])
    if refused is not None:
        return Trained(RULE, refused, evaluation, {}, counts, rejected=model)
    reason = f"Beats the base rate and the rule on {counts['test']['customers']:,} customers it had not seen."
    return Trained(model, reason, evaluation, expected, counts)


def _people(rows: Rows) -> int:
    """How many customers left, however often they were looked at before."""
    import numpy as np  # noqa: PLC0415

    return len(np.unique(rows.customers[rows.churned]))


def fit(rows: Rows, name: str) -> Scorecard:
    """Logistic regression on the terms; a term that hardly occurs, or always does, has no weight."""
    import numpy as np  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    occurs = rows.terms.sum(axis=0)
    used = [n for n in range(len(TERMS)) if RAREST_TERM <= occurs[n] <= len(rows.terms) - RAREST_TERM]
    plans, frequencies = _categories(rows.plans), _categories(rows.frequencies)
    matrix = np.column_stack(
        [
            rows.terms[:, used],
            *(rows.plans == plan for plan in plans),
            *(rows.frequencies == each for each in frequencies),
        ]
    ).astype(np.float64)
    learnt = LogisticRegression(C=INVERSE_PENALTY, solver="newton-cholesky").fit(matrix, rows.churned)
    weights = iter(learnt.coef_[0].tolist())
    by_term = {TERMS[n]: next(weights) for n in used}
    by_plan = {plan: next(weights) for plan in plans}
    by_frequency = {each: next(weights) for each in frequencies}
    share = dict(zip(TERMS, (occurs / len(rows.terms)).tolist(), strict=True))
    base = {group: sum(by_term.get(term, 0.0) * share[term] for term in terms) for group, terms in GROUPS.items()}
    base["plan"] = sum(weight * float(np.mean(rows.plans == plan)) for plan, weight in by_plan.items())
    base["frequency"] = sum(weight * float(np.mean(rows.frequencies == each)) for each, weight in by_frequency.items())
    return Scorecard(name, True, float(learnt.intercept_[0]), LEAST_REASON, by_term, base, by_plan, by_frequency)


def _categories(values: NDArray[np.str_]) -> list[str]:
    """The most common values, if there is more than one."""
    import numpy as np  # noqa: PLC0415

    names, counts = np.unique(values, return_counts=True)
    common = sorted((-int(count), str(name)) for name, count in zip(names, counts, strict=True) if count >= RAREST_TERM)
    return sorted(name for _, name in common[:MOST_PLANS]) if len(common) > 1 else []


def points(card: Scorecard, rows: Rows) -> NDArray[np.float64]:
    """The weighted sum of each row: log-odds, or points of the rule."""
    import numpy as np  # noqa: PLC0415

    total = np.full(len(rows.terms), card.intercept)
    total += rows.terms @ np.array([card.weights.get(term, 0.0) for term in TERMS])
    for values, weights in ((rows.plans, card.plans), (rows.frequencies, card.frequencies)):
        for name, weight in weights.items():
            total += weight * (values == name)
    return total


def scores(card: Scorecard, rows: Rows) -> NDArray[np.float64]:
    """The score of each row, as the database computes it."""
    import numpy as np  # noqa: PLC0415

    total = points(card, rows)
    return 1 / (1 + np.exp(-np.clip(total, -30, 30))) if card.logistic else np.clip(total, 0, 1)


def calibrated(card: Scorecard, rows: Rows) -> Scorecard | None:
    """Platt's scaling: the line through the log-odds that fits later days best; None where it does not rise.

    A month of departures says little about the slope, so that it starts out as 1 and has to be argued away from it.
    """
    slope, shift = _platt(points(card, rows), rows.churned, SLOPE_DEVIATION)
    if slope <= 0:
        return None

    def stretched(weights: Mapping[str, float]) -> dict[str, float]:
        return {name: slope * weight for name, weight in weights.items()}

    return Scorecard(
        card.name, True, slope * card.intercept + shift, card.least, stretched(card.weights), stretched(card.base),
        stretched(card.plans), stretched(card.frequencies),
    )  # fmt: skip


def _platt(values: NDArray[np.float64], churned: NDArray[np.bool_], deviation: float = inf) -> tuple[float, float]:
    """Slope and intercept of churn's log-odds over `values`, by Newton's method; `deviation`: of the slope from 1."""
    import numpy as np  # noqa: PLC0415

    if float(np.ptp(values)) == 0.0:
        return 0.0, log(float(churned.mean()) / (1 - float(churned.mean())))
    middle = float(values.mean())
    matrix = np.column_stack([values - middle, np.ones(len(values))])
    prior, penalty = np.array([1.0, 0.0]), np.diag([deviation**-2, 0.0])
    line = np.array([0.0, log(float(churned.mean()) / (1 - float(churned.mean())))])
    for _ in range(NEWTON_STEPS):
        probability = 1 / (1 + np.exp(-np.clip(matrix @ line, -30, 30)))
        gradient = matrix.T @ (churned - probability) - penalty @ (line - prior)
        curvature = (matrix * (probability * (1 - probability))[:, None]).T @ matrix + penalty
        line = line + np.linalg.solve(curvature, gradient)
    slope, height = line.tolist()
    return slope, height - slope * middle


def compare(model: Scorecard, before: Rows, rows: Rows) -> dict[str, Any]:
    """How the model, the rule (calibrated like the model) and the base rate do on the same unseen rows."""
    import numpy as np  # noqa: PLC0415

    slope, shift = _platt(points(RULE, before), before.churned)
    by = {
        "model": scores(model, rows),
        "rule": 1 / (1 + np.exp(-(slope * points(RULE, rows) + shift))),
        "base_rate": np.full(len(rows.churned), float(before.churned.mean())),
    }
    return {
        **{name: _measures(probability, rows.churned) for name, probability in by.items()},
        "customers": len(rows.churned),
        "churned": int(rows.churned.sum()),
        # How far off the level may be, which a month of departures has set.
        "level_deviation": sqrt(float(before.churned.mean()) / max(_people(before), 1))
        * sqrt(float(before.churned.mean())),
        "gain": _gain(by["base_rate"], by["model"], rows),
        "deciles": deciles(by["model"], rows),
    }


def _losses(probability: NDArray[np.float64], churned: NDArray[np.bool_]) -> NDArray[np.float64]:
    import numpy as np  # noqa: PLC0415

    return -np.log(np.where(churned, probability, 1 - probability))


def _measures(probability: NDArray[np.float64], churned: NDArray[np.bool_]) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, roc_auc_score  # noqa: PLC0415

    return {
        "brier": float(((probability - churned) ** 2).mean()),
        "log_loss": float(_losses(probability, churned).mean()),
        "average_precision": float(average_precision_score(churned, probability)),
        "auc": float(roc_auc_score(churned, probability)),
    }


def _gain(worse: NDArray[np.float64], better: NDArray[np.float64], rows: Rows) -> float:
    """By how many standard errors the log loss falls; a customer who is looked at twice is one observation."""
    import numpy as np  # noqa: PLC0415

    difference = _losses(worse, rows.churned) - _losses(better, rows.churned)
    _, person = np.unique(rows.customers, return_inverse=True)
    each = np.bincount(person, weights=difference)
    spread = sqrt(len(each)) * float(each.std(ddof=1))
    return float(each.sum()) / spread if spread > 0 else 0.0


def _verdict(evaluation: Mapping[str, Any]) -> str | None:
    """Why the model is not good enough, if so."""
    model = evaluation["model"]
    if evaluation["gain"] < SIGNIFICANT:
        return (
            f"The model is not surely better than the base rate: log loss {model['log_loss']:.4f} against"
            f" {evaluation['base_rate']['log_loss']:.4f}, {evaluation['gain']:.1f} standard errors."
        )
    for other in ("base_rate", "rule"):
        # The two that a probability can only win by being true; average precision is shown beside them.
        for measure in ("brier", "log_loss"):
            ours, theirs = model[measure], evaluation[other][measure]
            if ours > theirs:
                words = f"{other.replace('_', ' ')} ({measure.replace('_', ' ')}"
                return f"The model is worse than the {words} {ours:.4f} against {theirs:.4f})."
    return None


def deciles(probability: NDArray[np.float64], rows: Rows) -> list[dict[str, float]]:
    """Ten bands from the lowest probability to the highest: how many rows, what share should leave, what share did.

    `deviation`: by how much chance alone moves the share observed; a customer who is looked at twice counts once in it.
    """
    import numpy as np  # noqa: PLC0415

    order = np.lexsort((rows.customers, probability))
    return [
        {
            "customers": len(band),
            "expected": float(probability[band].mean()),
            "observed": float(rows.churned[band].mean()),
            "deviation": sqrt(
                float((probability[band] * (1 - probability[band])).mean()) / len(np.unique(rows.customers[band]))
            ),
        }
        for band in np.array_split(order, BANDS)
        if len(band)
    ]


def _expected(model: Scorecard, rows: Rows) -> dict[str, Any]:
    """The shares of training that later days are compared with."""
    import numpy as np  # noqa: PLC0415

    trained = np.round(scores(model, rows), 3)
    edges = [multiple * float(trained.mean()) for multiple in RISK_BANDS]
    bands = np.bincount(np.searchsorted(edges, trained, side="right"), minlength=len(edges) + 1)
    return {
        "terms": dict(zip(TERMS, rows.terms.mean(axis=0).tolist(), strict=True)),
        "plan": _shares(rows.plans),
        "frequency": _shares(rows.frequencies),
        "edges": edges,
        "scores": (bands / len(trained)).tolist(),
    }


def _shares(values: NDArray[np.str_]) -> dict[str, float]:
    import numpy as np  # noqa: PLC0415

    names, counts = np.unique(values, return_counts=True)
    return {str(name): int(count) / len(values) for name, count in zip(names, counts, strict=True)}
