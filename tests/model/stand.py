"""What a sequence stands on: a database that tells the model's time, and a Stripe sandbox that survives its own kill.

What belongs here: making and remaking both. What does not: what is done with them (`world`).
"""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from psycopg import sql

from flexpay_pipelines.database import Connection, connect
from flexpay_pipelines.payments import StripeGateway
from flexpay_pipelines.sandbox.sharing import _CHILDREN, HttpServer
from flexpay_pipelines.sandbox.stripe_server import WHAT, StripeSandbox, running_stripe_server

# Where no fault is ordered, a machine that has much to do is none.
PATIENCE_SECONDS = 30
_SERVER = "flexpay_pipelines.sandbox.stripe_server"
# Columns that are stamped with the time at which a row is written.
_STAMPED = (
    ("subscription_events", "recorded_at"), ("payments", "recorded_at"), ("stripe_events", "received_at"),
    ("stripe_commands", "created_at"), ("reward_entries", "recorded_at"),
)  # fmt: skip


def own_clock(connection: Connection) -> None:
    """Let a database tell the time that its session says, wherever it would tell its machine's.

    A month passes in a moment here: with the machine's time a hand-typed change of next month would be history of
    today, and a command would never grow old.
    """
    connection.execute("CREATE SCHEMA model")
    connection.execute(
        "CREATE FUNCTION model.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE"
        " AS $$ SELECT current_setting('model.now')::timestamptz $$"
    )
    for table, column in _STAMPED:
        connection.execute(
            sql.SQL("ALTER TABLE billing.{} ALTER COLUMN {} SET DEFAULT model.clock_timestamp()").format(
                sql.Identifier(table), sql.Identifier(column)
            )
        )


def session(url: str, purpose: str, now: datetime) -> Connection:
    """A connection in which `clock_timestamp()` is the model's."""
    connection = connect(url, purpose=purpose)
    connection.execute("SET search_path = model, pg_catalog, public")
    tell_time(connection, now)
    return connection


def tell_time(connection: Connection, now: datetime) -> None:
    """What time it is for the database, in this session."""
    connection.execute("SELECT set_config('model.now', %s, false)", (now.isoformat(),))


def emptied(connection: Connection) -> None:
    """Every table of the schema as it was deployed; sequences begin again. A tenth of the time of a fresh clone."""
    tables = connection.execute(
        "SELECT format('billing.%I', tablename) AS name FROM pg_tables WHERE schemaname = 'billing'"
        " AND tablename NOT IN ('feature_flags', 'reward_programmes')"
    ).fetchall()
    names = sql.SQL(", ").join(sql.SQL(row["name"]) for row in tables)
    # The ledgers refuse to be emptied; replication alone is not asked.
    connection.execute("SET session_replication_role = replica")
    connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(names))
    connection.execute("RESET session_replication_role")
    connection.execute("UPDATE billing.feature_flags SET enabled = true, reason = 'deployed'")


@dataclass(frozen=True)
class Stand:
    """The sandbox, and the folder in which its account lies."""

    stripe: StripeSandbox
    folder: Path

    def empty(self, now: datetime) -> None:
        """An empty account without faults, in which every payment succeeds."""
        self.stripe.control("clear")
        self.stripe.clear_faults()
        self.stripe.set_decline_rate(0)
        self.stripe.set_rate_limit(10_000)
        self.stripe.set_clock(now)

    def kill(self) -> None:
        """SIGKILL the sandbox and start it again on its port."""
        server = HttpServer(self.folder, _SERVER, what=WHAT, port=urlsplit(self.stripe.api_base).port)
        pid = server.record["pid"]
        os.kill(pid, signal.SIGKILL)
        _CHILDREN.pop(pid).wait()
        server.start()

    def gateway(self, after_write: Callable[[], None] = lambda: None, *, timeout_seconds: float = 1) -> StripeGateway:
        """The gateway without the SDK's own repetitions, so that each fault is seen, and in a hurry.

        Args:
            after_write: called when Stripe has done what was asked, before we can make a note of it.
        """
        made = _Watched(
            self.stripe.api_key, self.stripe.api_base, timeout_seconds=timeout_seconds, max_network_retries=0,
            requests_per_second=10_000, sleep=lambda _: None,
        )  # fmt: skip
        made.after_write = after_write
        return made

    def call(self, method: str, path: str) -> dict[str, Any]:
        """One request past the gateway, as a customer or a person in Stripe's portal makes it; an error's body too."""
        request = urllib.request.Request(  # noqa: S310 - our own server on loopback
            self.stripe.api_base + path, method=method, headers={"Authorization": f"Bearer {self.stripe.api_key}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:  # noqa: S310 - as above
                return dict(json.load(answer))
        except urllib.error.HTTPError as refused:
            return dict(json.load(refused))

    def invoices(self, subscription: str) -> list[dict[str, Any]]:
        """All invoices of a subscription, the oldest first."""
        found: list[dict[str, Any]] = []
        more, after = True, ""
        while more:
            page = self.call("GET", f"/v1/invoices?limit=100&subscription={subscription}{after}")
            found += page["data"]
            more, after = page["has_more"], f"&starting_after={found[-1]['id']}" if found else ""
        return found[::-1]


class _Watched(StripeGateway):
    """The gateway, and a word to whoever wants to cut in after each write."""

    after_write: Callable[[], None]

    def _call(
        self, method: str, endpoint: str, parameters: dict[str, Any], *, of: str = "", key: str | None = None
    ) -> dict[str, Any]:
        answer = super()._call(method, endpoint, parameters, of=of, key=key)
        if method != "get":
            self.after_write()
        return answer


@contextmanager
def running_stand(folder: Path) -> Iterator[Stand]:
    with running_stripe_server(folder) as stripe:
        yield Stand(stripe, folder)
