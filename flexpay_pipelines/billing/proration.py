"""Proration: what a change of frequency gives back and takes, exact to the minor unit.

What belongs here: arithmetic. What does not: which period a customer is in (the calendar is SQL), what changes
(`frequencies`).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from flexpay_pipelines.money import round_half_up


@dataclass(frozen=True, slots=True)
class Proration:
    """Minor units, both positive: what is given back and what is taken at the change."""

    credit_minor: int
    debit_minor: int


def across_intervals(old_amount_minor: int, new_amount_minor: int, left: Fraction) -> Proration:
    """The change to another interval, as Stripe makes it: the unused part back, the new period in full, half up.

    Args:
        old_amount_minor: price of the running period, all units, minor units.
        new_amount_minor: price of the new period, all units, minor units.
        left: share of the running period that is unused, 0 to 1.

    Raises:
        ValueError: the share is not between 0 and 1.
    """
    if not 0 <= left <= 1:
        raise ValueError(f"the unused share of a period lies between 0 and 1, not {left}")
    return Proration(round_half_up(old_amount_minor * left), new_amount_minor)
