"""Proration against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexpay_pipelines.billing.proration import prorated

amounts = st.integers(0, 10**9)


@given(amounts, amounts, st.integers(1, 10**6), st.booleans(), st.data())
def test_both_lines_are_exact_and_half_up(old: int, new: int, period: int, same: bool, data: st.DataObject) -> None:
    left = data.draw(st.integers(0, period))
    found = prorated(old, new, Fraction(left, period), same_interval=same)
    lines = [(old, found.credit_minor)] + [(new, found.debit_minor)] * same
    for price, line in lines:
        # The nearest whole number, a half upwards: line - 1/2 <= price x left / period < line + 1/2.
        assert 2 * period * line - period <= 2 * price * left < 2 * period * line + period
        assert 0 <= line <= price
    if not same:
        assert found.debit_minor == new
    assert found.net_minor == found.debit_minor - found.credit_minor


@given(amounts, st.integers(1, 10**6), st.data())
def test_a_change_to_the_same_price_costs_nothing(price: int, period: int, data: st.DataObject) -> None:
    left = Fraction(data.draw(st.integers(0, period)), period)
    assert prorated(price, price, left, same_interval=True).net_minor == 0


def test_a_half_goes_up() -> None:
    assert prorated(25, 5, Fraction(1, 2), same_interval=True) == prorated(26, 6, Fraction(1, 2), same_interval=True)
    assert prorated(25, 5, Fraction(1, 2), same_interval=True).credit_minor == 13
    for share in (Fraction(3, 2), Fraction(-1, 2)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            prorated(1, 1, share, same_interval=False)
