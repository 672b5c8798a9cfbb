"""What a database holds, in a form that can be compared after a restore on another server.

What belongs here: one frozen view of a database, row counts, content hashes, the schema's fingerprint.
What does not: files (`manifest`), how the schema's fingerprint is made (`migrations`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import PermanentError, TransientError
from flexpay_pipelines.sql import queries

LOCK_WAIT = "60s"

# A row's text must not depend on the settings of a server, a database or a role. Names are written in full when no
# schema is on the search path.
VIEW_SETTINGS = {
    "search_path": "pg_catalog",
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "xmloption": "content",
    "row_security": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "lock_timeout": LOCK_WAIT,
}


@dataclass(frozen=True, slots=True)
class TableContent:
    """Row count, and the sum of the rows' 64-bit hashes: equal for the same rows in any order."""

    rows: int
    content_hash: str


@dataclass(frozen=True, slots=True)
class Contents:
    """Tables by qualified name (`billing.customers`), the schemas, and the SHA-256 of all definitions in them."""

    schemas: tuple[str, ...]
    schema_fingerprint: str
    tables: Mapping[str, TableContent]


@contextmanager
def database_errors(what: str) -> Iterator[None]:
    """Turn the server's refusals while doing `what` into one sentence.

    Raises:
        TransientError: a lock is held too long, the server went away, its disk is full.
        PermanentError: a privilege is missing, or the server refuses for another lasting reason.
    """
    import psycopg  # noqa: PLC0415 - the code location loads without it
    from psycopg import errors  # noqa: PLC0415

    try:
        yield
    except errors.DiskFull as error:
        raise TransientError(f"The server's disk is full while {what}: free some space and run it again.") from error
    except (errors.LockNotAvailable, errors.ObjectInUse) as error:
        raise TransientError(
            f"Somebody else holds a lock while {what}: run it again ({_first_line(error)})."
        ) from error
    except errors.InsufficientPrivilege as error:
        raise PermanentError(
            f"A privilege is missing for {what}: {_first_line(error)}; grant it to the role."
        ) from error
    except psycopg.OperationalError as error:
        raise TransientError(f"The server failed while {what}: {_first_line(error)}; run it again.") from error
    except psycopg.Error as error:
        raise PermanentError(f"The server refused while {what}: {_first_line(error)}.") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def frozen_view(connection: Connection) -> Iterator[str]:
    """One read-only transaction that sees one instant, with every table locked against a change of its definition.

    Yields the exported snapshot's name. The connection must be the caller's own: its isolation level is changed.

    Raises:
        TransientError: a table was made or dropped at this very moment, or stays locked for more than a minute.
    """
    from psycopg import IsolationLevel, errors, sql  # noqa: PLC0415 - the code location loads without it

    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    tables = user_tables(connection)
    with connection.transaction():
        for name, value in VIEW_SETTINGS.items():
            connection.execute("SELECT set_config(%s, %s, true)", (name, value))
        # LOCK takes no snapshot: the first statement behind it sees each table as it is once it cannot change.
        only = sql.SQL(", ").join(sql.SQL("ONLY {}").format(sql.Identifier(*table)) for table in tables)
        try:
            if tables:
                connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(only))
        except errors.UndefinedTable as error:
            raise TransientError(f"A table was dropped at this moment ({_first_line(error)}): run it again.") from error
        if user_tables(connection) != tables:
            raise TransientError("A table was made or dropped at this moment: run it again when the deploy has ended.")
        yield str(queries("backups").exported_snapshot(connection))


def user_tables(connection: Connection) -> tuple[tuple[str, str], ...]:
    """Schema and name of each table whose rows a backup holds, sorted."""
    return tuple((row["schema_name"], row["table_name"]) for row in queries("backups").user_tables(connection))


def read_contents(connection: Connection) -> Contents:
    """Count and hash every table and take the fingerprint of the schemas, inside `frozen_view`."""
    from flexpay_pipelines.migrations import schema_fingerprint  # noqa: PLC0415 - loads Alembic

    schemas = tuple(row["schema_name"] for row in queries("backups").user_schemas(connection))
    return Contents(
        schemas=schemas,
        schema_fingerprint=schema_fingerprint(connection, schemas),
        tables={f"{schema}.{name}": _read_table(connection, schema, name) for schema, name in user_tables(connection)},
    )


def _read_table(connection: Connection, schema: str, name: str) -> TableContent:
    from psycopg import sql  # noqa: PLC0415

    statement = sql.SQL(
        "SELECT count(*) AS row_count, coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text AS content_hash "
        "FROM ONLY {} AS t"
    ).format(sql.Identifier(schema, name))
    row = connection.execute(statement).fetchone()
    if row is None:
        raise PermanentError(f"{schema}.{name} could not be counted.")
    return TableContent(rows=row["row_count"], content_hash=row["content_hash"])


def differences(expected: Contents, found: Contents) -> tuple[str, ...]:
    """Each way in which what was found is not what was expected, a phrase each, named by table."""
    phrases = [f"table {name} is missing" for name in sorted(set(expected.tables) - set(found.tables))]
    phrases += [f"table {name} should not be there" for name in sorted(set(found.tables) - set(expected.tables))]
    for name in sorted(set(expected.tables) & set(found.tables)):
        wanted, got = expected.tables[name], found.tables[name]
        if wanted.rows != got.rows:
            phrases.append(f"table {name} has {got.rows} rows instead of {wanted.rows}")
        elif wanted.content_hash != got.content_hash:
            phrases.append(f"table {name} has other contents in its {got.rows} rows")
    if expected.schemas != found.schemas:
        phrases.append(f"the schemas are {', '.join(found.schemas)} instead of {', '.join(expected.schemas)}")
    elif expected.schema_fingerprint != found.schema_fingerprint:
        phrases.append("the definitions of tables, constraints, indexes, triggers, functions or views differ")
    return tuple(phrases)
