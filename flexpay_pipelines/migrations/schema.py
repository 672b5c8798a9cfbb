"""What a schema looks like: a fingerprint that survives dump and restore, and what differs from what migrations made.

What belongs here: listing the objects of schemas, comparing listings. What does not: deploying (`engine`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.errors import CheckFailed
from flexpay_pipelines.migrations.components import COMPONENTS, SCHEMAS, component_named
from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    import psycopg

Row: TypeAlias = Mapping[str, str]

MISSING = "missing"
CHANGED = "not as it was deployed"
ADDED = "not from any migration"


def list_objects(connection: psycopg.Connection[Any], schemas: Sequence[str]) -> list[dict[str, str]]:
    """Every object of the schemas: `kind`, `name`, `parent` (what it hangs on), `definition`; ordered."""
    # Rolled back, so that the search path of the caller's own transaction stays what it was.
    with connection.transaction(force_rollback=True):
        queries("migrations").qualify_names(connection)
        listing: list[dict[str, str]] = queries("migrations").schema_objects(connection, schemas=list(schemas))
    return listing


def schema_fingerprint(connection: Connection, schemas: Sequence[str]) -> str:
    """SHA-256 (hexadecimal) over tables, columns, constraints, indexes, triggers, functions, views, sequences, types.

    Equal for a dump restored elsewhere. Object numbers, owners, privileges, comments and column order do not count.
    """
    listing = list_objects(connection, schemas)
    return hashlib.sha256(json.dumps(listing, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def schema_drift(url: str, component: str) -> tuple[str, ...]:
    """What differs, in the database, from what this component's migrations made: one sentence per object, ordered.

    An object that nobody deployed counts to the component that made what it hangs on (its table, else its schema).

    Raises:
        BadInput: the component is unknown.
        CheckFailed: no migration was ever deployed there.
        DatabaseUnavailable: the database cannot be reached.
    """
    database = component_named(component).database
    with opened(url, purpose="schema drift", role=database) as connection:
        if not queries("migrations").ledger_exists(connection):
            raise CheckFailed(f"Nothing is deployed in the {database} database: deploy {component} first.")
        return tuple(difference.sentence for difference in differences(connection, component))


@dataclass(frozen=True, slots=True, order=True)
class Difference:
    """An object that is not as the migrations made it: `how` is MISSING, CHANGED or ADDED."""

    kind: str
    name: str
    how: str

    @property
    def sentence(self) -> str:
        """The difference as a person reads it."""
        return f"{self.kind} {self.name} is {self.how}"


def differences(connection: psycopg.Connection[Any], component: str) -> list[Difference]:
    """Where the database differs from what the component's migrations made, ordered."""
    database = component_named(component).database
    recorded = {_key(row): row for row in queries("migrations").recorded_objects(connection)}
    found = {_key(row): row for row in list_objects(connection, SCHEMAS[database])}
    differing = (
        [Difference(*key, MISSING) for key in recorded.keys() - found.keys()]
        + [Difference(*key, ADDED) for key in found.keys() - recorded.keys()]
        + [
            Difference(*key, CHANGED)
            for key in recorded.keys() & found.keys()
            if recorded[key]["definition"] != found[key]["definition"]
        ]
    )
    return sorted(
        difference
        for difference in differing
        if _maker((difference.kind, difference.name), recorded, found, database) == component
    )


def _key(row: Row) -> tuple[str, str]:
    return row["kind"], row["name"]


def _maker(
    key: tuple[str, str],
    recorded: Mapping[tuple[str, str], Row],
    found: Mapping[tuple[str, str], Row],
    database: str,
) -> str:
    """The component that answers for an object: its maker, else the maker of what it hangs on, else the first one."""
    if key in recorded:
        return recorded[key]["component"]
    makers = {row["name"]: row["component"] for row in recorded.values()}
    parents = {row["name"]: row["parent"] for row in found.values()}
    parent: str | None = found[key]["parent"]
    while parent is not None:
        if parent in makers:
            return makers[parent]
        parent = parents.get(parent)
    return next(component.name for component in COMPONENTS.values() if component.database == database)
