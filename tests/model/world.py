"""One company, its database, its Stripe and its time: everything that a step of a sequence can do to them.

What belongs here: operations, and what interrupts them. What does not: which are drawn (`test_model`), what must hold
afterwards (`invariants`, `billing_days`).

The engines are the product's own. A refusal (`BadInput`) must leave no trace; a fault of Stripe's or a lost connection
may end an operation anywhere, and nothing else may.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import psycopg
from psycopg import sql

from flexpay_pipelines import billing, payments
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.errors import BadInput, TransientError
from flexpay_pipelines.money import PaymentFrequency
from tests.model.company import Company, found
from tests.model.hooks import post
from tests.model.stand import PATIENCE_SECONDS, Stand, emptied, session, tell_time

HOUR = timedelta(hours=1)
QUIET = timedelta(days=16)
REWARD_POLICY = billing.RewardPolicy(loyalty={1: 100, 2: 250}, lifetime_days=20, batch_size=2)
PAUSE_POLICY = billing.PausePolicy(max_days=90, max_per_year=6)


class World:
    """What a sequence happens to. Times are whole seconds, as Stripe keeps them."""

    def __init__(self, url: str, stand: Stand, company: Company) -> None:
        self.company = company
        self.clock = FixedClock(company.start)
        self.stand = stand
        self.stripe = stand.stripe
        self.url = url
        self.gateway = stand.gateway(self._burn)
        # Commits of the worker until its connection is cut; None: never.
        self.fuse: int | None = None
        self._cut = False
        self.cuts = 0
        self.typed: set[str] = set()
        self.turned_off: set[str] = set()
        self.admin = session(self.url, "model", self.now)
        self.worker = session(self.url, "worker", self.now)
        emptied(self.admin)
        found(self.admin, company)
        stand.empty(self.now)
        self.stripe.seed_from_billing(self.admin)
        payments.link_subscriptions(self.admin, self.gateway, progress=quiet)

    @property
    def now(self) -> datetime:
        return self.clock.now()

    @property
    def refs(self) -> list[str]:
        return [f"s{number}" for number in range(len(self.company.members))]

    @property
    def sweep_policy(self) -> billing.SweepPolicy:
        return billing.SweepPolicy(
            pause_mode=self.company.pause_mode, batch_size=self.company.batch_size, grace_days=self.company.grace_days
        )

    def close(self) -> None:
        self.worker.close()
        self.admin.close()

    # What people ask for.

    def schedule(self, ref: str, starts_at: datetime, ends_at: datetime | None, kind: str) -> None:
        self._asked(
            partial(
                billing.schedule_pause, self.admin, subscription_ref=ref, starts_at=starts_at, ends_at=ends_at,
                kind=kind, reason=None, policy=PAUSE_POLICY, pause_mode=self.company.pause_mode, clock=self.clock,
            )
        )  # fmt: skip

    def change_frequency(self, ref: str, to: str, when: billing.When) -> None:
        self._asked(
            partial(
                billing.change_frequency, self.admin, subscription_ref=ref, to=PaymentFrequency(to), clock=self.clock,
                when=when,
            )
        )  # fmt: skip

    def take_change_back(self, ref: str) -> None:
        self._asked(partial(billing.cancel_frequency_change, self.admin, subscription_ref=ref, clock=self.clock))

    def cancel_at_stripe(self, ref: str) -> None:
        """A customer cancels in Stripe's own portal."""
        self.stand.call("DELETE", f"/v1/subscriptions/{self.stripe_id(ref)}")

    def pay(self, ref: str) -> None:
        """A customer pays the oldest invoice that is open; the card may be declined again."""
        owed = [one for one in self.stand.invoices(self.stripe_id(ref)) if one["status"] == "open"]
        if owed:
            self.stand.call("POST", f"/v1/invoices/{owed[0]['id']}/pay")

    def type_in(self, ref: str, assignment: str) -> None:
        """Somebody changes a row by hand, and tells nobody; not in the very moment in which something else was done."""
        self._set_time(self.now + timedelta(seconds=1))
        self.typed.add(ref)
        self.admin.execute(
            sql.SQL("UPDATE billing.subscriptions SET {} WHERE subscription_ref = {} AND status <> 'canceled'").format(
                sql.SQL(assignment),  # a test's own words
                ref,
            )
        )

    def switch(self, feature: str, on: bool) -> None:
        billing.set_feature(self.admin, feature, on, "model", self.clock)
        if not on:
            self.turned_off.add(feature)

    def stripe_id(self, ref: str) -> str:
        row = self._row("SELECT stripe_subscription_id FROM billing.subscriptions WHERE subscription_ref = %s", ref)
        assert row is not None
        return str(row["stripe_subscription_id"])

    # Credit.

    def earn(self, ref: str, amount: int, lasts: timedelta | None) -> None:
        expires_at = None if lasts is None else self.now + lasts
        self._asked(
            partial(
                billing.earn_reward, self.admin, customer_ref=_customer(ref), amount_minor=amount, reason="model",
                clock=self.clock, expires_at=expires_at,
            )
        )  # fmt: skip

    def spend(self, ref: str, amount: int) -> None:
        self._asked(
            partial(
                billing.spend_reward, self.admin, customer_ref=_customer(ref), amount_minor=amount, reason="model",
                clock=self.clock,
            )
        )  # fmt: skip

    def reverse(self, ref: str) -> None:
        credits_ = [one for one in billing.reward_entries(self.admin, _customer(ref)) if one["kind"] == "earned"]
        if credits_:
            self._asked(
                partial(
                    billing.reverse_reward, self.admin, reward_entry_id=credits_[-1]["reward_entry_id"],
                    reason="model", clock=self.clock,
                )
            )  # fmt: skip

    def settle_rewards(self) -> None:
        self._run(
            lambda: billing.settle_rewards(self.worker, clock=self.clock, policy=REWARD_POLICY, progress=self._burn)
        )

    def cancel_pause(self, ref: str) -> None:
        row = self._row(
            "SELECT pause_ref FROM billing.subscription_pauses JOIN billing.subscriptions USING (subscription_id)"
            " WHERE subscription_ref = %s ORDER BY starts_at DESC LIMIT 1",
            ref,
        )
        if row is not None:
            self._asked(partial(billing.cancel_pause, self.admin, pause_ref=row["pause_ref"], clock=self.clock))

    def end_pause(self, ref: str) -> None:
        """Somebody ends a pause; what Stripe has to tell was read some minutes ago.

        Not in the very second in which it began: the clock of the product tells microseconds, and another pause that
        began in the same one would have the same place in history.
        """
        self._set_time(self.now + timedelta(seconds=1))
        if self.poll():
            self._asked(
                partial(
                    billing.end_pause_now, self.admin, subscription_ref=ref, clock=self.clock, policy=self.sweep_policy
                )
            )

    # What runs by itself.

    def sweep(self) -> None:
        """The hourly job as far as the sweep: where Stripe's events cannot be read, it goes no further."""
        if self.poll():
            self._run(
                lambda: billing.sweep_pauses(
                    self.worker, clock=self.clock, policy=self.sweep_policy, progress=self._burn
                )
            )

    def deliver(self, limit: int | None = None) -> None:
        self._run(
            lambda: payments.deliver_commands(
                self.worker, self.gateway, clock=self.clock, progress=quiet, limit=limit, jitter=lambda: 0.5
            )
        )

    def poll(self) -> bool:
        """Read Stripe's events; whether they were read to the end."""
        return self._run(
            lambda: payments.poll_events(
                self.worker, self.gateway, clock=self.clock, apply=self._effects(), progress=self._burn
            )
        )

    def _effects(self) -> Callable[..., object]:
        return partial(
            billing.apply_payment_outcomes, clock=self.clock, grace_days=self.company.grace_days,
            pause_mode=self.company.pause_mode,
        )  # fmt: skip

    def webhooks(self, newest: int, *, backwards: bool, twice: bool, followed: bool) -> None:
        """The newest events of Stripe's list, some twice, reach the webhook; what follows may wait for a poll."""
        listed: list[dict[str, Any]] = []
        # A fault that was ordered may strike this reading as any other.
        with suppress(OSError):
            listed = self.stand.call("GET", f"/v1/events?limit={newest}").get("data", [])
        post(self.admin, (listed if backwards else listed[::-1]) * (1 + twice))
        if followed:
            self._run(lambda: payments.apply_events(self.worker, self.gateway, clock=self.clock, apply=self._effects()))

    def change_what_is_due(self) -> None:
        self._run(lambda: billing.apply_due_frequency_changes(self.worker, clock=self.clock, progress=self._burn))

    def tick(self) -> None:
        """One hour's work, as production does it."""
        self.sweep()
        self.change_what_is_due()
        self.deliver()

    def mend(self, planned: int) -> None:
        """What a person does who is shown differences, and agrees to the mends."""
        policy = payments.MendPolicy(pause_mode=self.company.pause_mode, grace_days=self.company.grace_days)
        payments.mend_differences(
            self.worker, self.gateway, planned=planned, policy=policy, clock=self.clock, progress=quiet
        )
        self.settle()

    # Time.

    def pass_time(self, to: datetime) -> None:
        """Let time pass; a prompt company works in each hour in which something is due."""
        while self.company.prompt and (due := self.next_due()) is not None and (hour := _next_hour(due)) < to:
            self._set_time(max(hour, self.now))
            self.tick()
            if self.next_due() == due:
                break
        self._set_time(to)
        if self.company.prompt:
            self.tick()

    def next_due(self, *, payments: bool = True) -> datetime | None:
        """The first instant at which the database expects something that has not been done."""
        row = self._row(
            "SELECT min(at) AS at FROM ("
            " SELECT starts_at AS at FROM billing.subscription_pauses WHERE state = 'scheduled'"
            " UNION ALL SELECT ends_at FROM billing.subscription_pauses WHERE state = 'active'"
            " UNION ALL SELECT next_payment_at FROM billing.subscriptions WHERE status IN ('active', 'trialing') AND %s"
            " UNION ALL SELECT to_timestamp((object ->> 'next_payment_attempt')::bigint) FROM billing.stripe_events"
            "   WHERE type = 'invoice.payment_failed' AND %s"
            "   AND to_timestamp((object ->> 'next_payment_attempt')::bigint) > %s"
            # While a subscription is paused its change waits, perhaps for good.
            " UNION ALL SELECT effective_at FROM billing.frequency_changes JOIN billing.subscriptions"
            "   USING (subscription_id) WHERE state = 'scheduled' AND status <> 'paused'"
            " UNION ALL SELECT not_before FROM billing.stripe_commands"
            "   WHERE state = 'pending' AND not_before > '-infinity') AS due",
            payments,
            payments,
            self.now,
        )
        return None if row is None else row["at"]

    def _set_time(self, to: datetime) -> None:
        self.stripe.advance(to)
        self.clock.instant = to
        for connection in (self.admin, self.worker):
            tell_time(connection, to)

    def busy(self) -> list[str]:
        """Subscriptions of which Stripe will be told something, as far as is known; all of them where none is."""
        rows = self.admin.execute(
            "SELECT subscription_ref FROM billing.subscriptions WHERE subscription_id IN ("
            " SELECT subscription_id FROM billing.stripe_commands WHERE state = 'pending' UNION"
            " SELECT subscription_id FROM billing.subscription_pauses WHERE state IN ('scheduled', 'active'))"
            " ORDER BY subscription_ref"
        ).fetchall()
        return [row["subscription_ref"] for row in rows] or self.refs

    # The end of a sequence.

    def quiet_weeks(self) -> None:
        """Time in which everything works, billing runs when a pause is due, and each card is good: dates show."""
        self.stripe.set_decline_rate(0)
        until = self.now + QUIET
        while (due := self.next_due(payments=False)) is not None and _next_hour(due) < until:
            self._set_time(max(_next_hour(due), self.now))
            self.tick()
            assert self.next_due(payments=False) != due, f"what is due at {due} is never done"
        self._set_time(max(until, self.now))
        self.settle()

    def settle(self) -> None:
        """Everything works again, until nothing is left to do."""
        self.fuse = None
        self.stripe.clear_faults()
        self.gateway = self.stand.gateway(timeout_seconds=PATIENCE_SECONDS)
        for feature in ("pauses", "frequencies", "rewards"):
            self.switch(feature, True)
        for _ in range(60):
            before = self.fingerprint()
            self.tick()
            self.settle_rewards()
            if self.fingerprint() == before:
                if payments.pending_commands(self.worker) == 0:
                    return
                self._set_time(self.now + HOUR)
        raise AssertionError("after many hours without a fault there is still something to do")

    def fingerprint(self) -> dict[str, Any]:
        """What any change of the database changes."""
        row = self._row(
            "SELECT (SELECT max(event_id) FROM billing.subscription_events) AS events,"
            " (SELECT sum(version) FROM billing.subscriptions) AS versions,"
            " (SELECT count(*) FROM billing.stripe_commands) AS commands,"
            " (SELECT count(*) FROM billing.stripe_commands WHERE state = 'pending') AS pending,"
            " (SELECT count(*) FROM billing.payments) AS payments,"
            " (SELECT count(*) FROM billing.stripe_events) AS stripe_events,"
            " (SELECT sum(version) FROM billing.subscription_pauses) AS pauses,"
            " (SELECT count(*) FROM billing.frequency_changes WHERE state = 'scheduled') AS scheduled_changes,"
            " (SELECT count(*) FROM billing.frequency_changes) AS frequency_changes,"
            " (SELECT sum(effect_minor) FROM billing.reward_entries) AS rewards"
        )
        assert row is not None
        return row

    # How operations end.

    def _asked(self, ask: Callable[[], object]) -> None:
        before = self.fingerprint()
        try:
            ask()
        except (BadInput, TransientError):
            assert self.fingerprint() == before, "a refusal changed something"

    def _run(self, work: Callable[[], object]) -> bool:
        """Whether a run came to its end; a fault that was ordered may stop it. The next one has a connection again."""
        finished = False
        with suppress(TransientError, psycopg.OperationalError):
            work()
            finished = True
        if self._cut or self.worker.closed or self.worker.broken:
            self._cut = False
            self.worker.close()
            self.worker = session(self.url, "worker", self.now)
        return finished

    def _burn(self, _sentence: str = "") -> None:
        """Work has come this far: perhaps it comes no further."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse <= 0:
                self.fuse, self._cut = None, True
                self.cuts += 1
                self.admin.execute("SELECT pg_terminate_backend(%s, 5000)", (self.worker.info.backend_pid,))

    def _row(self, query: str, *parameters: object) -> dict[str, Any] | None:
        return self.admin.execute(query.encode(), parameters).fetchone()


def _next_hour(instant: datetime) -> datetime:
    whole = instant.replace(minute=0, second=0, microsecond=0)
    return whole if whole == instant else whole + HOUR


def _customer(ref: str) -> str:
    return f"c{ref[1:]}"


def quiet(_sentence: str) -> None:
    """Progress that nobody follows."""
