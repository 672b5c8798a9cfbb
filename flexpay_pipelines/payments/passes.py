"""The memory of the reconciliation: each pass, the differences that are open, and whether somebody was told of them.

What belongs here: remembering and forgetting. What does not: comparing (`reconciliation`), telling (`alerts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    from flexpay_pipelines.clock import Clock
    from flexpay_pipelines.database import Connection
    from flexpay_pipelines.payments.reconciliation import Comparison

_LOCK = "flexpay reconciliation passes"


@dataclass(frozen=True, slots=True)
class Persistent:
    """Differences of one kind that two passes in a row have found, and nobody was told of.

    Attributes:
        first_seen: the pass that found the first of them.
        examples: up to five references.
    """

    kind: str
    number: int
    first_seen: int
    examples: tuple[str, ...]


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


def persistent_differences(connection: Connection, reconciliation_id: int) -> tuple[Persistent, ...]:
    """What this pass found, one before it had found, and nobody was told of yet, by kind."""
    rows = queries("payments_passes").persistent_differences(connection, reconciliation_id=reconciliation_id)
    return tuple(Persistent(row["kind"], row["number"], row["first_seen"], tuple(row["examples"])) for row in rows)


def mark_alerted(connection: Connection, reconciliation_id: int, *, clock: Clock) -> int:
    """Somebody was told of what `persistent_differences` listed. Returns how many differences that were."""
    return int(
        queries("payments_passes").mark_alerted(connection, reconciliation_id=reconciliation_id, now=clock.now())
    )
