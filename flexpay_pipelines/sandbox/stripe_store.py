"""The sandbox account's memory: an SQLite file, so that it survives a restart and a kill.

What belongs here: reading and writing state, pages, the agenda of what falls due. What does not: what any of it means.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flexpay_pipelines.sandbox.stripe_objects import State, event

_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, id TEXT NOT NULL, lookup TEXT, status TEXT,
    state TEXT NOT NULL, UNIQUE (kind, id)
);
CREATE INDEX IF NOT EXISTS objects_pages ON objects (kind, seq);
CREATE INDEX IF NOT EXISTS objects_lookup ON objects (kind, lookup);
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, created INTEGER NOT NULL, type TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_created ON events (created);
CREATE TABLE IF NOT EXISTS hidden_events (seq INTEGER PRIMARY KEY, until INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS agenda (
    kind TEXT NOT NULL, id TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS agenda_at ON agenda (at, kind, id);
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, status INTEGER NOT NULL, body TEXT NOT NULL, at INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS replies_at ON replies (at);
CREATE TABLE IF NOT EXISTS faults (fault INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS requests (what TEXT PRIMARY KEY, number INTEGER NOT NULL);
"""


class Store:
    """One account. Not for several threads: the server works in one."""

    def __init__(self, folder: Path) -> None:
        self._database = sqlite3.connect(folder / "account.sqlite3", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.executescript(_SCHEMA)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What happens inside is there whole after a kill, or not at all."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def clear(self) -> None:
        """Forget objects, events and replies; keep the clock, the settings and the faults."""
        for statement in ("objects", "events", "hidden_events", "agenda", "replies"):
            self._database.execute(f"DELETE FROM {statement}")  # noqa: S608 - names of our own tables

    def setting(self, name: str, default: Any) -> Any:
        row = self._database.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return default if row is None else json.loads(row[0])

    def set_setting(self, name: str, value: Any) -> None:
        self._database.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(value)))

    def get(self, kind: str, identifier: str) -> State | None:
        row = self._database.execute(
            "SELECT state FROM objects WHERE kind = ? AND id = ?", (kind, identifier)
        ).fetchone()
        return None if row is None else json.loads(row[0])

    def by_lookup(self, kind: str, lookups: Iterable[str]) -> list[State]:
        """The objects with one of these lookup values: prices by lookup key, invoices by subscription."""
        found: list[State] = []
        for lookup in lookups:
            rows = self._database.execute(
                "SELECT state FROM objects WHERE kind = ? AND lookup = ? ORDER BY seq", (kind, lookup)
            )
            found += [json.loads(row[0]) for row in rows]
        return found

    def put(self, kind: str, state: State, *, lookup: str | None = None, status: str | None = None) -> None:
        self.put_all(kind, [(state, lookup, status)])

    def put_all(self, kind: str, rows: Iterable[tuple[State, str | None, str | None]]) -> None:
        """Add or replace; what is replaced keeps its place in the pages."""
        self._database.executemany(
            "INSERT INTO objects (kind, id, lookup, status, state) VALUES (?, ?, ?, ?, ?) ON CONFLICT (kind, id) "
            "DO UPDATE SET lookup = excluded.lookup, status = excluded.status, state = excluded.state",
            ((kind, state["id"], lookup, status, json.dumps(state)) for state, lookup, status in rows),
        )

    def page(
        self, kind: str, *, limit: int, after: str | None, before: str | None, lookup: str | None, status: str | None
    ) -> tuple[list[State], bool]:
        """One page, newest first, and whether there are more in its direction.

        Args:
            after, before: ids of objects that the page begins after, or ends before.
            status: only these; `all` for every one; None leaves canceled ones out, as Stripe does.
        """
        clauses, values = ["kind = ?"], [kind]
        if lookup is not None:
            clauses, values = [*clauses, "lookup = ?"], [*values, lookup]
        if status is None:
            clauses = [*clauses, "coalesce(status, '') <> 'canceled'"]
        elif status != "all":
            clauses, values = [*clauses, "status = ?"], [*values, status]
        return self._page("objects", "state", clauses, values, limit=limit, after=after, before=before, kind=kind)

    def events(
        self, *, limit: int, after: str | None, before: str | None, types: list[str], bounds: list[tuple[str, int]]
    ) -> tuple[list[State], bool]:
        """One page of events, newest first. `bounds`: pairs such as `('>=', 1700000000)` on `created`."""
        clauses = [f"seq NOT IN (SELECT seq FROM hidden_events WHERE until > {int(self.setting('clock', 0))})"]  # noqa: S608
        values: list[str] = []
        if types:
            clauses.append(f"type IN ({', '.join('?' * len(types))})")
            values += types
        for operator, instant in bounds:
            clauses.append(f"created {operator} {int(instant)}")
        return self._page("events", "body", clauses, values, limit=limit, after=after, before=before)

    def _page(
        self, table: str, column: str, clauses: list[str], values: list[str], *, limit: int,
        after: str | None, before: str | None, kind: str | None = None,
    ) -> tuple[list[State], bool]:  # fmt: skip
        direction, same = "DESC", "" if kind is None else f"AND kind = '{kind}'"
        for cursor, comparison in ((after, "<"), (before, ">")):
            if cursor is not None:
                clauses = [*clauses, f"seq {comparison} (SELECT seq FROM {table} WHERE id = ? {same})"]  # noqa: S608
                values = [*values, cursor]
                direction = "ASC" if comparison == ">" else "DESC"
        rows = self._database.execute(
            f"SELECT {column} FROM {table} WHERE {' AND '.join(clauses)} ORDER BY seq {direction} LIMIT {limit + 1}",  # noqa: S608
            values,
        ).fetchall()
        found = [json.loads(row[0]) for row in rows[:limit]]
        return (found[::-1] if direction == "ASC" else found), len(rows) > limit

    def record_event(self, kind: str, created: int, subject: State, request_key: str | None = None) -> None:
        row = self._database.execute("SELECT coalesce(max(seq), 0) + 1 FROM events").fetchone()
        shaped = event(row[0], kind, created, subject, request_key)
        self._database.execute(
            "INSERT INTO events (seq, id, created, type, body) VALUES (?, ?, ?, ?, ?)",
            (row[0], shaped["id"], created, kind, json.dumps(shaped)),
        )
        if (fault := self.take_fault(kind, ("delayed_events",))) is not None:
            until = int(self.setting("clock", 0)) + int(fault["seconds"])
            self._database.execute("INSERT INTO hidden_events VALUES (?, ?)", (row[0], until))

    def events_after(self, sequence: int) -> list[tuple[int, State]]:
        """Events recorded after the one with a number, in the order in which they were recorded, with their numbers."""
        rows = self._database.execute("SELECT seq, body FROM events WHERE seq > ? ORDER BY seq", (sequence,))
        return [(row[0], json.loads(row[1])) for row in rows]

    def last_event(self) -> int:
        """The number of the newest event, 0 where there is none."""
        return int(self._database.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0])

    def event(self, identifier: str) -> State | None:
        row = self._database.execute("SELECT body FROM events WHERE id = ?", (identifier,)).fetchone()
        return None if row is None else json.loads(row[0])

    def plan(self, kind: str, identifier: str, at: int | None) -> None:
        """Put something on the agenda, once per kind and object; None takes it off."""
        if at is None:
            self._database.execute("DELETE FROM agenda WHERE kind = ? AND id = ?", (kind, identifier))
        else:
            self._database.execute("INSERT OR REPLACE INTO agenda VALUES (?, ?, ?)", (kind, identifier, at))

    def next_due(self, until: int) -> tuple[str, str, int] | None:
        """The first thing on the agenda that falls due by `until`: kind, id, instant."""
        found: tuple[str, str, int] | None = self._database.execute(
            "SELECT kind, id, at FROM agenda WHERE at <= ? ORDER BY at, kind, id LIMIT 1", (until,)
        ).fetchone()
        return found

    def reply(self, key: str) -> tuple[str, int, str] | None:
        """The fingerprint, status and body with which a key was answered first."""
        found: tuple[str, int, str] | None = self._database.execute(
            "SELECT fingerprint, status, body FROM replies WHERE key = ?", (key,)
        ).fetchone()
        return found

    def keep_reply(self, key: str, fingerprint: str, status: int, body: str, at: int) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?)", (key, fingerprint, status, body, at)
        )

    def forget_replies(self, before: int) -> None:
        self._database.execute("DELETE FROM replies WHERE at < ?", (before,))

    def faults(self) -> list[tuple[int, State]]:
        return [(row[0], json.loads(row[1])) for row in self._database.execute("SELECT * FROM faults ORDER BY fault")]

    def order_fault(self, body: State) -> None:
        self._database.execute("INSERT INTO faults (body) VALUES (?)", (json.dumps(body),))

    def take_fault(self, what: str, kinds: Collection[str]) -> State | None:
        """The first ordered fault of these kinds that strikes `what` (`METHOD /path`, or an event's type)."""
        for number, fault in self.faults():
            if fault["kind"] not in kinds or not what.startswith(fault["match"]) or not self._strikes(fault):
                continue
            left = fault["times"] - 1
            self.change_fault(number, {**fault, "times": left} if left > 0 else None)
            return fault
        return None

    def _strikes(self, fault: State) -> bool:
        """Whether this time is one of the share of times at which the fault strikes."""
        if fault["share"] >= 1:
            return True
        drawn = int(self.setting("draws", 0)) + 1
        self.set_setting("draws", drawn)
        digest = hashlib.sha256(f"{self.setting('seed', 0)}:{drawn}".encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48 < float(fault["share"])

    def change_fault(self, number: int, body: State | None) -> None:
        if body is None:
            self._database.execute("DELETE FROM faults WHERE fault = ?", (number,))
        else:
            self._database.execute("UPDATE faults SET body = ? WHERE fault = ?", (json.dumps(body), number))

    def count_request(self, what: str) -> None:
        self._database.execute(
            "INSERT INTO requests VALUES (?, 1) ON CONFLICT (what) DO UPDATE SET number = number + 1", (what,)
        )

    def counts(self) -> dict[str, int]:
        """How many of everything: objects by kind and status, events by type, requests by what was asked."""
        found: dict[str, int] = {}
        for kind, status, number in self._database.execute(
            "SELECT kind, status, count(*) FROM objects GROUP BY kind, status"
        ):
            found[f"{kind}s"] = found.get(f"{kind}s", 0) + number
            if status is not None:
                found[f"{kind}s.{status}"] = number
        for kind, number in self._database.execute("SELECT type, count(*) FROM events GROUP BY type"):
            found[f"events.{kind}"] = number
        for what, number in self._database.execute("SELECT what, number FROM requests"):
            found[f"requests.{what}"] = number
        return found
