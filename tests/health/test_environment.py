"""The environment check: each thing that may be wrong is made wrong for real, and named with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import opened, with_database
from flexpay_pipelines.errors import TransientError
from flexpay_pipelines.health import Finding, check_environment, environment, failing
from flexpay_pipelines.sandbox import Cluster, scratch_cluster


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[Cluster]:
    """A second server, for the control database."""
    with scratch_cluster(tmp_path_factory.mktemp("other"), bin_folder=cluster.bin_folder) as running:
        yield running


@pytest.fixture
def sound(billing_url: str, other: Cluster, cluster: Cluster, tmp_path: Path) -> dict[str, Any]:
    """The arguments of an environment with nothing wrong in it."""
    return {
        "billing_url": billing_url,
        "control_url": other.url(),
        "home": tmp_path / "not" / "yet",
        "bin_folder": cluster.bin_folder,
        "stripe_ping": None,
        "minimum_free_bytes": 1,
    }


def _bad(arguments: dict[str, Any], **changes: Any) -> dict[str, Finding]:
    bad = {found.name: found for found in failing(check_environment(**{**arguments, **changes}))}
    assert all(found.remedy and found.detail for found in bad.values())
    return bad


def test_nothing_is_wrong_where_nothing_is_wrong(sound: dict[str, Any]) -> None:
    found = check_environment(**sound)
    assert failing(found) == ()
    assert len({one.name for one in found}) == len(found) == 24
    assert all(one.severity == "info" and not one.remedy for one in found)
    assert not sound["home"].exists()


@pytest.mark.parametrize(
    "url",
    ["", "nonsense", "postgresql://127.0.0.1:1/billing", "postgresql://h:notaport/db", "postgresql://[::1/db",
     "postgresql:///billing?host=/nowhere&bogus=1", "mysql://root@localhost/db"],
)  # fmt: skip
def test_a_database_that_is_not_there_is_a_finding(sound: dict[str, Any], url: str) -> None:
    bad = _bad(sound, billing_url=url)
    assert list(bad) == ["billing reachable"]
    assert "FLEXPAY_BILLING_URL" in bad["billing reachable"].remedy


def test_both_databases_missing_and_everything_else_wrong_is_said_at_once(tmp_path: Path) -> None:
    def unreachable() -> None:
        raise TransientError("Stripe at http://127.0.0.1:9 cannot be reached.")

    bad = _bad(
        {}, billing_url="postgresql:///x?host=/nowhere", control_url="postgresql:///x?host=/nowhere",
        home=tmp_path, bin_folder=tmp_path / "none", stripe_ping=unreachable, minimum_free_bytes=2**62,
    )  # fmt: skip
    tools = {f"tool {name}" for name in environment.TOOLS}
    assert set(bad) == {"billing reachable", "control reachable", "disk", "stripe", *tools}
    assert bad["stripe"].detail == "Stripe at http://127.0.0.1:9 cannot be reached."


def test_one_database_for_both_is_critical_and_one_server_a_warning(
    sound: dict[str, Any], billing_url: str, control_url: str
) -> None:
    one_server = _bad(sound, control_url=control_url)
    assert {name: found.severity for name, found in one_server.items()} == {"servers apart": "warning"}
    one_database = _bad(sound, control_url=billing_url.replace("postgresql://", "postgresql+psycopg2://"))
    assert one_database["databases apart"].severity == "critical"


def test_an_encoding_other_than_utf8_is_named(sound: dict[str, Any], other: Cluster) -> None:
    with opened(other.url(), purpose="test") as connection:
        connection.execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    bad = _bad(sound, control_url=other.url("ascii"))
    assert list(bad) == ["control encoding"]
    assert bad["control encoding"].detail == "SQL_ASCII"


def test_a_read_only_database_is_named(sound: dict[str, Any], billing_url: str) -> None:
    with opened(billing_url, purpose="test") as connection:
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET default_transaction_read_only = on".encode())
    assert _bad(sound)["billing writable"].detail == "read-only"


def test_a_replica_is_named(sound: dict[str, Any], cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    with scratch_cluster(tmp_path_factory.mktemp("replica"), bin_folder=cluster.bin_folder) as replica:
        replica.stop()
        (replica.data / "standby.signal").touch()
        replica.start()
        bad = _bad(sound, control_url=replica.url())
        assert list(bad) == ["control writable"]
        assert bad["control writable"].detail == "a replica"


def test_a_server_that_is_too_old_is_named(sound: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "OLDEST_POSTGRESQL", 99)
    bad = _bad(sound)
    assert set(bad) == {"billing version", "control version"}
    assert "PostgreSQL 99 or later" in bad["billing version"].remedy


def test_a_role_that_may_too_little_is_named_with_the_grant_it_lacks(sound: dict[str, Any], billing_url: str) -> None:
    role = f"clerk_{uuid4().hex[:8]}"
    with opened(billing_url, purpose="test") as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN".encode())
        try:
            bad = _bad(sound, billing_url=billing_url.replace("flexpay@", f"{role}@"))
        finally:
            connection.execute(f"DROP ROLE {role}".encode())
    assert {name: found.severity for name, found in bad.items()} == {
        "billing may create schemas": "critical",
        "billing owns its schemas": "critical",
        "billing may be restored": "warning",
    }
    assert f'TO "{role}"' in bad["billing may create schemas"].remedy
    assert "billing" in bad["billing owns its schemas"].detail


def test_a_server_that_hides_its_identity_is_told_apart_by_its_address(
    sound: dict[str, Any], billing_url: str, control_url: str
) -> None:
    role = f"clerk_{uuid4().hex[:8]}"
    postgres = with_database(billing_url, "postgres")
    both = [url.replace("flexpay@", f"{role}@") for url in (billing_url, control_url)]
    with opened(billing_url, purpose="test") as one, opened(control_url, purpose="test") as two:
        one.execute(f"CREATE ROLE {role} LOGIN".encode())
        for connection in (one, two):
            connection.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM public")
        try:
            bad = _bad(sound, billing_url=both[0], control_url=both[1])
            assert "servers apart" in bad
            assert "databases apart" not in bad
        finally:
            with opened(postgres, purpose="test") as admin:
                admin.execute(f"DROP ROLE {role}".encode())


def test_clocks_that_differ_are_named(sound: dict[str, Any]) -> None:
    bad = _bad(sound, clock=FixedClock(datetime.now(UTC) + timedelta(minutes=10)))
    assert set(bad) == {"billing clock", "control clock"}
    assert _bad(sound, clock=FixedClock(datetime.now(UTC)), longest_skew=timedelta(minutes=1)) == {}


def _fake_tools(folder: Path, answer: str) -> Path:
    for name in environment.TOOLS:
        (folder / name).write_text(f"#!/bin/sh\n{answer}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        ("echo 'tool (PostgreSQL) 14.2 (Debian 14.2-1.pgdg110+1)'", "14.2"),
        ("echo nothing", "does not tell its version: nothing"),
        ("echo '18' ; exit 3", "does not tell its version"),
    ],
)
def test_tools_that_are_too_old_or_broken_are_named(
    sound: dict[str, Any], tmp_path: Path, answer: str, detail: str
) -> None:
    bad = _bad(sound, bin_folder=_fake_tools(tmp_path, answer))
    assert set(bad) == {f"tool {name}" for name in environment.TOOLS}
    assert detail in bad["tool pg_dump"].detail
    assert "FLEXPAY_POSTGRES_BIN" in bad["tool pg_dump"].remedy


def test_a_tool_of_a_later_version_serves_an_older_server(sound: dict[str, Any], tmp_path: Path) -> None:
    assert _bad(sound, bin_folder=_fake_tools(tmp_path, "echo 'tool (PostgreSQL) 19beta1'")) == {}


def test_too_little_disk_and_a_home_that_is_a_file_are_named(sound: dict[str, Any], tmp_path: Path) -> None:
    full = _bad(sound, minimum_free_bytes=2**62)
    assert list(full) == ["disk"]
    (tmp_path / "file").touch()
    assert "is not a folder" in _bad(sound, home=tmp_path / "file" / "home")["disk"].detail


def test_the_embedded_tools_serve_where_none_are_chosen(sound: dict[str, Any]) -> None:
    assert _bad(sound, bin_folder=None) == {}


def test_stripe_that_answers_is_fine(sound: dict[str, Any]) -> None:
    asked: list[int] = []
    found = check_environment(**{**sound, "stripe_ping": lambda: asked.append(1)})
    assert asked == [1]
    assert next(one for one in found if one.name == "stripe").detail == "answers"
