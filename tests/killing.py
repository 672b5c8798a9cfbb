"""Work that is killed: it runs in a process of its own, which sends itself SIGKILL at the n-th point that it passes.

The points are found by listening in: before and after every message to PostgreSQL and every request to Stripe. Those
around a commit are marked as such, by what the server says of the transaction.
"""

from __future__ import annotations

import http.client
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from typing import Any

import psycopg

from flexpay_pipelines.database import opened

KILLED = "killed"
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["flexpay_pipelines.billing", "flexpay_pipelines.payments", "psycopg", "stripe"])


class Points:
    """Counts the points passed, tells of each, and kills the process at the chosen one (0: nowhere)."""

    def __init__(self, last: int, tell: Callable[[str], None]) -> None:
        self._last = last
        self._passed = 0
        self._tell = tell
        self._lock = threading.Lock()

    def listen(self) -> None:
        """Hear of every point from now on."""
        waiting: Callable[..., Any] = psycopg.Connection.wait

        def wait(connection: psycopg.Connection, *arguments: Any, **given: Any) -> Any:
            self._point("before message")
            answer = waiting(connection, *arguments, **given)
            idle = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            self._point("after commit" if idle else "after message")
            return answer

        setattr(psycopg.Connection, "wait", wait)  # noqa: B010 - a method may not be assigned
        self._listen_to_requests()

    def _listen_to_requests(self) -> None:
        answering = http.client.HTTPConnection.getresponse

        def getresponse(connection: http.client.HTTPConnection) -> Any:
            # The request is with Stripe; its answer is not with us yet.
            self._point("before answer")
            answer = answering(connection)
            self._point("after answer")
            return answer

        setattr(http.client.HTTPConnection, "getresponse", getresponse)  # noqa: B010 - as above

    def _point(self, kind: str) -> None:
        with self._lock:
            self._passed += 1
            self._tell(kind)
            if self._passed == self._last:
                os.kill(os.getpid(), signal.SIGKILL)


def _work(work: Callable[..., object], arguments: tuple[Any, ...], last: int, pipe: Pipe) -> None:
    points = Points(last, pipe.send)
    points.listen()
    work(*arguments)
    sys.stdout.flush()


def points_of(work: Callable[..., object], *arguments: Any) -> list[str]:
    """Every point that the work passes when nothing kills it, by kind."""
    code, passed = _run(work, arguments, 0)
    assert code == 0, f"the work failed by itself: exit code {code}"
    return passed


def commits_in(points: list[str]) -> list[int]:
    """The numbers of the points just before and just after each commit."""
    after = [number for number, kind in enumerate(points, 1) if kind == "after commit"]
    return sorted({number for each in after for number in (each - 1, each)})


def kill(work: Callable[..., object], *arguments: Any, at: int) -> bool:
    """Run the work and kill it at a point; whether it lived to see it: threads do not pass as many each time."""
    code, _ = _run(work, arguments, at)
    assert code in (0, -signal.SIGKILL), f"the work failed by itself: exit code {code}"
    return code == -signal.SIGKILL


def _run(work: Callable[..., object], arguments: tuple[Any, ...], last: int) -> tuple[int, list[str]]:
    ours, theirs = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(target=_work, args=(work, arguments, last, theirs))
    process.start()
    theirs.close()
    passed = []
    try:
        while True:
            passed.append(ours.recv())
    except EOFError:
        process.join()
    assert process.exitcode is not None
    return process.exitcode, passed


def wait_until_gone(url: str) -> None:
    """Return when the server has noticed that the killed process is not there any more."""
    alive = "SELECT count(*) AS n FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()"
    with opened(url, purpose="test") as connection:
        while connection.execute(alive, (f"flexpay {KILLED}",)).fetchone() != {"n": 0}:
            time.sleep(0.01)
