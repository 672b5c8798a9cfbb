"""`flexpay rewards`: a customer's credit, changes of it by hand, and what falls due by rule.

What belongs here: the rewards commands. What does not: any rule of rewards (`billing`).
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flexpay_pipelines.cli.output import AsJson, PlanOnly, Yes, planned, say, show
from flexpay_pipelines.cli.runs import recorder, require, run_job
from flexpay_pipelines.clock import parse_instant
from flexpay_pipelines.session import session

LISTED = ("reward_entry_id", "occurred_at", "kind", "source", "amount_minor", "left_minor", "expires_at", "reason")
EXAMPLES = """
Examples:

- `flexpay rewards balance cus-1` , `flexpay rewards list cus-1 --json`

- `flexpay rewards earn cus-1 --amount 500 --reason "sorry for the outage"`

- `flexpay rewards earn cus-1 --referred cus-2 --reason "brought cus-2"` : a referral, by the usual amount

- `flexpay rewards spend cus-1 --amount 300 --reason "invoice 17" --yes`

- `flexpay rewards reverse 42 --reason "given by mistake" --plan`

- `flexpay rewards settle --plan` : milestones, reversals and expiries that are due
"""
rewards = typer.Typer(
    help="Reward credits in minor units of the customer's currency: balances, changes by hand, what falls due.",
    no_args_is_help=True,
    epilog=EXAMPLES,
)
Customer = Annotated[str, typer.Argument(help="The customer's reference.")]
Amount = Annotated[int, typer.Option("--amount", help="Minor units of the customer's currency.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the ledger and in the audit log.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(rewards, name="rewards")


@rewards.command("balance")
def balance(customer: Customer, as_json: AsJson = False) -> None:
    """The credit that a customer has left."""
    from flexpay_pipelines.billing import reward_balance

    with session("reward balance") as opened:
        left = reward_balance(opened.billing, customer)
    show({"customer": customer, "balance_minor": left}, as_json=as_json, title="Balance")


@rewards.command("list")
def list_(customer: Customer, as_json: AsJson = False) -> None:
    """A customer's ledger in the order of time, with what is left of each credit."""
    from flexpay_pipelines.billing import reward_entries

    with session("list rewards") as opened:
        entries = reward_entries(opened.billing, customer)
    show(entries, as_json=as_json, title=f"Rewards of {customer}", columns=LISTED)


@rewards.command("earn")
def earn(
    customer: Customer,
    reason: Reason,
    amount: Annotated[
        int | None, typer.Option("--amount", help="Minor units; unset for a referral: as the settings say.")
    ] = None,
    referred: Annotated[str | None, typer.Option(help="The customer who was brought: a referral.")] = None,
    expires: Annotated[
        str | None, typer.Option(help="When it runs out, ISO-8601 with offset; unset: as the settings say.")
    ] = None,
    plan: PlanOnly = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Give a customer credit: a bonus, or a referral."""
    asked = {"action": "earn", "customer": customer, "amount_minor": amount, "reason": reason, "referred": referred}
    _change({**asked, "expires_at": expires}, plan=plan, yes=yes, as_json=as_json, question="Give this credit?")


@rewards.command("spend")
def spend(
    customer: Customer,
    amount: Amount,
    reason: Reason,
    plan: PlanOnly = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Take credit from a customer's balance; never more than there is."""
    asked = {"action": "spend", "customer": customer, "amount_minor": amount, "reason": reason}
    _change(asked, plan=plan, yes=yes, as_json=as_json, question="Spend this credit?")


@rewards.command("reverse")
def reverse(
    credit: Annotated[int, typer.Argument(help="The credit's entry id, as `flexpay rewards list` shows it.")],
    reason: Reason,
    plan: PlanOnly = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Take back what is left unspent of one credit."""
    asked = {"action": "reverse", "credit_id": credit, "reason": reason}
    _change(asked, plan=plan, yes=yes, as_json=as_json, question="Take this credit back?")


def _change(asked: dict[str, Any], *, plan: bool, yes: bool, as_json: bool, question: str) -> None:
    from flexpay_pipelines.billing import RewardAction, RewardChange, plan_reward_change
    from flexpay_pipelines.defs.rewards import reward_policy

    config = {name: value for name, value in asked.items() if value is not None}
    when = {"expires_at": parse_instant(config["expires_at"])} if "expires_at" in config else {}
    change = RewardChange(**{**config, **when, "action": RewardAction[config["action"]]})
    with recorder() as on:
        with session("plan reward change") as opened:
            would = plan_reward_change(
                opened.billing, change, clock=opened.clock, policy=reward_policy(opened.settings)
            )
        if planned(would, plan_only=plan, yes=yes, as_json=as_json, question=question):
            outcome = require(run_job("change_reward_credit", on=on, ops={"change_reward": config}))
            show({"run_id": outcome.run_id, **outcome.outputs["change_reward"]}, as_json=as_json, title="Changed")


@rewards.command("settle")
def settle(plan: PlanOnly = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """Reward milestones reached, reverse referrals whose customer left, expire what ran out: all that is due by now."""
    from flexpay_pipelines.billing import plan_settlement
    from flexpay_pipelines.defs.rewards import reward_policy

    with recorder() as on:
        if plan or not yes:
            with session("plan settlement") as opened:
                would = plan_settlement(
                    opened.billing, clock=opened.clock, policy=reward_policy(opened.settings), progress=say
                )
            if not planned(would, plan_only=plan, yes=yes, as_json=as_json, question="Settle what is due?"):
                return
        outcome = require(run_job("daily_rewards", on=on))
        show(
            {"run_id": outcome.run_id, **outcome.outputs["billing/reward_settlement"]}, as_json=as_json, title="Settled"
        )
