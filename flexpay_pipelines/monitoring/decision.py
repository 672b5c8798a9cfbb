"""The decision rule: when a run of ticks is proof enough that a release does harm.

A mixture e-detector. At each tick k of n trials failed; for each alternative rate g of a grid, the likelihood of the
tick under g against the threshold is multiplied into a running score, which may begin anew at any tick. The mean of
the scores over the grid and the horizon is an e-value: by Ville's inequality, a healthy release reaches 1/alpha at any
time in the horizon with probability at most alpha. "The rate of the last hour is above the threshold", the naive rule,
has no such bound; what it would have done is computed beside it, for the record.

What belongs here: pure functions of numbers. What does not: where the numbers come from, guards, incidents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from flexpay_pipelines.errors import BadInput

WILSON_Z = 1.959964
"""The 97.5 % point of the normal distribution: two-sided 95 % Wilson intervals."""


def grid_for(threshold: float) -> tuple[float, ...]:
    """The alternative failure rates that are tested against `threshold`: 1.5, 2 and 3 times it, and 25, 50, 90 %."""
    multiples = (round(threshold * factor, 9) for factor in (1.5, 2.0, 3.0))
    lowest = round(threshold * 1.5, 9)
    wanted = sorted({*multiples, *(rate for rate in (0.25, 0.5, 0.9) if rate >= lowest)})
    below_one = tuple(rate for rate in wanted if rate < 1)
    return below_one or ((1 + threshold) / 2,)


@dataclass(frozen=True, slots=True)
class DecisionRule:
    """The constants of the rule.

    Attributes:
        threshold: the failure rate that is still tolerable (theta 0), between 0 and 1.
        grid: alternative rates above the threshold; empty: `grid_for(threshold)`, also after `replace(threshold=…)`.
        dispersion: D >= 1, the allowance for failures that come in clusters.
        alpha: bound on the probability of a false rollback in the horizon.
        horizon: T, the number of ticks after a deploy that are judged.
        min_sample: trials that must have been seen before a rollback.
        ticks_running: ticks in a row that must be beyond 1/alpha.
        naive_ticks: length of the naive rule's window, in ticks.
    """

    threshold: float = 0.05
    grid: tuple[float, ...] = ()
    dispersion: float = 1.0
    alpha: float = 0.001
    horizon: int = 288
    min_sample: int = 20
    ticks_running: int = 2
    naive_ticks: int = 12

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise BadInput(f"A threshold is a rate between 0 and 1, not {self.threshold}.")
        if not all(self.threshold < rate < 1 for rate in self.rates):
            raise BadInput(f"Each alternative rate lies between the threshold {self.threshold} and 1: {self.grid}.")
        if self.dispersion < 1 or not 0 < self.alpha < 1 or min(self.horizon, self.ticks_running) < 1:
            raise BadInput("A decision rule needs dispersion >= 1, alpha in (0, 1), a horizon and ticks_running >= 1.")

    @property
    def rates(self) -> tuple[float, ...]:
        """The alternative rates in use."""
        return self.grid or grid_for(self.threshold)

    @property
    def log_boundary(self) -> float:
        """ln(1/alpha): the evidence at which the rule speaks."""
        return -math.log(self.alpha)


PAYMENT_FAILURES = DecisionRule(threshold=0.05)
SYSTEM_ERRORS = DecisionRule(threshold=0.01)
DATABASE_SLOWDOWN = DecisionRule(threshold=0.2, grid=(0.35, 0.5, 0.7, 0.9, 0.98))


@dataclass(frozen=True, slots=True)
class Tick:
    """One interval of a metric: `failures` of `attempts`, beginning at `tick_at` (UTC).

    None or NaN, a negative number, or more failures than attempts means that the metric could not be read.
    """

    tick_at: datetime
    attempts: float | None
    failures: float | None

    @property
    def readable(self) -> bool:
        """Whether the two numbers are counts that can be judged."""
        return (
            self.attempts is not None
            and self.failures is not None
            and math.isfinite(self.attempts)
            and math.isfinite(self.failures)
            and 0 <= self.failures <= self.attempts
        )


@dataclass(frozen=True, slots=True)
class DetectorState:
    """What the rule remembers between ticks: ln of each alternative's score, and the totals."""

    scores: tuple[float, ...]
    failures: int = 0
    attempts: int = 0
    running: int = 0
    log_e: float = -math.inf

    @property
    def e_value(self) -> float:
        """The evidence against the release; capped where a float ends."""
        return math.exp(min(self.log_e, 700.0))


@dataclass(frozen=True, slots=True)
class NaiveView:
    """What "the rate of the last hour is above the threshold" saw, and whether it would have rolled back."""

    failures: int
    attempts: int
    would_roll_back: bool

    @property
    def rate(self) -> float | None:
        return self.failures / self.attempts if self.attempts else None


def initial(rule: DecisionRule) -> DetectorState:
    """Before the first tick: no score."""
    return DetectorState(scores=(-math.inf,) * len(rule.rates))


def log_likelihood_ratio(failures: int, attempts: int, rate: float, rule: DecisionRule) -> float:
    """How much more likely the tick is under `rate` than under the threshold, as ln, divided by the dispersion."""
    passed = attempts - failures
    return (
        failures * math.log(rate / rule.threshold) + passed * math.log((1 - rate) / (1 - rule.threshold))
    ) / rule.dispersion


