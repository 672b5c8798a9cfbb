"""Reward credits: earned, spent, reversed, expired; the balance is derived and never below zero.

What belongs here: entries of the append-only ledger `billing.reward_entries`. What does not: deciding who earns what.

Amounts are minor units of the customer's currency. Credit is spent oldest first. Everything that takes from a balance
locks the customer first, so that two spenders at once cannot both have the last of it.
"""

from __future__ import annotations

from datetime import datetime

from flexpay_pipelines.billing.features import feature_enabled, has_table, require_feature
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.sql import queries

REWARDS = "rewards"


def earn_reward(
    connection: Connection,
    *,
    customer_ref: str,
    amount_minor: int,
    reason: str,
    clock: Clock,
    expires_at: datetime | None = None,
) -> int:
    """Give a customer credit; the entry's id, by which it can be reversed.

    Raises:
        BadInput: unknown customer, no positive amount, an expiry that is past, or rewards are off.
    """
    require_feature(connection, REWARDS)
    _require_positive(amount_minor)
    now = clock.now()
    if expires_at is not None and expires_at <= now:
        raise BadInput(f"Credit cannot expire in the past ({expires_at.isoformat()}): give a later time.")
    with connection.transaction():
        return _insert(
            connection,
            _locked(connection, customer_ref),
            kind="earned",
            amount_minor=amount_minor,
            now=now,
            reason=reason,
            expires_at=expires_at,
        )


def spend_reward(connection: Connection, *, customer_ref: str, amount_minor: int, reason: str, clock: Clock) -> int:
    """Take credit from a customer's balance; the entry's id. What has expired by now cannot be spent any more.

    Raises:
        BadInput: unknown customer, no positive amount, more than there is, or rewards are off; nothing was spent.
    """
    require_feature(connection, REWARDS)
    _require_positive(amount_minor)
    now = clock.now()
    sql = queries("billing_rewards")
    with connection.transaction():
        customer_id = _locked(connection, customer_ref)
        _expire(connection, [customer_id], now)
        balance = sql.reward_balance(connection, customer_id=customer_id)
        if balance < amount_minor:
            raise BadInput(
                f"Customer '{customer_ref}' has {balance} minor units of credit left, {amount_minor} are asked for."
            )
        return _insert(connection, customer_id, kind="spent", amount_minor=amount_minor, now=now, reason=reason)


def reverse_reward(connection: Connection, *, reward_entry_id: int, reason: str, clock: Clock) -> None:
    """Take back what is left unspent of one credit.

    Raises:
        BadInput: there is no such credit, nothing of it is left (spent, expired, reversed before), or rewards are off.
    """
    require_feature(connection, REWARDS)
    now = clock.now()
    sql = queries("billing_rewards")
    with connection.transaction():
        customer_id = sql.lock_customer_of_credit(connection, reward_entry_id=reward_entry_id)
        if customer_id is None:
            raise BadInput(f"There is no earned credit {reward_entry_id}.")
        _expire(connection, [customer_id], now)
        if not sql.write_off_credits(
            connection,
            customer_ids=[customer_id],
            credit_id=reward_entry_id,
            now=now,
            reason=f"reversal of credit {reward_entry_id}: {reason}",
        ):
            raise BadInput(f"Nothing of credit {reward_entry_id} is left to take back.")


def expire_rewards(connection: Connection, *, clock: Clock) -> int:
    """Write off what is left unspent of credit that has expired; entries written. Nothing while rewards are off.

    An entry carries the time of the expiry, not of this run; running twice writes it once.
    """
    if not feature_enabled(connection, REWARDS):
        return 0
    now = clock.now()
    with connection.transaction():
        # A statement of its own: the sums must be read after the locks are held.
        customer_ids = queries("billing_rewards").lock_customers_with_expiring_credit(connection, now=now)
        return _expire(connection, customer_ids, now) if customer_ids else 0


def reward_balance(connection: Connection, customer_ref: str) -> int:
    """The credit that a customer has left, minor units of the customer's currency.

    Raises:
        BadInput: there is no such customer, or rewards were never deployed.
    """
    if not has_table(connection, "billing.reward_entries"):
        raise BadInput("The feature 'rewards' is not deployed: there are no balances.")
    row = queries("billing_rewards").balance_of_customer(connection, customer_ref=customer_ref)
    if row is None:
        raise BadInput(f"There is no customer '{customer_ref}'.")
    return int(row["balance_minor"])


def _require_positive(amount_minor: int) -> None:
    if amount_minor <= 0:
        raise BadInput(f"An amount of credit must be above zero, not {amount_minor}.")


def _locked(connection: Connection, customer_ref: str) -> int:
    customer_id: int | None = queries("billing_rewards").lock_customer(connection, customer_ref=customer_ref)
    if customer_id is None:
        raise BadInput(f"There is no customer '{customer_ref}'.")
    return customer_id


def _insert(
    connection: Connection,
    customer_id: int,
    *,
    kind: str,
    amount_minor: int,
    now: datetime,
    reason: str,
    expires_at: datetime | None = None,
) -> int:
    entry_id: int = queries("billing_rewards").insert_reward(
        connection,
        customer_id=customer_id,
        kind=kind,
        amount_minor=amount_minor,
        occurred_at=now,
        expires_at=expires_at,
        reason=reason,
    )
    return entry_id


def _expire(connection: Connection, customer_ids: list[int], now: datetime) -> int:
    return int(
        queries("billing_rewards").write_off_credits(
            connection, customer_ids=customer_ids, credit_id=None, now=now, reason="expired"
        )
    )
