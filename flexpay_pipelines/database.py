"""Connections to PostgreSQL: how they are opened, and what a user is told when that fails.

What belongs here: opening, locking, naming a database, reading a COPY. What does not: SQL of any domain, the embedded
server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from flexpay_pipelines.errors import ConfigurationError, DatabaseUnavailable, TransientError

if TYPE_CHECKING:
    import psycopg
    from psycopg.abc import Buffer, Query

Connection: TypeAlias = "psycopg.Connection[dict[str, Any]]"

BILLING = "billing"
CONTROL = "control"
SETTING_OF = {BILLING: "FLEXPAY_BILLING_URL", CONTROL: "FLEXPAY_CONTROL_URL"}

_BLOCK = 1 << 18

NO_URL = "A PostgreSQL URL is expected, postgresql://user:password@host:5432/name, special characters percent-encoded."


def libpq_url(url: str) -> str:
    """The URL as libpq and its tools read it: without SQLAlchemy's driver name.

    Raises:
        ConfigurationError: it is no URL. (Nothing here quotes a URL that cannot be read: it may hold a password.)
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ConfigurationError(NO_URL)
    return f"{scheme.split('+')[0]}://{rest}"


def sqlalchemy_url(url: str, driver: str = "psycopg") -> str:
    """The URL with the driver named, as SQLAlchemy wants it (`psycopg2` for Dagster's own storage)."""
    return f"postgresql+{driver}://{libpq_url(url).split('://', 1)[1]}"


def with_database(url: str, name: str) -> str:
    """The same server, another database."""
    parts = _split(url)
    return _joined(parts.scheme, parts.netloc, f"/{quote(name, safe='')}", parts.query)


def describe(url: str) -> str:
    """The database as a person may see it in a message: user, host, port, name; never the password."""
    parts = _split(url)
    # As written, not as numbers: libpq takes several hosts and ports, separated by commas.
    host = parts.netloc.rpartition("@")[2] or dict(parse_qsl(parts.query)).get("host") or "local socket"
    user = f"{unquote(parts.username)}@" if parts.username else ""
    return f"{user}{host}/{unquote(parts.path.lstrip('/')) or 'postgres'}"


def without_password(url: str) -> tuple[str, str | None]:
    """The URL for a command line, where others can read it, and the password for the environment."""
    parts = _split(url)
    login, at, host = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    # libpq reads the query last: a password there counts, not the one before the host.
    pairs = [pair.partition("=") for pair in parts.query.split("&") if pair]
    kept = "&".join("".join(pair) for pair in pairs if pair[0] != "password")
    secret = next((value for name, _, value in reversed(pairs) if name == "password"), password)
    return _joined(parts.scheme, f"{user}{at}{host}", parts.path, kept), unquote(secret) or None


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(libpq_url(url))
    except ValueError:
        raise ConfigurationError(NO_URL) from None


def _joined(scheme: str, netloc: str, path: str, query: str) -> str:
    # urlunsplit drops the slashes of an empty host; a socket URL has one.
    return f"{scheme}://{netloc}{path}" + (f"?{query}" if query else "")


def connect(url: str, *, purpose: str, role: str = BILLING, connect_timeout: int = 10) -> Connection:
    """Open a connection: autocommit (transactions are opened where they are meant), rows as dicts, UTC.

    Args:
        url: `postgresql://…`, with or without a driver name.
        purpose: what the connection is for; pg_stat_activity shows it.
        role: `billing` or `control`: names the setting in an error.

    Raises:
        DatabaseUnavailable: one sentence that names the database, the reason and the setting to mend.
        ConfigurationError: the URL cannot be read.
    """
    import psycopg  # noqa: PLC0415 - the code location loads without it

    try:
        return _opened(libpq_url(url), purpose, "UTC", connect_timeout=connect_timeout)
    except (psycopg.ProgrammingError, UnicodeError):
        # Not quoted, and without its cause: libpq repeats the part that it does not understand.
        raise ConfigurationError(f"{SETTING_OF.get(role, role)} cannot be read: {NO_URL}") from None
    except psycopg.OperationalError as error:
        reason = " ".join(str(error).split())
        raise DatabaseUnavailable(
            f"Cannot open the {role} database {describe(url)}: {reason}. "
            f"Check that the server runs and that {SETTING_OF.get(role, role)} is right."
        ) from error


def beside(connection: Connection, *, purpose: str) -> Connection:
    """Another session with the same database, of the same user and time zone.

    Raises:
        DatabaseUnavailable: the server takes no other.
    """
    import psycopg  # noqa: PLC0415

    same = connection.info
    try:
        return _opened(same.dsn, purpose, same.parameter_status("TimeZone") or "UTC", password=same.password or None)
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(f"Cannot open a second session: {' '.join(str(error).split())}.") from error


def _opened(conninfo: str, purpose: str, time_zone: str, **parameters: Any) -> Connection:
    import psycopg  # noqa: PLC0415
    from psycopg.rows import dict_row  # noqa: PLC0415

    return psycopg.connect(
        conninfo,
        autocommit=True,
        row_factory=dict_row,
        application_name=f"flexpay {purpose}"[:63],
        options=f"-c timezone={time_zone}",
        client_encoding="utf8",
        # A plan that is kept for any parameters is made for few rows; ours are batches.
        prepare_threshold=None,
        **parameters,
    )


@contextmanager
def opened(url: str, *, purpose: str, role: str = BILLING) -> Iterator[Connection]:
    """`connect`, closed at the end; an error inside rolls its own transaction back."""
    connection = connect(url, purpose=purpose, role=role)
    try:
        yield connection
    finally:
        connection.close()


def in_transaction(connection: Connection) -> bool:
    """Whether a transaction is open: what is written in it, only it can see."""
    from psycopg.pq import TransactionStatus  # noqa: PLC0415

    return connection.info.transaction_status != TransactionStatus.IDLE


@contextmanager
def copied(
    connection: Connection, statement: Query, parameters: Mapping[str, Any] | None = None
) -> Iterator[Iterator[bytes]]:
    """What a COPY … TO STDOUT gives, in blocks of 256 KiB and more; left before its end, it is called off."""
    with connection.cursor().copy(statement, parameters) as copy:
        yield _blocks(connection, copy)


def _blocks(connection: Connection, copy: psycopg.Copy) -> Iterator[bytes]:
    """A row that has arrived is taken as it is; psycopg, which takes three times as long for each, waits for others."""
    from psycopg.errors import error_from_result  # noqa: PLC0415
    from psycopg.pq import ExecStatus  # noqa: PLC0415

    wire, block = connection.pgconn, bytearray()
    row: Buffer
    length, row = wire.get_copy_data(1)
    while length > 0 or (length == 0 and (row := copy.read())):
        block += row
        if len(block) >= _BLOCK:
            yield bytes(block)
            block.clear()
        length, row = wire.get_copy_data(1)
    # None are left where it was psycopg that met the end.
    for result in list(iter(wire.get_result, None)):
        if result.status != ExecStatus.COMMAND_OK:
            raise error_from_result(result)
    yield bytes(block)


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
