"""Which days were billed: each active day once, no paused day.

What belongs here: the reference walk from one payment to the next, and Stripe's invoices held against it. What does
not: anything that asks the product what it thinks (`invariants` compares that with Stripe).

The statement. A subscription is billed for consecutive periods, each paid ahead at its beginning. Where the *n*-th
period begins on a day D, the next begins one period of the frequency later on the customer's own calendar (month ends
clamped, counted from the last date that was moved), and later still by the whole of each pause that began before that
day: a period that was paid for is prolonged by what was paused of it. So

- there is exactly one invoice that was not voided for each such day until now, and none besides (nothing is billed
  twice, no active day is left out);
- no such invoice is of a time that was paused, from PROMPT after the pause began until its end: within PROMPT Stripe
  may not have been told. What was collected there is the next period's, paid early: that is prolonged in its stead;
- while a subscription is suspended no period begins; the periods of dates that fall into it are left out for good.
  A payment that is owed is billed all the same: its invoice is open until it is paid, canceled or given up;
- a change of frequency that is made now begins a period at once; one at the end of a period with the next.

Tolerance: one day between a date and its invoice, because Stripe counts days in UTC and we in the customer's zone, plus
PROMPT; where that puts the anchor on another day of the month, from the date counted in UTC. It does not add up: dates
are counted, not measured from the last invoice. A payment that fell due so shortly before a pause that Stripe had not
come to it counts as held up by the pause.

Left out: subscriptions that somebody changed by hand, and those of which Stripe was told hours late
(`invariants.told_late`): it may have billed on its own dates in between. `late_days` says what holds of them.
"""

from __future__ import annotations

from calendar import monthrange
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from tests.model.invariants import PROMPT, told_late
from tests.model.world import World

TOLERANCE = timedelta(days=1) + PROMPT
FOREVER = datetime(9999, 1, 1, tzinfo=UTC)
_WEEKS = {"WEEKLY": 1, "BIWEEKLY": 2}
_MONTHS = {"MONTHLY": 1, "QUARTERLY": 3, "YEARLY": 12}


def nth_date(anchor: datetime, frequency: str, number: int, zone: ZoneInfo) -> datetime:
    """The date `number` periods after an anchor, at the same time of day in the zone."""
    local = anchor.astimezone(zone).replace(tzinfo=None)
    if frequency in _WEEKS:
        local += timedelta(weeks=number * _WEEKS[frequency])
    else:
        year, month = divmod(local.year * 12 + local.month - 1 + number * _MONTHS[frequency], 12)
        local = local.replace(year=year, month=month + 1, day=min(local.day, monthrange(year, month + 1)[1]))
    return local.replace(tzinfo=zone).astimezone(UTC)


@dataclass
class _Walk:
    """From one payment to the next, with what is left of the invoices."""

    due: datetime
    frequency: str
    zone: ZoneInfo
    now: datetime
    invoices: deque[datetime]
    anchor: datetime = field(init=False)
    number: int = 0

    def __post_init__(self) -> None:
        self.anchor = self.due

    def move(self, to: datetime) -> None:
        self.anchor, self.due, self.number = to, to, 0

    def step(self) -> None:
        """One period on."""
        self.number += 1
        self.due = nth_date(self.anchor, self.frequency, self.number, self.zone)

    @property
    def at_stripe(self) -> datetime:
        """The same date as Stripe counts it, in UTC: days away where the anchor is another day of the month there."""
        return nth_date(self.anchor, self.frequency, self.number, ZoneInfo("UTC")) if self.anchor < FOREVER else FOREVER

    def billed(self, tolerance: timedelta = TOLERANCE, *, before: datetime = FOREVER) -> bool:
        """Take the invoice of the period that begins now off the list."""
        made = self.invoices[0] if self.invoices else FOREVER
        if made < before and min(abs(made - self.due), abs(made - self.at_stripe)) <= tolerance:
            self.invoices.popleft()
            return True
        return False

    def pause(self, starts: datetime, ends: datetime, terms: str | None) -> bool:
        """Whether Stripe had come to the period that begins then; `terms`: the frequency that would begin with it."""
        if billed := self.billed(before=starts + PROMPT):
            self.frequency = terms or self.frequency
            self.step()
        self.move(FOREVER if ends == FOREVER else self.due + (ends - starts))
        return billed

    def change(self, at: datetime, to: str, what: str, told_at: datetime | None) -> None:
        # Stripe can have begun the period that we expect next; nothing but the change begins one at its own instant.
        if what == "now" and self.billed(before=at):
            self.step()
        self.frequency = to
        # On trial nothing is billed at once: the first payment after it takes the new terms. Where Stripe heard of it
        # only when the trial was over, it has billed the old ones, and gives that back with the new ones' first period.
        if what == "on trial" and told_at is not None and told_at >= self.due:
            self.billed(before=told_at + timedelta(seconds=1))
        self.move(self.due if what == "on trial" else at)
        if what == "now":
            assert self.billed(PROMPT), f"a change of {at} began no period"
            self.step()


