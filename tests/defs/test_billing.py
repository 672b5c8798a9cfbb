"""The hourly sweep as a run: what its partition says of the hour, and of the hours that it caught up with."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from flexpay_pipelines.database import Connection
from flexpay_pipelines.defs.resources import FlexPay
from tests.billing.helpers import HOUR, NOON, add_pause, make_company

KEY = "2026-03-10-11:00"
PAUSE_SWEEP = dg.AssetKey(["billing", "pause_sweep"])


@pytest.fixture
def company(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, billing_url: str, control_url: str, billing: Connection
) -> Connection:
    monkeypatch.setenv("FLEXPAY_HOME", str(tmp_path))
    monkeypatch.setenv("FLEXPAY_BILLING_URL", billing_url)
    monkeypatch.setenv("FLEXPAY_CONTROL_URL", control_url)
    make_company(billing, 4)
    return billing


def _sweep() -> dict[str, object]:
    """What the UI shows of the run for the hour before NOON."""
    from flexpay_pipelines.definitions import build_definitions

    definitions = build_definitions(FlexPay(now=NOON.isoformat()))
    job = definitions.resolve_job_def("hourly_pause_sweep")
    result = job.execute_in_process(asset_selection=[PAUSE_SWEEP], partition_key=KEY)
    shown = result.asset_materializations_for_node("billing__pause_sweep")[0]
    assert shown.partition == KEY
    return {name: value.value for name, value in shown.metadata.items()}


def test_an_hour_says_what_was_due_in_it_and_what_became_of_it(company: Connection) -> None:
    add_pause(company, "s1", NOON - HOUR / 2, NOON + HOUR)
    add_pause(company, "s2", NOON - 3 * HOUR, NOON - HOUR / 4, state="active")
    company.execute("UPDATE billing.subscriptions SET status = 'paused' WHERE subscription_ref = 's2'")
    add_pause(company, "s3", NOON - HOUR / 2, NOON + HOUR)
    company.execute("UPDATE billing.subscriptions SET status = 'canceled' WHERE subscription_ref = 's3'")
    shown = _sweep()
    assert shown["due"] == 3
    assert (shown["started"], shown["ended"], shown["suspended"]) == (1, 1, 0)
    assert shown["skipped"] == {"subscription canceled": 1}
    assert shown["commands"] == 2
    assert shown["oldest_lag_seconds"] == 1800.0
    # The pause that could not be is no longer on the calendar.
    assert shown["by_hour"] == "| hour | due | done |\n| --- | --- | --- |\n| 2026-03-10T11:00+00:00 | 2 | 2 |"


def test_after_an_outage_the_hours_that_were_caught_up_with_are_shown_too(company: Connection) -> None:
    add_pause(company, "s1", NOON - timedelta(hours=26, minutes=30), NOON + HOUR)
    add_pause(company, "s2", NOON - timedelta(hours=25, minutes=30), NOON - timedelta(hours=3, minutes=30))
    shown = _sweep()
    assert (shown["due"], shown["started"], shown["ended"]) == (3, 2, 1)
    assert shown["oldest_lag_seconds"] == 26.5 * 3600
    assert [line.split(" | ")[0] for line in str(shown["by_hour"]).splitlines()[2:]] == [
        "| 2026-03-09T09:00+00:00", "| 2026-03-09T10:00+00:00", "| 2026-03-10T08:00+00:00", "| 2026-03-10T11:00+00:00",
    ]  # fmt: skip


def test_an_hour_in_which_nothing_was_due_says_so(company: Connection) -> None:
    shown = _sweep()
    assert (shown["due"], shown["oldest_lag_seconds"]) == (0, 0.0)
    assert shown["by_hour"] == "| hour | due | done |\n| --- | --- | --- |\n| 2026-03-10T11:00+00:00 | 0 | 0 |"
