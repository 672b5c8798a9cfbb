"""Changes of plan, frequency and pauses, seen from Stripe's side: what is billed is what was quoted, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest

from flexpay_pipelines.billing import (
    SweepPolicy,
    apply_due_frequency_changes,
    apply_payment_outcomes,
    cancel_frequency_change,
    change_frequency,
    schedule_pause,
    set_feature,
    sweep_pauses,
)
from flexpay_pipelines.billing.pauses import PausePolicy
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.money import PaymentFrequency
from flexpay_pipelines.payments import StripeGateway, deliver_commands, poll_events, reconcile
from flexpay_pipelines.rollback import roll_back, undo_rollback
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox
from tests.model.stand import own_clock, tell_time
from tests.payments.conftest import NOW, quiet, stripe_id

DAY = timedelta(days=1)
END = NOW + 3 * DAY
REF = "s2"  # basic, EUR, monthly
MONTHLY, YEARLY = 4000, 40_000
Wish = dict[str, Any]
ACROSS: Wish = {"to": PaymentFrequency.YEARLY}
SAME: Wish = {"to_plan": "pro"}


@dataclass
class World:
    """The company, Stripe and the clock that both go by."""

    billing: Connection
    gateway: StripeGateway
    stripe: StripeSandbox
    clock: FixedClock

    def change(self, wish: Wish, when: Any = "period_end") -> Any:
        return change_frequency(self.billing, subscription_ref=REF, clock=self.clock, when=when, **wish)

    def deliver(self) -> None:
        result = deliver_commands(self.billing, self.gateway, clock=self.clock, progress=quiet)
        assert (result.parked, result.remaining) == (0, 0)

    def poll(self) -> None:
        apply = partial(apply_payment_outcomes, clock=self.clock, grace_days=7)
        poll_events(self.billing, self.gateway, clock=self.clock, apply=apply, progress=quiet)

    def sweep(self, *, moves: bool = True) -> None:
        sweep_pauses(self.billing, clock=self.clock, policy=SweepPolicy(moves_next_payment=moves), progress=quiet)

    def apply(self) -> None:
        apply_due_frequency_changes(self.billing, clock=self.clock)

    def until(self, instant: datetime) -> None:
        self.stripe.advance(instant)
        self.clock.instant = instant
        tell_time(self.billing, instant)

    def pause(self, days: int) -> None:
        schedule_pause(
            self.billing, subscription_ref=REF, starts_at="now", ends_at=None, days=days, kind="customer", reason=None,
            policy=PausePolicy(), clock=self.clock,
        )  # fmt: skip

    def paid(self) -> list[int]:
        rows = self.billing.execute(
            "SELECT p.amount_minor FROM billing.payments AS p JOIN billing.subscriptions USING (subscription_id)"
            " WHERE subscription_ref = %s ORDER BY p.occurred_at",
            (REF,),
        )
        return [row["amount_minor"] for row in rows]

    def terms(self) -> tuple[Any, ...]:
        row = self.billing.execute("SELECT * FROM billing.subscriptions WHERE subscription_ref = %s", (REF,)).fetchone()
        assert row is not None
        return tuple(row[name] for name in ("plan", "payment_frequency", "amount_minor", "next_payment_at"))

    def at_stripe(self) -> tuple[int, datetime]:
        item = self.gateway.subscription(stripe_id(self.billing, REF))["items"]["data"][0]
        ends = datetime.fromtimestamp(item["current_period_end"], NOW.tzinfo)
        return item["price"]["unit_amount"], ends

    def agrees(self) -> None:
        """Nothing differs, and the subscription was looked at."""
        found = reconcile(self.billing, self.gateway, clock=self.clock, progress=quiet)
        assert (found.differences, found.in_flight) == ((), 0)


@pytest.fixture
def world(company: Connection, gateway: StripeGateway, stripe: StripeSandbox, clock: FixedClock) -> World:
    own_clock(company)
    company.execute("SET search_path = model, pg_catalog, public")
    tell_time(company, clock.now())
    return World(company, gateway, stripe, clock)


STEPS: dict[str, tuple[Callable[[World], None], ...]] = {
    "the payment first": (World.poll, World.apply),
    "the change first": (World.apply, World.poll),
}


@pytest.mark.parametrize("order", STEPS)
@pytest.mark.parametrize(
    ("wish", "price", "terms"),
    [(ACROSS, YEARLY, ("basic", "YEARLY", YEARLY)), (SAME, 3 * MONTHLY, ("pro", "MONTHLY", 3 * MONTHLY))],
)
def test_a_scheduled_change_is_billed_once_at_the_new_price(
    world: World, wish: Wish, price: int, terms: tuple[Any, ...], order: str
) -> None:
    world.change(wish)
    world.deliver()
    assert world.at_stripe() == (price, END)
    world.agrees()
    world.until(END + timedelta(hours=2))
    for step in STEPS[order]:
        step(world)
    assert world.paid() == [price]
    ends = END.replace(year=2027) if wish is ACROSS else END.replace(month=4)
    assert world.terms() == (*terms, ends)
    world.deliver()
    assert world.at_stripe() == (price, ends)
    world.agrees()
    world.until(ends + timedelta(hours=2))
    world.poll()
    assert world.paid() == [price, price]
    world.agrees()


@pytest.mark.parametrize("wish", [ACROSS, SAME])
@pytest.mark.parametrize("told", [True, False])
def test_a_change_taken_back_never_was(world: World, wish: Wish, told: bool) -> None:
    world.change(wish)
    if told:
        world.deliver()
    cancel_frequency_change(world.billing, subscription_ref=REF, clock=world.clock)
    world.deliver()
    world.agrees()
    for month in (3, 4):
        world.until(END.replace(month=month) + timedelta(hours=2))
        world.poll()
        world.apply()
        world.deliver()
        world.agrees()
    assert world.paid() == [MONTHLY, MONTHLY]


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("wish", [ACROSS, SAME])
def test_a_pause_over_the_end_of_the_period_takes_the_change_with_it(world: World, wish: Wish, moves: bool) -> None:
    world.change(wish)
    world.deliver()
    world.until(NOW + DAY)
    world.pause(10)
    world.deliver()
    world.until(NOW + 6 * DAY)
    world.poll()
    world.apply()
    world.agrees()
    world.until(NOW + 11 * DAY)
    world.poll()
    world.sweep(moves=moves)
    world.apply()
    world.deliver()
    world.agrees()
    wanted = END + 10 * DAY if moves else END.replace(month=4)
    assert world.terms()[1:] == ("MONTHLY", MONTHLY, wanted)
    world.until(wanted + timedelta(hours=2))
    world.poll()
    world.apply()
    world.deliver()
    assert world.paid() == [YEARLY if wish is ACROSS else 3 * MONTHLY]
    world.agrees()


@pytest.mark.parametrize("wish", [ACROSS, SAME])
def test_told_too_late_it_comes_a_period_later(world: World, wish: Wish) -> None:
    world.change(wish)
    world.until(END + timedelta(hours=2))
    world.apply()
    world.poll()
    assert world.paid() == [MONTHLY]
    world.deliver()
    world.apply()
    world.agrees()
    world.until(END.replace(month=4) + timedelta(hours=2))
    world.poll()
    world.apply()
    assert world.paid() == [MONTHLY, YEARLY if wish is ACROSS else 3 * MONTHLY]
    world.agrees()


def test_what_is_changed_at_once_is_billed_as_quoted(world: World) -> None:
    world.until(END + timedelta(hours=2))
    world.poll()
    world.until(END + 10 * DAY)
    quoted = world.change(SAME, "now")
    # Told two days later, it is prorated as of the change.
    world.until(END + 12 * DAY)
    world.deliver()
    world.poll()
    world.agrees()
    world.until(END.replace(month=4) + timedelta(hours=2))
    world.poll()
    assert world.paid() == [MONTHLY, 3 * MONTHLY + quoted.net_minor]
    world.until(END.replace(month=4) + 10 * DAY)
    quoted = world.change(ACROSS, "now")
    world.deliver()
    world.poll()
    world.agrees()
    assert world.paid()[2:] == [quoted.net_minor] == [quoted.debit_minor - quoted.credit_minor]


@pytest.mark.parametrize("order", [("poll", "deliver"), ("deliver", "poll", "deliver")])
@pytest.mark.parametrize("told_of_the_pause", [False, True])
@pytest.mark.parametrize("told_after", [timedelta(hours=2), timedelta(days=1, hours=2)])
def test_a_pause_that_stripe_hears_of_after_it_has_billed_is_not_billed_once_more(
    world: World, told_after: timedelta, told_of_the_pause: bool, order: tuple[str, ...]
) -> None:
    world.pause(1)
    world.sweep()
    if told_of_the_pause:
        world.deliver()
    world.until(NOW + DAY)
    world.sweep()
    # The payment has moved to a day after END; nobody has told Stripe, which bills at END.
    world.until(END + told_after)
    for step in order:
        getattr(world, step)()
    world.until(END + 5 * DAY)
    world.poll()
    assert world.paid() == [MONTHLY]


@pytest.mark.parametrize("known", ["at once", "before the pause is over", "at the end"])
@pytest.mark.parametrize("order", [("poll", "deliver"), ("deliver", "poll", "deliver")])
def test_whoever_was_billed_twice_before_stripe_heard_of_the_pause_pays_for_what_comes_after_it(
    world: World, order: tuple[str, ...], known: str
) -> None:
    """Nobody tells Stripe anything for five weeks, in which it bills on its own dates, and each of them counts."""
    starts, ends = END - 2 * DAY, END + 10 * DAY
    schedule_pause(
        world.billing, subscription_ref=REF, starts_at=starts, ends_at=ends, kind="admin", reason=None,
        policy=PausePolicy(), clock=world.clock,
    )  # fmt: skip
    world.until(starts + timedelta(minutes=1))
    world.sweep()
    world.until(END + timedelta(hours=1))
    if known == "at once":
        world.poll()
    world.until(ends - timedelta(hours=1))
    if known == "before the pause is over":
        world.poll()
    world.until(ends + timedelta(minutes=1))
    world.sweep()
    world.until(END.replace(month=4) + timedelta(hours=1))
    for step in order:
        getattr(world, step)()
    assert world.at_stripe()[1] == world.terms()[3] == END.replace(month=5) + (ends - starts)
    world.until(END.replace(month=5) + 10 * DAY)
    world.poll()
    assert world.paid() == [MONTHLY, MONTHLY]
    world.until(END.replace(month=5) + 13 * DAY)
    world.poll()
    assert world.paid() == [MONTHLY] * 3
    world.agrees()


@pytest.mark.parametrize("starts", [END, END + timedelta(hours=1)])
def test_a_payment_that_is_declined_before_a_pause_is_not_asked_for_twice(world: World, starts: datetime) -> None:
    ends = END + 2 * DAY
    schedule_pause(
        world.billing, subscription_ref=REF, starts_at=starts, ends_at=ends, kind="admin", reason=None,
        policy=PausePolicy(), clock=world.clock,
    )  # fmt: skip
    world.stripe.set_decline_rate(1)
    for instant in (starts + timedelta(minutes=1), ends):
        world.until(instant)
        world.poll()
        world.sweep()
        world.deliver()
    # Stripe tries the invoice of END once more on the third day; the next one is made a month later, and the pause.
    world.stripe.set_decline_rate(0)
    world.until(END + 25 * DAY)
    world.poll()
    outcomes = world.billing.execute(
        "SELECT outcome FROM billing.payments JOIN billing.subscriptions USING (subscription_id)"
        " WHERE subscription_ref = %s ORDER BY occurred_at",
        (REF,),
    )
    assert [row["outcome"] for row in outcomes] == ["failed", "failed", "succeeded"]
    assert world.at_stripe()[1] == world.terms()[3] == END.replace(month=4) + (ends - starts)
    world.agrees()


def test_periods_that_credit_pays_for_move_the_date_as_well(world: World) -> None:
    # s4 pays yearly, in five days; changed the day after, nearly the whole year is credit against the weeks to come.
    world.until(NOW + 6 * DAY)
    world.poll()
    changed_at = world.clock.instant
    change_frequency(world.billing, subscription_ref="s4", to=PaymentFrequency.WEEKLY, clock=world.clock, when="now")
    world.deliver()
    world.until(changed_at + 24 * DAY)
    world.poll()
    world.sweep()
    row = world.billing.execute(
        "SELECT next_payment_at, change_reason FROM billing.subscriptions WHERE subscription_ref = 's4'"
    ).fetchone()
    assert row == {"next_payment_at": changed_at + 28 * DAY, "change_reason": "credit paid for the period"}
    found = reconcile(world.billing, world.gateway, clock=world.clock, progress=quiet)
    assert [one for one in found.differences if one.subscription_ref == "s4"] == []


@pytest.mark.parametrize("made_by", ["the payment's events", "the hourly job, after them"])
def test_a_change_at_the_end_of_a_period_comes_with_a_period_that_credit_pays_for(world: World, made_by: str) -> None:
    # Nearly the whole year is credit, which pays for the first quarter, too.
    world.until(NOW + 6 * DAY)
    world.poll()
    change_frequency(world.billing, subscription_ref="s4", to=PaymentFrequency.WEEKLY, clock=world.clock, when="now")
    quoted = change_frequency(
        world.billing, subscription_ref="s4", to=PaymentFrequency.QUARTERLY, clock=world.clock, when="period_end"
    )
    world.deliver()
    world.until(quoted.effective_at + DAY)
    set_feature(world.billing, "frequencies", made_by == "the payment's events", "a test", world.clock)
    world.poll()
    set_feature(world.billing, "frequencies", True, "a test", world.clock)
    apply_due_frequency_changes(world.billing, clock=world.clock)
    row = world.billing.execute(
        "SELECT payment_frequency, next_payment_at FROM billing.subscriptions WHERE subscription_ref = 's4'"
    ).fetchone()
    assert row == {"payment_frequency": "QUARTERLY", "next_payment_at": quoted.next_payments[1]}
    found = reconcile(world.billing, world.gateway, clock=world.clock, progress=quiet)
    assert [one for one in found.differences if one.subscription_ref == "s4"] == []


@pytest.mark.parametrize("wish", [ACROSS, SAME])
def test_a_rollback_takes_a_scheduled_change_off_at_stripe_and_its_undo_puts_it_back(
    world: World, control: Connection, wish: Wish
) -> None:
    world.change(wish)
    world.deliver()
    done = roll_back(
        world.billing, control, component="frequencies", actor="ada", reason="a test", incident_id=None, run_id=None,
        clock=world.clock,
    )  # fmt: skip
    world.deliver()
    assert world.at_stripe() == (MONTHLY, END)
    world.agrees()
    world.until(END + timedelta(hours=2))
    world.poll()
    assert world.paid() == [MONTHLY]
    undo_rollback(world.billing, control, rollback_id=done.rollback_id, actor="ada", clock=world.clock)
    world.deliver()
    price = YEARLY if wish is ACROSS else 3 * MONTHLY
    assert world.at_stripe() == (price, END.replace(month=4))
    world.agrees()
    world.until(END.replace(month=4) + timedelta(hours=2))
    world.poll()
    assert world.paid() == [MONTHLY, price]
    assert world.terms()[1:3] == ("YEARLY" if wish is ACROSS else "MONTHLY", price)


def test_a_rollback_first_takes_down_what_stripe_has_billed(world: World, control: Connection) -> None:
    world.change(ACROSS)
    world.deliver()
    world.until(END + timedelta(minutes=2))
    roll_back(
        world.billing, control, component="frequencies", actor="ada", reason="a test", incident_id=None, run_id=None,
        clock=world.clock,
    )  # fmt: skip
    world.deliver()
    world.poll()
    # The year that is paid stays paid; monthly payment comes after it.
    assert (world.paid(), world.terms()) == ([YEARLY], ("basic", "MONTHLY", MONTHLY, END.replace(year=2027)))
    assert world.at_stripe() == (MONTHLY, END.replace(year=2027))


def test_a_price_changed_by_hand_is_mended_to_the_scheduled_one(world: World) -> None:
    from flexpay_pipelines.payments.mending import MendPolicy, mend_differences

    world.change(ACROSS)
    world.deliver()
    item = world.gateway.subscription(stripe_id(world.billing, REF))["items"]["data"][0]
    world.gateway.change_price(
        stripe_id(world.billing, REF),
        item={"id": item["id"], "price_data": {
            "currency": "eur", "product": item["price"]["product"], "unit_amount": 1,
            "recurring": {"interval": "year", "interval_count": 1},
        }},
        proration="none", keep_date=None, key="by hand",
    )  # fmt: skip
    found = reconcile(world.billing, world.gateway, clock=world.clock, progress=quiet)
    assert [(one.kind, one.in_database) for one in found.differences] == [("price", f"{YEARLY} eur YEARLY")]
    mend_differences(
        world.billing, world.gateway, planned=found.reconciliation_id, policy=MendPolicy(), clock=world.clock,
        progress=quiet,
    )  # fmt: skip
    world.deliver()
    assert world.at_stripe() == (YEARLY, END)
    world.agrees()
