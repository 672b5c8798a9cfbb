"""The first refresh of a large company in two sessions: each computes its share of the customers, one stores both.

What belongs here: the second session, its snapshot, the streams from it. What does not: what is computed (`workspace`)
and stored (`refresh`). PostgreSQL neither writes nor runs windows in parallel, and figures of customers only add up;
so two sessions do what one cannot. Everything is stored by the first one, in its transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from flexpay_pipelines.analytics.workspace import Workspace, empty_workspace
from flexpay_pipelines.database import Connection, beside, copied
from flexpay_pipelines.errors import DatabaseUnavailable
from flexpay_pipelines.sql import queries

WORTHWHILE = 50_000
"""Subscriptions from which on a second session saves more than it costs."""

# Ours also stores what both compute and builds the indexes, but theirs has to be sent. Of a million subscriptions, half
# took ours 64 s of processor time against 51, 9 of 20 customers 60 against 53; with a third it was slower again.
_OURS, _THEIRS = "customer_id % 2 = 0", "customer_id % 2 = 1"


@dataclass(slots=True)
class SecondSession:
    """The session that computes the other customers; without one nothing happens here."""

    work: Workspace | None = None
    pool: ThreadPoolExecutor | None = None
    _running: list[Future[object]] = field(default_factory=list)

    def start(self, step: Callable[[Workspace], object]) -> None:
        """Begin a step there and come back at once."""
        if self.work is not None and self.pool is not None:
            self._running.append(self.pool.submit(step, self.work))

    def finish(self) -> None:
        """Wait for all that was started; what went wrong there is raised here."""
        while self._running:
            self._running.pop(0).result()

    def pour(self, connection: Connection, theirs: str, ours: str) -> int:
        """Wait for what was started, and add the rows of its relation to ours of the same columns; gives how many."""
        from psycopg import sql  # noqa: PLC0415 - the code location loads without it

        self.finish()
        if self.work is None:
            return 0
        read = sql.SQL("COPY (SELECT * FROM {}) TO STDOUT (FORMAT binary)").format(sql.Identifier(theirs))
        write = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(sql.Identifier(*ours.split(".")))
        receiver = connection.cursor()
        with copied(self.work.connection, read) as blocks, receiver.copy(write) as into:
            for block in blocks:
                into.write(block)
        return receiver.rowcount


@contextmanager
def shared_out(work: Workspace, *, possible: bool) -> Iterator[tuple[Workspace, SecondSession]]:
    """The workspace, and the second session if all of a large ledger is read for the first time.

    `possible`: nobody but this refresh is at work in the transaction, so that another session sees the same ledger.
    """
    from psycopg import IsolationLevel, sql  # noqa: PLC0415

    named = queries("analytics_second_session")
    if not possible or not named.is_first_and_large(work.connection, subscriptions=WORTHWHILE):
        yield work, SecondSession()
        return
    snapshot = named.export_snapshot(work.connection)
    try:
        connection = beside(work.connection, purpose="analytics, second session")
    except DatabaseUnavailable:
        yield work, SecondSession()
        return
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    with connection, ThreadPoolExecutor(1, "second session") as pool, connection.transaction():
        connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
        with empty_workspace(connection, work.policy, share=_THEIRS) as theirs:
            ours = replace(work, share=_OURS)
            ours.see_stored()
            try:
                yield ours, SecondSession(theirs, pool)
            except BaseException:
                connection.cancel_safe()
                raise
