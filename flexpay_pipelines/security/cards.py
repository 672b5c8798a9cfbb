"""The search for card numbers in a database: the proof that none is kept.

What belongs here: one set-based scan over every text and JSON column of a schema.
What does not: removing what it finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import PermanentError
from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    from psycopg import sql

# Thirteen to nineteen digits, bare or in the groups that cards are printed in, and not a part of a longer word,
# hash or decimal fraction. The same rule as redaction's, but narrower: here a false alarm blocks a pipeline.
_SHAPE = (
    r"(?<![0-9A-Za-z_])(?<![0-9]\.)"
    r"([2-9][0-9]{12,18}|[2-9][0-9]{3}[ -][0-9]{4,6}[ -][0-9]{4,5}([ -][0-9]{1,4}([ -][0-9]{1,3})?)?)"
    r"(?![0-9A-Za-z_])"
)
# Every shape above begins so: a quick look that spares most rows the slow one.
_HINT = "[2-9][0-9]{3}[ -]?[0-9]{4}[0-9 -]{4}"
_LUHN = """
CASE WHEN {value} ~ {hint} THEN EXISTS (
    SELECT 1
    FROM regexp_matches({value}, {shape}, 'g') AS found (groups)
    CROSS JOIN LATERAL translate(found.groups[1], ' -', '') AS card (digits)
    WHERE length(card.digits) BETWEEN 13 AND 19
        AND (
            SELECT mod(sum(CASE WHEN mod(place, 2) = 1 THEN digit ELSE digit * 2 / 10 + mod(digit * 2, 10) END), 10)
            FROM generate_series(1, length(card.digits)) AS place
            CROSS JOIN LATERAL (SELECT substr(card.digits, length(card.digits) + 1 - place, 1)::int AS digit) AS one
        ) = 0
) END
"""


@dataclass(frozen=True, slots=True)
class CardColumn:
    """A column that holds what looks like card numbers, and in how many rows. Never the numbers themselves."""

    table: str
    column: str
    count: int


def card_numbers_in(billing: Connection, *, schema: str = "billing") -> tuple[CardColumn, ...]:
    """The columns of `schema` (text, JSON and arrays of them) in which a row holds a Luhn-valid number of 13-19 digits.

    Each table is read once; all in one statement, so at one instant. Empty: no card number is kept.

    Raises:
        PermanentError: the schema has no such column at all: nothing was looked at, which proves nothing.
    """
    tables: dict[str, list[str]] = {}
    for row in queries("security").text_columns(billing, schema=schema):
        tables.setdefault(row["table_name"], []).append(row["column_name"])
    if not tables:
        raise PermanentError(f"Schema {schema} holds no text to search for card numbers: deploy it first.")
    from psycopg import sql  # noqa: PLC0415 - the code location loads without it

    scans = [_scan(sql.Identifier(schema, table), table, columns) for table, columns in tables.items()]
    statement = sql.SQL("SELECT * FROM ({}) AS scan WHERE count > 0 ORDER BY 1, 2").format(
        sql.SQL(" UNION ALL ").join(scans)
    )
    return tuple(CardColumn(row["table"], row["column"], row["count"]) for row in billing.execute(statement))


def _scan(relation: sql.Identifier, table: str, columns: list[str]) -> sql.Composed:
    from psycopg import sql  # noqa: PLC0415 - the code location loads without it

    counts = [
        sql.SQL("count(*) FILTER (WHERE {})").format(
            sql.SQL(_LUHN).format(
                value=sql.SQL("{}::text").format(sql.Identifier(column)),
                hint=sql.Literal(_HINT),
                shape=sql.Literal(_SHAPE),
            )
        )
        for column in columns
    ]
    return sql.SQL(
        'SELECT {} AS "table", unnest({}::text[]) AS "column", unnest(counts) AS count'
        " FROM (SELECT ARRAY[{}] AS counts FROM {}) AS counted"
    ).format(sql.Literal(table), sql.Literal(columns), sql.SQL(", ").join(counts), relation)
