"""`make demo`: every scene does its work; interrupted anywhere, nothing is left running and the next run works."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Flexpay
from tests.commands import FLEXPAY, environment

SCENES = 6


def _left_running(home: Path) -> list[str]:
    """Servers of this home that still run: the kernel knows by the locks they hold, and PostgreSQL by its pid file."""
    from flexpay_pipelines.sandbox.sharing import HttpServer

    servers = [str(path) for path in home.rglob("postmaster.pid")]
    for folder in (home / "state" / "stripe", home / "state" / "slack"):
        if folder.is_dir() and HttpServer(folder, "", what="").running:
            servers.append(str(folder))
    return servers


@pytest.mark.parametrize(("how", "scene"), [(signal.SIGINT, 2), (signal.SIGTERM, 3)])
def test_interrupted_it_leaves_nothing_running(tmp_path: Path, how: signal.Signals, scene: int) -> None:
    demo = subprocess.Popen(
        [FLEXPAY, "demo", "--customers", "300"], env=environment(tmp_path), cwd=tmp_path, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert demo.stderr is not None
    for line in demo.stderr:
        if line.startswith(f"[{scene}/{SCENES}]"):
            break
    # Twice, as somebody impatient does: the second must not stop the stopping.
    for _ in range(2):
        os.killpg(demo.pid, how)
    _, said = demo.communicate(timeout=120)
    assert demo.returncode in (130, 143), said
    assert "Traceback" not in said
    assert _left_running(tmp_path) == []


def test_the_whole_product_once_and_once_more(flexpay: Flexpay, tmp_path: Path) -> None:
    # What a killed demo leaves behind must not be in the way.
    interrupted = subprocess.Popen(
        [FLEXPAY, "demo", "--customers", "300"], env=environment(tmp_path), cwd=tmp_path, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert interrupted.stderr is not None
    for line in interrupted.stderr:
        if line.startswith(f"[2/{SCENES}]"):
            break
    interrupted.kill()
    interrupted.communicate(timeout=60)

    said = flexpay("demo", "--customers", "1500", "--json")
    assert said.code == 0, said.err
    summary = said.json
    assert [scene["seconds"] > 0 for scene in summary["scenes"]] == [True] * SCENES
    figures = summary["figures"]
    assert figures["imported"]["customers"] == 1_500
    assert figures["pauses"]["commands"] == figures["pauses"]["delivered"] > 0
    assert figures["backup"]["proof"]["ok"] is True
    assert float(figures["metrics"]["reporting_mrr"]) > 0
    incident = figures["incident"]
    assert incident["failure_rate_during"] > 0.05 >= incident["failure_rate_after"]
    assert len(summary["incident"]) >= SCENES
    assert summary["headline"]["its proof"].endswith("equal")
    assert (tmp_path / "state" / "demo" / "summary.json").is_file()
    assert _left_running(tmp_path) == []

    runs = flexpay("audit", "--limit", "500", "--json").json
    assert {"deploy", "import", "sweep", "backup", "verify backup", "roll back"} <= {entry["action"] for entry in runs}
    health = flexpay("health", "--json")
    assert health.code == 0, health.out
    assert _left_running(tmp_path) == []
