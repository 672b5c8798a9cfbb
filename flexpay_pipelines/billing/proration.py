"""Proration: what a change gives back and takes, exact to the minor unit, as Stripe does it.

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

    @property
    def net_minor(self) -> int:
        """What the customer pays for the change; negative where more is given back than taken."""
        return self.debit_minor - self.credit_minor


NOTHING = Proration(0, 0)


def prorated(old_amount_minor: int, new_amount_minor: int, left: Fraction, *, same_interval: bool) -> Proration:
    """A change within a period, half up, each line by itself.

    Same interval: the period goes on; old price x left back, new price x left taken. Another interval: old price x left
    back, and the new period, which begins with the change, in full.

    Args:
        old_amount_minor: price of the running period, all units, minor units.
        new_amount_minor: price of a period on the new terms, all units, minor units.
        left: share of the running period that is unused, 0 to 1.

    Raises:
        ValueError: the share is not between 0 and 1.
    """
    if not 0 <= left <= 1:
        raise ValueError(f"the unused share of a period lies between 0 and 1, not {left}")
    taken = round_half_up(new_amount_minor * left) if same_interval else new_amount_minor
    return Proration(round_half_up(old_amount_minor * left), taken)
