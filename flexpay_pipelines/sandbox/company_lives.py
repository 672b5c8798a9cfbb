"""What the demo company's customers do: sign up, try, change, pause, fail to pay, recover, leave, come back.

What belongs here: the life of one subscription, as the rows that it leaves. What does not: files (`company`), prices
(`company_catalog`), rewards (`company_rewards`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from flexpay_pipelines.money import PaymentFrequency
from flexpay_pipelines.sandbox.company_catalog import FREQUENCY_SHARES, PLANS, SEATED_PLAN, Calendar, price

DAY = timedelta(days=1)
GRACE = 7 * DAY
TRIAL = 14 * DAY
# After a failed payment: days until the next attempt, and how likely that one succeeds.
RETRIES = ((1, 0.55), (3, 0.5), (5, 0.4))
ACTIONS_A_DAY = 0.0031
# How likely: a trial first; it is kept; who left comes back; a pause is ours; is called off; has no end; who paused
# leaves at its end; who was suspended pays; an event is known days late.
TRIES, KEEPS, RETURNS = 0.35, 0.68, 0.12
PAUSED_BY_US, CALLED_OFF, OPEN_ENDED, LEAVES_AFTER_PAUSE = 0.15, 0.1, 0.06, 0.1
PAYS_WHEN_SUSPENDED, LATE = 0.35, 0.03
ACTIONS = {"cancel": 38, "plan": 20, "frequency": 16, "seats": 6, "pause": 20}
# Of first attempts: 2.5 % are declined by the issuer, and a few fail for other reasons.
FAILURES = (
    (0.0250, "issuer_decline", ("insufficient_funds", "do_not_honor", "expired_card", "generic_decline")),
    (0.0256, "block", ("highest_risk_level",)),
    (0.0262, "provider_error", ("api_error",)),
)


@dataclass(frozen=True)
class Person:
    """A customer as customers.csv has him."""

    ref: str
    currency: str
    country: str
    email: str
    time_zone: str
    signed_up: datetime


@dataclass(frozen=True)
class Booking:
    """A pause that is settled in advance, so that something falls due in the hours after the history ends."""

    starts_at: datetime
    ends_at: datetime


@dataclass
class Rows:
    """The rows of the files, with instants not yet written out."""

    # subscription, customer, occurred_at, event, plan, frequency, amount, quantity, currency, recorded_at
    events: list[tuple[str, str, datetime, str, str, str, int, int, str, datetime]] = field(default_factory=list)
    # occurred_at, subscription, amount, currency, outcome, failure class, failure code, attempt
    payments: list[tuple[datetime, str, int, str, str, str, str, int]] = field(default_factory=list)
    # starts_at, subscription, ends_at, kind, reason, state
    pauses: list[tuple[datetime, str, datetime | None, str, str, str]] = field(default_factory=list)
    # occurred_at, customer, kind, amount, expires_at
    rewards: list[tuple[datetime, str, str, int, datetime | None]] = field(default_factory=list)


class Life:
    """One subscription from its sign-up to the end of the history. A step returns when the next may happen, or None."""

    def __init__(
        self, rng: random.Random, person: Person, *, ref: str, end: datetime, rows: Rows, booking: Booking | None
    ) -> None:
        self.rng = rng
        self.person = person
        self.ref = ref
        self.end = end
        self.rows = rows
        self.booking = booking
        self.zone = ZoneInfo(person.time_zone)
        self.plan = rng.choices(list(PLANS), [share for _, _, share in PLANS.values()])[0]
        self.frequency = rng.choices(list(FREQUENCY_SHARES), list(FREQUENCY_SHARES.values()))[0]
        self.quantity = rng.randint(2, 12) if self.plan == SEATED_PLAN else 1

    @property
    def amount(self) -> int:
        return price(self.plan, self.frequency, self.person.currency)

    def live(self, born: datetime) -> None:
        """Write the whole life."""
        start: datetime | None = self._trial(born) if self.rng.random() < TRIES else born
        while start is not None and start <= self.end:
            left = self._subscribe(start)
            comes_back = left is not None and self.rng.random() < RETURNS
            start = left + self.rng.randint(30, 120) * DAY if left is not None and comes_back else None

    def _trial(self, born: datetime) -> datetime | None:
        self._event(born, "trial_started")
        if self.rng.random() < KEEPS:
            return born + TRIAL
        self._event(born + TRIAL, "canceled")
        return None

    def _subscribe(self, start: datetime) -> datetime | None:
        """From a start to the cancellation, whose instant is returned; None when the history ends first."""
        self._event(start, "started")
        anchor, now, n = start, start, 0
        action_at = self._next_action(start)
        while True:
            calendar = Calendar(anchor, self.frequency, self.zone)
            pay_at = calendar.at(n)
            then: datetime | None
            if self._booked_before(min(pay_at, action_at), now):
                self._pause_booked()
                return None
            if action_at < pay_at:
                if action_at > self.end:
                    break
                action = self._choose_action()
                if action == "cancel":
                    self._event(action_at, "canceled")
                    return action_at
                then = self._pause(action_at) if action == "pause" else self._change(action_at, action)
                action_at = self._next_action(then) if then is not None else action_at
            else:
                if pay_at > self.end:
                    break
                then = self._pay(pay_at, first=n == 0)
            if then is None or then > self.end:
                return self._canceled_at(then)
            now = then
            action_at = max(action_at, now + timedelta(hours=1))
            n = Calendar(anchor, self.frequency, self.zone).first_after(now)
        self._book_ahead(action_at)
        return None

    def _canceled_at(self, then: datetime | None) -> datetime | None:
        """The instant of the cancellation that the last event is, if it is one."""
        last = self.rows.events[-1]
        return last[2] if then is None and last[0] == self.ref and last[3] == "canceled" else None

    def _next_action(self, after: datetime) -> datetime:
        return after + timedelta(seconds=int(self.rng.expovariate(ACTIONS_A_DAY) * 86_400) + 3_600)

    def _choose_action(self) -> str:
        return self.rng.choices(list(ACTIONS), list(ACTIONS.values()))[0]

    def _booked_before(self, moment: datetime, now: datetime) -> bool:
        """Whether the booked pause begins next: after `now`, before `moment`, within the history."""
        return self.booking is not None and now < self.booking.starts_at < moment and self.booking.starts_at <= self.end

    def _pause_booked(self) -> None:
        if self.booking is not None:
            self._event(self.booking.starts_at, "paused")
            self._pause_row(self.booking.starts_at, self.booking.ends_at, "customer", "holiday", "active")

    def _book_ahead(self, action_at: datetime) -> None:
        """The history ends while the subscription is active: what is booked for later stands as scheduled."""
        if self.booking is not None:
            if self.booking.starts_at > self.end:
                self._pause_row(self.booking.starts_at, self.booking.ends_at, "customer", "holiday", "scheduled")
        elif self.end < action_at < self.end + 30 * DAY and self._choose_action() == "pause":
            self._pause_row(action_at, action_at + self.rng.randint(7, 60) * DAY, "customer", "holiday", "scheduled")

    def _change(self, at: datetime, what: str) -> datetime:
        if what == "plan" and self.plan != SEATED_PLAN:
            self.plan = self.rng.choice([plan for plan in PLANS if plan not in (self.plan, SEATED_PLAN)])
        elif what == "frequency":
            self.frequency = self.rng.choice([other for other in PaymentFrequency if other != self.frequency])
        elif self.plan == SEATED_PLAN:
            self.quantity = self.rng.choice([seats for seats in range(2, 15) if seats != self.quantity])
        else:
            return at
        self._event(at, "changed")
        return at

    def _pause(self, at: datetime) -> datetime | None:
        """A pause by the customer or by us; when it ends the payments go on in their old rhythm."""
        kind = "admin" if self.rng.random() < PAUSED_BY_US else "customer"
        reason = "support case" if kind == "admin" else self.rng.choice(("holiday", "money is tight", "not needed now"))
        ends = at + timedelta(days=self.rng.randint(7, 60), hours=self.rng.randint(0, 23))
        if self.rng.random() < CALLED_OFF:
            self._pause_row(at, ends, kind, reason, "canceled")
            return at
        self._event(at, "paused")
        open_ended = self.rng.random() < OPEN_ENDED
        if ends > self.end:
            self._pause_row(at, None if open_ended else ends, kind, reason, "active")
            return None
        self._pause_row(at, ends, kind, reason, "completed")
        leaves = self.rng.random() < LEAVES_AFTER_PAUSE
        self._event(ends, "canceled" if leaves else "resumed")
        return None if leaves else ends

    def _pay(self, at: datetime, *, first: bool) -> datetime | None:
        chance = self.rng.random()
        failure = None if first else next((reason for reason in FAILURES if chance < reason[0]), None)
        if failure is None:
            self._payment(at, 1)
            return at
        code = self.rng.choice(failure[2])
        self._payment(at, 1, failure[1], code)
        self._event(at, "past_due")
        for attempt, (days, succeeds) in enumerate(RETRIES, 2):
            retry_at = at + days * DAY
            if retry_at > self.end:
                self._pause_row(at, at + GRACE, "payment_failure", code, "active")
                return None
            if self.rng.random() < succeeds:
                self._pause_row(at, retry_at, "payment_failure", code, "completed")
                return self._recover(retry_at, attempt)
            self._payment(retry_at, attempt, failure[1], code)
        return self._suspend(at, code)

    def _suspend(self, failed_at: datetime, code: str) -> datetime | None:
        suspended_at = failed_at + GRACE
        if suspended_at > self.end:
            self._pause_row(failed_at, suspended_at, "payment_failure", code, "active")
            return None
        self._pause_row(failed_at, suspended_at, "payment_failure", code, "completed")
        self._event(suspended_at, "suspended")
        paid_at = suspended_at + timedelta(days=self.rng.randint(1, 20), seconds=self.rng.randint(0, 86_399))
        if self.rng.random() < PAYS_WHEN_SUSPENDED:
            return self._recover(paid_at, len(RETRIES) + 2) if paid_at <= self.end else None
        self._event(suspended_at + 30 * DAY, "canceled")
        return None

    def _recover(self, at: datetime, attempt: int) -> datetime:
        self._payment(at, attempt)
        self._event(at, "recovered")
        return at

    def _payment(self, at: datetime, attempt: int, failure_class: str = "", code: str = "") -> None:
        outcome = "failed" if failure_class else "succeeded"
        self.rows.payments.append(
            (at, self.ref, self.amount * self.quantity, self.person.currency, outcome, failure_class, code, attempt)
        )

    def _pause_row(self, start: datetime, end: datetime | None, kind: str, reason: str, state: str) -> None:
        self.rows.pauses.append((start, self.ref, end, kind, reason, state))

    def _event(self, at: datetime, event: str) -> None:
        """Write an event, unless it lies after the history. Most are known within minutes, some days later."""
        if at > self.end:
            return
        late = self.rng.randint(86_400, 6 * 86_400) if self.rng.random() < LATE else self.rng.randint(0, 90)
        self.rows.events.append(
            (
                self.ref, self.person.ref, at, event, self.plan, self.frequency.value, self.amount, self.quantity,
                self.person.currency, min(at + timedelta(seconds=late), self.end),
            )
        )  # fmt: skip
