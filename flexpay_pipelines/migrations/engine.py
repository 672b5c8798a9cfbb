"""Deploying and reverting: one step, one transaction, one note in the ledger.

What belongs here: the order of a run, retries under lock timeout. What does not: the choice of steps (`planning`),
Alembic (`alembic_graph`), what a user is told of a failure (`failures`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexpay_pipelines.database import opened
from flexpay_pipelines.errors import TransientError
from flexpay_pipelines.migrations.alembic_graph import (
    OutsideTransaction,
    RawConnection,
    raw_connection,
    run_step,
    session,
)
from flexpay_pipelines.migrations.components import (
    COMPONENTS,
    SCHEMAS,
    with_dependencies,
    with_dependents,
)
from flexpay_pipelines.migrations.failures import RETRIED, explain
from flexpay_pipelines.migrations.files import History, SqlFile, history
from flexpay_pipelines.migrations.planning import (
    DEPLOY,
    Applied,
    Step,
    pending_steps,
    read_applied,
    refuse_edited,
    reverting_steps,
)
from flexpay_pipelines.migrations.schema import list_objects
from flexpay_pipelines.migrations.verification import LOCK_TIMEOUT, run_verify
from flexpay_pipelines.sql import MIGRATIONS_ROOT, queries

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy import Connection as SqlAlchemyConnection

ATTEMPTS = 5
FIRST_WAIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Run:
    """What every step of one run needs."""

    connection: SqlAlchemyConnection
    files: History
    root: Path
    record: Callable[[Step], None]
    progress: Callable[[str], None]
    sleep: Callable[[float], None]

    @property
    def raw(self) -> RawConnection:
        return raw_connection(self.connection)


def deploy(
    url: str,
    components: Sequence[str],
    *,
    record: Callable[[Step], None],
    progress: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    root: Path = MIGRATIONS_ROOT,
) -> tuple[Step, ...]:
    """Bring the components, and first what they depend on, to their newest revisions; return the steps done.

    Each step is a transaction of its own, verified in it: a failing one is undone alone, those before it stay.
    `record` is called after each commit, at least once per step: when it raises, or the process dies, the step stays
    done and the next run hands it over again. `sleep` takes seconds.

    Raises:
        BadInput: a component is unknown, or they live in different databases.
        CheckFailed: a verify file found its revision wrong; the revision was undone.
        TransientError: another run is at work, a lock was not to be had, the disk is full.
        PermanentError: an applied file was edited, a file is unusable, a statement failed.
        DatabaseUnavailable: the database cannot be reached, or the connection was lost.
    """
    wanted = with_dependencies(components)
    if not wanted:
        return ()
    return _carry_out(
        url,
        wanted[0].database,
        lambda files, applied: pending_steps(files, applied, wanted),
        record=record,
        progress=progress,
        sleep=sleep,
        root=root,
    )


def revert(
    url: str,
    component: str,
    *,
    cascade: bool = False,
    record: Callable[[Step], None],
    progress: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    root: Path = MIGRATIONS_ROOT,
) -> tuple[Step, ...]:
    """Take a component out of the schema, with `cascade` also what depends on it; return the steps done, if any.

    Data is set aside in schema `archive` by the revert files and comes back with the next deploy. `record` and
    `sleep` are those of `deploy`.

    Raises:
        BadInput: the component is unknown, or others that are deployed depend on it and `cascade` is not set.
        TransientError, PermanentError, DatabaseUnavailable: see `deploy`.
    """
    going = with_dependents(component)
    return _carry_out(
        url,
        going[0].database,
        lambda files, applied: reverting_steps(files, applied, going, cascade=cascade),
        record=record,
        progress=progress,
        sleep=sleep,
        root=root,
    )


def _carry_out(
    url: str,
    database: str,
    choose: Callable[[History, Sequence[Applied]], tuple[Step, ...]],
    *,
    record: Callable[[Step], None],
    progress: Callable[[str], None],
    sleep: Callable[[float], None],
    root: Path,
) -> tuple[Step, ...]:
    files = history(root)
    # Chosen once before anything is touched, so that a refusal leaves no trace, and again under the lock.
    with opened(url, purpose="migration plan", role=database) as looking:
        if not _chosen(looking, files, choose) and not _unrecorded(looking):
            return ()
    with session(url, database) as connection:
        run = _Run(connection, files, root, record, progress, sleep)
        steps = _chosen(run.raw, files, choose)
        for step in steps:
            _do(run, step)
            _hand_over(run)
        _hand_over(run)
    return steps


def _chosen(
    connection: psycopg.Connection[Any],
    files: History,
    choose: Callable[[History, Sequence[Applied]], tuple[Step, ...]],
) -> tuple[Step, ...]:
    with connection.transaction():
        applied = read_applied(connection)
    refuse_edited(files, applied)
    return choose(files, applied)


def _unrecorded(connection: psycopg.Connection[Any]) -> list[dict[str, Any]]:
    """The steps that `record` has not taken yet, oldest first."""
    ledger = queries("migrations")
    with connection.transaction():
        steps: list[dict[str, Any]] = ledger.unrecorded_steps(connection) if ledger.ledger_exists(connection) else []
    return steps


def _do(run: _Run, step: Step) -> None:
    """Do a step, trying again while somebody else holds a lock that it needs."""
    import psycopg  # noqa: PLC0415 - the code location loads without it
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

    doing = "Deploying" if step.direction == DEPLOY else "Reverting"
    run.progress(f"{doing} {step.title} ({_count(step.statements)}).")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _try(run, step)
        except (psycopg.Error, DBAPIError) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            if getattr(cause, "sqlstate", None) not in RETRIED:
                raise explain(cause, step) from error
            if attempt == ATTEMPTS:
                raise TransientError(
                    f"{step.title} did not get a lock in {ATTEMPTS} attempts, nothing of it was done: "
                    f"{_suspects(run)}; run it again when they are done."
                ) from error
            wait = FIRST_WAIT_SECONDS * 2 ** (attempt - 1)
            run.progress(f"{step.title} waits for a lock: attempt {attempt + 1} of {ATTEMPTS} in {wait:g} s.")
            run.sleep(wait)
        else:
            return


def _try(run: _Run, step: Step) -> None:
    migration = next(found for found in run.files[step.component] if found.revision == step.revision)
    schemas = SCHEMAS[COMPONENTS[step.component].database]
    before: list[dict[str, str]] = []

    def work(outside: OutsideTransaction) -> None:
        queries("migrations").begin_step(run.raw, lock_timeout=LOCK_TIMEOUT)
        before.extend(list_objects(run.raw, schemas))
        _run_file(run.raw, migration.deploy if step.direction == DEPLOY else migration.revert, outside)
        if step.direction == DEPLOY:
            with run.raw.transaction(force_rollback=True):
                run_verify(run.raw, migration, undone=migration.deploy.in_transaction)

    def note() -> None:
        _note(run.raw, step, before, list_objects(run.raw, schemas))

    run_step(run.connection, run.files, run.root, step, work=work, note=note)


def _run_file(raw: RawConnection, file: SqlFile, outside: OutsideTransaction) -> None:
    if file.in_transaction:
        # Without parameters the driver sends the file as it stands: many statements, percent signs and all.
        raw.execute(file.text.encode(), prepare=False)
        return
    with outside():
        queries("migrations").begin_session(raw, lock_timeout=LOCK_TIMEOUT)
        for statement in file.statements:
            raw.execute(statement.encode(), prepare=False)
    queries("migrations").begin_step(raw, lock_timeout=LOCK_TIMEOUT)


def _note(raw: RawConnection, step: Step, before: list[dict[str, str]], after: list[dict[str, str]]) -> None:
    """Write what was done into the ledger, in the transaction that did it."""
    ledger = queries("migrations")
    if step.direction == DEPLOY:
        ledger.add_applied(raw, component=step.component, revision=step.revision, name=step.name, sha256=step.sha256)
    else:
        ledger.remove_applied(raw, component=step.component, revision=step.revision)
    ledger.add_step(
        raw,
        component=step.component,
        revision=step.revision,
        name=step.name,
        direction=step.direction,
        file=step.path.name,
        sha256=step.sha256,
        statements=step.statements,
    )
    ledger.record_objects(raw, component=step.component, before=json.dumps(before), after=json.dumps(after))


def _hand_over(run: _Run) -> None:
    """Give every step that the audit log does not have yet to `record`, oldest first."""
    for row in _unrecorded(run.raw):
        step_id, file = row.pop("step_id"), row.pop("file")
        run.record(Step(path=run.root / row["component"] / file, **row))
        with run.raw.transaction():
            queries("migrations").mark_recorded(run.raw, step_id=step_id)


def _suspects(run: _Run) -> str:
    with run.raw.transaction():
        found = queries("migrations").blockers(run.raw)
    listed = ", ".join(
        f"session {row['pid']} ({row['application_name'] or 'unnamed'}, {row['state']})" for row in found
    )
    return f"look at {listed}" if listed else "no other session is in a transaction any more"


def _count(statements: int) -> str:
    return "1 statement" if statements == 1 else f"{statements} statements"
