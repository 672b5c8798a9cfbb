"""What is asked for one subscription: pauses, and changes of plan and payment frequency, each told to Stripe at once.

What belongs here: a job for each. What does not: what is due by the clock (`billing`), any rule (`billing`'s engine).
"""

from typing import Literal

import dagster as dg
from pydantic import Field

from flexpay_pipelines.defs.payments import tell_stripe
from flexpay_pipelines.defs.presentation import figures
from flexpay_pipelines.defs.resources import FlexPay
from flexpay_pipelines.money import PaymentFrequency


class SubscriptionConfig(dg.Config):
    """Which subscription."""

    subscription: str = Field(description="The subscription's reference.")


class PauseConfig(SubscriptionConfig):
    """Which subscription is paused, from when to when, and why."""

    begins: str = Field(
        default="now", description="now, a day of the customer's (2026-03-29), or an ISO-8601 time with offset."
    )
    ends: str | None = Field(
        default=None, description="First day on again, or an ISO-8601 time with offset; unset: `days`, or without end."
    )
    days: int | None = Field(default=None, description="How many days, in place of `ends`.")
    admin: bool = Field(default=False, description="By an administrator, whom the policy for customers does not bind.")
    reason: str | None = Field(default=None, description="Why; kept with the pause.")


@dg.op(pool="billing_db")
def put_pause(context: dg.OpExecutionContext, config: PauseConfig, flexpay: FlexPay) -> None:
    """Put a pause on the calendar; one that begins now has begun when this ends."""
    from flexpay_pipelines.billing import PausePolicy, schedule_pause

    with flexpay.step(context, "schedule pause", config.subscription) as step:
        pause = schedule_pause(
            step.billing,
            subscription_ref=config.subscription,
            starts_at=config.begins,
            ends_at=config.ends,
            days=config.days,
            kind="admin" if config.admin else "customer",
            reason=config.reason,
            policy=PausePolicy(step.settings.pause_max_days, step.settings.pause_max_per_year),
            pause_mode=step.settings.stripe_pause_mode,
            clock=step.clock,
        )
        step.details = {"pause": pause.pause_ref, "starts_at": str(pause.starts_at), "ends_at": str(pause.ends_at)}
        context.add_output_metadata(figures(pause))


class CancelPauseConfig(dg.Config):
    """Which pause."""

    pause: str = Field(description="The pause's reference, as `flexpay pause list` shows it.")


@dg.op(pool="billing_db")
def take_pause_back(context: dg.OpExecutionContext, config: CancelPauseConfig, flexpay: FlexPay) -> None:
    """Take a pause back that has not begun."""
    from flexpay_pipelines.billing import cancel_pause as cancel

    with flexpay.step(context, "cancel pause", config.pause) as step:
        pause = cancel(step.billing, pause_ref=config.pause, clock=step.clock)
        step.details = {"subscription": pause.subscription_ref}
        context.add_output_metadata(figures(pause))


@dg.op(pool="billing_db")
def resume_subscription(context: dg.OpExecutionContext, config: SubscriptionConfig, flexpay: FlexPay) -> None:
    """End the pause that holds a subscription now."""
    from flexpay_pipelines.billing import SweepPolicy, end_pause_now

    with flexpay.step(context, "end pause", config.subscription) as step:
        pause = end_pause_now(
            step.billing,
            subscription_ref=config.subscription,
            clock=step.clock,
            policy=SweepPolicy(
                moves_next_payment=step.settings.pause_moves_next_payment,
                pause_mode=step.settings.stripe_pause_mode,
                grace_days=step.settings.pause_grace_days,
            ),
        )
        step.details = {"pause": pause.pause_ref, "next_payment_at": str(pause.next_payment_at)}
        context.add_output_metadata(figures(pause))


class ChangeConfig(SubscriptionConfig):
    """What a subscription changes to, and when; what is unset stays."""

    frequency: PaymentFrequency | None = Field(default=None, description="The new payment frequency.")
    plan: str | None = Field(default=None, description="The new plan.")
    when: Literal["now", "period_end"] = Field(
        default="now", description="now: prorated; period_end: with the next payment."
    )


@dg.op(pool="billing_db")
def change_terms(context: dg.OpExecutionContext, config: ChangeConfig, flexpay: FlexPay) -> None:
    """Change a subscription's plan or frequency, as quoted."""
    from flexpay_pipelines.billing import change_frequency as change

    with flexpay.step(context, "change frequency", config.subscription) as step:
        quoted = change(
            step.billing,
            subscription_ref=config.subscription,
            to=config.frequency,
            to_plan=config.plan,
            clock=step.clock,
            when=config.when,
        )
        step.details = {
            "to": f"{quoted.to_plan} {quoted.to_frequency}", "effective_at": str(quoted.effective_at),
            "credit_minor": quoted.credit_minor, "debit_minor": quoted.debit_minor,
        }  # fmt: skip
        context.add_output_metadata(figures(quoted))


@dg.op(pool="billing_db")
def take_change_back(context: dg.OpExecutionContext, config: SubscriptionConfig, flexpay: FlexPay) -> None:
    """Take back a change that waits for the end of the period."""
    from flexpay_pipelines.billing import cancel_frequency_change as cancel

    with flexpay.step(context, "cancel frequency change", config.subscription) as step:
        change = cancel(step.billing, subscription_ref=config.subscription, clock=step.clock)
        step.details = {"change": f"{change.to_plan} {change.to_frequency}"}
        context.add_output_metadata(figures(change))


@dg.job(description="Pause one subscription, now or later, and tell Stripe.")
def schedule_pause() -> None:
    """The job of `flexpay pause schedule`."""
    tell_stripe(start=put_pause())


@dg.job(description="Take back a pause that has not begun.")
def cancel_pause() -> None:
    """The job of `flexpay pause cancel`: Stripe has never heard of such a pause."""
    take_pause_back()


@dg.job(description="End the pause of one subscription now, and tell Stripe.")
def end_pause() -> None:
    """The job of `flexpay pause end`."""
    tell_stripe(start=resume_subscription())


@dg.job(description="Change one subscription's plan or payment frequency, now or at the period's end, and tell Stripe.")
def change_frequency() -> None:
    """The job of `flexpay frequency change`."""
    tell_stripe(start=change_terms())


@dg.job(description="Take back a change that waits for the end of the period, and tell Stripe.")
def cancel_frequency_change() -> None:
    """The job of `flexpay frequency cancel`."""
    tell_stripe(start=take_change_back())


defs = dg.Definitions(jobs=[schedule_pause, cancel_pause, end_pause, change_frequency, cancel_frequency_change])
