"""What Stripe lists, put page by page into temporary tables, so that SQL can work on all of it at once.

What belongs here: the staging tables and the COPY into them. What does not: what is then done with the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flexpay_pipelines.database import Connection

TABLES = {
    "stripe_links": ("kind text", "ref text", "stripe_id text", "alive boolean", "position bigint"),
    "incoming_stripe_events": (
        "stripe_event_id text", "type text", "created timestamptz", "subject_id text", "object jsonb",
    ),
    "in_scope": ("subscription_id bigint", "stripe_id text", "version bigint"),
    "on_their_way": ("subscription_id bigint",),
    "scheduled_terms": ("subscription_id bigint", "plan text", "payment_frequency text", "amount_minor bigint"),
    "stripe_now": (
        "stripe_id text", "subscription_ref text", "status text", "paused boolean", "currency text",
        "unit_amount bigint", "frequency text", "quantity integer", "period_end timestamptz", "keeps_date boolean",
        "ended_at timestamptz",
    ),
    "differences_found": (
        "subscription_ref text", "kind text", "in_database text", "in_stripe text", "mend text", "parked text",
        "subscription_id bigint", "version bigint", "stripe_id text", "parked_command bigint", "outcome text",
        "pause_ends timestamptz",
    ),
}  # fmt: skip


@contextmanager
def staged(connection: Connection, table: str) -> Iterator[None]:
    """Have an empty temporary table of this connection for as long as the block lasts."""
    from psycopg import sql  # noqa: PLC0415 - the code location loads without it

    name = sql.Identifier("pg_temp", table)
    columns = sql.SQL(", ".join(TABLES[table]))
    # The connection may be used again after an interrupted run: what that left behind is not ours.
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(name))
    connection.execute(sql.SQL("CREATE TEMPORARY TABLE {} ({})").format(sql.Identifier(table), columns))
    try:
        yield
    finally:
        if not connection.closed and not connection.broken:
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(name))


def copy_rows(connection: Connection, table: str, rows: Iterable[Sequence[Any]]) -> int:
    """Append rows to a staged table by COPY; returns how many."""
    from psycopg import sql  # noqa: PLC0415 - the code location loads without it

    number = 0
    with (
        connection.cursor() as cursor,
        cursor.copy(sql.SQL("COPY {} FROM STDIN").format(sql.Identifier("pg_temp", table))) as copy,
    ):
        for row in rows:
            copy.write_row(row)
            number += 1
    return number


def analyze(connection: Connection, table: str) -> None:
    """Let the planner know how much was staged."""
    from psycopg import sql  # noqa: PLC0415 - the code location loads without it

    connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier("pg_temp", table)))
