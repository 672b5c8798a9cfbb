"""A deploying process is killed at every point that it tells of; the next run finishes, once."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flexpay_pipelines.database import opened
from flexpay_pipelines.migrations import deploy, deployed, plan_deploy, schema_fingerprint

Write = Callable[..., Path]

DEPLOY = """
import os, signal, sys
from pathlib import Path
from flexpay_pipelines.migrations import deploy

url, root, deadly = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
calls = 0

def call(told):
    global calls
    calls += 1
    print(told if isinstance(told, str) else told.title, flush=True)
    if calls == deadly:
        os.kill(os.getpid(), signal.SIGKILL)

deploy(url, ["pauses"], record=call, progress=call, root=root)
"""


def _deploying(url: str, root: Path, deadly: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DEPLOY, url, str(root), str(deadly)], stdout=subprocess.PIPE, text=True
    )


def _wait_until_the_lock_is_free(url: str) -> None:
    with opened(url, purpose="test") as connection:
        connection.execute("SELECT pg_advisory_lock(hashtextextended('migrations', 0))")


# Each of three steps calls progress and then record: 1 kills before the first commit, 2 after it and before its record.
@pytest.mark.parametrize("deadly", range(1, 7))
def test_a_run_that_is_killed_is_finished_by_the_next(empty_url: str, write: Write, deadly: int) -> None:
    write("pauses", deploy="CREATE TABLE billing.p (id bigint);", verify="TABLE billing.p;")
    write("core", 2, deploy="CREATE TABLE billing.second (id bigint);", verify="TABLE billing.second;")
    root = write("core")
    child = _deploying(empty_url, root, deadly)
    told_before = child.communicate(timeout=60)[0].splitlines()
    assert child.returncode == -signal.SIGKILL
    recorded = [title for title in told_before[:-1] if not title.startswith("Deploying")]
    _wait_until_the_lock_is_free(empty_url)

    done = deploy(
        empty_url, ["pauses"], record=lambda step: recorded.append(step.title), progress=lambda _: None, root=root
    )

    assert len(done) == 3 - deadly // 2
    assert deployed(empty_url) == {"core": "0002", "pauses": "0001"}
    assert recorded == ["core 0001 step", "core 0002 step", "pauses 0001 step"]
    assert plan_deploy(empty_url, ["pauses"], root=root) == ()


def test_a_run_that_is_killed_at_work_leaves_nothing_half_done(empty_url: str, write: Write) -> None:
    work = "CREATE SCHEMA billing; CREATE TABLE billing.first (id bigint); SELECT pg_sleep(600);"
    root = write("core", deploy=work)
    child = _deploying(empty_url, root, 0)
    assert child.stdout is not None
    assert child.stdout.readline().startswith("Deploying core 0001")
    with opened(empty_url, purpose="test") as connection:
        at_work = (
            "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
        )
        while connection.execute(at_work.encode()).fetchone() != {"n": 1}:
            assert child.poll() is None
        child.kill()
        child.communicate(timeout=60)
        # The server notices within a second that nobody waits for the answer: 600 are not slept.
        _wait_until_the_lock_is_free(empty_url)
        assert connection.execute("SELECT to_regnamespace('billing') AS it").fetchone() == {"it": None}
    assert deployed(empty_url) == {}

    (root / "core" / "0001_step.deploy.sql").write_text("CREATE SCHEMA billing; CREATE TABLE billing.first (id int);")
    deploy(empty_url, ["core"], record=lambda _: None, progress=lambda _: None, root=root)

    assert deployed(empty_url) == {"core": "0001"}
    with opened(empty_url, purpose="test") as connection:
        assert len(schema_fingerprint(connection, ["billing"])) == 64
