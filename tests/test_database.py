"""Connections: opened as the product needs them, and refused in one sentence that never shows a password."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexpay_pipelines.database import (
    Connection,
    advisory_lock,
    beside,
    connect,
    copied,
    describe,
    libpq_url,
    opened,
    sqlalchemy_url,
    with_database,
    without_password,
)
from flexpay_pipelines.errors import ConfigurationError, DatabaseUnavailable, TransientError

RUBBISH = ["", "nonsense", "postgresql://[::1/db", "postgresql:///b?host=/run&bogus=1", "postgresql://u:hunter2%zz@h/b"]


def test_a_connection_commits_by_itself_speaks_utc_and_gives_dicts(billing: Connection) -> None:
    assert billing.autocommit
    row = billing.execute("SELECT 'ü' AS name, '2026-01-01 00:00:00+02'::timestamptz AS at").fetchone()
    assert row == {"name": "ü", "at": datetime(2025, 12, 31, 22, tzinfo=UTC)}
    assert row["at"].utcoffset().total_seconds() == 0


def test_a_connection_says_what_it_is_for(billing_url: str) -> None:
    with opened(billing_url, purpose="a very long purpose " * 10) as connection:
        row = connection.execute("SELECT current_setting('application_name') AS name").fetchone()
        assert row is not None
        assert row["name"].startswith("flexpay a very long purpose")
    assert connection.closed


def test_a_driver_name_in_the_url_does_not_matter(billing_url: str) -> None:
    with opened(sqlalchemy_url(billing_url, "psycopg2"), purpose="test") as connection:
        assert connection.info.dbname == billing_url.partition("?")[0].rpartition("/")[2]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://app:hunter2@127.0.0.1:1/billing", "app@127.0.0.1:1/billing"),
        ("postgresql:///billing?host=/nowhere&password=hunter2", "/nowhere/billing"),
        ("postgresql+psycopg2://app:hunter2@127.0.0.1:1,127.0.0.1:2/billing", "app@127.0.0.1:1,127.0.0.1:2/billing"),
        ("postgresql://app:hunter2@127.0.0.1:port/billing", "app@127.0.0.1:port/billing"),
    ],
)
def test_a_server_that_is_not_there_is_named_without_its_password(url: str, said: str) -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        connect(url, purpose="test", role="control")
    assert f"Cannot open the control database {said}: " in str(caught.value)
    assert "FLEXPAY_CONTROL_URL" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_database_that_is_not_there_is_named(billing_url: str) -> None:
    with pytest.raises(DatabaseUnavailable, match='database "nowhere" does not exist'):
        connect(with_database(billing_url, "nowhere"), purpose="test")


@pytest.mark.parametrize("url", RUBBISH)
def test_what_is_no_url_is_said_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError, match="A PostgreSQL URL is expected") as caught:
        connect(url, purpose="test")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


words = st.text(min_size=1, max_size=20).filter(lambda text: "\x00" not in text)


@given(words, words, words)
def test_a_password_goes_apart_and_the_rest_stays(user: str, password: str, name: str) -> None:
    encoded = [quote(part.encode("utf-8", "replace"), safe="") for part in (user, password, name)]
    url = f"postgresql+psycopg2://{encoded[0]}:{encoded[1]}@db.example:5433/{encoded[2]}?sslmode=require"
    bare, secret = without_password(url)
    assert bare == f"postgresql://{encoded[0]}@db.example:5433/{encoded[2]}?sslmode=require"
    assert secret == password.encode("utf-8", "replace").decode()
    assert without_password(bare) == (bare, None)
    shown = describe(url)
    assert shown.startswith(user.encode("utf-8", "replace").decode())
    assert shown.endswith(name.encode("utf-8", "replace").decode().lstrip("/")) or not name.strip("/")


@pytest.mark.parametrize(
    ("url", "bare", "password"),
    [
        ("postgresql:///b?host=/run&password=a%26b", "postgresql:///b?host=/run", "a&b"),
        ("postgresql://u:one@h/b?password=two", "postgresql://u@h/b", "two"),
        ("postgresql:///b?host=/run", "postgresql:///b?host=/run", None),
        ("postgres://u@h", "postgres://u@h", None),
        ("postgresql://:one@h/b", "postgresql://@h/b", "one"),
    ],
)
def test_a_password_is_found_wherever_it_stands(url: str, bare: str, password: str | None) -> None:
    assert without_password(url) == (bare, password)


def test_another_database_of_the_same_server(billing_url: str) -> None:
    assert libpq_url("postgresql+psycopg://u@h/b?x=1") == "postgresql://u@h/b?x=1"
    assert with_database("postgresql+psycopg2:///b?host=/run", "c") == "postgresql:///c?host=/run"
    with opened(billing_url, purpose="test") as connection:
        connection.execute('CREATE DATABASE "odd/name? #1"')
    with opened(with_database(billing_url, "odd/name? #1"), purpose="test") as odd:
        assert odd.info.dbname == "odd/name? #1"
    with opened(billing_url, purpose="test") as connection:
        connection.execute('DROP DATABASE "odd/name? #1"')


def test_a_lock_is_held_by_one_and_let_go_at_the_end(billing: Connection, billing_url: str) -> None:
    with opened(billing_url, purpose="other") as other:
        with advisory_lock(billing, "sweep"):
            with pytest.raises(TransientError, match="Another process is at 'sweep'"), advisory_lock(other, "sweep"):
                pass
            with advisory_lock(other, "another"):
                pass
        with advisory_lock(other, "sweep"):
            pass


def test_a_lock_is_let_go_when_its_work_fails_or_its_session_ends(billing: Connection, billing_url: str) -> None:
    with opened(billing_url, purpose="other") as other:
        with pytest.raises(psycopg.errors.DivisionByZero), advisory_lock(other, "sweep"), other.transaction():
            other.execute("SELECT 1 / 0")
        with advisory_lock(billing, "sweep"):
            pass
        with pytest.raises(psycopg.errors.AdminShutdown), advisory_lock(other, "sweep"):
            billing.execute("SELECT pg_terminate_backend(%s, 30000)", (other.info.backend_pid,))
            other.execute("SELECT 1")
    with advisory_lock(billing, "sweep"):
        pass


def test_importing_the_ground_floor_loads_no_driver() -> None:
    code = (
        "import sys, flexpay_pipelines.database, flexpay_pipelines.sql, flexpay_pipelines.health,"
        " flexpay_pipelines.security; sys.exit(bool({'psycopg', 'aiosql', 'slack_sdk'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[1], timeout=60)
    assert done.returncode == 0


def test_a_second_session_is_like_the_first(billing_url: str) -> None:
    with opened(billing_url.replace("@", ":a-secret@", 1), purpose="first") as first:
        first.execute("SET TIME ZONE 'Asia/Tokyo'")
        with beside(first, purpose="second") as second:
            for same in ("user", "dbname", "host", "port", "password"):
                assert getattr(second.info, same) == getattr(first.info, same)
            assert second.info.password == "a-secret"
            assert second.info.parameter_status("TimeZone") == "Asia/Tokyo"
            row = second.execute("SELECT current_setting('application_name') AS name").fetchone()
            assert row == {"name": "flexpay second"}


ROWS = "COPY (SELECT n, repeat('x', 500) FROM generate_series(1, %(rows)s) AS n) TO STDOUT"


@pytest.mark.parametrize("rows", [0, 1, 10_000])
def test_a_copy_comes_in_blocks_and_leaves_the_connection_as_it_was(billing: Connection, rows: int) -> None:
    with billing.transaction():
        with copied(billing, ROWS, {"rows": rows}) as blocks:
            parts = list(blocks)
        assert b"".join(parts) == b"".join(b"%d\t%s\n" % (n, b"x" * 500) for n in range(1, rows + 1))
        assert all(len(part) >= 1 << 18 for part in parts[:-1])
        assert billing.execute("SELECT 1 AS one").fetchone() == {"one": 1}


def test_a_copy_that_is_waited_for_is_whole(billing: Connection) -> None:
    slowly = "COPY (SELECT n, pg_sleep(0.05) FROM generate_series(1, 4) AS n) TO STDOUT"
    with copied(billing, slowly) as blocks:
        assert b"".join(blocks) == b"1\t\n2\t\n3\t\n4\t\n"


def test_a_copy_that_fails_at_the_server_says_so(billing: Connection) -> None:
    # The first rows have been sent when the last divides by nothing.
    failing = "COPY (SELECT n / (n - 50000) FROM generate_series(1, 60000) AS n) TO STDOUT"
    with pytest.raises(psycopg.errors.DivisionByZero), copied(billing, failing) as blocks:
        list(blocks)
    assert billing.execute("SELECT 1 AS one").fetchone() == {"one": 1}


def test_a_copy_that_is_left_is_called_off(billing: Connection) -> None:
    with pytest.raises(OSError, match="disk"), billing.transaction(), copied(billing, ROWS, {"rows": 10**6}) as blocks:
        next(blocks)
        raise OSError("no room on the disk")
    assert billing.execute("SELECT 1 AS one").fetchone() == {"one": 1}
