"""Money is exact: every sum and every shown figure agrees with fractions."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexpay_pipelines.money import PaymentFrequency, annualised_minor, minor_digits, mrr, round_half_up, show

# The largest figure that a bigint column can hold.
minor = st.integers(-(2**63), 2**63 - 1)


@given(minor)
def test_mrr_is_a_twelfth_to_four_decimals_half_up(annualised: int) -> None:
    shown = mrr(annualised)
    assert shown.as_tuple().exponent == -4
    scaled = Fraction(abs(annualised) * 10_000, 12)
    assert abs(Fraction(shown)) == Fraction(
        (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator), 10_000
    )
    assert shown * annualised >= 0


@given(st.lists(minor, max_size=20))
def test_a_sum_of_run_rates_loses_nothing(amounts: list[int]) -> None:
    assert abs(Fraction(mrr(sum(amounts))) - Fraction(sum(amounts), 12)) <= Fraction(1, 20_000)


@given(st.integers(0, 2**40), st.integers(1, 2**20))
def test_a_year_of_payments_is_the_run_rate(amount: int, quantity: int) -> None:
    per_year = {"WEEKLY": 52, "BIWEEKLY": 26, "MONTHLY": 12, "QUARTERLY": 4, "YEARLY": 1}
    assert set(per_year) == set(PaymentFrequency)
    for frequency in PaymentFrequency:
        rate = annualised_minor(amount, quantity, frequency)
        assert isinstance(rate, int)
        assert rate == sum([amount * quantity] * per_year[frequency])


@given(st.fractions())
def test_rounding_is_to_the_nearest_and_a_half_goes_away_from_zero(value: Fraction) -> None:
    rounded = round_half_up(value)
    distance = abs(value - rounded)
    assert distance <= Fraction(1, 2)
    if distance == Fraction(1, 2):
        assert abs(rounded) > abs(value)
    assert round_half_up(-value) == -rounded


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(Fraction(1, 2), 1), (Fraction(-1, 2), -1), (Fraction(3, 2), 2), (Fraction(-3, 2), -2), (Fraction(5, 2), 3),
     (Fraction(49, 100), 0), (Fraction(0), 0), (Fraction(10**40 + 1, 2), 5 * 10**39 + 1)],
)  # fmt: skip
def test_rounding_by_example(value: Fraction, rounded: int) -> None:
    assert round_half_up(value) == rounded


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [(123456, "EUR", "1,234.56 EUR"), (-5, "USD", "-0.05 USD"), (0, "EUR", "0.00 EUR"), (1234, "JPY", "1,234 JPY"),
     (1234, "KWD", "1.234 KWD"), (2**63 - 1, "EUR", "92,233,720,368,547,758.07 EUR"),
     (-(2**63), "JPY", "-9,223,372,036,854,775,808 JPY")],
)  # fmt: skip
def test_an_amount_is_shown_in_its_currency(amount: int, currency: str, shown: str) -> None:
    assert show(amount, currency) == shown


def test_a_shown_mrr_is_rounded_half_up() -> None:
    assert show(Decimal("0.5000"), "EUR") == "0.01 EUR"
    assert show(Decimal("-0.5000"), "EUR") == "-0.01 EUR"
    assert show(Decimal("0.4999"), "EUR") == "0.00 EUR"


def test_what_rounds_to_nothing_is_shown_without_a_sign() -> None:
    assert show(Decimal("-0.4999"), "EUR") == "0.00 EUR"


@given(minor, st.sampled_from(["EUR", "JPY", "KWD"]))
def test_a_shown_amount_can_be_read_back(amount: int, currency: str) -> None:
    text, unit = show(amount, currency).split()
    assert unit == currency
    assert Decimal(text.replace(",", "")).scaleb(minor_digits(currency)) == amount
