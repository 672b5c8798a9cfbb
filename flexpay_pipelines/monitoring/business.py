"""Business and service figures that people must hear of: nothing here rolls anything back.

What belongs here: figures against their thresholds. What does not: computing them (`analytics`), telling (`alerts`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

Number = int | float | Decimal
Name = Literal["churn", "high_risk_customers", "api_response"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What may not be exceeded unnoticed: a rate of 30 days, a number of customers, seconds."""

    churn_rate: float = 0.10
    high_risk: int = 50
    api_seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class Breach:
    """A figure above its threshold, or one that is missing; `message` is one sentence for an alert."""

    name: Name
    value: Number | None
    threshold: Number
    message: str

    @property
    def missing(self) -> bool:
        """Whether the figure could not be had: never good news."""
        return self.value is None


def business_health(
    churn_rate: Number | None,
    high_risk: int | None,
    thresholds: Thresholds,
    *,
    api_seconds: float | Callable[[], float] | None = None,
) -> tuple[Breach, ...]:
    """The figures that exceed their thresholds or are missing (None, NaN), in a fixed order.

    Args:
        churn_rate: share of customers lost in 30 days, 0.10 = 10 %.
        high_risk: customers whose churn score is high.
        api_seconds: response time of the payment API, or what measures it (`response_seconds`); None: not asked for.
    """
    figures: list[tuple[Name, Number | None, Number]] = [
        ("churn", churn_rate, thresholds.churn_rate),
        ("high_risk_customers", high_risk, thresholds.high_risk),
    ]
    if api_seconds is not None:
        measured = api_seconds() if callable(api_seconds) else api_seconds
        figures.append(("api_response", measured, thresholds.api_seconds))
    return tuple(breach for name, value, limit in figures if (breach := _breach(name, value, limit)) is not None)


def response_seconds(call: Callable[[], object], timer: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """Wrap a call so that `business_health` can time it; what the call raises is passed on."""

    def timed() -> float:
        begun = timer()
        call()
        return timer() - begun

    return timed


_SAYS: dict[Name, str] = {
    "churn": "Churn of 30 days is {value:.1%}, above {threshold:.1%}.",
    "high_risk_customers": "{value} customers are at high risk of leaving, more than {threshold}.",
    "api_response": "The payment API took {value:.2f} s to answer, longer than {threshold:g} s.",
}


def _breach(name: Name, value: Number | None, threshold: Number) -> Breach | None:
    if value is None or not math.isfinite(value):
        return Breach(name, None, threshold, f"The figure '{name}' is missing: look at the run that computes it.")
    if value <= threshold:
        return None
    return Breach(name, value, threshold, _SAYS[name].format(value=value, threshold=threshold))
