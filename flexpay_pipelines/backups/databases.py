"""Whole databases of a server: made like another, dropped, swapped by renaming in one transaction.

What belongs here: CREATE, ALTER and DROP DATABASE, and ending the sessions that are in the way. What does not: what is
in a database.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flexpay_pipelines.database import Connection, libpq_url, opened, with_database
from flexpay_pipelines.errors import BadInput, TransientError
from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    from psycopg import sql

KEPT = "_before_restore_"
RESTORING = "_restoring_"
_LONGEST_NAME = 63
_DATED = "%Y%m%d_%H%M%S"  # a name that needs no quoting
_SWAP_ATTEMPTS = 10
_DISCONNECT_MILLISECONDS = 5000
# Settings that hold a list of names, each of which is quoted by itself (GUC_LIST_QUOTE in PostgreSQL's source).
_NAME_LISTS = {"local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces"}


@dataclass(frozen=True, slots=True)
class Locale:
    """Encoding and locale with which a database is made; `provider` is `c` (libc), `i` (ICU) or `b` (builtin)."""

    encoding: str
    lc_collate: str
    lc_ctype: str
    provider: str
    locale: str | None


def name_of(url: str) -> str:
    """The name of the database that a URL leads to."""
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 - the code location loads without it

    parts = conninfo_to_dict(libpq_url(url))
    return str(parts.get("dbname") or parts.get("user") or "postgres")


@contextmanager
def beside(url: str) -> Iterator[Connection]:
    """A connection to the server of a database, by another database of it: a database cannot be renamed from within."""
    with opened(
        with_database(url, "template1" if name_of(url) == "postgres" else "postgres"), purpose="restore"
    ) as connection:
        yield connection


def beside_name(name: str, middle: str, at: datetime, taken: tuple[str, ...] = ()) -> str:
    """`<name><middle><instant>`, shortened to what PostgreSQL allows and not yet taken."""
    dated = f"{_stem(name, middle)}{middle}{at:{_DATED}}"
    numbered = (f"{dated}_{again}" for again in range(2, 100))
    made = next((n for n in (dated, *numbered) if n not in taken), None)
    if made is None:
        raise TransientError(f"No name is free for the database to be kept beside {name}: drop old ones.")
    return made


def names_beside(connection: Connection, name: str, middle: str) -> tuple[str, ...]:
    """The databases that were put beside `name` earlier, newest first."""
    prefix = f"{_stem(name, middle)}{middle}"
    shape = re.compile(re.escape(prefix) + r"\d{8}_\d{6}(_\d{1,2})?")
    rows = queries("backups").databases_named(connection, prefix=prefix)
    return tuple(row["name"] for row in rows if shape.fullmatch(row["name"]))


def _stem(name: str, middle: str) -> str:
    """The name, or where it is too long its beginning and a hash, so that no two databases share a stem."""
    room = _LONGEST_NAME - len(middle) - len("20260131_030000_99")
    if len(name.encode()) <= room:
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name.encode()[: room - 9].decode(errors='ignore')}_{mark}"


def create_like(connection: Connection, new: str, *, live: str, fallback: Locale) -> None:
    """Make an empty database with the locale, owner, grants and settings of `live`; of `fallback` if it is gone."""
    from psycopg import sql  # noqa: PLC0415

    row = queries("backups").database(connection, name=live)
    locale = fallback if row is None else Locale(**{name: row[name] for name in Locale.__slots__})
    options = [
        sql.SQL("TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}").format(
            *(sql.Literal(text) for text in (locale.encoding, locale.lc_collate, locale.lc_ctype))
        )
    ]
    if locale.provider == "i":
        options.append(sql.SQL("LOCALE_PROVIDER icu ICU_LOCALE {}").format(sql.Literal(locale.locale)))
    elif locale.provider == "b":
        options.append(sql.SQL("LOCALE_PROVIDER builtin BUILTIN_LOCALE {}").format(sql.Literal(locale.locale)))
    if row is not None:
        options.append(
            sql.SQL("OWNER {} CONNECTION LIMIT {}").format(sql.Identifier(row["owner"]), row["connection_limit"])
        )
    connection.execute(sql.SQL("CREATE DATABASE {} ").format(sql.Identifier(new)) + sql.SQL(" ").join(options))
    if row is not None:
        _copy_grants(connection, live, new, has_grants=row["has_grants"])
        _copy_settings(connection, live, new)


def _copy_grants(connection: Connection, live: str, new: str, *, has_grants: bool) -> None:
    from psycopg import sql  # noqa: PLC0415

    if not has_grants:
        return
    connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(new)))
    for row in queries("backups").database_grants(connection, name=live):
        connection.execute(
            sql.SQL("GRANT {} ON DATABASE {} TO {}{}").format(
                sql.SQL(row["privilege"]),
                sql.Identifier(new),
                sql.SQL("PUBLIC") if row["grantee"] is None else sql.Identifier(row["grantee"]),
                sql.SQL(" WITH GRANT OPTION" if row["grantable"] else ""),
            )
        )


def _copy_settings(connection: Connection, live: str, new: str) -> None:
    from psycopg import sql  # noqa: PLC0415

    for row in queries("backups").database_settings(connection, name=live):
        whose = sql.SQL("DATABASE {}").format(sql.Identifier(new))
        if row["role_name"] is not None:
            whose = sql.SQL("ROLE {} IN {}").format(sql.Identifier(row["role_name"]), whose)
        connection.execute(
            sql.SQL("ALTER {} SET {} TO {}").format(
                whose, sql.Identifier(row["name"]), _setting(row["name"], row["value"])
            )
        )


def _setting(name: str, value: str) -> sql.Composable:
    from psycopg import sql  # noqa: PLC0415

    if name not in _NAME_LISTS:
        return sql.Literal(value)
    names = [quoted.replace('""', '"') or plain for quoted, plain in re.findall(r'"((?:[^"]|"")*)"|([^,\s"]+)', value)]
    return sql.SQL(", ").join(map(sql.Literal, names or [""]))


def drop(connection: Connection, name: str) -> None:
    """Drop a database, ending the sessions in it."""
    from psycopg import sql  # noqa: PLC0415

    connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def swap(connection: Connection, *, live: str, new: str, kept: str, remark: str) -> None:
    """Put `new` in the place of `live`, which is kept under the name `kept` with `remark` as its comment; atomic.

    Only sessions of these two databases are ended. With no `live` there, `new` just takes its name.

    Raises:
        TransientError: sessions come back faster than they can be ended.
    """
    from psycopg import errors, sql  # noqa: PLC0415

    rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
    for _ in range(_SWAP_ATTEMPTS):
        for name in (live, new):
            list(queries("backups").disconnect(connection, name=name, wait_milliseconds=_DISCONNECT_MILLISECONDS))
        try:
            with connection.transaction():
                if queries("backups").database(connection, name=live) is not None:
                    connection.execute(rename.format(sql.Identifier(live), sql.Identifier(kept)))
                    comment = sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(kept), sql.Literal(remark))
                    connection.execute(comment)
                connection.execute(rename.format(sql.Identifier(new), sql.Identifier(live)))
        except errors.ObjectInUse:
            continue
        return
    raise TransientError(
        f"Sessions keep coming back to {live}: stop what uses it, then run it again; nothing was changed."
    )


def not_the_same(control: Connection, connection: Connection, name: str) -> None:
    """Refuse to restore over the control database.

    Raises:
        BadInput: the control database is the one to be swapped.
    """
    own = queries("backups").database_identity(control)
    row: dict[str, Any] | None = queries("backups").database(connection, name=name)
    if row and (own["system_identifier"], own["database_oid"]) == (row["system_identifier"], row["oid"]):
        raise BadInput(f"Database {name} is the control database: set FLEXPAY_CONTROL_URL to a database of its own.")
