"""Each sensor looks at real databases: quiet when all is well, and once each when it is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from flexpay_pipelines.analytics import refresh, refresh_churn_risk
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.defs.resources import FlexPay
from flexpay_pipelines.monitoring import record_deploy

NOW = datetime.now(UTC).replace(second=0, microsecond=0)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """An instance of its own for each test."""
    with dg.DagsterInstance.ephemeral() as opened:
        yield opened


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, billing_url: str, control_url: str) -> None:
    monkeypatch.setenv("FLEXPAY_HOME", str(tmp_path))
    monkeypatch.setenv("FLEXPAY_BILLING_URL", billing_url)
    monkeypatch.setenv("FLEXPAY_CONTROL_URL", control_url)


def _tick(instance: dg.DagsterInstance, name: str, cursor: str | None = None) -> dg.SensorEvaluationContext:
    from flexpay_pipelines.definitions import defs

    repository = defs.get_repository_def()
    context = dg.build_sensor_context(
        instance=instance, repository_def=repository, resources={"flexpay": FlexPay(now=NOW.isoformat())}, cursor=cursor
    )
    data = repository.get_sensor_def(name).evaluate_tick(context)
    context.said = data  # type: ignore[attr-defined]
    return context


def _alerts(control: Connection) -> list[str]:
    return [row["title"] for row in control.execute("SELECT title FROM ops.alerts ORDER BY alert_id").fetchall()]


@pytest.mark.parametrize(
    "name",
    [
        "payment_failure_rate", "system_error_rate", "database_degradation", "security_vulnerability", "run_failures",
        "alert_delivery", "backup_made",
    ],
)  # fmt: skip
def test_nothing_is_wrong(instance: dg.DagsterInstance, control: Connection, name: str) -> None:
    context = _tick(instance, name)
    assert not context.said.run_requests  # type: ignore[attr-defined]
    assert _alerts(control) == []


def test_figures_that_are_missing_are_no_good_news(instance: dg.DagsterInstance, control: Connection) -> None:
    _tick(instance, "business_health")
    _tick(instance, "business_health")
    assert _alerts(control) == ["No figure for churn", "No figure for high_risk_customers"]


def test_a_business_that_does_well_is_quiet(
    instance: dg.DagsterInstance, billing: Connection, control: Connection
) -> None:
    day = NOW.date() - timedelta(days=2)
    billing.execute("INSERT INTO billing.customers (customer_ref, currency) VALUES ('c', 'EUR')")
    billing.execute("INSERT INTO billing.plans VALUES ('p', 'P')")
    billing.execute(
        "INSERT INTO billing.subscriptions (subscription_ref, customer_id, plan, status, amount_minor, currency,"
        " started_at, billing_anchor) VALUES ('s', 1, 'p', 'active', 100, 'EUR', '2026-01-01Z', '2026-01-01Z')"
    )
    refresh(billing, start=day, end=day, clock=FixedClock(NOW), progress=lambda _: None)
    refresh_churn_risk(billing, day=day, clock=FixedClock(NOW))
    said = _tick(instance, "business_health").said  # type: ignore[attr-defined]
    assert str(day) in said.skip_message
    assert _alerts(control) == []


def test_a_failed_run_becomes_one_alert_that_is_sent(instance: dg.DagsterInstance, control: Connection) -> None:
    @dg.op
    def breaks() -> None:
        raise ValueError("as it must")

    @dg.job
    def broken() -> None:
        breaks()

    broken.execute_in_process(instance=instance, raise_on_error=False)
    context = _tick(instance, "run_failures")
    assert _alerts(control) == ["Job broken failed"]
    _tick(instance, "run_failures", cursor=context.cursor)
    assert _alerts(control) == ["Job broken failed"]
    waiting = _tick(instance, "alert_delivery")
    assert len(waiting.said.run_requests or []) == 1  # type: ignore[attr-defined]


def test_a_critical_vulnerability_that_was_there_before_calls_a_person(
    instance: dg.DagsterInstance, control: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_deploy(
        control, release="r", actor="test", run_id=None, revisions={}, clock=FixedClock(NOW - timedelta(hours=1))
    )
    advisories = tmp_path / "advisories.jsonl"
    advisories.write_text(json.dumps({"id": "GHSA-x", "package": "stripe", "affected": ">=1", "severity": "critical"}))
    monkeypatch.setenv("FLEXPAY_ADVISORIES_FILE", str(advisories))
    context = _tick(instance, "security_vulnerability")
    assert not context.said.run_requests  # type: ignore[attr-defined]
    assert len(_alerts(control)) == 1
    assert "security_vulnerability" in _alerts(control)[0]


def test_payments_that_fail_since_the_release_start_one_rollback(
    instance: dg.DagsterInstance, billing: Connection, control: Connection
) -> None:
    released = NOW - timedelta(hours=6)
    record_deploy(control, release="bad", actor="test", run_id=None, revisions={}, clock=FixedClock(released))
    billing.execute("INSERT INTO billing.customers (customer_ref, currency) VALUES ('c', 'EUR')")
    billing.execute("INSERT INTO billing.plans VALUES ('p', 'P')")
    billing.execute(
        "INSERT INTO billing.subscriptions (subscription_ref, customer_id, plan, status, amount_minor, currency,"
        " started_at, billing_anchor, payment_frequency)"
        " SELECT 's' || n, 1, 'p', 'active', 100, 'EUR', '2026-01-01Z', '2026-01-01Z',"
        " CASE WHEN n % 2 = 0 THEN 'WEEKLY' ELSE 'MONTHLY' END FROM generate_series(1, 200) AS n"
    )
    billing.execute(
        "INSERT INTO billing.payments (payment_ref, subscription_id, occurred_at, recorded_at, amount_minor, currency,"
        " outcome, failure_class)"
        " SELECT 'pay-' || s.subscription_id, s.subscription_id, at, at, 100, 'EUR',"
        " CASE WHEN s.payment_frequency = 'WEEKLY' THEN 'failed' ELSE 'succeeded' END,"
        " CASE WHEN s.payment_frequency = 'WEEKLY' THEN 'integration_error' END"
        " FROM billing.subscriptions AS s"
        " CROSS JOIN LATERAL (SELECT %s + s.subscription_id * interval '1 minute' AS at) AS t",
        (released,),
    )
    first, second = (_tick(instance, "payment_failure_rate") for _ in range(2))
    requests = [context.said.run_requests for context in (first, second)]  # type: ignore[attr-defined]
    assert [request.job_name for request in requests[0]] == ["rollback_frequencies"]
    # Asked for again until it is done, under the same key: Dagster starts it once.
    assert requests[1][0].run_key == requests[0][0].run_key
    assert len(_alerts(control)) == 1
    incidents = control.execute("SELECT component FROM ops.incidents").fetchall()
    assert incidents == [{"component": "frequencies"}]
