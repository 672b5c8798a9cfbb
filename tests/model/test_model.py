"""Random sequences of everything that happens to a company, and what must hold once each has come to rest."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from flexpay_pipelines.billing import When
from tests.model.billing_days import days_are_billed_once
from tests.model.company import FREQUENCIES, Company, companies
from tests.model.invariants import ALL
from tests.model.late_days import no_day_is_paid_twice, no_pause_is_billed
from tests.model.stand import Stand
from tests.model.world import World

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

# The gateway waits one second for an answer.
SILENCE_SECONDS = 1.2
WRITE_FAULTS = ("429", "500_before", "500_after", "timeout_after", "reset_before", "reset_after")
READ_FAULTS = ("429", "500_before", "reset_before", "duplicate_events", "shuffled_events")
TYPED = ("status = 'canceled'", "quantity = quantity + 1", "amount_minor = amount_minor + 11")
# Most of it happens to one subscription, or nothing would meet anything.
chosen = st.sampled_from((0, 0, 0, 0, 1, 2))
ahead = st.sampled_from((timedelta(0), MINUTE, HOUR, 5 * HOUR, DAY, 3 * DAY, 8 * DAY, 30 * DAY))
lengths = st.sampled_from((timedelta(seconds=1), HOUR, 7 * HOUR, DAY, 2 * DAY, 9 * DAY, 31 * DAY))
jumps = st.sampled_from((MINUTE, HOUR, 5 * HOUR, DAY, 2 * DAY, 6 * DAY, 15 * DAY, 40 * DAY))


class Machine(RuleBasedStateMachine):
    """Steps that Hypothesis draws; `world` is made by the first of them."""

    url: ClassVar[str]
    stand: ClassVar[Stand]

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None

    @initialize(company=companies())
    def begin(self, company: Company) -> None:
        self.world = World(self.url, self.stand, company)

    def _ref(self, number: int) -> str:
        return self.it.refs[number % len(self.it.refs)]

    @property
    def it(self) -> World:
        assert self.world is not None
        return self.world

    @rule(number=chosen, after=ahead, length=lengths)
    def a_customer_asks_for_a_pause(self, number: int, after: timedelta, length: timedelta) -> None:
        starts = self.it.now + after
        self.it.schedule(self._ref(number), starts, starts + length, "customer")

    @rule(number=chosen, after=ahead, length=st.none() | lengths)
    def somebody_pauses_a_subscription(self, number: int, after: timedelta, length: timedelta | None) -> None:
        starts = self.it.now + after
        self.it.schedule(self._ref(number), starts, None if length is None else starts + length, "admin")

    @rule(number=chosen)
    def a_pause_is_taken_back(self, number: int) -> None:
        self.it.cancel_pause(self._ref(number))

    @rule(number=chosen)
    def a_pause_is_ended_early(self, number: int) -> None:
        self.it.end_pause(self._ref(number))

    @rule(number=chosen, to=st.sampled_from(FREQUENCIES), when=st.sampled_from(("now", "period_end")))
    def a_customer_changes_the_frequency(self, number: int, to: str, when: When) -> None:
        self.it.change_frequency(self._ref(number), to, when)

    @rule(number=chosen)
    def a_change_is_taken_back(self, number: int) -> None:
        self.it.take_change_back(self._ref(number))

    @rule(number=chosen)
    def a_customer_cancels_at_stripe(self, number: int) -> None:
        self.it.cancel_at_stripe(self._ref(number))

    @rule(number=chosen, assignment=st.sampled_from(TYPED))
    def somebody_types_in_the_database(self, number: int, assignment: str) -> None:
        self.it.type_in(self._ref(number), assignment)

    @rule(rate=st.sampled_from((0, 0.3, 1)))
    def cards_are_declined(self, rate: float) -> None:
        self.it.stripe.set_decline_rate(rate)

    @rule(number=chosen)
    def a_customer_pays_what_he_owes(self, number: int) -> None:
        self.it.pay(self._ref(number))

    @rule(number=chosen, amount=st.integers(1, 900), what=st.none() | st.just("spent") | st.just("reversed") | lengths)
    def credit_is_earned_or_used(self, number: int, amount: int, what: timedelta | str | None) -> None:
        if what == "spent":
            self.it.spend(self._ref(number), amount)
        elif what == "reversed":
            self.it.reverse(self._ref(number))
        else:
            assert not isinstance(what, str)
            self.it.earn(self._ref(number), amount, lasts=what)

    @rule()
    def credit_is_settled(self) -> None:
        self.it.settle_rewards()

    @rule(feature=st.sampled_from(("pauses", "frequencies", "rewards")), on=st.booleans())
    def a_kill_switch_is_turned(self, feature: str, on: bool) -> None:
        self.it.switch(feature, on)

    @rule(kind=st.sampled_from(WRITE_FAULTS), number=chosen)
    def stripe_will_fail_a_write(self, kind: str, number: int) -> None:
        busy = self.it.busy()
        path = f"POST /v1/subscriptions/{self.it.stripe_id(busy[number % len(busy)])}"
        self.it.stripe.order_fault(kind, match=path, seconds=SILENCE_SECONDS)

    @rule(kind=st.sampled_from(READ_FAULTS), path=st.sampled_from(("events", "invoices/", "subscriptions/")))
    def stripe_will_fail_a_read(self, kind: str, path: str) -> None:
        self.it.stripe.order_fault(kind, match=f"GET /v1/{path}", seconds=SILENCE_SECONDS)

    @rule(after=st.integers(1, 4))
    def the_connection_will_be_cut(self, after: int) -> None:
        self.it.fuse = after

    @rule(really=st.sampled_from((False, False, False, True)))
    def the_sandbox_is_killed(self, *, really: bool) -> None:
        """It takes a second to come back: seldom."""
        if really:
            self.it.stand.kill()

    @rule(by=jumps)
    def time_passes(self, by: timedelta) -> None:
        self.it.pass_time(self.it.now + by)

    @rule(times=st.integers(1, 3))
    def what_is_due_comes_one_after_the_other(self, times: int) -> None:
        for _ in range(times):
            self.something_falls_due(late=MINUTE)

    @rule(late=st.sampled_from((timedelta(seconds=-1), timedelta(0), timedelta(seconds=1), MINUTE)))
    def something_falls_due(self, late: timedelta) -> None:
        due = self.it.next_due()
        if due is not None:
            self.it.pass_time(max(self.it.now, due + late))

    @rule()
    def everything_runs(self) -> None:
        self.it.tick()

    @rule()
    def sweep(self) -> None:
        self.it.sweep()

    @rule(limit=st.sampled_from((None, 1, 2)))
    def deliver(self, limit: int | None) -> None:
        self.it.deliver(limit)

    @rule()
    def poll(self) -> None:
        self.it.poll()

    @rule(newest=st.integers(1, 30), backwards=st.booleans(), twice=st.booleans(), followed=st.booleans())
    def webhooks_arrive(self, *, newest: int, backwards: bool, twice: bool, followed: bool) -> None:
        self.it.webhooks(newest, backwards=backwards, twice=twice, followed=followed)

    def teardown(self) -> None:
        if self.world is None:
            return
        try:
            self.world.settle()
            self.world.quiet_weeks()
            for holds in (*ALL, no_day_is_paid_twice, no_pause_is_billed, days_are_billed_once):
                holds(self.world)
        finally:
            self.world.close()


def _run(url: str, stand: Stand, **more: Any) -> None:
    Machine.url, Machine.stand = url, stand
    run_state_machine_as_test(
        Machine,
        settings=settings(
            deadline=None, database=None, suppress_health_check=list(HealthCheck), stateful_step_count=30, **more
        ),
    )


def test_a_company_comes_through_whatever_happens(model_url: str, stand: Stand) -> None:
    _run(model_url, stand, max_examples=15, derandomize=True)


@pytest.mark.soak
def test_many_companies_come_through_whatever_happens(model_url: str, stand: Stand) -> None:
    _run(model_url, stand, max_examples=3_000)
