"""The small company that a sequence happens to.

What belongs here: its catalogue, its subscriptions as Hypothesis draws them, writing them. What does not: what happens
to them (`world`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from flexpay_pipelines.database import Connection

FREQUENCIES = ("WEEKLY", "BIWEEKLY", "MONTHLY", "QUARTERLY", "YEARLY")
# Minor units of one unit of plan `pro` for one period, in EUR.
PRICES = dict(zip(FREQUENCIES, (300, 590, 1_200, 3_300, 12_001), strict=True))
ZONES = ("Europe/Berlin", "America/New_York", "Asia/Kolkata")
# Before the clocks change in spring and in autumn, and before month ends that clamp.
STARTS = (
    datetime(2026, 3, 2, 9, tzinfo=UTC), datetime(2026, 10, 20, 23, 30, tzinfo=UTC),
    datetime(2027, 1, 27, 12, tzinfo=UTC), datetime(2028, 2, 26, 18, 45, tzinfo=UTC),
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """One subscription with a customer of its own; `due_in` days after the start its next payment falls due.

    On trial, that is its first one.
    """

    frequency: str
    zone: str
    quantity: int
    off_list: bool
    due_in: int
    on_trial: bool


@dataclass(frozen=True)
class Company:
    """A company at its start, and how it is run.

    Attributes:
        prompt: billing runs each hour in which something is due; otherwise whenever the sequence says so.
        grace_days: until a subscription that is not paid is suspended.
    """

    start: datetime
    members: tuple[Member, ...]
    pause_mode: str
    prompt: bool
    grace_days: int
    batch_size: int


def members() -> st.SearchStrategy[Member]:
    return st.builds(
        Member,
        frequency=st.sampled_from(FREQUENCIES),
        zone=st.sampled_from(ZONES),
        quantity=st.integers(1, 3),
        off_list=st.booleans(),
        due_in=st.integers(0, 13),
        on_trial=st.sampled_from((False, False, False, True)),
    )


def companies() -> st.SearchStrategy[Company]:
    return st.builds(
        Company,
        start=st.sampled_from(STARTS),
        members=st.lists(members(), min_size=2, max_size=3).map(tuple),
        pause_mode=st.sampled_from(("collection", "subscription")),
        prompt=st.sampled_from((True, True, False)),
        grace_days=st.sampled_from((2, 7)),
        batch_size=st.sampled_from((1, 100)),
    )


def found(connection: Connection, company: Company) -> None:
    """Write the company: customers `c0…`, each with a subscription `s0…`, paid for or on trial until its date."""
    connection.execute("INSERT INTO billing.plans VALUES ('pro', 'Pro')")
    connection.execute(
        "INSERT INTO billing.plan_prices (plan, payment_frequency, currency, amount_minor)"
        " SELECT 'pro', f, 'EUR', a FROM unnest(%s::text[], %s::bigint[]) AS p (f, a)",
        (list(PRICES), list(PRICES.values())),
    )
    for number, member in enumerate(company.members):
        due = company.start + timedelta(days=member.due_in, hours=1 + number)
        connection.execute(
            "WITH customer AS ("
            " INSERT INTO billing.customers (customer_ref, currency, time_zone, created_at)"
            " VALUES ('c' || %(number)s::text, 'EUR', %(zone)s, %(start)s) RETURNING customer_id)"
            " INSERT INTO billing.subscriptions (subscription_ref, customer_id, plan, status, amount_minor, quantity,"
            " currency, payment_frequency, started_at, billing_anchor, next_payment_at, changed_at)"
            " SELECT 's' || %(number)s::text, customer_id, 'pro', %(status)s, %(amount)s, %(quantity)s, 'EUR',"
            " %(frequency)s, %(start)s, %(due)s, %(due)s, %(start)s FROM customer",
            {
                "number": number, "zone": member.zone, "start": company.start, "due": due,
                "amount": PRICES[member.frequency] + (7 if member.off_list else 0), "quantity": member.quantity,
                "frequency": member.frequency, "status": "trialing" if member.on_trial else "active",
            },
        )  # fmt: skip
