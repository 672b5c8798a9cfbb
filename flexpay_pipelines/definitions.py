"""The code location: gathers `defs/`, gives every asset the owner and tags that all of them share.

What belongs here: what holds for all definitions. What does not: any definition.
"""

import dagster as dg

from flexpay_pipelines.defs import (
    alerts,
    analytics,
    analytics_balances,
    analytics_checks,
    backups,
    billing,
    health,
    migrations,
    monitoring,
    payments,
    reconciliation,
    rewards,
    rollback,
    subscriptions,
)
from flexpay_pipelines.defs.console import plain_console
from flexpay_pipelines.defs.resources import FlexPay

OWNER = "team:billing-platform"
MODULES = (
    migrations, backups, billing, subscriptions, payments, reconciliation, rewards, analytics, analytics_balances,
    analytics_checks, monitoring, rollback, alerts, health,
)  # fmt: skip


def _with_defaults(spec: dg.AssetSpec) -> dg.AssetSpec:
    return spec.replace_attributes(owners=spec.owners or [OWNER], tags={"domain": spec.key.path[0], **spec.tags})


def build_definitions(flexpay: FlexPay | None = None) -> dg.Definitions:
    """All definitions, with another resource in the place of the environment's where a test brings one."""
    merged = dg.Definitions.merge(
        *(module.defs for module in MODULES),
        dg.Definitions(
            resources={"flexpay": flexpay or FlexPay.configure_at_launch()},
            loggers={"plain": plain_console},
            executor=dg.in_process_executor,
        ),
    )
    return merged.map_asset_specs(func=_with_defaults)


defs = build_definitions()
