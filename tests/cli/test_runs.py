"""The instance that records the command's runs: few connections, and none that a restart of the server could spoil."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexpay_pipelines.cli.runs import Recorder, recorder, require, run_job
from flexpay_pipelines.database import Connection

# One for each of Dagster's three storages, and a step's own two; as many again for what a busy moment needs.
FEW = 10
EXPORTED = ("DAGSTER_HOME", "FLEXPAY_DAGSTER_STORAGE_URL")


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, billing_url: str, control_url: str) -> Iterator[Recorder]:
    """The instance as the command opens it."""
    monkeypatch.setenv("FLEXPAY_HOME", str(tmp_path))
    monkeypatch.setenv("FLEXPAY_BILLING_URL", billing_url)
    monkeypatch.setenv("FLEXPAY_CONTROL_URL", control_url)
    for name in EXPORTED:
        # The command hands these on to its children; set here, they are taken back with the test.
        monkeypatch.setenv(name, "")
    with recorder() as opened:
        yield opened


def _settle(on: Recorder) -> int:
    """A run of one step; how many events it wrote."""
    run_id = require(run_job("daily_rewards", on=on)).run_id
    return len(on.instance.all_logs(run_id))


def test_a_run_opens_no_connection_for_each_of_its_events(on: Recorder, control: Connection) -> None:
    _settle(on)
    opened = "SELECT pg_stat_clear_snapshot(), sessions FROM pg_stat_database WHERE datname = current_database()"
    before = control.execute(opened).fetchone()
    events = _settle(on)
    after = control.execute(opened).fetchone()
    assert before is not None
    assert after is not None
    assert events > FEW
    assert after["sessions"] - before["sessions"] <= FEW


def test_connections_that_the_server_has_closed_are_opened_anew(on: Recorder, control: Connection) -> None:
    _settle(on)
    ended = control.execute(
        "SELECT count(pg_terminate_backend(pid, 5000)) AS sessions FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    ).fetchone()
    assert ended is not None
    assert ended["sessions"] > 0
    _settle(on)


def test_a_command_that_runs_nothing_does_without_dagster() -> None:
    loaded = "import flexpay_pipelines.cli.main, flexpay_pipelines.session, sys; sys.exit('dagster' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0
