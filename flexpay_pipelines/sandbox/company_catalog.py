"""The demo company's catalogue: plans and prices, where its customers live, exchange rates, the calendar of payments.

What belongs here: facts that do not depend on any one customer. What does not: what customers do (`company_lives`).
"""

from __future__ import annotations

import random
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from functools import cache
from zoneinfo import ZoneInfo

from flexpay_pipelines.money import PaymentFrequency, round_half_up

REPORTING_CURRENCY = "EUR"
# plan: (name, euro cents a month for one unit, share of sign-ups)
PLANS = {
    "starter": ("Starter", 1_200, 40),
    "plus": ("Plus", 2_900, 32),
    "pro": ("Pro", 7_900, 16),
    "team": ("Team, per seat", 1_500, 12),
}
SEATED_PLAN = "team"
# What a period costs, as a share of a month: paying often costs a little more, paying a year ahead less.
PERIOD_PRICE = {
    PaymentFrequency.WEEKLY: Fraction(12 * 105, 52 * 100),
    PaymentFrequency.BIWEEKLY: Fraction(12 * 102, 26 * 100),
    PaymentFrequency.MONTHLY: Fraction(1),
    PaymentFrequency.QUARTERLY: Fraction(29, 10),
    PaymentFrequency.YEARLY: Fraction(10),
}
FREQUENCY_SHARES = {
    PaymentFrequency.WEEKLY: 28,
    PaymentFrequency.BIWEEKLY: 9,
    PaymentFrequency.MONTHLY: 54,
    PaymentFrequency.QUARTERLY: 5,
    PaymentFrequency.YEARLY: 4,
}
# Minor units of the currency for one euro cent on the price list.
LIST_RATE = {"EUR": Fraction(1), "USD": Fraction(11, 10), "GBP": Fraction(9, 10), "JPY": Fraction(8, 5)}
# Euros for one unit of the currency on the first day, in hundred-millionths.
FIRST_RATE = {"GBP": 116_000_000, "JPY": 612_000, "USD": 92_000_000}
# (country, time zone, currency, share of customers)
PLACES = (
    ("DE", "Europe/Berlin", "EUR", 24), ("FR", "Europe/Paris", "EUR", 12), ("ES", "Europe/Madrid", "EUR", 8),
    ("NL", "Europe/Amsterdam", "EUR", 6), ("US", "America/New_York", "USD", 14), ("US", "America/Chicago", "USD", 5),
    ("US", "America/Los_Angeles", "USD", 7), ("GB", "Europe/London", "GBP", 14), ("JP", "Asia/Tokyo", "JPY", 10),
)  # fmt: skip
# Sign-ups of a month against the average of the year: New Year and September are busy, summer is not.
SEASON = {1: 130, 2: 105, 3: 100, 4: 98, 5: 95, 6: 85, 7: 72, 8: 78, 9: 128, 10: 110, 11: 112, 12: 87}


@cache
def price(plan: str, frequency: PaymentFrequency, currency: str) -> int:
    """The price of one unit for one period, in minor units."""
    return round_half_up(PLANS[plan][1] * PERIOD_PRICE[frequency] * LIST_RATE[currency])


def credit(euro_cents: int, currency: str) -> int:
    """A reward of so many euro cents in minor units of another currency."""
    return round_half_up(euro_cents * LIST_RATE[currency])


def add_months(moment: datetime, months: int) -> datetime:
    """The same day and time so many months later, or the last day of a month that is too short."""
    years, month = divmod(moment.month - 1 + months, 12)
    year = moment.year + years
    return moment.replace(year=year, month=month + 1, day=min(moment.day, monthrange(year, month + 1)[1]))


@dataclass(frozen=True)
class Calendar:
    """The payment dates of one subscription: counted from the anchor on the clock of the customer's zone."""

    anchor: datetime
    frequency: PaymentFrequency
    zone: ZoneInfo

    def at(self, n: int) -> datetime:
        """The n-th payment after the anchor, UTC."""
        if n == 0:
            return self.anchor
        local = self.anchor.astimezone(self.zone).replace(tzinfo=None)
        if self.frequency in (PaymentFrequency.WEEKLY, PaymentFrequency.BIWEEKLY):
            local += timedelta(weeks=n * (52 // self.frequency.periods_per_year))
        else:
            local = add_months(local, n * (12 // self.frequency.periods_per_year))
        return local.replace(tzinfo=self.zone).astimezone(UTC)

    def first_after(self, moment: datetime) -> int:
        """The number of the first payment after `moment`."""
        n = int((moment - self.anchor).days * self.frequency.periods_per_year / 366) - 1
        n = max(n, 0)
        while self.at(n) <= moment:
            n += 1
        return n


def exchange_rates(seed: int, first: date, last: date) -> list[tuple[str, str, str, str]]:
    """(date, currency, reporting currency, rate) for each day: a random walk, in whole hundred-millionths."""
    rng = random.Random(f"{seed}:rates")  # noqa: S311 - a made-up company, not a secret
    rates = dict(FIRST_RATE)
    rows = []
    day = first
    while day <= last:
        for currency, rate in rates.items():
            whole, decimals = divmod(rate, 10**8)
            rows.append((day.isoformat(), currency, REPORTING_CURRENCY, f"{whole}.{decimals:08d}"))
            # Drawn back to where it began, so that no currency runs away.
            pull = (FIRST_RATE[currency] - rate) // 200
            rates[currency] = rate + pull + rate * rng.randint(-45, 45) // 10_000
        day += timedelta(days=1)
    return rows
