"""Reconciliation: the database against Stripe, in full each day and by what was touched each hour, and its mends.

What belongs here: the asset, its checks, the jobs and schedules. What does not: what differs and how it is mended
(`payments`).
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeAlias

import dagster as dg
from pydantic import Field

from flexpay_pipelines.defs.payments import GROUP, OUTBOUND, STRIPE_DELIVERY, deliver_waiting, take_events_in
from flexpay_pipelines.defs.presentation import figures, table
from flexpay_pipelines.defs.resources import FlexPay, Step

if TYPE_CHECKING:
    from flexpay_pipelines.payments import MendPolicy, Reconciliation

RECONCILIATION = dg.AssetKey(["billing", "reconciliation"])
Seen: TypeAlias = dg.AssetMaterialization | dg.AssetCheckEvaluation | dg.Output[None]
AGREES = dg.AssetCheckSpec(
    "agrees", asset=RECONCILIATION, description="Stripe and the database say the same of every subscription."
)


class ReconciliationConfig(dg.Config):
    """What is compared."""

    incremental: bool = Field(
        default=False, description="Only what was touched since the last pass, and what was different then."
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
def reconciliation(
    context: dg.AssetExecutionContext, config: ReconciliationConfig, flexpay: FlexPay
) -> Iterator[dg.MaterializeResult[None]]:
    """Every subscription as Stripe has it against how we have it, and how each difference would be mended."""
    from flexpay_pipelines.payments import alert_persistent

    with flexpay.step(context, "reconcile", "stripe") as step:
        result = _compare(step, incremental=config.incremental)
        alert_persistent(step.billing, step.control, result.reconciliation_id, clock=step.clock, progress=step.progress)
        step.details = {"scope": result.scope, "compared": result.compared, "differences": result.by_kind}
        shown = _shown(result)
        yield dg.MaterializeResult(
            metadata=shown,
            check_results=[
                dg.AssetCheckResult(check_name=AGREES.name, passed=not result.different, metadata=shown),
            ],
        )


def _compare(step: Step, *, incremental: bool) -> "Reconciliation":
    from flexpay_pipelines.payments import reconcile

    return reconcile(
        step.billing, step.session.gateway, clock=step.clock, progress=step.progress, incremental=incremental
    )


def _shown(result: "Reconciliation") -> dict[str, dg.MetadataValue]:
    """How many and which: figures that the UI plots, the kinds, and the first of the differences."""
    return {
        **figures(
            {
                "pass": result.reconciliation_id, "scope": result.scope, "compared": result.compared,
                "in_flight": result.in_flight, "differences": result.different,
            }
        ),
        "by_kind": table(({"kind": kind, "differences": n} for kind, n in result.by_kind.items()), empty="none"),
        "which": table((asdict(one) for one in result.differences), empty="no difference"),
    }  # fmt: skip


@dg.asset_check(asset=RECONCILIATION)
def matches_history(flexpay: FlexPay) -> dg.AssetCheckResult:
    """The terms of every subscription are those that the ledger last said."""
    from flexpay_pipelines.billing import history_breaks

    with flexpay.session("history check") as session:
        breaks = history_breaks(session.billing)
    return dg.AssetCheckResult(passed=not breaks, metadata={"breaks": table(asdict(found) for found in breaks)})


class MendConfig(dg.Config):
    """What was agreed to."""

    planned: int = Field(description="The pass of the reconciliation that showed the differences.")
    kinds: list[str] | None = Field(default=None, description="Only differences of these kinds; unset: of all.")


@dg.op(pool="stripe", retry_policy=OUTBOUND, out=dg.Out(dg.Nothing))
def mend(context: dg.OpExecutionContext, config: MendConfig, flexpay: FlexPay) -> Iterator[Seen]:
    """Take Stripe's events in, mend what is still as it was shown, tell Stripe, and compare again."""
    from flexpay_pipelines.payments import mend_differences

    with flexpay.step(context, "mend", "stripe differences") as step:
        take_events_in(step)
        mended = mend_differences(
            step.billing, step.session.gateway, planned=config.planned, kinds=config.kinds, policy=_policy(step),
            clock=step.clock, progress=step.progress,
        )  # fmt: skip
        told = deliver_waiting(step)
        result = _compare(step, incremental=True)
        step.details = {"pass": config.planned, "mended": mended.mended, "left": result.by_kind}
        shown = _shown(result)
        yield dg.AssetMaterialization(RECONCILIATION, metadata=shown)
        yield dg.AssetCheckEvaluation(
            asset_key=RECONCILIATION, check_name=AGREES.name, passed=not result.different, metadata=shown
        )
        figured = {**asdict(mended), "delivered": told.delivered, "parked": told.parked, "left": result.different}
        yield dg.Output(None, metadata=figures(figured))


def _policy(step: Step) -> "MendPolicy":
    from flexpay_pipelines.billing import feature_enabled
    from flexpay_pipelines.payments import MendPolicy

    grace = step.settings.pause_grace_days if feature_enabled(step.billing, "pauses") else None
    return MendPolicy(pause_mode=step.settings.stripe_pause_mode, grace_days=grace)


@dg.job(description="Mend the differences with Stripe that a pass of the reconciliation has shown.")
def mend_stripe_differences() -> None:
    """The job of `flexpay reconcile --mend`."""
    mend()


stripe_reconciliation = dg.define_asset_job(
    "stripe_reconciliation",
    selection=dg.AssetSelection.assets(RECONCILIATION),
    description="Compare every subscription with Stripe.",
)
stripe_reconciliation_of_changes = dg.define_asset_job(
    "stripe_reconciliation_of_changes",
    # Reading the whole ledger once a day is enough.
    selection=dg.AssetSelection.assets(RECONCILIATION) - dg.AssetSelection.checks(matches_history),
    config=dg.RunConfig(ops={RECONCILIATION.to_python_identifier(): ReconciliationConfig(incremental=True)}),
    description="Compare with Stripe what was touched since the last pass, and what was different then.",
)

defs = dg.Definitions(
    assets=[reconciliation],
    asset_checks=[matches_history],
    jobs=[stripe_reconciliation, stripe_reconciliation_of_changes, mend_stripe_differences],
    schedules=[
        dg.ScheduleDefinition(
            name="stripe_reconciliation_daily", job=stripe_reconciliation, cron_schedule="30 4 * * *"
        ),
        dg.ScheduleDefinition(
            name="stripe_reconciliation_hourly", job=stripe_reconciliation_of_changes, cron_schedule="20 * * * *"
        ),
    ],
)
