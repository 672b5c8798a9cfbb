"""The demo company's reward credits: earned, spent on payments, expired, reversed; never below zero.

What belongs here: the credits of one customer, in the order of time. What does not: what made him earn them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from flexpay_pipelines.sandbox.company_catalog import add_months, credit
from flexpay_pipelines.sandbox.company_lives import Person, Rows

LIFETIME = timedelta(days=365)
# How likely: a payment is partly paid by credit; a referral is reversed; a customer of a year earns for it.
SPENDS, REVERSED, LOYAL = 0.4, 0.12, 0.35


@dataclass
class _Lot:
    """A credit and what is left of it."""

    earned_at: datetime
    left: int
    reversed_at: datetime | None

    @property
    def gone_at(self) -> datetime:
        return min(self.earned_at + LIFETIME, self.reversed_at or self.earned_at + LIFETIME)


def reward(rng: random.Random, person: Person, end: datetime, rows: Rows, payments: range) -> None:
    """Write a customer's credits. `payments` are the places of his rows in `rows.payments`, which credits lower."""
    lots = list(_earned(rng, person, end))
    if not lots:
        return
    for lot in lots:
        rows.rewards.append((lot.earned_at, person.ref, "earned", lot.left, lot.earned_at + LIFETIME))
    for place in sorted(payments, key=lambda index: rows.payments[index][0]):
        at, *_, outcome, _, _, _ = rows.payments[place]
        if outcome == "succeeded" and rng.random() < SPENDS:
            _spend(person, lots, rows, place, at)
    for lot in lots:
        if lot.left and lot.gone_at <= end:
            kind = "reversed" if lot.gone_at == lot.reversed_at else "expired"
            rows.rewards.append((lot.gone_at, person.ref, kind, lot.left, None))


def _earned(rng: random.Random, person: Person, end: datetime) -> Iterator[_Lot]:
    """Referrals (a few reversed, when who was referred leaves), a bonus, loyalty after a year."""
    seconds = max(int((end - person.signed_up).total_seconds()), 1)
    for chance, euro_cents, may_reverse in ((0.14, 500, True), (0.06, 300, False)):
        if rng.random() < chance:
            at = person.signed_up + timedelta(seconds=rng.randrange(seconds))
            reverses = may_reverse and rng.random() < REVERSED
            yield _Lot(
                at, credit(euro_cents, person.currency), at + timedelta(days=rng.randint(30, 85)) if reverses else None
            )
    milestone = add_months(person.signed_up, 12)
    if milestone <= end and rng.random() < LOYAL:
        yield _Lot(milestone, credit(1_000, person.currency), None)


def _spend(person: Person, lots: list[_Lot], rows: Rows, place: int, at: datetime) -> None:
    """Spend what is left, oldest first, on at most half of a payment."""
    _, subscription, amount, *rest = rows.payments[place]
    wanted = amount // 2
    for lot in sorted(lots, key=lambda lot: lot.earned_at):
        if lot.earned_at < at < lot.gone_at:
            spent = min(wanted, lot.left)
            lot.left -= spent
            wanted -= spent
    spent = amount // 2 - wanted
    if spent:
        rows.rewards.append((at, person.ref, "spent", spent, None))
        rows.payments[place] = (at, subscription, amount - spent, *rest)  # type: ignore[assignment]
