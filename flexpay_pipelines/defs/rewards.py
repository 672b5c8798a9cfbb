"""Rewards: what falls due by rule, daily; and a credit given, spent or taken back by a person.

What belongs here: the rewards' asset, checks, jobs and schedule. What does not: any rule of rewards (`billing`).
"""

from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from flexpay_pipelines.billing import RewardAction
from flexpay_pipelines.clock import parse_instant
from flexpay_pipelines.defs.migrations import schema_key
from flexpay_pipelines.defs.presentation import figures, table
from flexpay_pipelines.defs.resources import FlexPay
from flexpay_pipelines.settings import OTHERS, Settings

if TYPE_CHECKING:
    from flexpay_pipelines.billing import RewardPolicy

GROUP = "billing"
REWARD_SETTLEMENT = dg.AssetKey(["billing", "reward_settlement"])


def reward_policy(settings: Settings) -> "RewardPolicy":
    """The settings as the rules of rewards take them."""
    from flexpay_pipelines.billing import RewardPolicy

    loyalty, referral = settings.loyalty_rewards, settings.referral_reward_minor
    return RewardPolicy(
        loyalty=loyalty.get(OTHERS, {}),
        loyalty_of={currency: table for currency, table in loyalty.items() if currency != OTHERS},
        loyalty_since=settings.loyalty_since,
        referral_minor=referral.get(OTHERS),
        referral_of={currency: amount for currency, amount in referral.items() if currency != OTHERS},
        referral_months=settings.referral_months,
        lifetime_days=settings.reward_lifetime_days,
    )


@dg.asset(key=REWARD_SETTLEMENT, deps=[schema_key("rewards")], group_name=GROUP, kinds={"postgres"}, pool="billing_db")
def reward_settlement(context: dg.AssetExecutionContext, flexpay: FlexPay) -> dg.MaterializeResult[None]:
    """All that is due of reward credits by now: milestones rewarded, referrals reversed, what ran out expired."""
    from flexpay_pipelines.billing import settle_rewards

    with flexpay.step(context, "settle rewards", "reward credits") as step:
        result = settle_rewards(
            step.billing, clock=step.clock, policy=reward_policy(step.settings), progress=step.progress
        )
        step.details = {
            "enabled": result.enabled,
            "granted": result.granted.entries,
            "reversed": result.reversed.entries,
            "expired": result.expired.entries,
        }
        return dg.MaterializeResult(
            metadata={
                "enabled": result.enabled,
                **figures({name: done.entries for name, done in result.by_kind.items()}),
                **figures({f"{name}_minor": dict(done.amount_minor) for name, done in result.by_kind.items()}),
            }
        )


@dg.asset_check(asset=REWARD_SETTLEMENT, blocking=True)
def no_negative_balance(flexpay: FlexPay) -> dg.AssetCheckResult:
    """Nobody's balance of reward credits is below zero."""
    from flexpay_pipelines.billing import negative_balances

    with flexpay.session("reward balance check") as session:
        found = negative_balances(session.billing)
    return dg.AssetCheckResult(passed=not found, metadata={"negative": table(found)})


@dg.asset_check(asset=REWARD_SETTLEMENT, blocking=True)
def no_more_taken_than_earned(flexpay: FlexPay) -> dg.AssetCheckResult:
    """Reversals and expiries take no more of a credit than was earned."""
    from flexpay_pipelines.billing import excess_write_offs

    with flexpay.session("reward write-off check") as session:
        found = excess_write_offs(session.billing)
    return dg.AssetCheckResult(passed=not found, metadata={"excess": table(found)})


class RewardChangeConfig(dg.Config):
    """One change of one customer's credit."""

    action: RewardAction = Field(description="Give credit, spend it, or take a credit back.")
    reason: str = Field(min_length=1, description="Why; it stands in the ledger.")
    customer: str | None = Field(default=None, description="The customer's reference, to earn and to spend.")
    amount_minor: int | None = Field(
        default=None, description="Minor units of the customer's currency; for a referral, unset: as the settings say."
    )
    credit_id: int | None = Field(default=None, description="The credit to take back.")
    referred: str | None = Field(default=None, description="The customer who was brought: the credit is a referral.")
    expires_at: str | None = Field(
        default=None, description="When credit runs out, ISO-8601 with offset; unset: as the settings say."
    )


@dg.op(pool="billing_db")
def change_reward(context: dg.OpExecutionContext, config: RewardChangeConfig, flexpay: FlexPay) -> None:
    """Give, spend or take back one customer's credit."""
    from flexpay_pipelines.billing import RewardChange, apply_reward_change

    action = config.action.value
    with flexpay.step(context, f"{action} reward", config.customer or f"credit {config.credit_id}") as step:
        change = RewardChange(
            action=config.action,
            reason=config.reason,
            customer=config.customer,
            amount_minor=config.amount_minor,
            credit_id=config.credit_id,
            referred=config.referred,
            expires_at=None if config.expires_at is None else parse_instant(config.expires_at),
        )
        done: dict[str, Any] = apply_reward_change(
            step.billing, change, clock=step.clock, policy=reward_policy(step.settings)
        )
        step.details = {**done, "reason": config.reason}
        context.add_output_metadata(done)


@dg.job(description="Give a customer reward credit, spend some, or take a credit back.")
def change_reward_credit() -> None:
    """The job of `flexpay rewards earn`, `spend` and `reverse`."""
    change_reward()


daily_rewards = dg.define_asset_job(
    "daily_rewards",
    selection=dg.AssetSelection.assets(REWARD_SETTLEMENT),
    description="Reward milestones, reverse referrals whose customer left, expire what ran out.",
)

defs = dg.Definitions(
    assets=[reward_settlement],
    asset_checks=[no_negative_balance, no_more_taken_than_earned],
    jobs=[daily_rewards, change_reward_credit],
    # After midnight everywhere in Europe and before the analytics of the day; late or twice is as good.
    schedules=[dg.ScheduleDefinition(name="rewards_daily", job=daily_rewards, cron_schedule="30 1 * * *")],
)
