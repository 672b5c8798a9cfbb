"""`flexpay pause` and `flexpay frequency`: what one customer asks for.

What belongs here: the commands over one subscription's pauses, plan and payment frequency. What does not: their rules
(`billing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexpay_pipelines.cli.output import AsJson, PlanOnly, Yes, plain, planned, show
from flexpay_pipelines.cli.runs import recorder, require, run_job
from flexpay_pipelines.money import PaymentFrequency
from flexpay_pipelines.money import show as money
from flexpay_pipelines.session import session

if TYPE_CHECKING:
    from flexpay_pipelines.billing import FrequencyQuote

PAUSE_COLUMNS = ("pause_ref", "subscription_ref", "kind", "state", "starts_at", "ends_at", "reason")
SCHEDULE_EXAMPLES = """
Examples:

- `flexpay pause schedule sub-17 --days 30` : from now on, for 30 days

- `flexpay pause schedule sub-17 --from 2026-07-01 --until 2026-08-01 --reason holiday` : all of July, by the customer's
  clock; on again on 1 August

- `flexpay pause schedule sub-17 --from 2026-07-01T09:00:00+02:00 --admin` : from that instant until somebody ends it
"""
QUOTE_EXAMPLES = """
Examples:

- `flexpay frequency quote sub-17 --to YEARLY` : what a change now would give back, take and bring

- `flexpay frequency quote sub-17 --to-plan pro --when period-end`
"""
CHANGE_EXAMPLES = """
Examples:

- `flexpay frequency change sub-17 --to YEARLY` : shows the quote, asks, changes at once with proration

- `flexpay frequency change sub-17 --to-plan pro --to MONTHLY --when period-end --yes` : with the next payment
"""


class WhenOption(StrEnum):
    """When a change holds."""

    NOW = "now"
    PERIOD_END = "period-end"


Subscription = Annotated[str, typer.Argument(help="The subscription's reference.", metavar="SUBSCRIPTION")]
To = Annotated[PaymentFrequency | None, typer.Option("--to", help="The new payment frequency.", case_sensitive=False)]
ToPlan = Annotated[str | None, typer.Option("--to-plan", help="The new plan, at its list price.", metavar="PLAN")]
When = Annotated[WhenOption, typer.Option("--when", help="now, prorated; or with the next payment, without proration.")]

pause = typer.Typer(help="Pause a subscription, now or later, and end a pause.", no_args_is_help=True)
frequency = typer.Typer(help="Change what a subscription pays and how often.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(pause, name="pause")
    app.add_typer(frequency, name="frequency")


@pause.command("schedule", epilog=SCHEDULE_EXAMPLES)
def schedule(
    subscription: Subscription,
    begins: Annotated[
        str, typer.Option("--from", help="First day off by the customer's clock, a time with offset, or now.")
    ] = "now",
    ends: Annotated[
        str | None, typer.Option("--until", help="First day on again by the customer's clock, or a time with offset.")
    ] = None,
    days: Annotated[int | None, typer.Option(help="How many days, in place of --until.")] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="As an administrator: longer, more often, or without an end.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why; kept with the pause.")] = None,
    plan: PlanOnly = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Put a pause on the calendar. One that begins now begins at once; the others with the hourly sweep."""
    from flexpay_pipelines.billing import PausePolicy, schedule_pause

    with recorder() as on:
        with session("plan pause") as opened:
            would = schedule_pause(
                opened.billing, subscription_ref=subscription, starts_at=begins, ends_at=ends, days=days,
                kind="admin" if admin else "customer", reason=reason, clock=opened.clock, dry_run=True,
                policy=PausePolicy(opened.settings.pause_max_days, opened.settings.pause_max_per_year),
            )  # fmt: skip
        if planned(_unnamed(would), plan_only=plan, yes=yes, as_json=as_json, question="Pause it so?"):
            config = {"subscription": subscription, "begins": begins, "ends": ends, "days": days, "admin": admin,
                      "reason": reason}  # fmt: skip
            outcome = require(run_job("schedule_pause", on=on, ops={"put_pause": config}))
            show(_result(outcome, "put_pause"), as_json=as_json, title="Paused")


