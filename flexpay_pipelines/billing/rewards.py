"""Reward credits: earned, spent, taken back; the balance is derived and never below zero.

What belongs here: entries of the append-only ledger `billing.reward_entries` for one customer. What does not: what
falls due for everybody by rule (`reward_settlement`).

Amounts are minor units of the customer's currency. Credit is spent in the order in which it came in. Everything that
touches a balance locks the customer first, so that two spenders at once cannot both have the last of it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from flexpay_pipelines.billing.features import feature_enabled, has_table, require_feature
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.sql import queries

REWARDS = "rewards"
# PostgreSQL's bigint, which ids and amounts are kept in.
LARGEST = 2**63 - 1


def earn_reward(
    connection: Connection,
    *,
    customer_ref: str,
    amount_minor: int,
    reason: str,
    clock: Clock,
    expires_at: datetime | None = None,
    source: Literal["bonus", "referral"] = "bonus",
    referred_customer_ref: str | None = None,
) -> int:
    """Give a customer credit; the entry's id, by which it can be reversed.

    Args:
        source: `referral` for having brought another customer, whom `referred_customer_ref` names; else `bonus`.

    Raises:
        BadInput: unknown customer, no positive amount, an expiry that is past, a referral of oneself or of somebody
            whom a customer was rewarded for already, or rewards are off; nothing was written.
    """
    require_rewards(connection)
    _require_amount(amount_minor)
    now = clock.now()
    if expires_at is not None and expires_at <= now:
        raise BadInput(f"Credit cannot expire in the past ({expires_at.isoformat()}): give a later time.")
    if (source == "referral") != (referred_customer_ref is not None):
        raise BadInput("A referral names the customer who was referred, and nothing else does.")
    with connection.transaction():
        customer_id = _locked(connection, customer_ref)
        referred_id = None if referred_customer_ref is None else _known(connection, referred_customer_ref)
        if referred_id == customer_id:
            raise BadInput(f"Customer '{customer_ref}' cannot refer himself: name the customer who was referred.")
        entry_id = _insert(
            connection,
            customer_id,
            kind="earned",
            amount_minor=amount_minor,
            now=now,
            reason=reason,
            expires_at=expires_at,
            source=source,
            referred_id=referred_id,
        )
        if entry_id is None:
            referrer = queries("billing_rewards").referrer_of(connection, referred_customer_id=referred_id)
            raise BadInput(f"Customer '{referred_customer_ref}' was referred already, by '{referrer}'.")
        return entry_id


def spend_reward(connection: Connection, *, customer_ref: str, amount_minor: int, reason: str, clock: Clock) -> int:
    """Take credit from a customer's balance; the entry's id. What has expired by now cannot be spent any more.

    Raises:
        BadInput: unknown customer, no positive amount, more than there is, or rewards are off; nothing was spent.
    """
    require_rewards(connection)
    _require_amount(amount_minor)
    now = clock.now()
    sql = queries("billing_rewards")
    with connection.transaction():
        customer_id = _locked(connection, customer_ref)
        _expire(connection, customer_id, now)
        balance = sql.reward_balance(connection, customer_id=customer_id)
        if balance < amount_minor:
            raise BadInput(
                f"Customer '{customer_ref}' has {balance} minor units of credit left, {amount_minor} are asked for."
            )
        entry_id = _insert(connection, customer_id, kind="spent", amount_minor=amount_minor, now=now, reason=reason)
        if entry_id is None:
            raise AssertionError("only a referral can be there already")
        return entry_id


def reverse_reward(connection: Connection, *, reward_entry_id: int, reason: str, clock: Clock) -> int:
    """Take back what is left unspent of one credit; how much that was, minor units.

    Raises:
        BadInput: there is no such credit, nothing of it is left (spent, expired, reversed before), or rewards are off.
    """
    require_rewards(connection)
    now = clock.now()
    sql = queries("billing_rewards")
    with connection.transaction():
        customer_id = (
            sql.lock_customer_of_credit(connection, reward_entry_id=reward_entry_id)
            if 0 < reward_entry_id <= LARGEST
            else None
        )
        if customer_id is None:
            raise BadInput(f"There is no earned credit {reward_entry_id}.")
        _expire(connection, customer_id, now)
        taken = list(
            sql.write_off_reversed(
                connection, customer_ids=[customer_id], credit_ids=[reward_entry_id], instants=[now], reason=reason
            )
        )
        if not taken:
            raise BadInput(f"Nothing of credit {reward_entry_id} is left to take back.")
        return int(taken[0]["amount_minor"])


def reward_balance(connection: Connection, customer_ref: str) -> int:
    """The credit that a customer has left, minor units of the customer's currency.

    Raises:
        BadInput: there is no such customer, or rewards were never deployed.
    """
    _require_ledger(connection)
    row = queries("billing_rewards").balance_of_customer(connection, customer_ref=customer_ref)
    if row is None:
        raise BadInput(f"There is no customer '{customer_ref}'.")
    return int(row["balance_minor"])


def reward_entries(connection: Connection, customer_ref: str) -> list[dict[str, Any]]:
    """The ledger of one customer in the order of time.

    Rows of `reward_entry_id`, `occurred_at`, `kind`, `source`, `amount_minor`, `left_minor` (of a credit, unspent),
    `expires_at`, `credit_id` (that an expiry or a reversal was taken from), `milestone_months`, `referred`, `reason`.

    Raises:
        BadInput: there is no such customer, or rewards were never deployed.
    """
    _require_ledger(connection)
    _known(connection, customer_ref)
    return list(queries("billing_rewards").entries_of_customer(connection, customer_ref=customer_ref))


def customer_currency(connection: Connection, customer_ref: str) -> str:
    """The currency in which a customer's credit is counted (for this package).

    Raises:
        BadInput: there is no such customer.
    """
    currency: str | None = queries("billing_rewards").currency_of(connection, customer_ref=customer_ref)
    if currency is None:
        raise BadInput(f"There is no customer '{customer_ref}'.")
    return currency


def credit_owner(connection: Connection, reward_entry_id: int) -> str:
    """The reference of the customer whose entry it is (for this package: it is known to be there)."""
    return str(queries("billing_rewards").credit_owner(connection, reward_entry_id=reward_entry_id))


def rewards_on(connection: Connection) -> bool:
    """Whether rewards are deployed, as new as this release, and switched on (for this package)."""
    return feature_enabled(connection, REWARDS) and bool(queries("billing_rewards").rewards_ready(connection))


def require_rewards(connection: Connection) -> None:
    """Refuse to go on where rewards are off or their schema is of an older release.

    Raises:
        BadInput: with what to do.
    """
    require_feature(connection, REWARDS)
    _require_ready(connection)


def _require_ledger(connection: Connection) -> None:
    if not has_table(connection, "billing.reward_entries"):
        raise BadInput("The feature 'rewards' is not deployed: there are no balances.")
    _require_ready(connection)


def _require_ready(connection: Connection) -> None:
    if not queries("billing_rewards").rewards_ready(connection):
        raise BadInput("The schema of the rewards is older than this release: run `flexpay deploy`, then try again.")


def _require_amount(amount_minor: int) -> None:
    if amount_minor <= 0:
        raise BadInput(f"An amount of credit must be above zero, not {amount_minor}.")
    if amount_minor > LARGEST:
        raise BadInput(f"{amount_minor} minor units are more than can be kept: {LARGEST} at most.")


def _known(connection: Connection, customer_ref: str) -> int:
    customer_id: int | None = queries("billing_rewards").customer_id_of(connection, customer_ref=customer_ref)
    return _found(customer_id, customer_ref)


def _locked(connection: Connection, customer_ref: str) -> int:
    customer_id: int | None = queries("billing_rewards").lock_customer(connection, customer_ref=customer_ref)
    return _found(customer_id, customer_ref)


def _found(customer_id: int | None, customer_ref: str) -> int:
    if customer_id is None:
        raise BadInput(f"There is no customer '{customer_ref}'.")
    return customer_id


def _expire(connection: Connection, customer_id: int, now: datetime) -> None:
    # Read to the end: rows come when they are asked for, and the statement runs with the first.
    list(queries("billing_rewards").write_off_expired(connection, customer_ids=[customer_id], now=now))


def _insert(
    connection: Connection,
    customer_id: int,
    *,
    kind: str,
    amount_minor: int,
    now: datetime,
    reason: str,
    expires_at: datetime | None = None,
    source: str | None = None,
    referred_id: int | None = None,
) -> int | None:
    entry_id: int | None = queries("billing_rewards").insert_reward(
        connection,
        customer_id=customer_id,
        kind=kind,
        amount_minor=amount_minor,
        occurred_at=now,
        expires_at=expires_at,
        reason=reason,
        source=source,
        referred_customer_id=referred_id,
    )
    return entry_id
