"""A small company's life at the terminal: each command once, by what it leaves behind."""

from __future__ import annotations

import csv
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flexpay_pipelines.sandbox.company import write_company
from tests.cli.conftest import Flexpay
from tests.commands import Said


def _done(said: Said) -> Said:
    assert said.code == 0, said.out + said.err
    assert "Traceback" not in said.err
    return said


@pytest.mark.usefixtures("kept_running")
def test_a_company_at_the_terminal(flexpay: Flexpay, tmp_path: Path) -> None:
    folder = tmp_path / "company"
    folder.mkdir()
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    write_company(folder, seed=7, end=end, customers=120, months=6, progress=lambda _: None)

    plan = _done(flexpay("deploy", "--plan", "--json")).json
    assert any("core/0001" in step for step in plan["3 migrate"])
    _done(flexpay("deploy", "--release", "first", "--yes", "--json"))
    assert _done(flexpay("deploy", "--plan", "--json")).json["3 migrate"] == ["nothing is pending"]

    would = _done(flexpay("import", str(folder), "--plan", "--json")).json
    assert sum(file["new"] for file in would) > 0
    _done(flexpay("import", str(folder), "--yes", "--json"))
    again = _done(flexpay("import", str(folder), "--plan", "--json")).json
    assert sum(file["new"] for file in again) == 0

    due = _done(flexpay("sweep", "--plan", "--json")).json
    swept = _done(flexpay("sweep", "--yes", "--json")).json
    assert swept["started"] + swept["ended"] + sum(swept["skipped"].values()) >= due["to_start"]
    assert _done(flexpay("sweep", "--plan", "--json")).json["oldest_due_at"] is None

    day = (datetime.now(UTC) - timedelta(days=1)).date()
    computed = _done(
        flexpay("analytics", "run", "--from", str(day - timedelta(days=9)), "--to", str(day), "--yes", "--json")
    )
    assert Path(computed.json["report"]).read_text(encoding="utf-8").startswith("<!")
    out = tmp_path / "summary.csv"
    span = ("--from", str(day - timedelta(days=9)), "--to", str(day))
    exported = _done(flexpay("export", "mrr-summary", *span, "--by", "plan", "--out", str(out), "--json")).json
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == exported["rows"] > 0
    for row in rows:
        moved = sum(int(row[name]) for name in (
            "new", "reactivation", "expansion", "contraction", "churn", "paused", "resumed", "transfer", "fx",
        ))  # fmt: skip
        assert int(row["start"]) + moved == int(row["end"])

    made = _done(flexpay("backup", "create", "--yes", "--json")).json
    assert _done(flexpay("backup", "verify", "--json")).json["ok"] is True

    before = _done(flexpay("rollback", "frequencies", "--plan", "--json")).json
    assert before["changes"]["subscriptions_moved_to_monthly"] > 0
    _done(flexpay("rollback", "frequencies", "--reason", "a test", "--yes", "--json"))
    listed = _done(flexpay("rollback", "list", "--json")).json
    assert [(row["component"], row["state"]) for row in listed] == [("frequencies", "done")]
    restored = _done(flexpay("rollback", "undo", str(listed[0]["rollback_id"]), "--yes", "--json")).json["restored"]
    assert restored["subscription"] == before["changes"]["subscriptions_moved_to_monthly"]

    assert made["backup_id"] in {row["backup_id"] for row in _done(flexpay("backup", "list", "--json")).json}
    kept = _done(flexpay("restore", made["backup_id"], "--yes", "--json")).json["kept_database"]
    assert kept.startswith("billing_before_restore_")
    # The rollback came after the backup: its traces went with the restore, and the control database still knows.
    assert _done(flexpay("rollback", "frequencies", "--plan", "--json")).json["changes"] == before["changes"]
    assert len(_done(flexpay("rollback", "list", "--json")).json) == 1
    trail = _done(flexpay("audit", "--json")).json
    assert {entry["action"] for entry in trail} >= {
        "deploy",
        "import",
        "sweep",
        "backup",
        "roll back",
        "undo rollback",
        "restore",
    }
    assert {entry["outcome"] for entry in trail} == {"done"}


def test_bad_rows_are_named_and_nothing_is_imported(flexpay: Flexpay, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "plans.csv").write_text("plan,name\nstarter,Starter\n")
    (folder / "customers.csv").write_text("customer_id,currency\nc1,EUR\nc2,euros\n")
    _done(flexpay("deploy", "--yes", "--json"))
    said = flexpay("import", str(folder), "--yes")
    assert said.code == 2
    assert "customers.csv" in said.err
    assert "currency" in said.err
    assert "Traceback" not in said.err
    (folder / "customers.csv").write_text("customer_id,currency\nc1,EUR\n")
    would = _done(flexpay("import", str(folder), "--plan", "--json")).json
    assert {file["file"]: file["new"] for file in would} == {"plans.csv": 1, "customers.csv": 1}