@pause.command("list", epilog="Examples: `flexpay pause list`, `flexpay pause list sub-17 --json`")
def list_(
    subscription: Annotated[
        str | None, typer.Argument(help="Only this one's, those that are over included.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Pauses that are active or to come; of one subscription, all that there were."""
    from flexpay_pipelines.billing import list_pauses

    with session("list pauses") as opened:
        rows = [plain(one) for one in list_pauses(opened.billing, subscription_ref=subscription, limit=limit)]
    show(rows, as_json=as_json, title="Pauses", columns=PAUSE_COLUMNS)


@pause.command("cancel", epilog="Example: `flexpay pause cancel pause-0b8f… --yes`")
def cancel_(
    pause_ref: Annotated[str, typer.Argument(help="The pause's reference, as the list shows it.", metavar="PAUSE")],
    plan: PlanOnly = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Take a pause back that has not begun."""
    from flexpay_pipelines.billing import cancel_pause

    with recorder() as on:
        with session("plan pause cancellation") as opened:
            would = cancel_pause(opened.billing, pause_ref=pause_ref, clock=opened.clock, dry_run=True)
        if planned(would, plan_only=plan, yes=yes, as_json=as_json, question="Take this pause back?"):
            outcome = require(run_job("cancel_pause", on=on, ops={"take_pause_back": {"pause": pause_ref}}))
            show(_result(outcome, "take_pause_back"), as_json=as_json, title="Taken back")


@pause.command("end", epilog="Example: `flexpay pause end sub-17 --yes`")
def end(subscription: Subscription, plan: PlanOnly = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """End the pause that holds a subscription: it is on again at once, past due if it owes, and Stripe is told."""
    from flexpay_pipelines.billing import SweepPolicy, end_pause_now

    with recorder() as on:
        with session("plan pause end") as opened:
            policy = SweepPolicy(
                moves_next_payment=opened.settings.pause_moves_next_payment,
                pause_mode=opened.settings.stripe_pause_mode,
                grace_days=opened.settings.pause_grace_days,
            )
            would = end_pause_now(
                opened.billing, subscription_ref=subscription, clock=opened.clock, policy=policy, dry_run=True
            )
        if planned(would, plan_only=plan, yes=yes, as_json=as_json, question="End this pause now?"):
            config = {"resume_subscription": {"subscription": subscription}}
            outcome = require(run_job("end_pause", on=on, ops=config))
            show(_result(outcome, "resume_subscription"), as_json=as_json, title="Ended")


@frequency.command("quote", epilog=QUOTE_EXAMPLES)
def quote(
    subscription: Subscription,
    to: To = None,
    to_plan: ToPlan = None,
    when: When = WhenOption.NOW,
    as_json: AsJson = False,
) -> None:
    """Price, proration and next dates of a change. Changes nothing."""
    found = _quoted(subscription, to, to_plan, when)
    show(found if as_json else _readable(found), as_json=as_json, title="Quote")


@frequency.command("change", epilog=CHANGE_EXAMPLES)
def change(
    subscription: Subscription,
    to: To = None,
    to_plan: ToPlan = None,
    when: When = WhenOption.NOW,
    plan: PlanOnly = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Change plan or payment frequency as quoted, and tell Stripe at once."""
    with recorder() as on:
        found = _quoted(subscription, to, to_plan, when)
        shown = found if as_json else _readable(found)
        if planned(shown, plan_only=plan, yes=yes, as_json=as_json, question="Change it so?"):
            config = {"subscription": subscription, "plan": to_plan, "when": _engine_word(when)}
            if to is not None:
                config["frequency"] = to.name
            outcome = require(run_job("change_frequency", on=on, ops={"change_terms": config}))
            show(_result(outcome, "change_terms"), as_json=as_json, title="Changed")


@frequency.command("cancel", epilog="Example: `flexpay frequency cancel sub-17 --yes`")
def cancel_change(
    subscription: Subscription, plan: PlanOnly = False, yes: Yes = False, as_json: AsJson = False
) -> None:
    """Take back a change that waits for the end of the period; the present terms stay."""
    from flexpay_pipelines.billing import scheduled_change

    with recorder() as on:
        with session("plan change cancellation") as opened:
            waiting = scheduled_change(opened.billing, subscription_ref=subscription)
        if planned(waiting, plan_only=plan, yes=yes, as_json=as_json, question="Take this change back?"):
            config = {"take_change_back": {"subscription": subscription}}
            outcome = require(run_job("cancel_frequency_change", on=on, ops=config))
            show(_result(outcome, "take_change_back"), as_json=as_json, title="Taken back")


def _engine_word(when: WhenOption) -> Any:
    return when.value.replace("-", "_")


def _quoted(subscription: str, to: PaymentFrequency | None, to_plan: str | None, when: WhenOption) -> FrequencyQuote:
    from flexpay_pipelines.billing import quote_frequency_change

    with session("quote a change") as opened:
        return quote_frequency_change(
            opened.billing, subscription_ref=subscription, to=to, to_plan=to_plan, clock=opened.clock,
            when=_engine_word(when),
        )  # fmt: skip


def _readable(quoted: FrequencyQuote) -> dict[str, Any]:
    """A quote as a person reads it: amounts in the currency's own units."""
    of = quoted.currency
    return {
        "subscription": quoted.subscription_ref,
        "from": f"{quoted.from_plan} {quoted.from_frequency}, {money(quoted.from_amount_minor, of)}",
        "to": f"{quoted.to_plan} {quoted.to_frequency}, {money(quoted.amount_minor, of)}",
        "units": quoted.quantity,
        "holds from": quoted.effective_at,
        "credit": money(quoted.credit_minor, of),
        "debit": money(quoted.debit_minor, of),
        "net": money(quoted.net_minor, of),
        "next payments": quoted.next_payments,
    }


def _unnamed(pause_: Any) -> dict[str, Any]:
    """A pause that is not on the calendar has no reference yet."""
    return {name: value for name, value in plain(pause_).items() if name != "pause_ref"}


def _result(outcome: Any, op: str) -> dict[str, Any]:
    """What an op has put out, its instants as instants again."""
    values: Mapping[str, Any] = outcome.outputs[op]
    return {
        "run_id": outcome.run_id,
        **{
            name: datetime.fromtimestamp(value, UTC) if name.endswith("_at") else value
            for name, value in values.items()
        },
    }
