"""A naive reference: day by day, subscription by subscription, whole numbers and fractions only, no SQL.

Written from docs/metrics.md, not from the product. Slow and plain on purpose.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction

PER_YEAR = {"WEEKLY": 52, "BIWEEKLY": 26, "MONTHLY": 12, "QUARTERLY": 4, "YEARLY": 1}


@dataclass(frozen=True)
class Event:
    subscription: str
    customer: str
    event: str
    occurred_at: datetime
    recorded_at: datetime
    plan: str = "basic"
    payment_frequency: str = "MONTHLY"
    amount_minor: int = 1000
    quantity: int = 1
    currency: str = "EUR"


@dataclass(frozen=True)
class Standing:
    """One subscription at the end of a period."""

    kind: str = "out"
    rate: int = 0
    plan: str = ""
    payment_frequency: str = ""
    currency: str = ""

    @property
    def run(self) -> int:
        return self.rate if self.kind == "counted" else 0

    @property
    def paused(self) -> int:
        return self.rate if self.kind == "paused" else 0


OUT = Standing()


@dataclass
class History:
    events: list[Event]
    paused_days: int = 90
    known_at: datetime | None = None

    def __post_init__(self) -> None:
        seen: set[tuple[object, ...]] = set()
        self.by_subscription: dict[str, list[Event]] = defaultdict(list)
        self.customer_of: dict[str, str] = {}
        for event in self.events:
            if self.known_at is not None and event.recorded_at > self.known_at:
                continue
            if astuple(event) in seen:
                continue
            seen.add(astuple(event))
            self.by_subscription[event.subscription].append(event)
            self.customer_of[event.subscription] = event.customer
        for known in self.by_subscription.values():
            known.sort(key=lambda e: (e.occurred_at, e.recorded_at))  # stable: then order of arrival
        self._cache: dict[datetime, dict[str, Standing]] = {}

    def at(self, end: datetime) -> dict[str, Standing]:
        """Every subscription as it stands just before `end`."""
        if end not in self._cache:
            self._cache[end] = {ref: self._replay(events, end) for ref, events in self.by_subscription.items()}
        return self._cache[end]

    # One branch for each event in the table of docs/metrics.md.
    def _replay(self, events: list[Event], end: datetime) -> Standing:  # noqa: C901, PLR0912
        life, suspended, paused_since = "none", False, None
        last: Event | None = None
        for e in events:
            if e.occurred_at >= end:
                break
            last = e
            if e.event == "started":
                life, suspended, paused_since = "live", False, None
            elif e.event == "trial_started":
                life = "trial"
            elif e.event == "canceled":
                life = "over"
            elif life != "live":
                continue
            elif e.event == "suspended":
                suspended = True
            elif e.event == "recovered":
                suspended, paused_since = False, None
            elif suspended:
                continue
            elif e.event == "paused":
                paused_since = paused_since or e.occurred_at
            elif e.event in ("resumed", "past_due"):
                paused_since = None
        if last is None or life != "live" or suspended:
            return OUT
        rate = last.amount_minor * last.quantity * PER_YEAR[last.payment_frequency]
        counted = Standing("counted", rate, last.plan, last.payment_frequency, last.currency)
        if paused_since is None:
            return counted
        if end - paused_since > timedelta(days=self.paused_days):
            return OUT
        return replace(counted, kind="paused")

    def customers(self) -> list[str]:
        return sorted(set(self.customer_of.values()))

    def of(self, customer: str, end: datetime) -> dict[str, Standing]:
        return {ref: s for ref, s in self.at(end).items() if self.customer_of[ref] == customer}


def run(standings: dict[str, Standing]) -> int:
    return sum(s.run for s in standings.values())


def with_us(standings: dict[str, Standing]) -> bool:
    return run(standings) > 0 or sum(s.paused for s in standings.values()) > 0


def day_ends(first: date, last: date) -> Iterator[tuple[str, datetime, datetime]]:
    """(label, end of the day before, end of the day)."""
    day = first
    while day <= last:
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        yield day.isoformat(), start, start + timedelta(days=1)
        day += timedelta(days=1)


def month_ends(first: date, last: date) -> Iterator[tuple[str, datetime, datetime]]:
    year, month = first.year, first.month
    while (year, month) <= (last.year, last.month):
        following = (year + 1, 1) if month == 12 else (year, month + 1)
        yield f"{year}-{month:02}", datetime(year, month, 1, tzinfo=UTC), datetime(*following, 1, tzinfo=UTC)
        year, month = following


def movements_of(
    before: dict[str, Standing], after: dict[str, Standing], ever: bool
) -> tuple[dict[str, int], str | None, bool]:
    """(amount of each movement, the class of the rest, whether pauses were split off) of one customer in one period."""
    change = run(after) - run(before)
    if not ever:
        return ({"new": change} if change else {}), "new", False
    if not with_us(before):
        return ({"reactivation": change} if change else {}), "reactivation", False
    found: dict[str, int] = {}
    for ref in before.keys() | after.keys():
        old, new = before.get(ref, OUT), after.get(ref, OUT)
        if (old.kind, new.kind) == ("counted", "paused") and old.rate:
            found["paused"] = found.get("paused", 0) - old.rate
        if (old.kind, new.kind) == ("paused", "counted") and new.rate:
            found["resumed"] = found.get("resumed", 0) + new.rate
    rest = change - sum(found.values())
    if not with_us(after):
        return found | {"churn": rest}, "churn", True
    if rest:
        kind = "expansion" if rest > 0 else "contraction"
        return found | {kind: rest}, kind, True
    return found, None, True


Periods = Callable[[date, date], Iterable[tuple[str, datetime, datetime]]]


def all_movements(
    history: History, origin: date, first: date, last: date, periods: Periods
) -> set[tuple[str, str, str, int]]:
    """(period, customer, movement, annualised) for the periods from first to last; `origin`: before every event."""
    found = set()
    wanted = {label for label, _, _ in periods(first, last)}
    for customer in history.customers():
        ever = False
        for label, start, end in periods(origin, last):
            before, after = history.of(customer, start), history.of(customer, end)
            if label in wanted:
                amounts, _, _ = movements_of(before, after, ever)
                found |= {(label, customer, movement, amount) for movement, amount in amounts.items()}
            ever = ever or run(after) > 0
    return found


def segment_value(standing: Standing, kind: str) -> str:
    return {"plan": standing.plan, "payment_frequency": standing.payment_frequency, "total": "total"}[kind]


def levels(history: History, end: datetime, kind: str) -> dict[tuple[str, str], tuple[int, int, int, int, int]]:
    """(segment, currency) -> run rate, customers, paying customers, counted and paused subscriptions at `end`."""
    found: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for customer in history.customers():
        standings = [s for s in history.of(customer, end).values() if s.kind != "out"]
        for segment in {segment_value(s, kind) for s in standings}:
            mine = [s for s in standings if segment_value(s, kind) == segment]
            figures = found[segment, mine[0].currency]
            figures[0] += sum(s.run for s in mine)
            figures[1] += any(s.rate > 0 for s in mine)
            figures[2] += sum(s.run for s in mine) > 0
            figures[3] += sum(s.kind == "counted" for s in mine)
            figures[4] += sum(s.kind == "paused" for s in mine)
    return {key: (f[0], f[1], f[2], f[3], f[4]) for key, f in found.items() if any(f)}


@dataclass
class Rates:
    customers_start: int = 0
    customers_churned: int = 0
    start: int = 0
    end: int = 0
    lost: int = 0
    paying: int = 0
    counted: int = 0
    paused: int = 0
    stripe_start: int = 0
    stripe_churned: int = 0

    def __post_init__(self) -> None:
        self.amounts: dict[str, int] = defaultdict(int)


def rates(history: History, start: datetime, end: datetime, earlier: list[datetime]) -> Rates:
    """Both ends of one window compared; `earlier`: the ends of the periods up to `start`, for what was ever new."""
    found = Rates()
    days = [start]
    while days[-1] < end:
        days.append(days[-1] + timedelta(days=1))
    for customer in history.customers():
        before, after = history.of(customer, start), history.of(customer, end)
        ever = any(run(history.of(customer, each)) > 0 for each in earlier)
        amounts, _, _ = movements_of(before, after, ever)
        for movement, amount in amounts.items():
            found.amounts[movement] += amount
        found.customers_start += with_us(before)
        found.customers_churned += with_us(before) and not with_us(after)
        found.start += run(before)
        found.end += run(after)
        found.lost += max(run(before) - run(after), 0)
        found.paying += run(after) > 0
        found.counted += sum(s.kind == "counted" for s in after.values())
        found.paused += sum(s.kind == "paused" for s in after.values())
        present = any(with_us(history.of(customer, day)) for day in days)
        found.stripe_start += present
        found.stripe_churned += present and not with_us(after)
    return found


def share(part: int, whole: int) -> Fraction | None:
    return Fraction(part, whole) if whole else None
