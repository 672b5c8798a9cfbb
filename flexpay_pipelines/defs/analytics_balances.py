"""Payments and balances: how collecting goes, and what is owed at the end of each day.

What belongs here: the assets of payment health and of balances. What does not: run rate (`analytics`), checks
(`analytics_checks`), any formula.
"""

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg

from flexpay_pipelines.defs.analytics import (
    BALANCES,
    DAYS,
    GROUP,
    MOVEMENTS,
    ONE_RUN,
    PAYMENT_HEALTH,
    days_of,
    named,
    reporting,
)
from flexpay_pipelines.defs.billing import STRIPE_EVENTS
from flexpay_pipelines.defs.migrations import schema_key
from flexpay_pipelines.defs.presentation import figures, table
from flexpay_pipelines.defs.resources import FlexPay

SHOWN = timedelta(days=30)
ADD_UP = dg.AssetCheckSpec(
    "balances_add_up",
    asset=BALANCES,
    blocking=True,
    description="Opening + what came - what went = closing = the next opening; ages sum to it. To the minor unit.",
)


@dg.asset(
    key=PAYMENT_HEALTH,
    deps=[STRIPE_EVENTS, schema_key("analytics")],
    group_name=GROUP,
    kinds={"postgres"},
    partitions_def=DAYS,
    backfill_policy=ONE_RUN,
)
def payment_health(context: dg.AssetExecutionContext, flexpay: FlexPay) -> dg.MaterializeResult[None]:
    """How many attempts succeed, by frequency, plan, attempt and failure class; how many are won back, how soon.

    Nothing is stored: views of schema analytics and `flexpay export` read the payments themselves.
    """
    from flexpay_pipelines.analytics import dunning, failure_svg, payments_health

    with flexpay.step(context, "measure", "payment health") as step:
        start, end = days_of(context)
        since = min(start, end - SHOWN)
        shown = {
            by: table(payments_health(reporting(step), start=since, end=end, grain="month", by=by), empty="no attempts")
            for by in ("payment_frequency", "plan", "attempt", "failure_class")
        }
        days = payments_health(reporting(step), start=since, end=end, grain="day")
        attempts = sum(row["attempts"] for row in days)
        succeeded = sum(row["succeeded"] for row in days)
        episodes = dunning(reporting(step), start=since, end=end, grain="month")
        step.details = {"since": since.isoformat(), "day": end.isoformat(), "attempts": attempts}
        return dg.MaterializeResult(
            metadata={
                **figures({"attempts": attempts, "success_rate": succeeded / attempts if attempts else None}),
                "failed_attempts": dg.MetadataValue.md(failure_svg(days, since, end)),
                **{f"by_{name}": value for name, value in shown.items()},
                "dunning": table(episodes, empty="no failed payments"),
            }
        )


@dg.asset(
    key=BALANCES,
    deps=[MOVEMENTS, STRIPE_EVENTS],
    group_name=GROUP,
    kinds={"postgres"},
    partitions_def=DAYS,
    backfill_policy=ONE_RUN,
    check_specs=[ADD_UP],
)
def balances(context: dg.AssetExecutionContext, flexpay: FlexPay) -> Iterator[dg.MaterializeResult[None]]:
    """What is owed at the end of each day: reward credit, money received in advance, run rate that is paused."""
    from flexpay_pipelines.analytics import balance_breaks, balance_svg, refresh_balances, stored_balances

    with flexpay.step(context, "compute", "balances") as step:
        start, end = days_of(context)
        result = refresh_balances(reporting(step), start=start, end=end, clock=step.clock, progress=step.progress)
        first = min(start, end - SHOWN)
        stored = stored_balances(reporting(step), first=first, last=end)
        breaks = balance_breaks(reporting(step), start=first, end=end)
        step.details = {"start": start.isoformat(), "end": end.isoformat(), "days_again": result.days_again}
        last = end.isoformat()
        yield dg.MaterializeResult(
            metadata={
                **figures(result),
                **{
                    name.replace("-", "_"): table([row for row in rows if row["period"] == last])
                    for name, rows in stored.items()
                },
                "deferred_by_day": dg.MetadataValue.md(balance_svg(stored["deferred-revenue"], first, end)),
                "rewards_by_day": dg.MetadataValue.md(balance_svg(stored["rewards-liability"], first, end)),
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name=ADD_UP.name,
                    passed=not breaks,
                    metadata={**figures({"count": len(breaks)}), "breaks": named(breaks)},
                )
            ],
        )


defs = dg.Definitions(assets=[payment_health, balances])
