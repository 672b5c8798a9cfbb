"""What falls due of reward credits by rule: loyalty milestones, reversals of referrals, expiry.

What belongs here: the rules, for all customers at once. What does not: one customer's earning and spending (`rewards`).

Work is chosen by "due by now and not done", a batch of customers is a transaction, and each entry carries the instant
at which it was due, not that of the run: late, twice or two at once, the ledger says the same. What somebody spent
before a late run stays spent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from flexpay_pipelines.billing.rewards import rewards_on
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import queries

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RewardPolicy:
    """What is rewarded, and for how long credit can be spent.

    Attributes:
        loyalty: credit by calendar months of tenure, minor units of the customer's currency.
        loyalty_of: the same in the currencies (ISO 4217) that have milestones of their own; `loyalty` is not theirs.
        loyalty_since: milestones reached earlier are not rewarded; None: since rewards/0002 was first deployed.
        referral_minor: credit for bringing a customer, where nobody names another amount; None: somebody must.
        referral_of: the same in the currencies that have an amount of their own.
        referral_months: calendar months within which the referral is taken back when that customer leaves; 0: never.
        lifetime_days: days of 24 hours after which credit expires; 0: never.
        batch_size: customers per transaction.
    """

    loyalty: Mapping[int, int] = field(default_factory=lambda: {12: 500, 24: 1000, 36: 1500})
    loyalty_of: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    loyalty_since: datetime | None = None
    referral_minor: int | None = 500
    referral_of: Mapping[str, int] = field(default_factory=dict)
    referral_months: int = 3
    lifetime_days: int = 365
    batch_size: int = 10_000

    def referral(self, currency: str) -> int | None:
        """The usual credit for bringing a customer, in a currency; None where there is none."""
        return self.referral_of.get(currency, self.referral_minor)

    def milestones(self) -> list[tuple[str | None, int, int]]:
        """Currency (None: each that has no milestones of its own), months and amount of every milestone."""
        tables: list[tuple[str | None, Mapping[int, int]]] = [(None, self.loyalty), *self.loyalty_of.items()]
        return [(currency, months, table[months]) for currency, table in tables for months in sorted(table)]

    def expiry(self, earned_at: datetime) -> datetime | None:
        """When credit earned at an instant expires."""
        return earned_at + timedelta(days=self.lifetime_days) if self.lifetime_days else None


@dataclass(frozen=True, slots=True)
class Entries:
    """Entries written: how many, and their sum by currency, minor units."""

    entries: int
    amount_minor: Mapping[str, int]


NOTHING = Entries(0, MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class SettlementResult:
    """What a settlement wrote; `enabled` is False where rewards are off or not deployed, and nothing was done."""

    enabled: bool
    granted: Entries
    reversed: Entries
    expired: Entries

    @property
    def by_kind(self) -> dict[str, Entries]:
        """What was written, by what it is."""
        return {"granted": self.granted, "reversed": self.reversed, "expired": self.expired}


@dataclass
class _Tally:
    entries: int = 0
    amounts: Counter[str] = field(default_factory=Counter)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            self.entries += row["entries"]
            self.amounts[row["currency"]] += row["amount_minor"]

    @property
    def written(self) -> Entries:
        return Entries(self.entries, dict(sorted(self.amounts.items())))


def settle_rewards(
    connection: Connection, *, clock: Clock, policy: RewardPolicy, progress: Progress
) -> SettlementResult:
    """Everything that is due by now: milestones granted, referrals reversed, then what has run out expired.

    In this order, since a milestone granted late may have run out already, and since a referral whose customer left
    before it ran out is reversed, not expired.
    """
    if not rewards_on(connection):
        progress("Rewards are off, not deployed or older than this release: nothing was settled.")
        return SettlementResult(False, NOTHING, NOTHING, NOTHING)
    return SettlementResult(
        enabled=True,
        granted=grant_loyalty(connection, clock=clock, policy=policy, progress=progress),
        reversed=reverse_referrals(connection, clock=clock, policy=policy, progress=progress),
        expired=expire_rewards(connection, clock=clock, policy=policy, progress=progress),
    )


def plan_settlement(
    connection: Connection, *, clock: Clock, policy: RewardPolicy, progress: Progress
) -> SettlementResult:
    """What `settle_rewards` would write: it is done, and taken back."""
    with connection.transaction(force_rollback=True):
        return settle_rewards(connection, clock=clock, policy=policy, progress=progress)


def grant_loyalty(connection: Connection, *, clock: Clock, policy: RewardPolicy, progress: Progress) -> Entries:
    """Credit for each milestone of tenure reached by now, once each, to whoever was a customer at that instant.

    Tenure runs from the first instant at which a subscription, no trial, had a price above zero, by the calendar in the
    customer's own time zone (month ends clamped). At the milestone he must have had a subscription that was not
    canceled. Both are read off the ledger `billing.subscription_events` as it is known now.
    """
    milestones = policy.milestones()
    if not milestones or not rewards_on(connection):
        return NOTHING
    sql = queries("billing_rewards")
    currencies, months, amounts = zip(*milestones, strict=True)
    due = sql.due_milestones(
        connection,
        since=policy.loyalty_since or sql.loyalty_since(connection),
        now=clock.now(),
        own=list(policy.loyalty_of),
        currencies=list(currencies),
        months=list(months),
        amounts=list(amounts),
    )

    def grant(locked: list[int], span: slice) -> Iterable[Mapping[str, Any]]:
        rows: Iterable[Mapping[str, Any]] = sql.insert_milestones(
            connection,
            locked=locked,
            lifetime_days=policy.lifetime_days or None,
            **{name: values[span] for name, values in due.items()},
        )
        return rows

    return _in_batches(
        connection, due["customer_ids"], grant, policy=policy, progress=progress, says="loyalty milestones rewarded"
    )


def reverse_referrals(connection: Connection, *, clock: Clock, policy: RewardPolicy, progress: Progress) -> Entries:
    """Take back what is left unspent of referrals whose referred customer left in time.

    He left when his last subscription was canceled, less than `referral_months` calendar months after the referral was
    entered, in the zone of the one rewarded. Who comes back later was gone nevertheless.
    """
    if not policy.referral_months or not rewards_on(connection):
        return NOTHING
    sql = queries("billing_rewards")
    due = sql.due_reversals(connection, now=clock.now(), months=policy.referral_months)

    def take_back(locked: list[int], span: slice) -> Iterable[Mapping[str, Any]]:
        rows: Iterable[Mapping[str, Any]] = sql.write_off_reversed(
            connection,
            customer_ids=locked,
            credit_ids=due["credit_ids"][span],
            instants=due["instants"][span],
            reason="the referred customer left",
        )
        return rows

    return _in_batches(
        connection, due["customer_ids"], take_back, policy=policy, progress=progress, says="referrals reversed"
    )


def expire_rewards(connection: Connection, *, clock: Clock, policy: RewardPolicy, progress: Progress) -> Entries:
    """Write off what is left unspent of credit that has expired. Nothing while rewards are off."""
    if not rewards_on(connection):
        return NOTHING
    sql = queries("billing_rewards")
    now = clock.now()

    def expire(locked: list[int], _: slice) -> Iterable[Mapping[str, Any]]:
        rows: Iterable[Mapping[str, Any]] = sql.write_off_expired(connection, customer_ids=locked, now=now)
        return rows

    customer_ids = sql.customers_with_expired_credit(connection, now=now)
    return _in_batches(connection, customer_ids, expire, policy=policy, progress=progress, says="credits expired")


def negative_balances(connection: Connection) -> list[dict[str, Any]]:
    """Customers whose balance is below zero: rows of `customer_ref`, `balance_minor`. The triggers allow none."""
    return list(queries("billing_rewards").negative_balances(connection)) if rewards_on(connection) else []


def excess_write_offs(connection: Connection) -> list[dict[str, Any]]:
    """Credits of which more was reversed or expired than was earned.

    Rows of `customer_ref`, `credit_id`, `earned_minor`, `taken_minor`.
    """
    return list(queries("billing_rewards").excess_write_offs(connection)) if rewards_on(connection) else []


def _in_batches(
    connection: Connection,
    customer_ids: Sequence[int],
    work: Callable[[list[int], slice], Iterable[Mapping[str, Any]]],
    *,
    policy: RewardPolicy,
    progress: Progress,
    says: str,
) -> Entries:
    """Run `work` on spans of what is due, each a transaction that holds its customers.

    Each statement of `work` is one of its own: sums must be read after the locks are held.
    """
    tally = _Tally()
    for start in range(0, len(customer_ids), policy.batch_size):
        span = slice(start, start + policy.batch_size)
        with connection.transaction():
            locked = queries("billing_rewards").lock_customers(connection, customer_ids=customer_ids[span])
            # Counted once all are read, and kept only with the transaction.
            rows = list(work(locked, span)) if locked else []
        tally.add(rows)
        progress(f"{tally.entries:,} {says}.")
    return tally.written
