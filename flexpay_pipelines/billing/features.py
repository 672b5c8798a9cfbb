"""The kill switch of each component, as the billing engines ask for it.

What belongs here: reading and setting `billing.feature_flags`. What does not: what a rollback does besides.
"""

from __future__ import annotations

from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.sql import queries


def has_table(connection: Connection, relation: str) -> bool:
    """Whether a table exists, such as `billing.subscription_pauses` (for this package: a component may be absent)."""
    return bool(queries("billing").has_table(connection, relation=relation))


def feature_enabled(connection: Connection, feature: str) -> bool:
    """Whether a component (`frequencies`, `pauses`, `rewards`) is deployed and switched on."""
    sql = queries("billing")
    return bool(
        sql.has_table(connection, relation="billing.feature_flags") and sql.feature_enabled(connection, feature=feature)
    )


def set_feature(connection: Connection, feature: str, enabled: bool, reason: str, clock: Clock) -> None:
    """Switch a component on or off.

    Raises:
        BadInput: the component was never deployed.
    """
    known = has_table(connection, "billing.feature_flags")
    if not known or not queries("billing").set_feature(
        connection, feature=feature, enabled=enabled, reason=reason, now=clock.now()
    ):
        raise BadInput(f"'{feature}' is not a deployed component: deploy it first, then switch it.")


def require_feature(connection: Connection, feature: str) -> None:
    """Refuse to go on where a component is off.

    Raises:
        BadInput: it is not deployed, or its kill switch is off.
    """
    if not feature_enabled(connection, feature):
        raise BadInput(f"The feature '{feature}' is off or not deployed: nothing was changed.")
