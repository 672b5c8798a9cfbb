"""The weekly clean-up removes what nobody reads and keeps what is evidence."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flexpay_pipelines.alerts import raise_alert
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.health import CleanUp, clean_up

NOW = datetime(2026, 11, 1, tzinfo=UTC)
OLD = NOW - timedelta(days=91)


def _decide(control: Connection, verdict: str, at: datetime) -> None:
    control.execute(
        "INSERT INTO ops.decisions (trigger, tick_at, verdict, decided_at) VALUES ('t', %(at)s, %(verdict)s, %(at)s)",
        {"at": at, "verdict": verdict},
    )


def test_old_and_settled_goes_the_rest_stays(control: Connection, tmp_path: Path) -> None:
    _decide(control, "healthy", OLD)
    _decide(control, "healthy", NOW)
    _decide(control, "roll_back", OLD + timedelta(minutes=5))
    for name in ("settled", "waiting"):
        raise_alert(
            control, fingerprint=name, severity="warning", title=name, body="", context={}, clock=FixedClock(OLD)
        )
    control.execute(
        "UPDATE ops.alert_deliveries SET state = 'delivered', delivered_at = %s"
        " WHERE alert_id = (SELECT alert_id FROM ops.alerts WHERE fingerprint = 'settled')",
        (OLD,),
    )
    old, new = tmp_path / "a" / "old.log", tmp_path / "new.log"
    old.parent.mkdir()
    for path in (old, new):
        path.write_text("12345")
    os.utime(old, (OLD.timestamp(), OLD.timestamp()))
    os.utime(new, (NOW.timestamp(), NOW.timestamp()))

    said: list[str] = []
    first = clean_up(control, logs=tmp_path, clock=FixedClock(NOW), progress=said.append)
    again = clean_up(control, logs=tmp_path, clock=FixedClock(NOW), progress=said.append)

    assert first == CleanUp(decisions=1, deliveries=1, files=1, bytes=5)
    assert again == CleanUp(decisions=0, deliveries=0, files=0, bytes=0)
    assert len(said) == 6
    kept = control.execute("SELECT verdict, tick_at FROM ops.decisions ORDER BY tick_at").fetchall()
    assert [row["verdict"] for row in kept] == ["roll_back", "healthy"]
    waiting = control.execute("SELECT state FROM ops.alert_deliveries").fetchall()
    assert waiting == [{"state": "pending"}]
    alerts = control.execute("SELECT count(*) AS n FROM ops.alerts").fetchone()
    assert alerts == {"n": 2}
    assert new.exists()
    assert not old.exists()


def test_a_missing_folder_is_no_error(control: Connection, tmp_path: Path) -> None:
    result = clean_up(control, logs=tmp_path / "none", clock=FixedClock(NOW), progress=lambda _: None)
    assert result.files == 0
