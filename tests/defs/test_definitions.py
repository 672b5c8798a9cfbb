"""The code location: it loads with nothing set, holds just these names, and every asset tells what it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flexpay_pipelines.settings import CHECKOUT

NAMES = Path(__file__).with_name("names.json")


def _bare_environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {**kept, "HOME": str(tmp_path), "DAGSTER_HOME": str(tmp_path)}


def names() -> dict[str, list[str]]:
    """Every name of the code location, by kind."""
    from flexpay_pipelines.definitions import defs

    repository = defs.get_repository_def()
    graph = repository.asset_graph
    return {
        "assets": sorted(key.to_user_string() for key in graph.get_all_asset_keys()),
        "checks": sorted(f"{key.asset_key.to_user_string()}:{key.name}" for key in graph.asset_check_keys),
        "jobs": sorted(job.name for job in repository.get_all_jobs() if not job.name.startswith("__")),
        "schedules": sorted(schedule.name for schedule in repository.schedule_defs),
        "sensors": sorted(sensor.name for sensor in repository.sensor_defs),
    }


def test_the_names_are_these() -> None:
    """Names are an interface: runbooks, alerts and dashboards hold them. A change here is a change for users."""
    assert names() == json.loads(NAMES.read_text())


def test_every_asset_is_described() -> None:
    from flexpay_pipelines.definitions import defs

    graph = defs.get_repository_def().asset_graph
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.group_name != "default", key
        assert node.owners, key
        assert node.kinds, key
        assert node.tags.get("domain"), key
        assert node.description and len(node.description) > 20, key


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", str(CHECKOUT / "workspace.yaml")],
        [str(Path(sys.executable).with_name("dg")), "check", "defs"],
    ],
    ids=["dagster definitions validate", "dg check defs"],
)
def test_the_location_loads_with_no_variable_set(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        command, cwd=CHECKOUT, env=_bare_environment(tmp_path), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_loading_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = (
        "pandas",
        "great_expectations",
        "stripe",
        "matplotlib",
        "alembic",
        "sqlalchemy",
        "psycopg",
        "slack_sdk",
        "sklearn",
    )
    code = f"import sys, flexpay_pipelines.definitions; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=_bare_environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[]"
