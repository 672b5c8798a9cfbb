"""Whether what was deployed is still there: the verify files, and what the ledger knows of each object.

What belongs here: looking and naming what is wrong. What does not: mending it, and objects that no migration made
(`schema`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexpay_pipelines.database import opened
from flexpay_pipelines.errors import CheckFailed
from flexpay_pipelines.migrations.components import COMPONENTS, component_named
from flexpay_pipelines.migrations.failures import RETRIED, reason
from flexpay_pipelines.migrations.files import History, Migration, history
from flexpay_pipelines.migrations.planning import read_applied
from flexpay_pipelines.migrations.schema import ADDED, differences
from flexpay_pipelines.sql import MIGRATIONS_ROOT, queries

if TYPE_CHECKING:
    import psycopg

LOCK_TIMEOUT = "2s"
NAMED_AT_MOST = 10


def verify(url: str, component: str, *, root: Path = MIGRATIONS_ROOT) -> None:
    """Run the verify files of all deployed revisions of a component, then look for objects missing or changed since.

    Whatever the files do is rolled back. Objects that no migration made are left to `schema_drift`.

    Raises:
        BadInput: the component is unknown.
        CheckFailed: it is not deployed, or something is missing or wrong; the message says what.
        DatabaseUnavailable: the database cannot be reached.
    """
    database = component_named(component).database
    files = history(root)
    with opened(url, purpose="migration verification", role=database) as connection:
        verify_on(connection, component, files)


def verify_on(connection: psycopg.Connection[Any], component: str, files: History) -> None:
    """`verify` on an open connection; in a transaction it sees what that transaction did.

    Raises:
        CheckFailed: it is not deployed, or something is missing or wrong; the message says what.
    """
    migrations = {migration.revision: migration for migration in files[component]}
    present = [row for row in read_applied(connection) if row.component == component]
    if not present:
        raise CheckFailed(
            f"{component} is not deployed in the {COMPONENTS[component].database} database: deploy it first."
        )
    for row in present:
        if row.revision not in migrations:
            raise CheckFailed(f"{component} {row.revision} {row.name} is deployed, but its files are gone.")
        with connection.transaction(force_rollback=True):
            queries("migrations").begin_step(connection, lock_timeout=LOCK_TIMEOUT)
            run_verify(connection, migrations[row.revision])
    wrong = [difference.sentence for difference in differences(connection, component) if difference.how != ADDED]
    if wrong:
        more = f" and {len(wrong) - NAMED_AT_MOST} more" if len(wrong) > NAMED_AT_MOST else ""
        raise CheckFailed(f"{component} is not as it was deployed: {'; '.join(wrong[:NAMED_AT_MOST])}{more}.")


def run_verify(raw: psycopg.Connection[Any], migration: Migration, *, undone: bool | None = None) -> None:
    """Run a verify file; `undone` says whether a failure undoes the revision (None: it was deployed earlier)."""
    import psycopg  # noqa: PLC0415

    try:
        raw.execute(migration.verify.text.encode(), prepare=False)
    except psycopg.Error as error:
        if error.sqlstate in RETRIED or raw.closed:
            raise
        outcome = {
            None: "is not as it was deployed",
            True: "was undone, because its verification failed",
            False: "is not deployed, because its verification failed; what it ran outside a transaction stays",
        }[undone]
        raise CheckFailed(f"{migration.title} {outcome}: {reason(error)}.") from error
