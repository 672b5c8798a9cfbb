"""Import of the data contract: a directory of CSV files into the billing database, all of it or nothing.

What belongs here: the order of the work (stage, check, type, compare, load, project) and its one transaction.
What does not: the shape of the files (`import_contract`), reading CSV (`import_reading`), any rule about a value or a
row, all of which stand in sql/queries/importing*.sql.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexpay_pipelines.billing.import_contract import (
    CONTRACT,
    FILE_NAMES,
    SHOWN_PROBLEMS,
    BadRows,
    ContractFile,
    RowProblem,
)
from flexpay_pipelines.billing.import_reading import stage_file
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection, advisory_lock
from flexpay_pipelines.errors import BadInput, PermanentError, TransientError, disk_errors
from flexpay_pipelines.sql import queries

LOCK = "flexpay import"
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FileCounts:
    """Rows of one file: all of them, those that were new, and those that the database (or an earlier line) had."""

    rows: int
    new: int
    known: int


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import did, or (`dry_run`) would have done: counts by file name, in the order of loading."""

    files: Mapping[str, FileCounts]
    seconds: float
    dry_run: bool = False


def import_directory(
    connection: Connection, folder: Path, *, clock: Clock, progress: Progress, dry_run: bool = False
) -> ImportResult:
    """Import the files of the data contract that `folder` holds, in one transaction.

    Rows that are known already are left alone, so that the same directory twice imports once. With `dry_run`
    everything is done and then taken back.

    Raises:
        BadRows: a BadInput that names every bad row in `problems`; nothing was imported.
        BadInput: no such folder, no file of the contract in it, or a component that a file needs is not deployed.
        PermanentError: the component core is not deployed, or a file cannot be read.
        TransientError: another import is at work, the connection was lost, or somebody changed the same rows.
    """
    import psycopg  # noqa: PLC0415 - the code location loads without it

    began = time.perf_counter()
    present = _files_of(folder, progress)
    try:
        with advisory_lock(connection, LOCK), connection.transaction():
            components = _deployed(connection, present)
            rows = _stage(connection, folder, present, progress)
            _check(connection, components, progress)
            new = _load(connection, present, components, clock, progress)
            if dry_run:
                raise psycopg.Rollback
    except psycopg.OperationalError as error:
        raise TransientError(
            f"Nothing was imported, the database gave up: {_one_line(error)}. Run the import again."
        ) from error
    except psycopg.IntegrityError as error:
        raise TransientError(
            f"Nothing was imported, somebody changed the same rows meanwhile: {_one_line(error)}. Run the import again."
        ) from error
    counts = {
        file.name: FileCounts(rows[file.name], new[file.name], rows[file.name] - new[file.name]) for file in present
    }
    for name, count in counts.items():
        progress(f"{name}: {count.rows} rows, {count.new} new, {count.known} known already.")
    return ImportResult(counts, time.perf_counter() - began, dry_run)


def _files_of(folder: Path, progress: Progress) -> list[ContractFile]:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise BadInput(f"{folder} {what}: give the folder that holds {', '.join(FILE_NAMES)}.")
    with disk_errors("looking for files to import"):
        found = {path.name for path in folder.iterdir()}
    present = [file for file in CONTRACT if file.name in found]
    others = sorted(name for name in found - set(FILE_NAMES) if name.lower().endswith(".csv"))
    if not present:
        instead = f" (found: {', '.join(others)})" if others else ""
        raise BadInput(f"{folder} holds none of the files {', '.join(FILE_NAMES)}{instead}.")
    if others:
        progress(f"Left out, not a file of the data contract: {', '.join(others)}.")
    return present


def _deployed(connection: Connection, present: list[ContractFile]) -> set[str]:
    sql = queries("importing")
    if not sql.has_core(connection):
        raise PermanentError("The component core is not deployed on this database: run flexpay deploy first.")
    components = {row["component"] for row in sql.deployed_components(connection)}
    for file in present:
        if file.component is not None and file.component not in components:
            raise BadInput(
                f"{file.name} needs the component {file.component}, which is not deployed: "
                "run flexpay deploy first, or leave the file out. Nothing was imported."
            )
    return components