def days_are_billed_once(world: World) -> None:
    late = told_late(world)
    for number, ref in enumerate(world.refs):
        if ref in world.typed or ref in late:
            continue
        invoices = _collected(world, ref)
        member = world.company.members[number]
        walk = _Walk(
            world.company.start + timedelta(days=member.due_in, hours=1 + number),
            member.frequency, ZoneInfo(member.zone), world.now, deque(invoices),
        )  # fmt: skip
        try:
            _follow(walk, _happenings(world, ref), _suspensions(world, ref), _end(world, ref))
        except AssertionError as error:
            raise AssertionError(f"{ref}: {error}; due {walk.due}, billed {invoices}") from None


def _follow(
    walk: _Walk,
    happenings: deque[dict[str, Any]],
    suspensions: list[tuple[datetime, datetime]],
    end: datetime,
) -> None:
    while True:
        following: dict[str, Any] = happenings[0] if happenings else {"what": "nothing", "at": FOREVER}
        # A change at once is refused while a payment is still to come: what was due by then was billed before.
        first = following["at"] < walk.due if following["what"] == "now" else following["at"] <= walk.due
        if not first and following["what"] == "pause" and following["at"] < max(walk.due, walk.at_stripe) + TOLERANCE:
            # A pause can begin before Stripe has come to a payment that we expected a little before it.
            first = not walk.billed(before=following["at"] + PROMPT)
            if not first:
                walk.step()
                continue
        if happenings and first and following["at"] <= end:
            one = happenings.popleft()
            if one["what"] == "pause":
                begins = happenings and (happenings[0]["what"], happenings[0]["at"]) == ("period end", walk.due)
                terms = happenings[0]["to_frequency"] if begins else None
                if walk.pause(one["at"], one["ends_at"] or FOREVER, terms) and terms:
                    happenings.popleft()
            else:
                walk.change(one["at"], one["to_frequency"], one["what"], one["told_at"])
            continue
        # What is due in this moment, or was in the last of the subscription, may be made or not.
        if max(walk.due, walk.at_stripe) > min(walk.now, end) - TOLERANCE:
            walk.billed()
            break
        if any(starts <= walk.due < ends for starts, ends in suspensions):
            walk.step()
            continue
        assert walk.billed(), "a period was not billed"
        walk.step()
    assert not walk.invoices, f"billed besides: {walk.invoices}"


def _collected(world: World, ref: str) -> list[datetime]:
    """When the invoices were made that were paid or may still be."""
    return [
        datetime.fromtimestamp(one["created"], UTC)
        for one in world.stand.invoices(world.stripe_id(ref))
        if one["status"] in ("paid", "open")
    ]


def _happenings(world: World, ref: str) -> deque[dict[str, Any]]:
    """Pauses that were begun, and changes of frequency that were made, in their order."""
    rows = world.admin.execute(
        "SELECT 'pause' AS what, starts_at AS at, ends_at, NULL AS to_frequency, 1 AS rank, NULL AS told_at"
        " FROM billing.subscription_pauses JOIN billing.subscriptions USING (subscription_id)"
        " WHERE subscription_ref = %(ref)s AND kind <> 'payment_failure'"
        " AND subscription_pauses.state IN ('active', 'completed')"
        # Within an interval no date changes. On trial there is nothing to take back and nothing to pay.
        " UNION ALL SELECT CASE WHEN requested_at < effective_at THEN 'period end'"
        " WHEN debit_minor = 0 THEN 'on trial' ELSE 'now' END, effective_at, NULL,"
        " to_frequency, 0, (SELECT min(c.delivered_at) FROM billing.stripe_commands AS c"
        " WHERE c.created_at = requested_at AND c.subscription_id = subscriptions.subscription_id"
        " AND c.operation = 'change_price')"
        " FROM billing.frequency_changes JOIN billing.subscriptions USING (subscription_id)"
        " WHERE subscription_ref = %(ref)s AND state = 'applied' AND from_frequency <> to_frequency"
        " ORDER BY at, rank",
        {"ref": ref},
    ).fetchall()
    return deque(rows)


def _suspensions(world: World, ref: str) -> list[tuple[datetime, datetime]]:
    rows = world.admin.execute(
        "SELECT e.event, e.occurred_at FROM billing.subscription_events AS e JOIN billing.subscriptions"
        " USING (subscription_id) WHERE subscription_ref = %s AND e.event <> 'changed' ORDER BY occurred_at, event_id",
        (ref,),
    ).fetchall()
    following = [row["occurred_at"] for row in rows[1:]] + [FOREVER]
    return [
        (row["occurred_at"], until) for row, until in zip(rows, following, strict=True) if row["event"] == "suspended"
    ]


def _end(world: World, ref: str) -> datetime:
    row = world.admin.execute(
        "SELECT coalesce(canceled_at, 'infinity') > %(now)s AS lives, canceled_at FROM billing.subscriptions"
        " WHERE subscription_ref = %(ref)s",
        {"ref": ref, "now": world.now},
    ).fetchone()
    assert row is not None
    return FOREVER if row["lives"] else row["canceled_at"]
