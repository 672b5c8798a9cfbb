"""The churn model as people read it: weights in words, the comparison with the baselines, two small pictures.

What belongs here: rows and SVG. What does not: judging the model (`churn_checks`).
"""

from __future__ import annotations

from itertools import accumulate
from math import exp
from typing import Any

from flexpay_pipelines.analytics.churn_checks import ChurnModel
from flexpay_pipelines.analytics.churn_terms import WORDS
from flexpay_pipelines.analytics.plots import HALF_WIDTH, Line, line_chart

Row = dict[str, Any]
_STYLE = (
    "<style>.grid{stroke:#8884;stroke-width:1}.axis{font:11px sans-serif;fill:#888}.line{fill:none;stroke-width:2}"
    ".expected{stroke:#888;fill:#888}.observed{stroke:#4f46e5;fill:#4f46e5}.line.expected,.line.observed{fill:none}</style>"
)


def weights_in_words(model: ChurnModel) -> list[Row]:
    """What each term does to the odds of leaving (or adds, under the rule), the strongest first."""
    card = model.scorecard
    named = {WORDS[term]: weight for term, weight in card["weights"].items()}
    named |= {f"plan {plan}": weight for plan, weight in card["plans"].items()}
    named |= {f"pays {frequency.lower()}": weight for frequency, weight in card["frequencies"].items()}
    ordered = sorted(named.items(), key=lambda item: (-abs(item[1]), item[0]))
    if card["logistic"]:
        return [{"when": words, "odds of leaving": f"x {exp(weight):.2f}"} for words, weight in ordered]
    return [{"when": words, "points": weight} for words, weight in ordered]


def comparison(model: ChurnModel) -> list[Row]:
    """Model, rule and base rate on the same unseen customers; no rows where nothing was compared."""
    return [
        {"scored by": name.replace("_", " "), **{measure: round(value, 4) for measure, value in found.items()}}
        for name in ("model", "rule", "base_rate")
        if (found := model.evaluation.get(name))
    ]


def calibration_svg(model: ChurnModel) -> str | None:
    """Expected and observed share of customers who left, by decile of the score; None where nothing was compared."""
    bands = model.evaluation.get("deciles")
    if not bands:
        return None
    return _picture(
        "Expected (grey) and observed churn by decile",
        [str(number) for number in range(1, len(bands) + 1)],
        [band["expected"] for band in bands],
        [band["observed"] for band in bands],
    )


def lift_svg(model: ChurnModel) -> str | None:
    """The share of all departures found among those with the highest scores, against picking at random (grey)."""
    bands = model.evaluation.get("deciles")
    if not bands:
        return None
    left = [band["customers"] * band["observed"] for band in reversed(bands)]
    sizes = [band["customers"] for band in reversed(bands)]
    return _picture(
        "Departures found among the highest scores, against chance (grey)",
        [f"{100 * n // len(bands)}%" for n in range(len(bands) + 1)],
        [0.0, *(size / sum(sizes) for size in accumulate(sizes))],
        [0.0, *(found / sum(left) for found in accumulate(left))],
    )


def _picture(title: str, labels: list[str], grey: list[float], strong: list[float]) -> str:
    lines = [Line("expected", "expected", grey), Line("observed", "observed", strong)]
    svg = line_chart(title, labels, lines, percent=True, from_zero=True, width=HALF_WIDTH)
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{_STYLE}", 1)
