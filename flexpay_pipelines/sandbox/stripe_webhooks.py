"""The sandbox account's webhooks: each event posted to one endpoint, signed as Stripe signs.

What belongs here: signing, posting in the background, a few retries, counts. What does not: recording events
(`stripe_store`).

What waits to be sent is kept in memory alone: a sandbox that is stopped forgets it; the listing of events has it still.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from queue import SimpleQueue

from flexpay_pipelines.sandbox.stripe_objects import State

ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.1
TIMEOUT_SECONDS = 10
_LAST_GOOD_STATUS = 299


def signature(payload: bytes, secret: str, at: int) -> str:
    """The header `Stripe-Signature` of a body that is sent at an instant (epoch seconds)."""
    digest = hmac.new(secret.encode(), f"{at}.".encode() + payload, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


class Webhooks:
    """Sends events from a thread of its own, one after the other."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[State, State]] = SimpleQueue()
        self._counts = {"offered": 0, "delivered": 0, "failed": 0}
        self._random = random.Random(0)  # noqa: S311 - an order, not a secret
        self._started = False

    def offer(self, events: Sequence[State], endpoint: State) -> None:
        """Send events to an endpoint: `url`, `secret`, `shuffled` (in any order), `repeated` (each of them twice)."""
        chosen = list(events) * (2 if endpoint.get("repeated") else 1)
        if endpoint.get("shuffled"):
            self._random.shuffle(chosen)
        for event in chosen:
            self._counts["offered"] += 1
            self._waiting.put((event, endpoint))
        if chosen and not self._started:
            self._started = True
            threading.Thread(target=self._send_all, daemon=True).start()

    def counts(self) -> dict[str, int]:
        """How many webhooks were `offered`, `delivered` (answered 2xx), `failed` (given up), and are `waiting`."""
        counted = dict(self._counts)
        return {**counted, "waiting": counted["offered"] - counted["delivered"] - counted["failed"]}

    def _send_all(self) -> None:
        while True:
            event, endpoint = self._waiting.get()
            payload = json.dumps(event).encode()
            taken = any(self._taken(payload, endpoint, attempt) for attempt in range(ATTEMPTS))
            self._counts["delivered" if taken else "failed"] += 1

    @staticmethod
    def _taken(payload: bytes, endpoint: State, attempt: int) -> bool:
        if attempt:
            time.sleep(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
        signed = signature(payload, endpoint["secret"], int(time.time()))
        headers = {"Stripe-Signature": signed, "Content-Type": "application/json; charset=utf-8"}
        request = urllib.request.Request(endpoint["url"], payload, headers)  # noqa: S310 - what the sandbox's user named
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 - as above
                return bool(answer.status <= _LAST_GOOD_STATUS)
        except (OSError, http.client.HTTPException):
            return False
