"""The ledger against today's table: the second is the projection of the first, and this is how that is held.

What belongs here: comparing the two. What does not: writing history (a trigger does), replaying it (`importing`).
"""

from __future__ import annotations

from dataclasses import dataclass

from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import queries


@dataclass(frozen=True, slots=True)
class HistoryBreak:
    """A subscription whose terms are not those of its newest event; `in_ledger` is None where it has no event."""

    subscription_ref: str
    in_database: str
    in_ledger: str | None


def history_breaks(connection: Connection) -> tuple[HistoryBreak, ...]:
    """Subscriptions whose plan, frequency, price or quantity is not what history last said; empty is good."""
    return tuple(HistoryBreak(**row) for row in queries("billing").history_breaks(connection))
