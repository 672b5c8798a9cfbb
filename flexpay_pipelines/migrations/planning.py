"""What is deployed, what would be done next, and whether the files still say what was run.

What belongs here: reading the engine's memory in a database and comparing it with the files. What does not: changing
anything (`engine`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexpay_pipelines.database import BILLING, opened
from flexpay_pipelines.errors import BadInput, PermanentError
from flexpay_pipelines.migrations.components import COMPONENTS, Component, with_dependencies, with_dependents
from flexpay_pipelines.migrations.files import History, Migration, history
from flexpay_pipelines.sql import MIGRATIONS_ROOT, queries

if TYPE_CHECKING:
    import psycopg

DEPLOY = "deploy"
REVERT = "revert"


@dataclass(frozen=True, slots=True)
class Step:
    """One file to run: `direction` is `deploy` or `revert`; path, SHA-256 and number of statements are that file's."""

    component: str
    revision: str
    name: str
    direction: str
    path: Path
    sha256: str
    statements: int

    @property
    def title(self) -> str:
        """The step's revision as a person reads it."""
        return f"{self.component} {self.revision} {self.name}"


@dataclass(frozen=True, slots=True)
class ComponentStatus:
    """Where a component stands: revisions are four digits or None; `edited` names applied files that were changed."""

    component: str
    current: str | None
    newest: str | None
    pending: int
    edited: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Applied:
    """A revision that is deployed, with the SHA-256 of the file that deployed it."""

    component: str
    revision: str
    name: str
    sha256: str


def plan_deploy(url: str, components: Sequence[str], *, root: Path = MIGRATIONS_ROOT) -> tuple[Step, ...]:
    """The steps that `deploy` would do, in order: dependencies first. Changes nothing.

    Raises:
        BadInput: a component is unknown, or they live in different databases.
        PermanentError: an applied file was edited or is gone, or a file is unusable.
        DatabaseUnavailable: the database cannot be reached.
    """
    wanted = with_dependencies(components)
    if not wanted:
        return ()
    files = history(root)
    with opened(url, purpose="migration plan", role=wanted[0].database) as connection:
        applied = read_applied(connection)
    refuse_edited(files, applied)
    return pending_steps(files, applied, wanted)


def plan_revert(url: str, component: str, *, cascade: bool = False, root: Path = MIGRATIONS_ROOT) -> tuple[Step, ...]:
    """The steps that `revert` would do, in order: newest first, dependents before what they depend on. Changes nothing.

    Raises:
        BadInput: the component is unknown, or others that are deployed depend on it and `cascade` is not set.
        PermanentError: an applied file was edited or is gone, or a file is unusable.
        DatabaseUnavailable: the database cannot be reached.
    """
    going = with_dependents(component)
    files = history(root)
    with opened(url, purpose="migration plan", role=going[0].database) as connection:
        applied = read_applied(connection)
    refuse_edited(files, applied)
    return reverting_steps(files, applied, going, cascade=cascade)


def status(url: str, database: str, *, root: Path = MIGRATIONS_ROOT) -> tuple[ComponentStatus, ...]:
    """Where each component of a database (`billing` or `control`) stands, in deployment order.

    Raises:
        PermanentError: a file is unusable.
        DatabaseUnavailable: the database cannot be reached.
    """
    files = history(root)
    with opened(url, purpose="migration status", role=database) as connection:
        applied = read_applied(connection)
    return tuple(
        ComponentStatus(
            component=name,
            current=_newest(row.revision for row in applied if row.component == name),
            newest=_newest(migration.revision for migration in files[name]),
            pending=len(pending_steps(files, applied, (component,))),
            edited=edited_files(files, [row for row in applied if row.component == name]),
        )
        for name, component in COMPONENTS.items()
        if component.database == database
    )


def deployed(url: str, *, database: str = BILLING) -> dict[str, str]:
    """The newest deployed revision (four digits) of each component there; `database` names the setting in an error.

    Raises:
        DatabaseUnavailable: the database cannot be reached.
    """
    with opened(url, purpose="deployed revisions", role=database) as connection:
        return {row.component: row.revision for row in read_applied(connection)}


def read_applied(connection: psycopg.Connection[Any]) -> tuple[Applied, ...]:
    """The deployed revisions, oldest first within each component; none where nothing was ever deployed.

    Raises:
        PermanentError: Alembic's version table and ours do not agree.
    """
    if not queries("migrations").ledger_exists(connection):
        return ()
    applied = tuple(Applied(**row) for row in queries("migrations").applied(connection))
    keys = {f"{row.component}_{row.revision}" for row in applied}
    strangers = sorted(set(queries("migrations").version_heads(connection)) - keys)
    if strangers:
        raise PermanentError(
            f"The migration ledger was changed by hand: alembic_version has {', '.join(strangers)}, which the engine "
            "did not apply. Restore schema migrations from a backup."
        )
    return applied


def edited_files(files: History, applied: Iterable[Applied]) -> tuple[str, ...]:
    """What is wrong with the files of applied revisions: edited since, or gone."""
    present = {(migration.component, migration.revision): migration for name in files for migration in files[name]}
    wrong = []
    for row in applied:
        migration = present.get((row.component, row.revision))
        if migration is None:
            wrong.append(f"{row.component}/{row.revision}_{row.name}.deploy.sql")
        elif migration.deploy.sha256 != row.sha256:
            wrong.append(f"{row.component}/{migration.deploy.path.name}")
    return tuple(wrong)


def refuse_edited(files: History, applied: Iterable[Applied]) -> None:
    """Go on only if every applied file is as it was when it was applied.

    Raises:
        PermanentError: naming the files that are not.
    """
    wrong = edited_files(files, applied)
    if wrong:
        raise PermanentError(
            f"Applied migrations were edited or removed since: {', '.join(wrong)}. Put them back as they were "
            "(git checkout), and write what is to change as a new migration."
        )


def pending_steps(files: History, applied: Iterable[Applied], wanted: Sequence[Component]) -> tuple[Step, ...]:
    """What is still to be deployed of these components, in their order."""
    done = {(row.component, row.revision) for row in applied}
    return tuple(
        as_step(migration, DEPLOY)
        for component in wanted
        for migration in files[component.name]
        if (component.name, migration.revision) not in done
    )


def reverting_steps(
    files: History, applied: Sequence[Applied], going: Sequence[Component], *, cascade: bool
) -> tuple[Step, ...]:
    """What is to be reverted of these components; the last of them is the one that was asked for.

    Raises:
        BadInput: another one is deployed and `cascade` is not set.
    """
    asked = going[-1].name
    deployed_here = {row.component for row in applied}
    others = [component.name for component in going if component.name in deployed_here and component.name != asked]
    if asked in deployed_here and others and not cascade:
        dependents = f"{', '.join(others)} {'depends' if len(others) == 1 else 'depend'}"
        raise BadInput(f"{dependents} on {asked} and would go with it: revert that first, or ask for it with cascade.")
    done = {(row.component, row.revision) for row in applied}
    return tuple(
        as_step(migration, REVERT)
        for component in going
        if asked in deployed_here
        for migration in reversed(files[component.name])
        if (component.name, migration.revision) in done
    )


def as_step(migration: Migration, direction: str) -> Step:
    """The step that runs a migration in a direction."""
    file = migration.deploy if direction == DEPLOY else migration.revert
    return Step(
        migration.component, migration.revision, migration.name, direction, file.path, file.sha256, len(file.statements)
    )


def _newest(revisions: Iterable[str]) -> str | None:
    return max(revisions, default=None)
