"""Whether the churn model keeps its word: expected departures against those that came, today against training.

What belongs here: judging a stored model. What does not: training it (`churn_training`), showing it (`churn_shown`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from math import log, pi, sqrt
from typing import Any

from flexpay_pipelines.analytics.churn_terms import GROUPS, WORDS
from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import queries

# The usual reading of a population stability index: below 0.10 the same population, above 0.25 another one.
SHIFTED = 0.25
# What a shift must add to the mean log-odds to matter (a tenth of the odds), and how many may be on unseen plans.
MATTERS = log(1.1)
MOST_UNSEEN = 0.10
SMALLEST_SHARE = 0.0005

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a property holds, in one sentence, with the rows behind it; `error` and `limit` where it is a number."""

    passed: bool
    message: str
    rows: list[Row]
    error: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class ChurnModel:
    """What analytics.churn_models keeps of a day."""

    day: date
    model: str
    reason: str
    scorecard: Mapping[str, Any]
    snapshots: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    stability: Mapping[str, Any]

    @property
    def trained(self) -> bool:
        """Whether a trained model scored, not the rule."""
        return bool(self.scorecard["logistic"])


def churn_model(connection: Connection, day: date) -> ChurnModel | None:
    """What scored a day; None where it is not scored."""
    row = queries("analytics_risk").stored_model(connection, day=day)
    if row is None:
        return None
    return ChurnModel(**{name: row[name] for name in ChurnModel.__slots__})


def calibration(model: ChurnModel | None) -> Judgement:
    """Expected against observed departures in ten bands of risk, on customers that training has not seen.

    `error` is the expected calibration error: the mean distance of the two, weighted by customers. `limit` is what
    chance explains: of the departures observed, three standard deviations, and of the level learnt from a month, two.
    """
    if model is None or not model.trained:
        return Judgement(True, "The rule scores, and its points are no probabilities: nothing to compare.", [])
    bands, level = model.evaluation["deciles"], 2 * model.evaluation["level_deviation"]
    total = sum(band["customers"] for band in bands)
    rows = []
    error = mean = variance = 0.0
    for number, band in enumerate(bands, 1):
        weight, distance = band["customers"] / total, band["observed"] - band["expected"]
        error += weight * abs(distance)
        mean += weight * band["deviation"] * sqrt(2 / pi)
        variance += (weight * band["deviation"]) ** 2 * (1 - 2 / pi)
        rows.append(
            {
                "band": number,
                "customers": band["customers"],
                "expected": round(band["expected"], 4),
                "observed": round(band["observed"], 4),
                "off": abs(distance) > 3 * band["deviation"] + level,
            }
        )
    limit = mean + 3 * sqrt(variance) + level
    passed = error <= limit
    off = ", ".join(str(row["band"]) for row in rows if row["off"]) or "none by itself"
    message = (
        f"Expected and observed churn differ by {error:.2%} on average; chance explains {limit:.2%}."
        if passed
        else f"Expected and observed churn differ by {error:.2%} on average, more than chance explains ({limit:.2%});"
        f" bands that are off: {off}."
    )
    return Judgement(passed, message, rows, error, limit)


def drift(model: ChurnModel | None) -> Judgement:
    """The population stability index of the scores and of each term: the day that was scored against training.

    A term has drifted when its index is above 0.25 and what it adds to the log-odds has changed on average.
    """
    if model is None or not model.trained:
        return Judgement(True, "The rule scores: it was not trained on any population.", [])
    expected, actual, card = model.stability["expected"], model.stability["actual"], model.scorecard
    of_scores = stability_index(expected["scores"], actual["scores"])
    rows = [_row("score", of_scores, 0.0, off=of_scores > SHIFTED)]
    for terms in GROUPS.values():
        for term in terms:
            before, now = expected["terms"][term], actual["terms"][term]
            shift = card["weights"].get(term, 0.0) * (now - before)
            rows.append(_judged(WORDS[term], stability_index([before, 1 - before], [now, 1 - now]), shift))
    for kind, weights in (("plan", card["plans"]), ("frequency", card["frequencies"])):
        rows.append(_of_categories(kind, weights, expected[kind], actual[kind]))
    off = [row["what"] for row in rows if row["off"]]
    message = (
        f"The customers scored are like those of training: the index of the scores is {of_scores:.2f}."
        if not off
        else f"The customers scored are not like those of training: {', '.join(off)} (index of the scores"
        f" {of_scores:.2f}, limit {SHIFTED})."
    )
    rows.sort(key=lambda row: (not row["off"], -row["index"]))
    return Judgement(not off, message, rows, of_scores, SHIFTED)


def _of_categories(
    kind: str, weights: Mapping[str, float], before: Mapping[str, float], now: Mapping[str, float]
) -> Row:
    names = sorted({*before, *now})
    index = stability_index([before.get(name, 0.0) for name in names], [now.get(name, 0.0) for name in names])
    shift = sum(weights.get(name, 0.0) * (now.get(name, 0.0) - before.get(name, 0.0)) for name in names)
    unseen = sum(share for name, share in now.items() if name not in before)
    if unseen > MOST_UNSEEN:
        return _row(f"{kind} not seen in training ({unseen:.0%} of customers)", index, shift, off=True)
    return _judged(kind, index, shift)


def _judged(what: str, index: float, shift: float) -> Row:
    return _row(what, index, shift, off=index > SHIFTED and abs(shift) > MATTERS)


def _row(what: str, index: float, shift: float, *, off: bool) -> Row:
    return {"what": what, "index": round(index, 3), "change of log-odds": round(shift, 3), "off": off}


def stability_index(expected: list[float], actual: list[float]) -> float:
    """Sum of (actual - expected) x ln(actual / expected) over bands; shares near 0 count as 0.0005."""
    total = 0.0
    for before, now in zip(expected, actual, strict=True):
        then, today = max(before, SMALLEST_SHARE), max(now, SMALLEST_SHARE)
        total += (today - then) * log(today / then)
    return total
