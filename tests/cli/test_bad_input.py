"""Bad input: one clear sentence, a non-zero exit code, no traceback, and everything as it was."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from flexpay_pipelines.sandbox import Cluster
from tests.cli.conftest import Flexpay
from tests.commands import Said


def _refused(said: Said, code: int, *words: str) -> None:
    assert said.code == code, said.out + said.err
    assert "Traceback" not in said.err + said.out
    for word in words:
        assert word in said.err, said.err


def _nothing_left(home: Path) -> None:
    for pid_file in home.rglob("postmaster.pid"):
        raise AssertionError(f"a server was left running: {pid_file}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rollback", "subscriptions"), ("subscriptions",)),
        (("analytics", "run", "--from", "31.01.2026", "--yes"), ("31.01.2026", "2026-01-31")),
        (("analytics", "run", "--from", "2026-02-02", "--to", "2026-02-01", "--yes"), ("--from",)),
        (("analytics", "run", "--to", "2999-01-01", "--yes"), ("has not ended yet",)),
        (("import", "no-such-folder", "--yes"), ("no-such-folder",)),
        (("dev", "--port", "0"), ("port",)),
        (("export", "mrr", "--from", "x", "--to", "y", "--out", "f", "--known-at", "today"), ("today", "ISO-8601")),
    ],
)
def test_wrong_usage(flexpay: Flexpay, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    _refused(flexpay(*arguments), 2, *words)
    _nothing_left(tmp_path)


def test_a_malformed_setting_is_named(flexpay: Flexpay) -> None:
    said = flexpay("health", FLEXPAY_PAUSE_GRACE_DAYS="many", FLEXPAY_BILLING_URL="mysql://x")
    _refused(said, 2, "FLEXPAY_PAUSE_GRACE_DAYS", "FLEXPAY_BILLING_URL", "postgresql://")


def test_production_embeds_nothing(flexpay: Flexpay, tmp_path: Path) -> None:
    _refused(flexpay("health", FLEXPAY_ENVIRONMENT="production"), 2, "FLEXPAY_BILLING_URL", "production")
    assert not (tmp_path / "state" / "postgres").exists()


def test_a_database_that_is_not_there(flexpay: Flexpay, cluster: Cluster) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"postgresql://nobody:secret@127.0.0.1:{unused.getsockname()[1]}/billing"
        said = flexpay("health", FLEXPAY_BILLING_URL=url, FLEXPAY_CONTROL_URL=cluster.url())
    _refused(said, 1, "billing", "FLEXPAY_BILLING_URL")
    assert "secret" not in said.err


def test_a_control_database_that_is_not_there(flexpay: Flexpay, cluster: Cluster) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"postgresql://nobody:secret@127.0.0.1:{unused.getsockname()[1]}/control"
        said = flexpay("deploy", "--yes", FLEXPAY_BILLING_URL=cluster.url(), FLEXPAY_CONTROL_URL=url)
    _refused(said, 1, "control", "FLEXPAY_CONTROL_URL")
    assert "secret" not in said.err


def test_a_port_in_use(flexpay: Flexpay, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        _refused(flexpay("dev", "--port", port), 2, port, "--port")
    _nothing_left(tmp_path)


def test_nobody_to_ask(flexpay: Flexpay, tmp_path: Path) -> None:
    _refused(flexpay("backup", "create"), 2, "--yes", "--plan")
    _nothing_left(tmp_path)


def test_a_home_that_cannot_be_made(flexpay: Flexpay, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    _refused(flexpay("health", FLEXPAY_HOME=str(tmp_path / "file" / "home")), 1, str(tmp_path / "file"))


def test_the_demo_leaves_real_services_alone(flexpay: Flexpay, cluster: Cluster) -> None:
    _refused(flexpay("demo", FLEXPAY_BILLING_URL=cluster.url()), 2, "FLEXPAY_BILLING_URL")


def test_the_demo_leaves_somebody_elses_data_alone(flexpay: Flexpay, tmp_path: Path) -> None:
    (tmp_path / "state" / "postgres" / "billing" / "data").mkdir(parents=True)
    _refused(flexpay("demo"), 2, "FLEXPAY_HOME")
    assert (tmp_path / "state" / "postgres" / "billing" / "data").is_dir()


@pytest.mark.parametrize("command", ["deploy", "sweep", "import", "export", "restore", "rollback", "dev", "demo"])
def test_help_shows_examples(flexpay: Flexpay, command: str) -> None:
    said = flexpay(command, "--help")
    assert said.code == 0
    assert f"flexpay {command}" in said.out.replace("Usage: flexpay", "")
