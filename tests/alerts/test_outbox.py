"""Raising alerts: once an hour for the same thing, also when many raise it at once, and without secrets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flexpay_pipelines.alerts import list_alerts, pending_deliveries, raise_alert
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.errors import BadInput

START = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def clock() -> FixedClock:
    """A clock that the test moves."""
    return FixedClock(START)


def _raise(control: Connection, clock: FixedClock, **changes: Any) -> int:
    alert: dict[str, Any] = {
        "fingerprint": "payment_failure_rate:7", "severity": "critical", "title": "Payments fail", "body": "20 % fail.",
        "context": {"rate": 0.2},
    }  # fmt: skip
    return raise_alert(control, clock=clock, **{**alert, **changes})


def test_the_same_within_an_hour_is_a_repeat(control: Connection, clock: FixedClock) -> None:
    first = _raise(control, clock)
    clock.advance(timedelta(minutes=59, seconds=59))
    assert _raise(control, clock) == first
    (record,) = list_alerts(control, limit=10)
    assert (record.alert.repeats, record.alert.raised_at, record.alert.last_raised_at) == (1, START, clock.now())
    assert pending_deliveries(control) == 1
    clock.advance(timedelta(seconds=1))
    assert _raise(control, clock) != first
    assert pending_deliveries(control) == 2


def test_a_clock_that_is_a_little_behind_repeats_too(control: Connection, clock: FixedClock) -> None:
    first = _raise(control, clock)
    assert _raise(control, FixedClock(START - timedelta(seconds=5))) == first
    (record,) = list_alerts(control, limit=10)
    assert record.alert.last_raised_at == START


def test_what_has_become_worse_is_no_repeat(control: Connection, clock: FixedClock) -> None:
    first = _raise(control, clock, severity="warning")
    second = _raise(control, clock, severity="critical")
    assert second != first
    assert _raise(control, clock, severity="warning") == second


def test_the_severity_chooses_the_channels(control: Connection, clock: FixedClock) -> None:
    routes = {"info": (), "warning": ("slack",), "critical": ("slack", "pagerduty")}
    for severity in routes:
        _raise(control, clock, severity=severity, fingerprint=severity, routes=routes)
    chosen = {
        record.alert.severity: tuple(sorted(delivery.channel for delivery in record.deliveries))
        for record in list_alerts(control, limit=10)
    }
    assert chosen == {"info": (), "warning": ("slack",), "critical": ("pagerduty", "slack")}


def test_many_at_once_are_one_alert(control: Connection, control_url: str, clock: FixedClock) -> None:
    def raise_ten(_: int) -> set[int]:
        with opened(control_url, purpose="test", role="control") as connection:
            return {_raise(connection, clock) for _ in range(10)}

    with ThreadPoolExecutor(8) as pool:
        ids = set().union(*pool.map(raise_ten, range(8)))
    (record,) = list_alerts(control, limit=10)
    assert ids == {record.alert.alert_id}
    assert record.alert.repeats == 79
    assert pending_deliveries(control) == 1


def test_an_alert_goes_with_the_deed_that_is_undone(control: Connection, clock: FixedClock) -> None:
    with pytest.raises(RuntimeError), control.transaction():
        _raise(control, clock)
        raise RuntimeError
    assert list_alerts(control, limit=10) == ()


def test_cards_and_secrets_are_not_stored(control: Connection, clock: FixedClock) -> None:
    _raise(
        control, clock, title="Card 4242 4242 4242 4242", body="postgresql://u:hunter2@h/d \x00 xoxb-1-2-abc",
        context={"api_key": "sk_live_abc", "note": ["4242-4242-4242-4242"], "when": START, "rate": float("nan")},
    )  # fmt: skip
    stored = str(control.execute("SELECT title, body, context::text FROM ops.alerts").fetchall())
    for hidden in ("4242", "hunter2", "xoxb", "sk_live"):
        assert hidden not in stored
    assert "2026-11-22 12:00:00+00:00" in stored


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"severity": "fatal"}, "'fatal' is no severity"), ({"title": " "}, "needs a"), ({"fingerprint": ""}, "needs a")],
)
def test_bad_input_is_refused(control: Connection, clock: FixedClock, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        _raise(control, clock, **changes)
    assert list_alerts(control, limit=10) == ()


def test_the_list_is_newest_first_within_its_limit(control: Connection, clock: FixedClock) -> None:
    ids = []
    for number in range(4):
        ids.append(_raise(control, clock, fingerprint=str(number)))
        clock.advance(timedelta(minutes=1))
    assert [record.alert.alert_id for record in list_alerts(control, limit=3)] == ids[:0:-1]
