"""The first rows of a table: written without its indexes, which are built afterwards in one go each.

What belongs here: that. What does not: what is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import queries

# How many rows and values there are is all that plans of temporary relations depend on.
COARSE_STATISTICS = "SET LOCAL default_statistics_target = 10"


@contextmanager
def first_rows_of(connection: Connection, table: str) -> Iterator[None]:
    """Where `table` is empty, it has no index inside and all of them again afterwards.

    Nobody reads from an empty table, so that nobody waits for the lock that this takes until the transaction ends.
    """
    from psycopg import sql  # noqa: PLC0415 - the code location loads without it

    named = queries("analytics_refresh")
    if not named.is_empty(connection, relation=table):
        yield
        return
    name = sql.Identifier(*table.split("."))
    indexes = list(named.index_definitions(connection, relation=table))
    for index in indexes:
        if index["constraint_name"]:
            constraint = sql.Identifier(index["constraint_name"])
            connection.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(name, constraint))
        else:
            connection.execute(f"DROP INDEX {index['index_name']}".encode())
    yield
    for index in indexes:
        definition = sql.SQL(index["definition"])
        if index["constraint_name"]:
            constraint = sql.Identifier(index["constraint_name"])
            connection.execute(sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(name, constraint, definition))
        else:
            connection.execute(definition)
    # Whoever reads the table later plans with these.
    connection.execute("SET LOCAL default_statistics_target TO DEFAULT")
    connection.execute(sql.SQL("ANALYZE {}").format(name))
    connection.execute(COARSE_STATISTICS)
