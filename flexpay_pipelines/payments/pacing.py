"""The pace of requests to Stripe: a token bucket for all of them together, and inside it one for each endpoint.

What belongs here: when the next request may be made. What does not: making it (`stripe_gateway`), what is done about a
429 all the same (`delivery`, and the gateway for pages).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

TEST_REQUESTS_PER_SECOND = 25.0
LIVE_REQUESTS_PER_SECOND = 100.0
# Seconds of the pace that a bucket saves up while nobody asks: enough to make up for a stall, too little for a burst.
_SAVED_SECONDS = 0.1


def allowed_by_key(api_key: str) -> float:
    """Requests a second that Stripe allows a key: 100 for a live one, 25 for any other."""
    return LIVE_REQUESTS_PER_SECOND if api_key.startswith(("sk_live_", "rk_live_")) else TEST_REQUESTS_PER_SECOND


class Bucket:
    """One token bucket: callers are let through in the order in which they came. Safe for several threads."""

    def __init__(self, per_second: float, sleep: Callable[[float], None]) -> None:
        self._interval = 1 / per_second
        self._saved = max(_SAVED_SECONDS - self._interval, 0.0)
        self._sleep = sleep
        self._lock = threading.Lock()
        self._next = time.monotonic()

    def wait(self) -> None:
        """Return when the next request may be made."""
        with self._lock:
            now = time.monotonic()
            mine = max(now - self._saved, self._next)
            self._next = mine + self._interval
        if mine > now:
            self._sleep(mine - now)


class Pace:
    """The bucket of all requests and those of the endpoints. Safe for several threads."""

    def __init__(
        self, per_second: float, per_endpoint: float | None = None, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """
        Args:
            per_second: of all requests together.
            per_endpoint: of one method and path template; None: as many as all together.
        """
        self.per_second = per_second
        self._per_endpoint = min(per_endpoint or per_second, per_second)
        self._sleep = sleep
        self._all = Bucket(per_second, sleep)
        self._lock = threading.Lock()
        self._endpoints: dict[str, Bucket] = {}

    def wait(self, endpoint: str) -> None:
        """Return when the next request to an endpoint, such as `POST /v1/subscriptions/{id}`, may be made."""
        if self._per_endpoint < self.per_second:
            with self._lock:
                bucket = self._endpoints.setdefault(endpoint, Bucket(self._per_endpoint, self._sleep))
            # Its turn at the endpoint first: a place in the common bucket is taken only by what can go at once.
            bucket.wait()
        self._all.wait()
