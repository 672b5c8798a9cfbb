"""The first refresh of a large company in two sessions: each computes its share of the customers, one stores both.

What belongs here: the second session, its snapshot, what it hands over. What does not: what is computed (`workspace`)
and stored (`refresh`). PostgreSQL neither writes nor runs windows in parallel, and figures of customers only add up;
so two sessions do what one cannot. Everything is stored by the first one, in its transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from flexpay_pipelines.analytics.policy import MetricPolicy
from flexpay_pipelines.analytics.workspace import Workspace, stored_workspace
from flexpay_pipelines.database import Connection, beside, copied
from flexpay_pipelines.errors import DatabaseUnavailable
from flexpay_pipelines.sql import queries

WORTHWHILE = 50_000
"""Subscriptions from which on a second session saves more than it costs."""

# Half each: ours stores and indexes what theirs has to send. Not by equality, of which the planner expects next to nothing.
_OURS, _THEIRS = "customer_id % 7 < 3", "customer_id % 7 >= 3"
_STAGED = "staged_intervals"


@dataclass(slots=True)
class SecondSession:
    """The session that computes the other customers; without one nothing happens here."""

    pool: ThreadPoolExecutor | None = None
    work: Workspace | None = None
    _intervals: Future[None] | None = None
    _running: list[Future[object]] = field(default_factory=list)

    def start(self, step: Callable[[Workspace], object]) -> None:
        """Begin a step there, after those before it, and come back at once."""
        if self.pool is not None:
            self._running.append(self.pool.submit(lambda: step(self._workspace())))

    def replay(self, connection: Connection, policy: MetricPolicy, snapshot: str, life: ExitStack) -> None:
        """Begin with the intervals: committed where the first session reads them, and where all else there reads them.

        `life` ends the workspace of the other steps.
        """
        if self.pool is not None:
            self._intervals = self.pool.submit(self._replay, connection, policy, snapshot, life)

    def _replay(self, connection: Connection, policy: MetricPolicy, snapshot: str, life: ExitStack) -> None:
        from psycopg import IsolationLevel, sql  # noqa: PLC0415 - the code location loads without it

        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        with connection.transaction():
            connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
            with stored_workspace(connection, policy, share=_THEIRS, table=_STAGED) as work:
                queries("analytics_second_session").forget_staged(connection)
                work.replay_everything()
                connection.execute("ANALYZE analytics.staged_intervals")
        # The snapshot is older than the intervals, and nothing else is read that could have changed.
        connection.isolation_level = IsolationLevel.READ_COMMITTED
        self.work = life.enter_context(stored_workspace(connection, policy, table=_STAGED))

    def _workspace(self) -> Workspace:
        if self.work is None:
            raise RuntimeError("the second session has no intervals")
        return self.work

    def store_intervals(self, connection: Connection) -> None:
        """Wait for the intervals from there, and add them to the stored ones."""
        if self._intervals is not None:
            self._intervals.result()
            queries("analytics_second_session").store_staged(connection)

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
    with connection, ThreadPoolExecutor(1, "second session") as pool, ExitStack() as life:
        second = SecondSession(pool)
        second.replay(connection, work.policy, snapshot, life)
        ours = replace(work, share=_OURS)
        ours.see_stored()
        try:
            yield ours, second
        except BaseException:
            connection.cancel_safe()
            raise
    named.forget_staged(work.connection)
