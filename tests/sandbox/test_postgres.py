"""Embedded clusters: shared by processes, stopped by the last, safe after an interrupted start."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from flexpay_pipelines.errors import PermanentError
from flexpay_pipelines.sandbox import THROWAWAY, Cluster, in_use

HOLD = """
import sys
from pathlib import Path
from flexpay_pipelines.sandbox import Cluster, THROWAWAY, in_use
with in_use(Cluster(Path(sys.argv[1]), options=THROWAWAY)):
    print("up", flush=True)
    sys.stdin.readline()
"""


def _holder(folder: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "up\n"
    return holder


def _finish(holder: subprocess.Popen[str]) -> None:
    holder.communicate("\n", timeout=60)
    assert holder.returncode == 0


def test_the_last_user_stops_the_cluster(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "c", options=THROWAWAY)
    holder = _holder(cluster.folder)
    with in_use(cluster), psycopg.connect(cluster.url()) as connection:
        row = connection.execute("SELECT 1").fetchone()
        assert row == (1,)
    assert cluster.running, "another process still uses it"
    _finish(holder)
    assert not cluster.running


def test_a_killed_user_does_not_keep_the_cluster_for_ever(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "c", options=THROWAWAY)
    holder = _holder(cluster.folder)
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=60)
    assert cluster.running
    with in_use(cluster):
        assert cluster.running
    assert not cluster.running


def test_half_an_initdb_is_made_whole(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "c", options=THROWAWAY)
    (cluster.folder / "data.new").mkdir(parents=True)
    (cluster.folder / "data.new" / "PG_VERSION").write_text("18\n")
    with in_use(cluster), psycopg.connect(cluster.url()) as connection:
        row = connection.execute("SHOW data_checksums").fetchone()
        assert row == ("on",)


def test_a_long_path_still_gets_a_socket(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / ("x" * 90) / "c", options=THROWAWAY)
    with in_use(cluster), psycopg.connect(cluster.url()) as connection:
        assert not connection.closed
    cluster.destroy()
    assert not cluster.sockets.exists()


def test_a_wrong_tools_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="FLEXPAY_POSTGRES_BIN"):
        Cluster(tmp_path / "c", bin_folder=tmp_path).start()
