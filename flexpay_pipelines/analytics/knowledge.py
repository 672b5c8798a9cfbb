"""Exchange rates and countries as they were known at an instant.

What belongs here: what a workspace reads instead of today's. What does not: events and payments, which tell by
themselves when they were recorded.
"""

from __future__ import annotations

from datetime import datetime

from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import queries


def use_rates(connection: Connection, known_at: datetime | None) -> None:
    """Make the view metric_fx_rates the rates known at an instant; None: now. It goes with the workspace."""
    from psycopg import sql  # noqa: PLC0415 - the code location loads without it

    if known_at is None:
        queries("analytics_knowledge").create_rates(connection)
        return
    # A view takes no parameters.
    view = sql.SQL(queries("analytics_knowledge").create_known_rates.sql.replace("%(known_at)s", "{known_at}"))
    connection.execute(view.format(known_at=sql.Literal(known_at)))


def restore_countries(connection: Connection, known_at: datetime | None) -> None:
    """Give the intervals of the workspace the countries that customers were known to have."""
    if known_at is not None:
        queries("analytics_knowledge").restore_countries(connection, known_at=known_at)
