"""The daily analytics as a real run: every check holds; where one does not, the report waits and says of whom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from flexpay_pipelines.database import Connection
from flexpay_pipelines.defs.analytics import day_to_compute
from flexpay_pipelines.defs.resources import FlexPay
from tests.analytics.ledger import write
from tests.analytics.money import DAY, Entry, Payment, book, pay, started

START = datetime(2026, 1, 1, 9, tzinfo=UTC)
NOW = datetime(2026, 3, 2, 2, tzinfo=UTC)
KEY = "2026-03-01"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


@pytest.fixture
def company(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, billing_url: str, control_url: str, billing: Connection
) -> Connection:
    monkeypatch.setenv("FLEXPAY_HOME", str(tmp_path))
    monkeypatch.setenv("FLEXPAY_BILLING_URL", billing_url)
    monkeypatch.setenv("FLEXPAY_CONTROL_URL", control_url)
    write(billing, [started(f"c{n}-1", START) for n in range(12)])
    pay(billing, [Payment(f"c{n}-1", START + days * DAY) for n in range(12) for days in (0, 31, 59)])
    book(billing, [Entry("c1", START, "earned", 500)])
    return billing


def _run(instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    from flexpay_pipelines.definitions import build_definitions

    job = build_definitions(FlexPay(now=NOW.isoformat())).resolve_job_def("daily_analytics")
    return job.execute_in_process(instance=instance, partition_key=KEY, raise_on_error=False)


def _checks(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


def test_every_check_holds(company: Connection, instance: dg.DagsterInstance, tmp_path: Path) -> None:
    result = _run(instance)
    assert result.success
    checks = _checks(result)
    assert {
        "movements_explain_mrr", "months_agree_with_days", "intervals_are_whole", "events_are_used_once",
        "payments_match_run_rate", "figures_are_fresh", "figures_are_in_range", "balances_add_up",
    } <= checks.keys()  # fmt: skip
    assert [name for name, check in checks.items() if not check.passed and check.blocking] == []
    (made,) = result.asset_materializations_for_node("analytics__balances")
    assert made.metadata["analysts"].value == "flexpay_analyst may read schema analytics."
    assert "| 2026-03-01 | EUR |" in str(made.metadata["deferred_revenue"].value)
    (health,) = result.asset_materializations_for_node("analytics__payment_health")
    assert health.metadata["success_rate"].value == 1.0
    assert str(health.metadata["failed_attempts"].value).startswith("<svg")
    assert (tmp_path / "reports" / KEY / "report.html").exists()


def test_a_check_that_fails_names_customers_and_stops_the_report(
    company: Connection, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """Four of twelve customers are said to have paid a hundred times the price."""
    company.execute(
        "UPDATE billing.payments SET amount_minor = 100000 WHERE occurred_at > %s AND subscription_id IN"
        " (SELECT subscription_id FROM billing.subscriptions ORDER BY subscription_ref LIMIT 4)",
        (NOW - timedelta(days=20),),
    )
    result = _run(instance)
    assert not result.success
    failed = _checks(result)["payments_match_run_rate"]
    assert not failed.passed
    assert failed.metadata["count"].value == 4
    rows = str(failed.metadata["breaks"].value)
    assert all(f"| {customer} |" in rows for customer in ("c0", "c1", "c10", "c11"))
    assert not (tmp_path / "reports" / KEY).exists()


def test_a_run_shows_what_it_restated_and_why(company: Connection, instance: dg.DagsterInstance) -> None:
    assert _run(instance).success
    write(company, [replace(started("c3-1", START), event="changed", amount_minor=1100)])
    result = _run(instance)
    movements = next(
        made
        for made in result.asset_materializations_for_node("subscription_metrics")
        if made.asset_key == dg.AssetKey(["analytics", "mrr_movements"])
    )
    assert movements.metadata["restated"].value == 1
    assert movements.metadata["restated_days"].value == f"1 days from {KEY} to {KEY}"
    assert "| 2026-03-01 | EUR | 144000 | 145200 |" in str(movements.metadata["restated_totals"].value)
    assert "| event | c3 | c3-1 |" in str(movements.metadata["restated_because_of"].value)


def test_a_check_with_many_breaks_says_how_many_more_there_are(
    company: Connection, instance: dg.DagsterInstance
) -> None:
    write(company, [replace(started(f"d{n}-1", START), event="canceled") for n in range(60)])
    result = _run(instance)
    assert not result.success
    failed = _checks(result)["intervals_are_whole"]
    assert failed.metadata["count"].value == 60
    shown = str(failed.metadata["breaks"].value)
    assert shown.count("current state differs") == 50
    assert shown.endswith("… and 10 more")


@pytest.mark.parametrize(
    ("zone", "hours"),
    [
        ("UTC", {2: 1}),
        ("Asia/Tokyo", {2: 1}),
        ("America/New_York", {7: 1}),
        ("Pacific/Honolulu", {12: 1}),
        ("America/St_Johns", {6: 1}),
    ],
)
def test_a_day_is_computed_when_it_is_over_in_utc_and_in_its_zone(zone: str, hours: dict[int, int]) -> None:
    ticks = [datetime(2026, 1, 10, hour, tzinfo=UTC) for hour in range(24)]
    found = {tick.hour: day for tick in ticks if (day := day_to_compute(tick, zone)) is not None}
    assert found == {hour: date(2026, 1, 10) - timedelta(days=back) for hour, back in hours.items()}


def test_every_day_of_a_year_is_computed_once_although_clocks_change() -> None:
    ticks = [datetime(2026, 1, 2, tzinfo=UTC) + timedelta(hours=n) for n in range(24 * 365)]
    for zone in ("UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe"):
        days = [day for tick in ticks if (day := day_to_compute(tick, zone)) is not None]
        assert days == [date(2026, 1, 1) + timedelta(days=n) for n in range(365)]
