"""The memory of the reconciliation: each pass, the differences that are open, and whether somebody was told of them.

What belongs here: remembering, forgetting, telling once. What does not: comparing (`reconciliation`), how alerts travel
(`alerts`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flexpay_pipelines.alerts import alert_raised, raise_alert
from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    from flexpay_pipelines.clock import Clock
    from flexpay_pipelines.database import Connection
    from flexpay_pipelines.payments.reconciliation import Comparison

_LOCK = "flexpay reconciliation passes"


def forget_and_keep(connection: Connection, comparison: Comparison, by_kind: dict[str, int]) -> int:
    """Remember a pass whose differences are staged; what it found no more is settled. Returns its id."""
    from psycopg.types.json import Jsonb  # noqa: PLC0415 - the code location loads without it

    catalogue = queries("payments_passes")
    with connection.transaction():
        # Of two passes that end together, the younger has the last word.
        catalogue.one_at_a_time(connection, name=_LOCK)
        reconciliation_id: int = catalogue.record_pass(
            connection,
            scope=comparison.scope,
            started_at=comparison.started_at,
            read_at=comparison.read_at,
            compared=comparison.compared,
            in_flight=comparison.in_flight,
            by_kind=Jsonb(by_kind),
        )
        catalogue.keep_differences(connection, reconciliation_id=reconciliation_id)
        catalogue.forget_differences(connection, reconciliation_id=reconciliation_id)
    return reconciliation_id


def alert_persistent(
    connection: Connection,
    control: Connection,
    reconciliation_id: int,
    *,
    clock: Clock,
    progress: Callable[[str], None],
) -> bool:
    """Raise one alert for what a pass found, one before it had found, and nobody was told of; whether there was any.

    What only one pass has seen may be on its way. The alert's name follows from the passes: after a kill between
    raising and remembering it, it is not raised again.
    """
    catalogue = queries("payments_passes")
    kinds = list(catalogue.persistent_differences(connection, reconciliation_id=reconciliation_id))
    if not kinds:
        return False
    number = sum(row["number"] for row in kinds)
    fingerprint = f"reconciliation:{max(row['newest'] for row in kinds)}"
    if not alert_raised(control, fingerprint):
        raise_alert(
            control,
            fingerprint=fingerprint,
            severity="warning",
            title=f"Stripe and the database go on differing in {number} {'thing' if number == 1 else 'things'}",
            body="`flexpay reconcile --mend --plan` shows each and its mend; without `--plan` it is made.",
            context={row["kind"]: f"{row['number']}, such as {row['example']}" for row in kinds},
            clock=clock,
        )
        progress(f"Alerted: {number} differences have lasted for two passes.")
    catalogue.mark_alerted(connection, reconciliation_id=reconciliation_id, now=clock.now())
    return True
