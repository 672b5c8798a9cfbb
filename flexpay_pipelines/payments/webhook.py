"""The webhook: Stripe's events as they happen, taken in over HTTP.

What belongs here: the endpoint, what it accepts and what it answers. What does not: what an event means (`events`), the
socket and the signals (`cli/stripe`).

An event is answered with 2xx once it is committed, and never before: what Stripe did not see answered it sends again.
What follows from it is worked out right afterwards by a thread of its own; where that fails, the next exchange does it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from flexpay_pipelines.errors import BadInput, FlexPayError
from flexpay_pipelines.payments.events import TYPES, store_event
from flexpay_pipelines.payments.stripe_gateway import construct_event
from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from flexpay_pipelines.database import Connection
    from flexpay_pipelines.payments.stripe_gateway import Object

LOG = logging.getLogger(__name__)

PATH = "/stripe/webhook"
HEALTH_PATH = "/healthz"
LARGEST_BODY = 1 << 20
READ_SECONDS = 10
# Shorter than Stripe's patience: a database that hangs is answered for, not waited for.
STATEMENT_MILLISECONDS = 8_000
_OK, _BAD, _TOO_SLOW, _TOO_LARGE, _UNAVAILABLE = 200, 400, 408, 413, 503

Connections = Callable[[], AbstractContextManager["Connection"]]


class Refused(Exception):
    """An answer other than 2xx: its status, and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def webhook_application(
    *, secrets: Sequence[str], connections: Connections, follow: Callable[[Connection], object]
) -> Starlette:
    """The ASGI application: `POST /stripe/webhook` and `GET /healthz`.

    Args:
        secrets: signing secrets of the endpoint; a body signed with any of them is Stripe's.
        connections: opens a connection to the billing database; closed where the block ends.
        follow: works out what follows from the stored events, with a connection of its own; called after each event
            that was new, once for those that come together. Its errors are logged; they do not reach Stripe.
    """
    from starlette.applications import Starlette  # noqa: PLC0415 - the code location loads without it
    from starlette.concurrency import run_in_threadpool  # noqa: PLC0415
    from starlette.responses import JSONResponse  # noqa: PLC0415
    from starlette.routing import Route  # noqa: PLC0415

    inbox, follower = _Inbox(connections), _Follower(connections, follow)

    async def take_in(request: Request) -> Response:
        try:
            payload = await _body(request)
            event = construct_event(payload, request.headers.get("stripe-signature"), secrets)
            new = event["type"] in TYPES and await run_in_threadpool(inbox.store, event)
        except BadInput as error:
            LOG.warning("Refused a webhook: %s", error)
            return JSONResponse({"error": str(error)}, _BAD)
        except Refused as refused:
            LOG.warning("Refused a webhook: %s", refused)
            return JSONResponse({"error": str(refused)}, refused.status)
        if new:
            follower.wake()
        return JSONResponse({"received": True, "new": bool(new)}, _OK)

    async def healthy(_request: Request) -> Response:
        try:
            await run_in_threadpool(inbox.check)
        except Refused as refused:
            return JSONResponse({"ok": False, "error": str(refused)}, refused.status)
        return JSONResponse({"ok": True}, _OK)

    @asynccontextmanager
    async def lifespan(_application: Starlette) -> AsyncIterator[None]:
        follower.start()
        try:
            yield
        finally:
            await run_in_threadpool(follower.stop)
            inbox.close()

    routes = [Route(PATH, take_in, methods=["POST"]), Route(HEALTH_PATH, healthy, methods=["GET"])]
    return Starlette(routes=routes, lifespan=lifespan)


async def _body(request: Request) -> bytes:
    """The body as it came: its signature is that of these bytes."""
    from starlette.requests import ClientDisconnect  # noqa: PLC0415 - the code location loads without it

    received = bytearray()
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for part in request.stream():
                received += part
                if len(received) > LARGEST_BODY:
                    raise Refused(_TOO_LARGE, f"The body is larger than {LARGEST_BODY} bytes: nothing was taken in.")
    except TimeoutError:
        raise Refused(_TOO_SLOW, f"The body did not come within {READ_SECONDS} s: nothing was taken in.") from None
    except ClientDisconnect:
        raise Refused(_BAD, "The connection broke before the body was there: nothing was taken in.") from None
    return bytes(received)


class _Inbox:
    """One connection, kept open between webhooks and opened anew when it is broken. Safe for several threads."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._connection: Connection | None = None

    def store(self, event: Object) -> bool:
        """Commit an event; returns whether it was new.

        Raises:
            Refused: 503, the database cannot take it now.
        """
        return bool(self._with_connection(lambda connection: store_event(connection, event)))

    def check(self) -> None:
        """See whether an event could be committed."""
        self._with_connection(lambda connection: queries("payments_events").read_through(connection, stream="events"))

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _with_connection(self, work: Callable[[Connection], object]) -> object:
        import psycopg  # noqa: PLC0415 - the code location loads without it

        with self._lock:
            # A kept connection may have died since the last webhook; a fresh one tells how the database is now.
            kept = self._connection is not None
            try:
                return work(self._opened())
            except (psycopg.Error, FlexPayError) as error:
                self._drop()
                if not kept:
                    raise self._unavailable(error) from error
            try:
                return work(self._opened())
            except (psycopg.Error, FlexPayError) as error:
                self._drop()
                raise self._unavailable(error) from error

    def _opened(self) -> Connection:
        if self._connection is None:
            self._connection = self._stack.enter_context(self._connections())
            queries("payments_events").limit_statements(self._connection, milliseconds=str(STATEMENT_MILLISECONDS))
        return self._connection

    def _drop(self) -> None:
        self._connection = None
        self._stack.close()

    @staticmethod
    def _unavailable(error: Exception) -> Refused:
        LOG.error("An event could not be stored: %s", " ".join(str(error).split()))
        return Refused(_UNAVAILABLE, "The event could not be stored: send it again later.")


class _Follower:
    """The thread that works out what follows; events that come while it is at work make it look once more."""

    def __init__(self, connections: Connections, follow: Callable[[Connection], object]) -> None:
        self._connections = connections
        self._follow = follow
        self._woken = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="stripe events")

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._woken.set()

    def stop(self) -> None:
        """Return when the thread has finished what it was at."""
        self._stopping = True
        self._woken.set()
        self._thread.join()

    def _run(self) -> None:
        import psycopg  # noqa: PLC0415 - the code location loads without it

        while not self._stopping:
            self._woken.wait()
            self._woken.clear()
            if self._stopping:
                return
            try:
                with self._connections() as connection:
                    self._follow(connection)
            except (psycopg.Error, FlexPayError) as error:
                LOG.warning("What follows is left to the next exchange: %s", " ".join(str(error).split()))
            except Exception:
                LOG.exception("What follows is left to the next exchange")