def step(state: DetectorState, failures: int, attempts: int, rule: DecisionRule) -> DetectorState:
    """The state after one more tick."""
    scores = tuple(
        _log_one_plus_exp(score) + log_likelihood_ratio(failures, attempts, rate, rule)
        for score, rate in zip(state.scores, rule.rates, strict=True)
    )
    log_e = _log_sum_exp(scores) - math.log(len(rule.rates) * rule.horizon)
    return DetectorState(
        scores=scores,
        failures=state.failures + failures,
        attempts=state.attempts + attempts,
        running=state.running + 1 if log_e >= rule.log_boundary else 0,
        log_e=log_e,
    )


def interrupted(state: DetectorState) -> DetectorState:
    """The state after a tick that could not be read: nothing learnt, and no ticks in a row."""
    return replace(state, running=0)


def proves_harm(state: DetectorState, rule: DecisionRule) -> bool:
    """Whether the evidence asks for a rollback."""
    return state.running >= rule.ticks_running and state.attempts >= rule.min_sample


def naive(window: Iterable[tuple[int, int]], rule: DecisionRule) -> NaiveView:
    """What the naive rule makes of the (failures, attempts) of its window, the newest tick included."""
    pairs = list(window)
    failures, attempts = sum(k for k, _ in pairs), sum(n for _, n in pairs)
    return NaiveView(failures, attempts, attempts > 0 and failures > rule.threshold * attempts)


def dispersion(ticks: Sequence[tuple[int, int]]) -> float:
    """D = max(1, Pearson chi-square / degrees of freedom) of the (failures, attempts) before a deploy."""
    seen = [(k, n) for k, n in ticks if n > 0]
    failures, attempts = sum(k for k, _ in seen), sum(n for _, n in seen)
    if len(seen) < 2 or failures in (0, attempts):  # noqa: PLR2004 - one tick has no degree of freedom
        return 1.0
    rate = failures / attempts
    chi_square = sum((k - n * rate) ** 2 / (n * rate * (1 - rate)) for k, n in seen)
    return max(1.0, chi_square / (len(seen) - 1))


def wilson_bounds(failures: int, attempts: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a rate; (0, 1) where nothing was seen."""
    if attempts == 0:
        return 0.0, 1.0
    rate, square = failures / attempts, WILSON_Z**2
    centre = (rate + square / (2 * attempts)) / (1 + square / attempts)
    margin = WILSON_Z * math.sqrt(rate * (1 - rate) / attempts + square / (4 * attempts**2)) / (1 + square / attempts)
    return max(0.0, centre - margin), min(1.0, centre + margin)


def above_baseline(rule: DecisionRule, failures: int, attempts: int) -> DecisionRule:
    """The rule for a metric whose healthy rate is not zero (issuer declines): its threshold is at least the Wilson
    upper bound of the rate before the deploy. A metric never seen before keeps the rule's own threshold."""
    if attempts == 0:
        return rule
    upper = min(wilson_bounds(failures, attempts)[1], 0.99)
    return rule if upper <= rule.threshold else replace(rule, threshold=upper, grid=())


@dataclass(frozen=True, slots=True)
class Exposure:
    """Failures among attempts, with a component's feature in play (`exposed`) and without it (`rest`)."""

    component: str
    exposed_failures: int
    exposed_attempts: int
    rest_failures: int
    rest_attempts: int


@dataclass(frozen=True, slots=True)
class Blame:
    """The smallest rollback that the failures call for, and why."""

    component: str
    reason: str
    candidates: tuple[str, ...] = field(default=())


def smallest_rollback(exposures: Sequence[Exposure], rule: DecisionRule) -> Blame:
    """One component, where it explains the excess; else `complete`.

    A component explains the excess if payments exposed to it fail at a rate that is beyond doubt above the threshold
    (Wilson lower bound), all other payments fail at a tolerable rate, and the two differ beyond doubt.
    """
    explaining = sorted(
        (one for one in exposures if _explains(one, rule)), key=lambda one: one.rest_failures / one.rest_attempts
    )
    if not explaining:
        return Blame("complete", "no single component explains the failures")
    chosen = explaining[0]
    return Blame(
        chosen.component,
        f"{chosen.exposed_failures} of {chosen.exposed_attempts} exposed payments failed, "
        f"{chosen.rest_failures} of {chosen.rest_attempts} others",
        tuple(one.component for one in explaining),
    )


def _explains(one: Exposure, rule: DecisionRule) -> bool:
    if one.rest_attempts == 0:
        return False
    return (
        wilson_bounds(one.exposed_failures, one.exposed_attempts)[0] > rule.threshold
        and one.rest_failures <= rule.threshold * one.rest_attempts
        and wilson_bounds(one.rest_failures, one.rest_attempts)[1]
        < wilson_bounds(one.exposed_failures, one.exposed_attempts)[0]
    )


def _log_one_plus_exp(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def _log_sum_exp(values: Sequence[float]) -> float:
    highest = max(values)
    return highest + math.log(sum(math.exp(value - highest) for value in values))
