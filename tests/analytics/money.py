"""Payments and reward entries in the database, and naive references for what is made of them: day by day, plain loops.

Written from docs/metrics.md, not from the product.
"""

from __future__ import annotations

from calendar import monthrange
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from zoneinfo import ZoneInfo

from flexpay_pipelines.database import Connection
from flexpay_pipelines.money import round_half_up
from tests.analytics.reference import Event, History

DAY = timedelta(days=1)
MONTHS = {"MONTHLY": 1, "QUARTERLY": 3, "YEARLY": 12}
WEEKS = {"WEEKLY": 1, "BIWEEKLY": 2}


@dataclass(frozen=True)
class Payment:
    subscription: str
    occurred_at: datetime
    amount: int = 1000
    outcome: str = "succeeded"
    attempt: int = 1
    recorded_at: datetime | None = None
    currency: str = "EUR"
    failure_class: str | None = None

    @property
    def known_at(self) -> datetime:
        return self.recorded_at or self.occurred_at


@dataclass(frozen=True)
class Entry:
    customer: str
    occurred_at: datetime
    kind: str
    amount: int
    expires_at: datetime | None = None
    recorded_at: datetime | None = None

    @property
    def known_at(self) -> datetime:
        return self.recorded_at or self.occurred_at


def pay(connection: Connection, payments: Iterable[Payment]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO billing.payments (payment_ref, subscription_id, occurred_at, recorded_at, amount_minor,"
            " currency, outcome, failure_class, attempt) SELECT %s, subscription_id, %s, %s, %s, currency, %s, %s, %s"
            " FROM billing.subscriptions WHERE subscription_ref = %s",
            [
                (f"p{n:05}", p.occurred_at, p.known_at, p.amount, p.outcome, p.failure_class, p.attempt, p.subscription)
                for n, p in enumerate(payments)
            ],
        )


def book(connection: Connection, entries: Iterable[Entry]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO billing.reward_entries (customer_id, occurred_at, recorded_at, kind, amount_minor, expires_at)"
            " SELECT customer_id, %s, %s, %s, %s, %s FROM billing.customers WHERE customer_ref = %s",
            [(e.occurred_at, e.known_at, e.kind, e.amount, e.expires_at, e.customer) for e in entries],
        )


def step(anchor: datetime, frequency: str, n: int, zone: str = "UTC") -> datetime:
    """The n-th payment date from the anchor, on the local clock."""
    local = anchor.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    if frequency in WEEKS:
        moved = local + timedelta(days=7 * n * WEEKS[frequency])
    else:
        month = local.month - 1 + n * MONTHS[frequency]
        year, month = local.year + month // 12, month % 12 + 1
        moved = local.replace(year=year, month=month, day=min(local.day, monthrange(year, month)[1]))
    return moved.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def billed(history: History, payments: list[Payment], payment: Payment) -> tuple[date, int] | None:
    """First day and number of days of the period that the payment is for."""
    due = payment.occurred_at
    if payment.attempt > 1:
        firsts = [
            p.occurred_at
            for p in payments
            if p.subscription == payment.subscription
            and p.attempt == 1
            and (p.occurred_at, p.outcome) <= (payment.occurred_at, payment.outcome)
        ]
        if firsts and max(firsts) > due - 60 * DAY:
            due = max(firsts)
    events = [e for e in history.by_subscription.get(payment.subscription, []) if e.occurred_at <= due]
    if not events:
        return None
    anchor, frequency = events[0].occurred_at, events[0].payment_frequency
    for event in events:
        if event.event == "started" or event.payment_frequency != frequency:
            anchor = event.occurred_at
        frequency = event.payment_frequency
    dates = [step(anchor, frequency, n) for n in range(800)]
    near = [n for n, at in enumerate(dates) if due - DAY < at <= due]
    start, end = (dates[near[0]], dates[near[0] + 1]) if near else (due, step(due, frequency, 1))
    return start.date(), max((end.date() - start.date()).days, 1)


def deferred_by_day(
    history: History, payments: list[Payment], first: date, last: date
) -> dict[date, tuple[int, int, int]]:
    """(received in all, recognised in all, standing still) at the end of each day, of one currency."""
    found = {first + n * DAY: [0, 0, 0] for n in range((last - first).days + 1)}
    for payment in payments:
        if payment.outcome != "succeeded" or not payment.amount:
            continue
        period = billed(history, payments, payment)
        received = payment.occurred_at.date()
        if period is None:
            for day, sums in found.items():
                sums[0] += payment.amount * (day >= received)
                sums[1] += payment.amount * (day >= received)
            continue
        start, days = period
        served, over, paused = 0, False, False
        day = start
        while day <= last:
            status = status_at(history, payment.subscription, day)
            over = over or status == "canceled"
            paused = status == "paused"
            if not paused and not over:
                served = min(served + 1, days)
            if day in found and day >= received:
                recognised = payment.amount if over else round_half_up(Fraction(payment.amount * served, days))
                found[day][0] += payment.amount
                found[day][1] += recognised
                found[day][2] += payment.amount - recognised if paused else 0
            day += DAY
    return {day: (sums[0], sums[1], sums[2]) for day, sums in found.items()}


# One branch for each event in the table of docs/metrics.md.
def status_at(history: History, subscription: str, day: date) -> str:  # noqa: C901
    """`paused`, `canceled` or something else, at the end of a day."""
    end = datetime(day.year, day.month, day.day, tzinfo=UTC) + DAY
    status = "unstarted"
    suspended = paused = False
    for event in history.by_subscription.get(subscription, []):
        if event.occurred_at >= end:
            break
        if event.event == "started":
            status, suspended, paused = "live", False, False
        elif event.event == "trial_started":
            status = "trial"
        elif event.event == "canceled":
            status = "canceled"
        elif status != "live":
            continue
        elif event.event == "suspended":
            suspended = True
        elif event.event == "recovered":
            suspended = paused = False
        elif not suspended and event.event == "paused":
            paused = True
        elif not suspended and event.event in ("resumed", "past_due"):
            paused = False
    if status == "live" and suspended:
        return "suspended"
    return "paused" if status == "live" and paused else status


def lots_left(entries: list[Entry], end: datetime) -> list[tuple[datetime | None, int]]:
    """What is left of each credit of one customer: spent in the order in which credits came into the ledger."""
    known = sorted(
        enumerate(e for e in entries if e.occurred_at < end), key=lambda pair: (pair[1].known_at, pair[1].occurred_at)
    )
    lots = [(e.expires_at, e.amount) for _, e in known if e.kind == "earned"]
    gone = sum(e.amount for _, e in known if e.kind != "earned")
    left = []
    for expires_at, amount in lots:
        taken = min(amount, gone)
        gone -= taken
        left.append((expires_at, amount - taken))
    return left


def aged(entries: list[Entry], customers: Iterable[str], end: datetime) -> Counter[str]:
    found: Counter[str] = Counter()
    for customer in customers:
        for expires_at, amount in lots_left([e for e in entries if e.customer == customer], end):
            found[bucket(expires_at, end)] += amount
    return found


def bucket(expires_at: datetime | None, end: datetime) -> str:
    if expires_at is None:
        return "never"
    for name, days in (("overdue", 0), ("within_30_days", 30), ("within_90_days", 90), ("within_365_days", 365)):
        if expires_at < end + days * DAY:
            return name
    return "later"


def episodes(payments: list[Payment]) -> list[tuple[Payment, timedelta | None]]:
    """Each dunning episode: the failure that began it, and how long until it was won."""
    found: list[tuple[Payment, timedelta | None]] = []
    for subscription in {p.subscription for p in payments}:
        began: Payment | None = None
        before: Payment | None = None
        own = sorted((p for p in payments if p.subscription == subscription), key=lambda p: (p.occurred_at, p.outcome))
        for payment in own:
            silent = before is not None and payment.occurred_at - before.occurred_at > 60 * DAY
            if began is not None and silent:
                found.append((began, None))
                began = None
            if payment.outcome == "failed":
                began = began or payment
            elif began is not None:
                found.append((began, payment.occurred_at - began.occurred_at))
                began = None
            before = payment
        if began is not None:
            found.append((began, None))
    return found


def known(payments: Iterable[Payment], at: datetime | None) -> list[Payment]:
    return [p for p in payments if at is None or p.known_at <= at]


def started(subscription: str, at: datetime, **terms: object) -> Event:
    return Event(subscription, subscription.partition("-")[0], "started", at, at, **terms)  # type: ignore[arg-type]
