"""Alembic's view of the migrations: one independent base per component, built in memory, and a step run through it.

What belongs here: everything that speaks to Alembic or SQLAlchemy. What does not: which steps to run (`planning`), what
a step does (`engine` passes it in), locks and retries (`engine`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from flexpay_pipelines.database import advisory_lock, opened
from flexpay_pipelines.migrations.components import COMPONENTS
from flexpay_pipelines.migrations.files import History, Migration
from flexpay_pipelines.migrations.planning import DEPLOY, Step
from flexpay_pipelines.migrations.verification import LOCK_TIMEOUT
from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    import psycopg
    from alembic.script import Script, ScriptDirectory
    from sqlalchemy import Connection as SqlAlchemyConnection

LOCK_NAME = "migrations"
VERSION_SCHEMA = "migrations"

RawConnection: TypeAlias = "psycopg.Connection[Any]"
# Opens a block outside of the transaction, for statements that refuse to run in one.
OutsideTransaction: TypeAlias = Callable[[], AbstractContextManager[None]]


@contextmanager
def session(url: str, role: str) -> Iterator[SqlAlchemyConnection]:
    """The one connection of a run: holds the database's migration lock, does the work, is closed at the end.

    Lock and work share the session on purpose: a process that is killed leaves its server session at work for a moment,
    and the lock must last as long as that does. Nothing is pooled: a pooled session would keep the lock.

    Raises:
        TransientError: another run holds the lock.
        DatabaseUnavailable: the database cannot be reached.
    """
    from psycopg.rows import tuple_row  # noqa: PLC0415 - the code location loads without it
    from sqlalchemy import create_engine  # noqa: PLC0415
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    with opened(url, purpose="migrations", role=role) as opening, advisory_lock(opening, LOCK_NAME):
        raw: RawConnection = opening
        queries("migrations").begin_session(raw, lock_timeout=LOCK_TIMEOUT)
        with raw.transaction():
            queries("migrations").prepare_ledger(raw)
        raw.row_factory = tuple_row
        raw.autocommit = False
        engine = create_engine("postgresql+psycopg://", creator=lambda: raw, poolclass=NullPool)
        with engine.connect() as connection:
            yield connection


def raw_connection(connection: SqlAlchemyConnection) -> RawConnection:
    """The driver's own connection, for files that hold several statements or a percent sign."""
    raw: RawConnection = connection.connection.driver_connection  # type: ignore[assignment]
    return raw


def run_step(
    connection: SqlAlchemyConnection,
    files: History,
    root: Path,
    step: Step,
    *,
    work: Callable[[OutsideTransaction], None],
    note: Callable[[], None],
) -> None:
    """Run `work`, move Alembic's version table, run `note`: all in one transaction, committed at the end."""
    from alembic.runtime.migration import MigrationContext, RevisionStep  # noqa: PLC0415

    script = script_directory(files, root)
    revision = script.get_revision(f"{step.component}_{step.revision}")
    revision_step = RevisionStep(script.revision_map, revision, step.direction == DEPLOY)

    def note_in_transaction(**_: Any) -> None:
        note()

    context = MigrationContext.configure(
        connection,
        opts={
            "script": script,
            "fn": lambda _heads, _context: [revision_step],
            "version_table_schema": VERSION_SCHEMA,
            "transaction_per_migration": True,
            "on_version_apply": (note_in_transaction,),
        },
    )
    context.run_migrations(work=work, outside=context.autocommit_block)


def script_directory(files: History, root: Path) -> ScriptDirectory:
    """Alembic's script directory over the SQL files: no Python file per revision is written."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415
    from alembic.script.revision import RevisionMap  # noqa: PLC0415

    scripts = [_script(migration, files) for migrations in files.values() for migration in migrations]
    directory = ScriptDirectory(str(root))
    directory.revision_map = RevisionMap(lambda: scripts)
    return directory


def _script(migration: Migration, files: History) -> Script:
    from alembic.script import Script  # noqa: PLC0415

    def run(*, work: Callable[[OutsideTransaction], None], outside: OutsideTransaction) -> None:
        work(outside)

    before = [other.key for other in files[migration.component] if other.revision < migration.revision]
    module: Any = ModuleType(migration.key, migration.title)
    module.revision = migration.key
    module.down_revision = before[-1] if before else None
    module.branch_labels = None if before else (migration.component,)
    # A base depends on bases only: a dependency on a later revision would make Alembic take that one for applied.
    module.depends_on = (
        None if before else [files[name][0].key for name in COMPONENTS[migration.component].depends_on if files[name]]
    )
    module.upgrade = module.downgrade = run
    return Script(module, migration.key, migration.deploy.path)
