"""Connections to PostgreSQL: how they are opened, and what a user is told when that fails.

What belongs here: opening, locking, naming a database. What does not: SQL of any domain, the embedded server.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from flexpay_pipelines.errors import DatabaseUnavailable, TransientError

if TYPE_CHECKING:
    import psycopg

Connection: TypeAlias = "psycopg.Connection[dict[str, Any]]"

BILLING = "billing"
CONTROL = "control"
SETTING_OF = {BILLING: "FLEXPAY_BILLING_URL", CONTROL: "FLEXPAY_CONTROL_URL"}


def libpq_url(url: str) -> str:
    """The URL as libpq and its tools read it: without SQLAlchemy's driver name."""
    scheme, rest = url.split("://", 1)
    return f"{scheme.split('+')[0]}://{rest}"


def sqlalchemy_url(url: str, driver: str = "psycopg") -> str:
    """The URL with the driver named, as SQLAlchemy wants it (`psycopg2` for Dagster's own storage)."""
    return f"postgresql+{driver}://{libpq_url(url).split('://', 1)[1]}"


def with_database(url: str, name: str) -> str:
    """The same server, another database."""
    parts = urlsplit(libpq_url(url))
    # urlunsplit drops the slashes of an empty host unless told otherwise; a socket URL has one.
    return f"{parts.scheme}://{parts.netloc}/{name}" + (f"?{parts.query}" if parts.query else "")


def describe(url: str) -> str:
    """The database as a person may see it in a message: user, host, port, name; never the password."""
    parts = urlsplit(libpq_url(url))
    query = dict(parse_qsl(parts.query))
    host = parts.hostname or query.get("host") or "local socket"
    port = f":{parts.port}" if parts.port else ""
    user = f"{unquote(parts.username)}@" if parts.username else ""
    return f"{user}{host}{port}/{parts.path.lstrip('/') or 'postgres'}"


def without_password(url: str) -> tuple[str, str | None]:
    """The URL for a command line, where others can read it, and the password for the environment."""
    parts = urlsplit(libpq_url(url))
    if parts.password is None:
        return libpq_url(url), None
    login, host = parts.netloc.rsplit("@", 1)
    netloc = f"{login.split(':', 1)[0]}@{host}"
    return urlunsplit((parts.scheme, netloc, parts.path, parts.query, "")), unquote(parts.password)


def connect(url: str, *, purpose: str, role: str = BILLING, connect_timeout: int = 10) -> Connection:
    """Open a connection: autocommit (transactions are opened where they are meant), rows as dicts, UTC.

    Args:
        url: `postgresql://…`, with or without a driver name.
        purpose: what the connection is for; pg_stat_activity shows it.
        role: `billing` or `control`: names the setting in an error.

    Raises:
        DatabaseUnavailable: one sentence that names the database, the reason and the setting to mend.
    """
    import psycopg  # noqa: PLC0415 - the code location loads without it
    from psycopg.rows import dict_row  # noqa: PLC0415

    try:
        return psycopg.connect(
            libpq_url(url),
            autocommit=True,
            row_factory=dict_row,
            application_name=f"flexpay {purpose}"[:63],
            connect_timeout=connect_timeout,
            options="-c timezone=UTC",
        )
    except psycopg.OperationalError as error:
        reason = " ".join(str(error).split())
        raise DatabaseUnavailable(
            f"Cannot open the {role} database {describe(url)}: {reason}. "
            f"Check that the server runs and that {SETTING_OF.get(role, role)} is right."
        ) from error


@contextmanager
def opened(url: str, *, purpose: str, role: str = BILLING) -> Iterator[Connection]:
    """`connect`, closed at the end; an error inside rolls its own transaction back."""
    connection = connect(url, purpose=purpose, role=role)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def advisory_lock(connection: Connection, name: str) -> Iterator[None]:
    """Hold the database-wide lock `name` on this connection's session, or refuse at once.

    Raises:
        TransientError: somebody else holds it.
    """
    row = connection.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0)) AS held", (name,)).fetchone()
    if row is None or not row["held"]:
        raise TransientError(f"Another process is at '{name}' on this database: wait for it to end, then run it again.")
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", (name,))
