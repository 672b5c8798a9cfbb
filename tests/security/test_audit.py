"""The audit trail: what is written stays, redacted, and can be read back by time and subject."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.security import entries, record

EVER = datetime(2000, 1, 1, tzinfo=UTC)


def _record(control: Connection, subject: str, **details: object) -> int:
    return record(control, actor="ada", action="deploy", subject=subject, outcome="done", details=details, run_id="r1")


def test_entries_come_back_newest_first_within_the_limit(control: Connection) -> None:
    first, second, third = (_record(control, name) for name in ("core", "pauses", "core"))
    assert [entry.audit_id for entry in entries(control, since=EVER, limit=10)] == [third, second, first]
    assert [entry.audit_id for entry in entries(control, since=EVER, limit=1)] == [third]
    assert [entry.audit_id for entry in entries(control, since=EVER, limit=10, subject="core")] == [third, first]
    assert entries(control, since=datetime.now(UTC) + timedelta(hours=1), limit=10) == ()


def test_an_entry_holds_who_did_what_and_no_secret(control: Connection) -> None:
    _record(
        control, "core", card="4242 4242 4242 4242", password="hunter2", url="postgresql://u:hunter2@h/d", nul="a\x00b"
    )
    (entry,) = entries(control, since=EVER, limit=10)
    assert (entry.actor, entry.action, entry.subject, entry.outcome, entry.run_id) == (
        "ada",
        "deploy",
        "core",
        "done",
        "r1",
    )
    assert entry.occurred_at.tzinfo is not None
    assert entry.details["card"] == "[card number removed]"
    assert "hunter2" not in str(entry)


def test_an_entry_that_names_nobody_is_refused(control: Connection) -> None:
    with pytest.raises(BadInput, match="needs the actor"):
        record(control, actor=" ", action="deploy", subject="core", outcome="done", details={})
    assert entries(control, since=EVER, limit=10) == ()


def test_an_entry_of_a_deed_that_is_undone_goes_with_it(control: Connection) -> None:
    with pytest.raises(RuntimeError), control.transaction():
        _record(control, "core")
        raise RuntimeError
    assert entries(control, since=EVER, limit=10) == ()


@pytest.mark.parametrize(
    "statement", ["UPDATE ops.audit_log SET actor = 'eve'", "DELETE FROM ops.audit_log", "TRUNCATE ops.audit_log"]
)
def test_nobody_rewrites_the_trail(control: Connection, statement: str) -> None:
    _record(control, "core")
    with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
        control.execute(statement.encode())
    assert len(entries(control, since=EVER, limit=10)) == 1
