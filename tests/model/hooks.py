"""Stripe's webhooks: events posted to the product's own handler, in any order, more than once, forged ones among them.

What belongs here: posting, and what the handler must answer. What does not: what follows from an event (`world`).

The handler is the application that `flexpay webhook` serves, asked without a socket; its follower does not run, so that
a sequence decides when what follows is worked out.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from flexpay_pipelines.database import Connection
from flexpay_pipelines.payments.webhook import PATH, webhook_application
from flexpay_pipelines.sandbox.stripe_webhooks import signature

SECRET = "whsec_of_the_model"


def post(connection: Connection, events: Sequence[dict[str, Any]]) -> None:
    """Post signed events one after the other; each is taken in. The first comes once more with a forged signature."""

    @contextmanager
    def connections() -> Iterator[Connection]:
        yield connection

    asyncio.run(_post(connections, events))


async def _post(connections: Any, events: Sequence[dict[str, Any]]) -> None:
    application = webhook_application(secrets=[SECRET], connections=connections, follow=lambda _: None)
    transport = httpx.ASGITransport(application)
    async with httpx.AsyncClient(transport=transport, base_url="http://webhook") as client:
        for number, event in enumerate(events):
            payload = json.dumps(event).encode()
            if number == 0:
                assert (await _send(client, payload, "whsec_of_somebody_else")).status_code == httpx.codes.BAD_REQUEST
            assert (await _send(client, payload, SECRET)).status_code == httpx.codes.OK


async def _send(client: httpx.AsyncClient, payload: bytes, secret: str) -> httpx.Response:
    # Signed with the machine's time, by which the handler judges a body's age.
    headers = {"Stripe-Signature": signature(payload, secret, int(time.time()))}
    return await client.post(PATH, content=payload, headers=headers)
