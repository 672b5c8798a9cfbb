"""Killed with SIGKILL at any point, nothing is half done where it can be seen, and the next run finishes the work."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from flexpay_pipelines.backups import copy_offsite, kept_databases, list_backups, prune_backups
from flexpay_pipelines.backups.manifest import damages
from flexpay_pipelines.database import opened
from flexpay_pipelines.sandbox import Cluster
from tests.backups.helpers import Site

DRIVER = Path(__file__).with_name("killed_driver.py")
SAMPLE = 7


def run(site: Site, action: str, point: int, *rest: str) -> int:
    """Run an action to the given point; return how many points there were, or 0 when it was killed."""
    arguments = [
        action, str(point), site.billing_url, site.control_url, str(site.home), str(site.tools or ""),
        site.clock.now().isoformat(), *rest,
    ]  # fmt: skip
    done = subprocess.run([sys.executable, str(DRIVER), *arguments], capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGKILL:
        return 0
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def sampled(points: int, request: pytest.FixtureRequest, how_many: int = SAMPLE) -> Iterator[int]:
    """Points spread over the whole run, other ones for each name of a test; all of them in a soak."""
    every = 1 if "soak" in request.node.keywords else max(1, points // how_many)
    yield from range(1 + len(request.node.name) % every, points + 1, every)


SOAK = pytest.mark.parametrize("how_many", ["some", pytest.param("all", marks=pytest.mark.soak)])


@SOAK
def test_a_killed_backup_is_never_in_the_catalog_unless_whole(
    site: Site, request: pytest.FixtureRequest, how_many: str
) -> None:
    points = run(site, "backup", 0)
    for point in sampled(points, request):
        assert run(site, "backup", point) == 0
        assert all(damages(b.path, b.manifest_sha256) == () for b in list_backups(site.control))
        made = site.backup()
        places = {path.name for path in site.folder.iterdir()}
        assert places == {b.backup_id for b in list_backups(site.control)}, "nothing half-made is left"
        assert made.backup_id in places


@SOAK
def test_a_killed_restore_leaves_the_old_database_or_the_new_one(
    site: Site, request: pytest.FixtureRequest, how_many: str
) -> None:
    made = site.backup()
    site.billing.execute("DELETE FROM billing.payments")
    site.billing.close()
    points = run(site, "restore", 0, made.backup_id)
    old = kept_databases(site.billing_url)[0]
    seen = set()
    for point in sampled(points, request):
        site.clock.advance(timedelta(minutes=1))
        with opened(site.beside("postgres"), purpose="test") as server:
            for name in site.databases() - {old}:
                server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
            server.execute(f"CREATE DATABASE {site.database} TEMPLATE {old}".encode())
        assert run(site, "restore", point, made.backup_id) == 0
        now = site.count("billing.payments")
        seen.add(now)
        assert now in (0, 2000)
        kept = set(kept_databases(site.billing_url)) - {old}
        assert len(kept) == (1 if now == 2000 else 0), "the one of before is kept, and only it"
        assert all(site.count("billing.payments", site.beside(name)) == 0 for name in kept)
        site.clock.advance(timedelta(minutes=1))
        again = site.restore(made.backup_id).kept_database
        assert site.count("billing.payments") == 2000
        assert site.databases() == {site.database, old, again, *kept}, "nothing half-restored is left"
    assert 0 in seen


@SOAK
def test_a_killed_proof_leaves_no_server_and_no_wrong_verdict(
    site: Site, request: pytest.FixtureRequest, how_many: str
) -> None:
    made = site.backup()
    points = run(site, "verify", 0, made.backup_id)
    site.control.execute("UPDATE ops.backups SET verified_at = NULL, verification = NULL")
    for point in sampled(points, request, how_many=2):
        assert run(site, "verify", point, made.backup_id) == 0
        left = [Cluster(folder, bin_folder=site.tools) for folder in site.scratch.glob(".partial-*/scratch-*")]
        assert site.verify(made).ok
        assert not [cluster for cluster in left if cluster.running]
        assert list(site.scratch.iterdir()) == []


@SOAK
def test_a_killed_copy_is_never_taken_for_one(site: Site, request: pytest.FixtureRequest, how_many: str) -> None:
    made = site.backup()
    points = run(site, "offsite", 0, made.backup_id)
    for point in sampled(points, request):
        shutil.rmtree(site.home / "far")
        site.control.execute("UPDATE ops.backups SET offsite_at = NULL, offsite_path = NULL")
        assert run(site, "offsite", point, made.backup_id) == 0
        for known in list_backups(site.control):
            assert known.offsite_path is None or damages(known.offsite_path, known.manifest_sha256) == ()
        place = copy_offsite(
            site.control, made.backup_id, folder=site.home / "far", clock=site.clock, progress=site.said.append
        )
        assert damages(place, made.manifest_sha256) == ()
        assert list((site.home / "far").iterdir()) == [place]


@SOAK
def test_a_killed_pruning_is_finished_by_the_next(site: Site, request: pytest.FixtureRequest, how_many: str) -> None:
    def grow_old() -> tuple[str, str]:
        old, far = site.backup(), site.home / "far"
        copy_offsite(site.control, old.backup_id, folder=far, clock=site.clock, progress=site.said.append)
        site.clock.advance(timedelta(days=31))
        return old.backup_id, site.backup().backup_id

    grow_old()
    points = run(site, "prune", 0)
    for point in sampled(points, request):
        old, new = grow_old()
        assert run(site, "prune", point) == 0
        for known in list_backups(site.control):
            assert damages(known.path, known.manifest_sha256) == (), "the catalog promises nothing half removed"
        prune_backups(
            site.control, folder=site.folder, offsite_folder=site.home / "far", retention_days=30, clock=site.clock
        )
        assert [b.backup_id for b in list_backups(site.control)] == [new]
        assert [path.name for path in site.folder.iterdir()] == [new]
        assert list((site.home / "far").iterdir()) == []
        assert old not in {b.backup_id for b in list_backups(site.control)}
