"""The SQL catalogue: every query of the product, named and described, from `sql/queries/<domain>.sql`.

What belongs here: finding and loading the files below `sql/`. What does not: any SQL.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

SQL_ROOT = Path(__file__).resolve().parents[1] / "sql"
MIGRATIONS_ROOT = SQL_ROOT / "migrations"
QUERIES_ROOT = SQL_ROOT / "queries"


@cache
def queries(domain: str) -> Any:
    """The named statements of a domain, each a function of a connection and its bound parameters.

    A statement `-- name: due_pauses(now, batch_size)` is called `queries("billing").due_pauses(connection, now=…,
    batch_size=…)`. The mark behind the name says what comes back: none, rows (dicts); `^` one row or None; `$` one
    value; `!` the number of rows changed. A `:name` in a statement is always a bound parameter.
    """
    import aiosql  # noqa: PLC0415 - the code location loads without it

    return aiosql.from_path(QUERIES_ROOT / f"{domain}.sql", "psycopg")
