"""Payments: events in from Stripe, commands out to Stripe.

What belongs here: the assets, checks, jobs and schedules that speak with Stripe. What does not: how (`payments`),
comparing the two (`reconciliation`).
"""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from flexpay_pipelines.clock import Clock
from flexpay_pipelines.defs.billing import FREQUENCY_CHANGES, LAST_SWEEP, PAUSE_SWEEP
from flexpay_pipelines.defs.migrations import schema_key
from flexpay_pipelines.defs.presentation import figures, table
from flexpay_pipelines.defs.resources import FlexPay, Step
from flexpay_pipelines.session import Session
from flexpay_pipelines.settings import Settings

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from flexpay_pipelines.payments import DeliveryResult, EventsResult
    from flexpay_pipelines.payments.events import Effects

GROUP = "billing"
STRIPE_EVENTS = dg.AssetKey(["billing", "stripe_events"])
STRIPE_DELIVERY = dg.AssetKey(["billing", "stripe_delivery"])
OUTBOUND = dg.RetryPolicy(max_retries=3, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


NO_CARD_DATA = dg.AssetCheckSpec(
    "no_card_data",
    asset=STRIPE_EVENTS,
    blocking=True,
    description="No column of the billing database holds a number that could be a payment card's.",
)


@dg.asset(
    key=STRIPE_EVENTS,
    deps=[schema_key("core"), schema_key("frequencies"), schema_key("rewards")],
    group_name=GROUP,
    kinds={"stripe", "postgres"},
    pool="stripe",
    retry_policy=OUTBOUND,
    check_specs=[NO_CARD_DATA],
)
def stripe_events(context: dg.AssetExecutionContext, flexpay: FlexPay) -> Iterator[dg.MaterializeResult[None]]:
    """What Stripe told us since the last poll, once each: payments recorded, subscriptions brought up to date."""
    from flexpay_pipelines.security import card_numbers_in

    with flexpay.step(context, "poll", "stripe events") as step:
        result = take_events_in(step)
        found = [asdict(column) for column in card_numbers_in(step.billing)]
        yield dg.MaterializeResult(
            metadata=figures(result),
            check_results=[
                dg.AssetCheckResult(check_name=NO_CARD_DATA.name, passed=not found, metadata={"found": table(found)})
            ],
        )


def take_events_in(step: Step) -> "EventsResult":
    """Read what Stripe told since the last poll, and let the payments act under the settings."""
    from flexpay_pipelines.payments import poll_events

    result = poll_events(
        step.billing,
        step.session.gateway,
        clock=step.clock,
        apply=payment_effects(step.settings, step.clock),
        progress=step.progress,
    )
    step.details = {"new": result.new}
    return result


def payment_effects(settings: Settings, clock: Clock) -> "Effects":
    """What newly recorded payments do to their subscriptions, under the settings."""
    from flexpay_pipelines.billing import apply_payment_outcomes

    return partial(
        apply_payment_outcomes, clock=clock, grace_days=settings.pause_grace_days, pause_mode=settings.stripe_pause_mode
    )


def webhook_of(session: Session) -> "Starlette":
    """The webhook's application under the settings; what follows from an event is what follows from a polled one.

    Raises:
        ConfigurationError: no signing secret is set.
    """
    from flexpay_pipelines.database import BILLING, opened
    from flexpay_pipelines.payments import apply_events
    from flexpay_pipelines.payments.webhook import webhook_application

    settings, clock = session.settings, session.clock
    effects = payment_effects(settings, clock)
    return webhook_application(
        secrets=settings.webhook_secrets,
        connections=partial(opened, settings.billing, purpose="webhook", role=BILLING),
        follow=lambda connection: apply_events(connection, session.gateway, clock=clock, apply=effects),
    )


@dg.asset(
    key=STRIPE_DELIVERY,
    deps=[LAST_SWEEP, FREQUENCY_CHANGES],
    group_name=GROUP,
    kinds={"stripe"},
    pool="stripe",
    retry_policy=OUTBOUND,
)
def stripe_delivery(context: dg.AssetExecutionContext, flexpay: FlexPay) -> dg.MaterializeResult[None]:
    """The commands that changes asked for, told to Stripe in order and once each, at the pace that it allows."""
    with flexpay.step(context, "deliver", "stripe commands") as step:
        return dg.MaterializeResult(metadata=figures(deliver_waiting(step)))


@dg.op(ins={"start": dg.In(dg.Nothing)}, pool="stripe", retry_policy=OUTBOUND)
def tell_stripe(context: dg.OpExecutionContext, flexpay: FlexPay) -> None:
    """Deliver what was just decided at once, not at the next exchange."""
    with flexpay.step(context, "deliver", "stripe commands") as step:
        result = deliver_waiting(step)
        context.add_output_metadata(figures(result))


def deliver_waiting(step: Step) -> "DeliveryResult":
    """Deliver every command that waits, and alert somebody of what Stripe refuses for good."""
    from flexpay_pipelines.payments import alert_parked, deliver_commands

    result = deliver_commands(step.billing, step.session.gateway, clock=step.clock, progress=step.progress)
    alert_parked(step.billing, step.control, clock=step.clock, progress=step.progress)
    step.details = {"delivered": result.delivered, "parked": result.parked}
    return result


@dg.op(pool="stripe", retry_policy=OUTBOUND)
def link_stripe_objects(context: dg.OpExecutionContext, flexpay: FlexPay) -> None:
    """Find each customer, price and subscription at Stripe by its reference and keep its id."""
    from flexpay_pipelines.payments import link_subscriptions

    with flexpay.step(context, "link", "stripe objects") as step:
        linked = link_subscriptions(step.billing, step.session.gateway, progress=step.progress)
        step.details = {"linked": linked}
        context.add_output_metadata({"linked": linked})


@dg.job(description="Connect imported subscriptions with what Stripe already has of them.")
def link_stripe() -> None:
    """The job that follows a first import."""
    link_stripe_objects()


class RetryConfig(dg.Config):
    """Which parked commands are tried again."""

    command_ids: list[int] | None = Field(default=None, description="Ids of the commands; unset: all that are parked.")


@dg.op(pool="stripe")
def retry_commands(context: dg.OpExecutionContext, config: RetryConfig, flexpay: FlexPay) -> None:
    """Put parked commands back into the outbox, once the reason for which Stripe refused them is mended."""
    from flexpay_pipelines.payments import retry_parked

    with flexpay.step(context, "retry", "stripe commands") as step:
        result = retry_parked(step.billing, config.command_ids)
        step.details = {"commands": config.command_ids or "all", **asdict(result)}
        context.add_output_metadata(figures(result))


@dg.job(description="Put commands that Stripe refused back into the outbox.")
def retry_stripe_commands() -> None:
    """The job of `flexpay stripe retry`."""
    retry_commands()


deliver_stripe_commands = dg.define_asset_job(
    "deliver_stripe_commands",
    selection=dg.AssetSelection.assets(STRIPE_DELIVERY),
    description="Tell Stripe what is waiting.",
)
stripe_exchange = dg.define_asset_job(
    "stripe_exchange",
    selection=dg.AssetSelection.assets(STRIPE_EVENTS, STRIPE_DELIVERY),
    description="Take Stripe's events in and tell it what is waiting: every five minutes, as the sensors judge.",
)
hourly_pause_sweep = dg.define_asset_job(
    "hourly_pause_sweep",
    selection=dg.AssetSelection.assets(STRIPE_EVENTS, PAUSE_SWEEP, FREQUENCY_CHANGES, STRIPE_DELIVERY),
    description="Take Stripe's events in, carry every due pause and change out, tell Stripe.",
)

defs = dg.Definitions(
    assets=[stripe_events, stripe_delivery],
    jobs=[
        hourly_pause_sweep,
        stripe_exchange,
        link_stripe,
        deliver_stripe_commands,
        retry_stripe_commands,
    ],
    schedules=[
        dg.ScheduleDefinition(name="stripe_exchange_every_5_minutes", job=stripe_exchange, cron_schedule="*/5 * * * *"),
        dg.build_schedule_from_partitioned_job(hourly_pause_sweep, name="pause_sweep_hourly"),
    ],
)
