"""The decision rule is the e-detector that it claims to be, is quiet on healthy traffic and sees what it must."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.monitoring import DATABASE_SLOWDOWN, PAYMENT_FAILURES, SYSTEM_ERRORS, DecisionRule, Exposure
from flexpay_pipelines.monitoring.decision import (
    above_baseline,
    dispersion,
    grid_for,
    initial,
    naive,
    proves_harm,
    smallest_rollback,
    step,
    wilson_bounds,
)

counts = st.integers(0, 30).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
histories = st.lists(counts, min_size=1, max_size=25)
rules = st.sampled_from([PAYMENT_FAILURES, SYSTEM_ERRORS, DATABASE_SLOWDOWN, DecisionRule(dispersion=2.5)])


def binomial_ratio(failures: int, attempts: int, rate: float, rule: DecisionRule) -> float:
    under_rate = rate**failures * (1 - rate) ** (attempts - failures)
    under_threshold = rule.threshold**failures * (1 - rule.threshold) ** (attempts - failures)
    return float((under_rate / under_threshold) ** (1 / rule.dispersion))


@given(histories, rules)
def test_the_score_is_the_sum_over_all_starts_of_the_products_since(
    history: list[tuple[int, int]], rule: DecisionRule
) -> None:
    state = initial(rule)
    for k, n in history:
        state = step(state, k, n, rule)
    expected = 0.0
    for rate in rule.rates:
        for start in range(len(history)):
            expected += math.prod(binomial_ratio(k, n, rate, rule) for k, n in history[start:])
    assert math.isclose(state.e_value, expected / (len(rule.rates) * rule.horizon), rel_tol=1e-6)
    assert (state.failures, state.attempts) == (sum(k for k, _ in history), sum(n for _, n in history))


@given(histories, rules)
def test_a_tick_at_the_threshold_has_likelihood_ratio_one_on_average(
    history: list[tuple[int, int]], rule: DecisionRule
) -> None:
    """The e-process property: under the threshold rate, the expected ratio of a tick is 1 (or less, when tempered)."""
    n = history[0][1]
    for rate in rule.rates:
        mean = sum(
            math.comb(n, k) * rule.threshold**k * (1 - rule.threshold) ** (n - k) * binomial_ratio(k, n, rate, rule)
            for k in range(n + 1)
        )
        assert mean <= 1 + 1e-9


@given(histories, st.data())
def test_one_more_failure_never_lowers_the_evidence(history: list[tuple[int, int]], data: st.DataObject) -> None:
    worse = [(data.draw(st.integers(k, n)), n) for k, n in history]
    good = bad = initial(PAYMENT_FAILURES)
    for (k, n), (k_worse, _) in zip(history, worse, strict=True):
        good, bad = step(good, k, n, PAYMENT_FAILURES), step(bad, k_worse, n, PAYMENT_FAILURES)
    assert bad.log_e >= good.log_e - 1e-9


@given(st.lists(st.tuples(st.integers(0, 10**6), st.just(10**6)), min_size=1, max_size=50))
def test_no_history_overflows(history: list[tuple[int, int]]) -> None:
    state = initial(PAYMENT_FAILURES)
    for k, n in history:
        state = step(state, k, n, PAYMENT_FAILURES)
    assert math.isfinite(state.log_e)
    assert math.isfinite(state.e_value)


def test_two_ticks_and_a_sample_are_needed() -> None:
    state = step(initial(PAYMENT_FAILURES), 19, 19, PAYMENT_FAILURES)
    assert (state.running, proves_harm(state, PAYMENT_FAILURES)) == (1, False)
    state = step(state, 0, 0, PAYMENT_FAILURES)
    assert (state.running, proves_harm(state, PAYMENT_FAILURES)) == (2, False)
    state = step(state, 1, 1, PAYMENT_FAILURES)
    assert proves_harm(state, PAYMENT_FAILURES)
    recovered = state
    for _ in range(30):
        recovered = step(recovered, 0, 50, PAYMENT_FAILURES)
    assert (recovered.running, proves_harm(recovered, PAYMENT_FAILURES)) == (0, False)


def test_grids_are_those_of_the_reference() -> None:
    assert PAYMENT_FAILURES.rates == (0.075, 0.1, 0.15, 0.25, 0.5, 0.9)
    assert SYSTEM_ERRORS.rates[0] == 0.015
    assert replace(PAYMENT_FAILURES, threshold=0.3).rates[0] == 0.45
    assert DecisionRule(threshold=0.95).rates == (0.975,)


@given(st.floats(0.0001, 0.999))
def test_every_threshold_has_a_grid_above_it(threshold: float) -> None:
    assert all(threshold < rate < 1 for rate in grid_for(threshold))


@pytest.mark.parametrize(
    "given_rule", [{"threshold": 0.0}, {"threshold": 1.5}, {"grid": (0.01,)}, {"dispersion": 0.5}, {"alpha": 0.0}]
)
def test_a_senseless_rule_is_refused(given_rule: dict[str, float]) -> None:
    with pytest.raises(BadInput):
        DecisionRule(**given_rule)  # type: ignore[arg-type]


def test_dispersion_sees_clusters() -> None:
    assert dispersion([(0, 10), (10, 10)] * 20) == pytest.approx(10 * 40 / 39)
    assert dispersion([(1, 10)] * 20) == 1.0
    assert dispersion([]) == dispersion([(3, 5)]) == dispersion([(0, 9)] * 5) == dispersion([(9, 9)] * 5) == 1.0


def test_wilson_bounds_are_the_published_ones() -> None:
    assert wilson_bounds(10, 100) == pytest.approx((0.0552, 0.1744), abs=5e-4)  # Agresti and Coull 1998
    assert wilson_bounds(0, 0) == (0.0, 1.0)
    assert wilson_bounds(0, 50)[0] == 0.0
    assert wilson_bounds(50, 50)[1] == pytest.approx(1.0)


def test_the_baseline_raises_the_threshold_of_issuer_declines() -> None:
    assert above_baseline(PAYMENT_FAILURES, 10, 1000) is PAYMENT_FAILURES
    assert above_baseline(PAYMENT_FAILURES, 0, 0) is PAYMENT_FAILURES
    raised = above_baseline(PAYMENT_FAILURES, 100, 1000)
    assert 0.10 < raised.threshold < 0.13
    assert raised.rates[0] > raised.threshold


def test_the_naive_rule_sees_a_rate() -> None:
    assert naive([(0, 0)], PAYMENT_FAILURES).would_roll_back is False
    assert naive([(1, 12)], PAYMENT_FAILURES).would_roll_back is True
    assert naive([(5, 100)], PAYMENT_FAILURES).would_roll_back is False


def blamed(*exposures: tuple[str, int, int, int, int]) -> str:
    return smallest_rollback([Exposure(*one) for one in exposures], PAYMENT_FAILURES).component


def test_the_smallest_rollback() -> None:
    assert blamed(("frequencies", 40, 50, 1, 100), ("pauses", 1, 10, 40, 140)) == "frequencies"
    assert blamed(("frequencies", 40, 50, 40, 100), ("pauses", 40, 60, 40, 90)) == "complete"
    assert blamed(("frequencies", 40, 50, 0, 0)) == "complete"
    assert blamed(("frequencies", 40, 50, 0, 1)) == "complete"
    assert blamed(("frequencies", 1, 1, 0, 100)) == "complete" or wilson_bounds(1, 1)[0] > 0.05
    assert blamed(("frequencies", 0, 0, 50, 150)) == "complete"
    assert blamed() == "complete"


RISES_AT = 48


def simulate(rng: random.Random, per_hour: float, rate: float) -> tuple[float, bool]:
    """One day that begins at 3 % and goes to `rate` after four hours: the minutes from then on until the rule rolls
    back (infinite: never; negative: before there was a reason), and whether the naive rule ever would."""
    rule, state, naively = PAYMENT_FAILURES, initial(PAYMENT_FAILURES), False
    window: list[tuple[int, int]] = []
    found = math.inf
    for tick in range(288):
        n = poisson(rng, per_hour / 12)
        k = sum(rng.random() < (rate if tick >= RISES_AT else 0.03) for _ in range(n))
        window = [*window[-11:], (k, n)]
        naively = naively or naive(window, rule).would_roll_back
        state = step(state, k, n, rule)
        if found == math.inf and proves_harm(state, rule):
            found = (tick + 1 - RISES_AT) * 5
    return found, naively


def poisson(rng: random.Random, mean: float) -> int:
    limit, product, count = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return count


def check_simulation(runs: int, seed: int, slack: float) -> None:
    """The figures of the reference page: median minutes to a rollback at 20 % and at 60 %, by attempts an hour."""
    rng = random.Random(seed)  # noqa: S311 - a simulation that can be repeated
    for per_hour, at_20, at_60 in ((12, 375, 65), (60, 95, 20), (300, 30, 10)):
        healthy = [simulate(rng, per_hour, 0.03) for _ in range(runs)]
        assert sum(found < math.inf for found, _ in healthy) <= 0.003 * runs
        assert sum(naively for _, naively in healthy) > 0.8 * runs
        for rate, within in ((0.20, at_20), (0.60, at_60)):
            delays = sorted(simulate(rng, per_hour, rate)[0] for _ in range(runs))
            assert delays[0] > 0
            assert delays[runs // 2] <= within * slack + 5, (per_hour, rate, delays[runs // 2])


def test_simulated_days() -> None:
    check_simulation(runs=20, seed=7, slack=1.5)


@pytest.mark.soak
def test_many_simulated_days() -> None:
    check_simulation(runs=1000, seed=8, slack=1.1)
