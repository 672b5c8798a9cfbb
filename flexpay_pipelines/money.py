"""Money: integer minor units and an ISO-4217 currency, and the five payment frequencies. No float touches money.

What belongs here: exact arithmetic and how an amount is shown. What does not: prices, proration, exchange rates.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from enum import StrEnum
from fractions import Fraction


class PaymentFrequency(StrEnum):
    """How often a customer pays."""

    WEEKLY = "WEEKLY"
    BIWEEKLY = "BIWEEKLY"
    MONTHLY = "MONTHLY"
    QUARTERLY = "QUARTERLY"
    YEARLY = "YEARLY"

    @property
    def periods_per_year(self) -> int:
        """How many payments make a year: the exact factor of the annualised run rate."""
        return _PERIODS_PER_YEAR[self]


_PERIODS_PER_YEAR = {
    PaymentFrequency.WEEKLY: 52,
    PaymentFrequency.BIWEEKLY: 26,
    PaymentFrequency.MONTHLY: 12,
    PaymentFrequency.QUARTERLY: 4,
    PaymentFrequency.YEARLY: 1,
}

# ISO 4217: currencies whose minor unit is not a hundredth.
_MINOR_DIGITS = {
    **dict.fromkeys("BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split(), 0),  # noqa: SIM905
    **dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), 3),  # noqa: SIM905
}


def minor_digits(currency: str) -> int:
    """How many decimals the currency's minor unit stands for (EUR 2, JPY 0, KWD 3). Source: ISO 4217."""
    return _MINOR_DIGITS.get(currency, 2)


def annualised_minor(amount_minor: int, quantity: int, frequency: PaymentFrequency) -> int:
    """The run rate of one subscription in minor units a year: unit price x quantity x periods a year. Exact."""
    return amount_minor * quantity * frequency.periods_per_year


def mrr(annualised: int) -> Decimal:
    """Monthly recurring revenue in minor units: annualised / 12, four decimals, half up. For showing only."""
    return (Decimal(annualised) / 12).quantize(Decimal("0.0001"), rounding=ROUND_HALF_UP)


def round_half_up(value: Fraction) -> int:
    """The nearest whole minor unit; a half goes away from zero."""
    doubled = 2 * abs(value.numerator) + value.denominator
    whole = doubled // (2 * value.denominator)
    return whole if value >= 0 else -whole


def show(amount_minor: int | Decimal, currency: str) -> str:
    """An amount as a person reads it: `show(123456, "EUR") == "1,234.56 EUR"`."""
    digits = minor_digits(currency)
    amount = Decimal(amount_minor).scaleb(-digits).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_HALF_UP)
    return f"{amount + 0:,} {currency}"  # + 0: what rounds to nothing has no sign
