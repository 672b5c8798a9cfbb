"""The first refresh of a large company in two sessions: each computes its share of the customers, one stores both.

What belongs here: the second session, its snapshot, what it hands over. What does not: what is computed (`workspace`)
and stored (`refresh`). PostgreSQL neither writes nor runs windows in parallel, and figures of customers only add up;
so two sessions do what one cannot. Everything is stored by the first one, in its transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from flexpay_pipelines.analytics.policy import MetricPolicy
from flexpay_pipelines.analytics.workspace import Workspace, lasting_workspace, set_up
from flexpay_pipelines.database import Connection, beside, copied
from flexpay_pipelines.errors import DatabaseUnavailable
from flexpay_pipelines.sql import queries

WORTHWHILE = 50_000
"""Subscriptions from which on a second session saves more than it costs."""

# Ours also stores what both compute: three of seven are fastest. Not by equality, of which the planner expects next to
# nothing.
_OURS, _THEIRS = "customer_id % 7 < 3", "customer_id % 7 >= 3"

Step = Callable[[Workspace], object]


@dataclass(frozen=True, slots=True)
class _There:
    """What the second session works with; its one thread takes the steps one after the other."""

    connection: Connection
    policy: MetricPolicy
    snapshot: str
    thread: ThreadPoolExecutor


@dataclass(slots=True)
class SecondSession:
    """The session that computes the other customers; without one nothing happens here.

    Its workspace lasts as long as its connection, each of its steps is a transaction.
    """

    there: _There | None = None
    _work: Workspace | None = None
    _staged: Future[None] | None = None
    _running: list[Future[None]] = field(default_factory=list)

    def stage(self, step: Step) -> None:
        """Begin with the intervals there, and with a step that stages what comes of them; come back at once."""
        if self.there is not None:
            self._staged = self.there.thread.submit(self._stage, self.there, step)

    def _stage(self, there: _There, step: Step) -> None:
        from psycopg import IsolationLevel, sql  # noqa: PLC0415 - the code location loads without it

        connection = there.connection
        with connection.transaction():
            connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(there.snapshot)))
            queries("analytics_second_session").forget_staged(connection)
            work = lasting_workspace(connection, there.policy, share=_THEIRS, table="staged_intervals")
            work.replay_everything()
            connection.execute("ANALYZE analytics.staged_intervals")
            work = replace(work, share="TRUE")
            work.see_stored()
            step(work)
        # The snapshot is older than what is staged, and the steps to come read nothing else that could have changed.
        connection.isolation_level = IsolationLevel.READ_COMMITTED
        self._work = work

    def start(self, step: Step) -> None:
        """Begin a step there after those before it, and come back at once."""
        if self.there is not None:
            self._running.append(self.there.thread.submit(self._run, self.there, step))

    def _run(self, there: _There, step: Step) -> None:
        if self._work is None:
            raise RuntimeError("nothing is staged")
        with there.connection.transaction():
            set_up(there.connection)
            step(self._work)

    def wait_for_staged(self) -> None:
        """Wait for what is staged: the first session can read it from then on."""
        if self._staged is not None:
            self._staged.result()

    def pour(self, connection: Connection, theirs: str, ours: str) -> None:
        """Wait for what was started, and add the rows of its relation to ours of the same columns."""
        from psycopg import sql  # noqa: PLC0415

        while self._running:
            self._running.pop(0).result()
        if self.there is None:
            return
        read = sql.SQL("COPY (SELECT * FROM {}) TO STDOUT (FORMAT binary)").format(sql.Identifier(theirs))
        write = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(sql.Identifier(ours))
        receiver = connection.cursor()
        with copied(self.there.connection, read) as blocks, receiver.copy(write) as into:
            for block in blocks:
                into.write(block)


@contextmanager
def shared_out(work: Workspace, *, possible: bool) -> Iterator[tuple[Workspace, SecondSession]]:
    """The workspace, and the second session if all of a large ledger is read for the first time.

    `possible`: nobody but this refresh is at work in the transaction, so that another session sees the same ledger.
    """
    from psycopg import IsolationLevel  # noqa: PLC0415

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
    with connection, ThreadPoolExecutor(1, "second session") as thread:
        ours = replace(work, share=_OURS)
        ours.see_stored()
        try:
            yield ours, SecondSession(_There(connection, work.policy, snapshot, thread))
        except BaseException:
            thread.shutdown(wait=False, cancel_futures=True)
            connection.cancel_safe()
            raise
    named.forget_staged(work.connection)
