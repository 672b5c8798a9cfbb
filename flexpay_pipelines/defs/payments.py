"""Payments: events in from Stripe, commands out to Stripe, and the two sides compared.

What belongs here: the assets, checks, jobs and schedules that speak with Stripe. What does not: how (`payments`).
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import dagster as dg

from flexpay_pipelines.defs.billing import PAUSE_SWEEP
from flexpay_pipelines.defs.migrations import schema_key
from flexpay_pipelines.defs.presentation import figures, table
from flexpay_pipelines.defs.resources import FlexPay, Step

if TYPE_CHECKING:
    from flexpay_pipelines.payments import DeliveryResult

GROUP = "billing"
STRIPE_EVENTS = dg.AssetKey(["billing", "stripe_events"])
STRIPE_DELIVERY = dg.AssetKey(["billing", "stripe_delivery"])
RECONCILIATION = dg.AssetKey(["billing", "reconciliation"])
# Without the mapping Dagster would look at every hour that there ever was.
LAST_SWEEP = dg.AssetDep(PAUSE_SWEEP, partition_mapping=dg.LastPartitionMapping())
OUTBOUND = dg.RetryPolicy(max_retries=3, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


@dg.asset(
    key=STRIPE_EVENTS,
    deps=[schema_key("core"), schema_key("frequencies"), schema_key("rewards")],
    group_name=GROUP,
    kinds={"stripe", "postgres"},
    pool="stripe",
    retry_policy=OUTBOUND,
)
def stripe_events(context: dg.AssetExecutionContext, flexpay: FlexPay) -> dg.MaterializeResult[None]:
    """What Stripe told us since the last poll, once each: payments recorded, subscriptions brought up to date."""
    from flexpay_pipelines.billing import apply_payment_outcomes
    from flexpay_pipelines.payments import poll_events

    with flexpay.step(context, "poll", "stripe events") as step:
        result = poll_events(
            step.billing,
            step.session.gateway,
            clock=step.clock,
            apply=lambda connection, payment_ids: apply_payment_outcomes(
                connection, payment_ids, clock=step.clock, grace_days=step.settings.pause_grace_days
            ),
            progress=step.progress,
        )
        step.details = {"new": result.new}
        return dg.MaterializeResult(metadata=figures(result))


@dg.asset_check(asset=STRIPE_EVENTS, blocking=True)
def no_card_data(flexpay: FlexPay) -> dg.AssetCheckResult:
    """No column of the billing database holds a number that could be a payment card's."""
    from flexpay_pipelines.security import card_numbers_in

    with flexpay.session("card data check") as session:
        found = [asdict(column) for column in card_numbers_in(session.billing)]
    return dg.AssetCheckResult(passed=not found, metadata={"found": table(found)})


@dg.asset(
    key=STRIPE_DELIVERY, deps=[LAST_SWEEP], group_name=GROUP, kinds={"stripe"}, pool="stripe", retry_policy=OUTBOUND
)
def stripe_delivery(context: dg.AssetExecutionContext, flexpay: FlexPay) -> dg.MaterializeResult[None]:
    """The commands that changes asked for, told to Stripe in order and once each, under its rate limit."""
    with flexpay.step(context, "deliver", "stripe commands") as step:
        return dg.MaterializeResult(metadata=figures(deliver_waiting(step)))


def deliver_waiting(step: Step) -> "DeliveryResult":
    """Deliver every command that waits, under the rate limit of the settings."""
    from flexpay_pipelines.payments import deliver_commands

    result = deliver_commands(
        step.billing,
        step.session.gateway,
        clock=step.clock,
        requests_per_second=step.settings.stripe_requests_per_second,
        progress=step.progress,
    )
    step.details = {"delivered": result.delivered, "parked": result.parked}
    return result


AGREES = dg.AssetCheckSpec(
    "agrees", asset=RECONCILIATION, description="Stripe and the database say the same of every subscription."
)


@dg.asset(
    key=RECONCILIATION,
    deps=[STRIPE_DELIVERY],
    group_name=GROUP,
    kinds={"stripe", "postgres"},
    pool="stripe",
    retry_policy=OUTBOUND,
    check_specs=[AGREES],
)
def reconciliation(context: dg.AssetExecutionContext, flexpay: FlexPay) -> Iterator[dg.MaterializeResult[None]]:
    """Every subscription as Stripe has it against how we have it, and how each difference would be mended."""
    from flexpay_pipelines.payments import reconcile

    with flexpay.step(context, "reconcile", "stripe") as step:
        result = reconcile(step.billing, step.session.gateway, clock=step.clock, progress=step.progress)
        step.details = {"compared": result.compared, "differences": len(result.differences)}
        shown = table((asdict(d) for d in result.differences), empty="no difference")
        yield dg.MaterializeResult(
            metadata={"compared": result.compared, "in_flight": result.in_flight, "differences": shown},
            check_results=[
                dg.AssetCheckResult(
                    check_name=AGREES.name,
                    passed=not result.differences,
                    metadata={"compared": result.compared, "differences": len(result.differences), "which": shown},
                )
            ],
        )


@dg.asset_check(asset=RECONCILIATION)
def matches_history(flexpay: FlexPay) -> dg.AssetCheckResult:
    """The terms of every subscription are those that the ledger last said."""
    from flexpay_pipelines.billing import history_breaks

    with flexpay.session("history check") as session:
        breaks = history_breaks(session.billing)
    return dg.AssetCheckResult(passed=not breaks, metadata={"breaks": table(asdict(found) for found in breaks)})


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


stripe_reconciliation = dg.define_asset_job(
    "stripe_reconciliation",
    selection=dg.AssetSelection.assets(RECONCILIATION),
    description="Compare every subscription with Stripe.",
)
stripe_exchange = dg.define_asset_job(
    "stripe_exchange",
    selection=dg.AssetSelection.assets(STRIPE_EVENTS, STRIPE_DELIVERY),
    description="Take Stripe's events in and tell it what is waiting: every five minutes, as the sensors judge.",
)
hourly_pause_sweep = dg.define_asset_job(
    "hourly_pause_sweep",
    selection=dg.AssetSelection.assets(STRIPE_EVENTS, PAUSE_SWEEP, STRIPE_DELIVERY),
    description="Take Stripe's events in, carry every due pause out, tell Stripe.",
)

defs = dg.Definitions(
    assets=[stripe_events, stripe_delivery, reconciliation],
    asset_checks=[no_card_data, matches_history],
    jobs=[hourly_pause_sweep, stripe_exchange, stripe_reconciliation, link_stripe],
    schedules=[
        dg.ScheduleDefinition(name="stripe_exchange_every_5_minutes", job=stripe_exchange, cron_schedule="*/5 * * * *"),
        dg.build_schedule_from_partitioned_job(hourly_pause_sweep, name="pause_sweep_hourly"),
        dg.ScheduleDefinition(
            name="stripe_reconciliation_daily", job=stripe_reconciliation, cron_schedule="30 4 * * *"
        ),
    ],
)
