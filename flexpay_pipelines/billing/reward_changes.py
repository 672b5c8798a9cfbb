"""One change of one customer's credit, as a person asks for it: what the settings say fills what was not named.

What belongs here: the request, tried or done. What does not: the ledger itself (`rewards`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, TypeVar

from flexpay_pipelines.billing.reward_settlement import RewardPolicy
from flexpay_pipelines.billing.rewards import (
    credit_owner,
    customer_currency,
    earn_reward,
    reverse_reward,
    reward_balance,
    spend_reward,
)
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput

Named = TypeVar("Named", int, str)


class RewardAction(Enum):
    """What is done with credit."""

    earn = "earn"
    spend = "spend"
    reverse = "reverse"


@dataclass(frozen=True, slots=True)
class RewardChange:
    """What is asked for.

    Attributes:
        action: give credit, spend some, or take a credit back.
        customer: whose, to earn and to spend.
        amount_minor: minor units of the customer's currency; unset for a referral: as the policy says.
        credit_id: the credit to take back.
        referred: the customer who was brought; the credit is a referral then, else a bonus.
        expires_at: unset: as the policy says.
    """

    action: RewardAction
    reason: str
    customer: str | None = None
    amount_minor: int | None = None
    credit_id: int | None = None
    referred: str | None = None
    expires_at: datetime | None = None


def apply_reward_change(
    connection: Connection, change: RewardChange, *, clock: Clock, policy: RewardPolicy
) -> dict[str, Any]:
    """Make the change, in one transaction.

    Returns:
        `customer`, `amount_minor` (earned, spent or taken back), `credit_id` or `entry_id`, `balance_minor` afterwards.

    Raises:
        BadInput: what the ledger refuses, or something that the action needs is not named.
    """
    with connection.transaction():
        if change.action is RewardAction.reverse:
            done = _reverse(connection, change, clock)
        else:
            done = _move(connection, change, clock, policy)
        return {**done, "balance_minor": reward_balance(connection, done["customer"])}


def plan_reward_change(
    connection: Connection, change: RewardChange, *, clock: Clock, policy: RewardPolicy
) -> dict[str, Any]:
    """What `apply_reward_change` would do: it is done, and taken back. No id is named, since none is kept."""
    with connection.transaction(force_rollback=True):
        done = apply_reward_change(connection, change, clock=clock, policy=policy)
    return {name: value for name, value in done.items() if name != "entry_id"}


def _reverse(connection: Connection, change: RewardChange, clock: Clock) -> dict[str, Any]:
    credit_id = _named(change.credit_id, "the credit to take back")
    taken = reverse_reward(connection, reward_entry_id=credit_id, reason=change.reason, clock=clock)
    return {"customer": credit_owner(connection, credit_id), "credit_id": credit_id, "amount_minor": taken}


def _move(connection: Connection, change: RewardChange, clock: Clock, policy: RewardPolicy) -> dict[str, Any]:
    customer = _named(change.customer, "the customer")
    amount = change.amount_minor
    if amount is None and change.action is RewardAction.earn and change.referred:
        currency = customer_currency(connection, customer)
        amount = _named(policy.referral(currency), f"the amount: the settings name no referral reward in {currency}")
    amount = _named(amount, "the amount")
    if change.action is RewardAction.spend:
        entry = spend_reward(connection, customer_ref=customer, amount_minor=amount, reason=change.reason, clock=clock)
    else:
        entry = earn_reward(
            connection,
            customer_ref=customer,
            amount_minor=amount,
            reason=change.reason,
            clock=clock,
            expires_at=change.expires_at or policy.expiry(clock.now()),
            source="referral" if change.referred else "bonus",
            referred_customer_ref=change.referred,
        )
    return {"customer": customer, "entry_id": entry, "amount_minor": amount}


def _named(value: Named | None, what: str) -> Named:
    if value is None:
        raise BadInput(f"Name {what}.")
    return value