def _stage(connection: Connection, folder: Path, present: list[ContractFile], progress: Progress) -> dict[str, int]:
    """Read the files into staging tables, an empty one for each file that is absent."""
    queries("importing_values").make_checks(connection)
    problems: list[RowProblem] = []
    rows: dict[str, int] = {}
    unreadable = False
    for file in CONTRACT:
        _make_staging(connection, file)
        if file in present:
            progress(f"Reading {file.name}.")
            staged = stage_file(connection, folder / file.name, file, problems)
            unreadable = unreadable or staged is None
            rows[file.name] = staged or 0
    if unreadable:
        # Without a header the rows of a file are unknown: every reference to them would look wrong.
        raise BadRows(problems, len(problems))
    with connection.cursor() as cursor, cursor.copy(_copy_problems()) as copy:
        for problem in problems:
            copy.write_row((problem.file, problem.line, problem.column, problem.reason))
    return rows


def _make_staging(connection: Connection, file: ContractFile) -> None:
    from psycopg import sql  # noqa: PLC0415 - the code location loads without it

    table = sql.Identifier("pg_temp", file.staging)
    columns = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(name)) for name in file.columns)
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table))
    connection.execute(
        sql.SQL("CREATE TEMPORARY TABLE {} (line integer NOT NULL, {}) ON COMMIT DROP").format(
            sql.Identifier(file.staging), columns
        )
    )


def _copy_problems() -> Any:
    from psycopg import sql  # noqa: PLC0415 - the code location loads without it

    return sql.SQL('COPY pg_temp.import_problems (file, line, "column", reason) FROM STDIN')


def _check(connection: Connection, components: set[str], progress: Progress) -> None:
    """Find every fault; values first, then rows against each other and against the database."""
    sql, values, rows = queries("importing"), queries("importing_values"), queries("importing_rows")
    progress("Checking the rows.")
    for check in (
        values.check_plans, values.check_customers, values.check_subscription_events, values.check_pauses,
        values.check_payments, values.check_rewards, values.check_fx_rates, values.type_rows, rows.name_parties,
        rows.compare_plans, rows.compare_customers, rows.compare_stripe_customers, rows.compare_subscription_events,
        rows.compare_payments, rows.place_payments, rows.compare_rewards, rows.compare_fx_rates,
    ):  # fmt: skip
        check(connection)
    if "pauses" in components:
        rows.place_pauses(connection)
        rows.compare_pauses(connection)
        rows.find_overlapping_pauses(connection)
    if "rewards" in components:
        rows.new_rewards(connection)
        rows.find_overdrawn_rewards(connection)
    total = values.problem_count(connection)
    if total:
        found = values.first_problems(connection, files=list(FILE_NAMES), most=SHOWN_PROBLEMS)
        raise BadRows([RowProblem(**row) for row in found], total)
    if "frequencies" not in components and sql.pays_otherwise_than_monthly(connection):
        raise BadInput(
            "subscription_events.csv has payment frequencies other than MONTHLY, which need the component frequencies: "
            "run flexpay deploy first. Nothing was imported."
        )


def _load(
    connection: Connection, present: list[ContractFile], components: set[str], clock: Clock, progress: Progress
) -> dict[str, int]:
    """Write what is new, and project the subscriptions that it touches; the number of new rows by file."""
    sql = queries("importing")
    now = clock.now()
    progress("Loading the rows that are new.")
    new = {
        "plans.csv": sql.load_plans(connection),
        "customers.csv": sql.load_customers(connection, now=now),
        "subscription_events.csv": _load_history(connection, components, clock),
    }
    if "pauses" in components:
        new["pauses.csv"] = sql.load_pauses(connection, now=now)
    if "rewards" in components:
        new["rewards.csv"] = sql.load_rewards(connection, now=now)
    new["payments.csv"] = sql.load_payments(connection, now=now)
    new["fx_rates.csv"] = sql.load_fx_rates(connection)
    return {file.name: new[file.name] for file in present}


def _load_history(connection: Connection, components: set[str], clock: Clock) -> int:
    sql = queries("importing")
    now = clock.now()
    sql.history_is_given(connection)
    sql.load_plan_prices(connection)
    sql.load_subscriptions(connection)
    sql.make_touched(connection)
    events: int = sql.load_subscription_events(connection, now=now)
    sql.lock_touched(connection)
    sql.make_projection(connection)
    sql.project_subscriptions(connection, now=now)
    if "frequencies" in components:
        sql.project_frequencies(connection)
    sql.history_is_written(connection)
    return events


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
