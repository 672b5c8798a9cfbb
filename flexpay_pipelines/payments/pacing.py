"""The pace of requests to Stripe: a token bucket for all of them together, and inside it one for each endpoint.

What belongs here: when the next request may be made, by this process or, with `SharedPace`, by all of the installation.
What does not: making it (`stripe_gateway`), what is done about a 429 all the same (`delivery`, and the gateway for
pages).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias

from flexpay_pipelines.errors import DatabaseUnavailable
from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    from flexpay_pipelines.database import Connection

TEST_REQUESTS_PER_SECOND = 25.0
LIVE_REQUESTS_PER_SECOND = 100.0
# Seconds of the pace that a bucket saves up while nobody asks: enough to make up for a stall, too little for a burst.
_SAVED_SECONDS = 0.1
# A process reserves what it uses up within a tenth of a second; killed, it takes no more than that with it.
_BLOCK_SECONDS = 0.1
_LARGEST_BLOCK = 100
# No queue is that long: every process has some dozens of threads that wait.
_LONGEST_QUEUE = 1000
_SILENT_SECONDS = 30.0
_ALL = "all"

# Of a bucket, a number of slots and the seconds between them: seconds to the first; None where nobody can say.
Reserve: TypeAlias = Callable[[str, int, float], float | None]


def allowed_by_key(api_key: str) -> float:
    """Requests a second that Stripe allows a key: 100 for a live one, 25 for any other."""
    return LIVE_REQUESTS_PER_SECOND if api_key.startswith(("sk_live_", "rk_live_")) else TEST_REQUESTS_PER_SECOND


class SharedPace:
    """The pace as all processes have it: slots reserved in the billing database, by its clock. Safe for threads.

    A reservation is one statement of its own, so that a process that is killed holds nothing. Where the database does
    not answer, or does not know of it yet, nobody waits for that: each process keeps its own pace for a while.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        """
        Args:
            connect: opens a connection to the billing database, for this alone.
        """
        self._connect = connect
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._silent_until = 0.0

    def reserve(self, bucket: str, slots: int, interval: float) -> float | None:
        """Reserve the next slots of a bucket; seconds to the first of them, or None."""
        import psycopg  # noqa: PLC0415 - the code location loads without it

        with self._lock:
            if time.monotonic() < self._silent_until:
                return None
            try:
                first: float = queries("payments_pacing").reserve(
                    self._opened(),
                    bucket=bucket,
                    slots=slots,
                    interval=timedelta(seconds=interval),
                    saved=timedelta(seconds=_saved(interval)),
                    longest=timedelta(seconds=_LONGEST_QUEUE * interval),
                )
            except (psycopg.Error, DatabaseUnavailable):
                self._silent_until = time.monotonic() + _SILENT_SECONDS
                self._close()
                return None
            return first

    def close(self) -> None:
        """Close the connection, where there is one."""
        with self._lock:
            self._close()

    def _opened(self) -> Connection:
        if self._connection is None:
            self._connection = self._connect()
            queries("payments_pacing").be_brief(self._connection)
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Bucket:
    """One token bucket: callers are let through in the order in which they came. Safe for several threads."""

    def __init__(
        self, per_second: float, sleep: Callable[[float], None], *, name: str = _ALL, shared: Reserve | None = None
    ) -> None:
        """
        Args:
            per_second: how many are let through.
            name: what the other processes call it.
            shared: reserves slots among all processes; None: this process has the bucket for itself.
        """
        self._interval = 1 / per_second
        self._saved = _saved(self._interval)
        self._most = min(max(int(per_second * _BLOCK_SECONDS), 1), _LARGEST_BLOCK)
        self._sleep = sleep
        self._name = name
        self._shared = shared
        self._lock = threading.Lock()
        self._next = self._good_until = time.monotonic()
        self._left = 0
        self._block = 1

    def wait(self) -> None:
        """Return when the next request may be made."""
        with self._lock:
            now = time.monotonic()
            if self._left == 0 or now > self._good_until:
                now = self._take(now)
            mine = self._next
            self._next += self._interval
            self._left -= 1
        if mine > now:
            self._sleep(mine - now)

    def _take(self, now: float) -> float:
        """Reserve the next slots, twice as many while they are used up in time, else half as many; the time it is."""
        used_up = self._left == 0 and now <= self._good_until
        self._block = min(2 * self._block, self._most) if used_up else max(self._block // 2, 1)
        first = None if self._shared is None else self._shared(self._name, self._block, self._interval)
        now = time.monotonic()
        if first is None:
            self._next, self._left = max(now - self._saved, self._next), 1
        else:
            self._next, self._left = now + first, self._block
        # What was not used by then lapses: a process would else save up a burst of its own.
        self._good_until = max(now, self._next + self._left * self._interval) + _BLOCK_SECONDS
        return now


class Pace:
    """The bucket of all requests and those of the endpoints. Safe for several threads."""

    def __init__(
        self,
        per_second: float,
        per_endpoint: float | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        shared: Reserve | None = None,
    ) -> None:
        """
        Args:
            per_second: of all requests together.
            per_endpoint: of one method and path template; None: as many as all together.
            shared: reserves slots among all processes; None: the pace is this process's own.
        """
        self.per_second = per_second
        self._per_endpoint = min(per_endpoint or per_second, per_second)
        self._sleep = sleep
        self._shared = shared
        self._all = Bucket(per_second, sleep, shared=shared)
        self._lock = threading.Lock()
        self._endpoints: dict[str, Bucket] = {}

    def wait(self, endpoint: str) -> None:
        """Return when the next request to an endpoint, such as `POST /v1/subscriptions/{id}`, may be made."""
        if self._per_endpoint < self.per_second:
            with self._lock:
                bucket = self._endpoints.get(endpoint)
                if bucket is None:
                    bucket = Bucket(self._per_endpoint, self._sleep, name=endpoint, shared=self._shared)
                    self._endpoints[endpoint] = bucket
            # Its turn at the endpoint first: a place in the common bucket is taken only by what can go at once.
            bucket.wait()
        self._all.wait()


def _saved(interval: float) -> float:
    return max(_SAVED_SECONDS - interval, 0.0)
