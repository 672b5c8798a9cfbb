"""The relay against the Slack stand-in, by the real SDK: at least once, once with two relays, nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flexpay_pipelines.alerts import (
    Alert,
    AlertDelivery,
    Channel,
    SlackChannel,
    deliver_alerts,
    list_alerts,
    pending_deliveries,
    raise_alert,
    requeue_parked,
)
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.sandbox.slack_server import SlackSandbox, running_slack_server

START = datetime(2026, 11, 22, 12, tzinfo=UTC)

# A relay that dies between Slack's answer and the mark in the database.
DIE_AFTER_SENDING = """
import os, signal, sys
from datetime import UTC, datetime
from flexpay_pipelines.alerts import SlackChannel, deliver_alerts
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import opened
url, api_base, token = sys.argv[1:]
class Dying(SlackChannel):
    def send(self, alert):
        super().send(alert)
        os.kill(os.getpid(), signal.SIGKILL)
with opened(url, purpose="test", role="control") as control:
    clock = FixedClock(datetime(2026, 11, 22, 12, tzinfo=UTC))
    deliver_alerts(control, {"slack": Dying(token, "#ops", api_base)}, clock=clock, progress=print)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlackSandbox]:
    """One stand-in for the module."""
    with running_slack_server(tmp_path_factory.mktemp("slack")) as running:
        yield running


@pytest.fixture
def slack(server: SlackSandbox) -> SlackSandbox:
    """The stand-in without messages and faults."""
    server.clear_faults()
    os.truncate(server.folder / "messages.jsonl", 0)
    return server


@pytest.fixture
def clock() -> FixedClock:
    """A clock that the test moves."""
    return FixedClock(START)


def _raise(control: Connection, count: int = 1, first: int = 0) -> None:
    for number in range(first, first + count):
        raise_alert(
            control, fingerprint=f"f{number}", severity="critical", title=f"Trouble {number}", body="Much.",
            context={"number": number}, clock=FixedClock(START),
        )  # fmt: skip


def _channel(slack: SlackSandbox) -> SlackChannel:
    return SlackChannel(slack.token, "#ops", slack.api_base)


def _deliver(control: Connection, channel: Channel, clock: FixedClock, said: list[str] | None = None) -> AlertDelivery:
    return deliver_alerts(control, {"slack": channel}, clock=clock, progress=(said if said is not None else []).append)


def _figures(delivery: AlertDelivery) -> tuple[int, int, int, int]:
    return delivery.delivered, delivery.retried, delivery.parked, delivery.waiting


def _sent(slack: SlackSandbox) -> list[int]:
    return [message["metadata"]["event_payload"]["alert_id"] for message in slack.messages()]


def _not_before(control: Connection) -> list[datetime]:
    return [row["at"] for row in control.execute("SELECT not_before AS at FROM ops.alert_deliveries ORDER BY alert_id")]


def test_alerts_arrive_once_oldest_first(control: Connection, slack: SlackSandbox, clock: FixedClock) -> None:
    _raise(control, 3)
    assert _figures(_deliver(control, _channel(slack), clock)) == (3, 0, 0, 0)
    assert _figures(_deliver(control, _channel(slack), clock)) == (0, 0, 0, 0)
    assert _sent(slack) == [record.alert.alert_id for record in reversed(list_alerts(control, limit=10))]
    (delivery,) = list_alerts(control, limit=1)[0].deliveries
    assert (delivery.channel, delivery.state, delivery.attempts, delivery.last_error) == ("slack", "delivered", 1, None)


def test_a_message_says_what_where_and_which(control: Connection, slack: SlackSandbox, clock: FixedClock) -> None:
    raise_alert(
        control, fingerprint="rate:1", severity="warning", title="Rate <up> & away", body="<!channel> 12 %",
        context={"component": "frequencies", "counts": [1, 2]}, clock=clock,
    )  # fmt: skip
    _deliver(control, _channel(slack), clock)
    (message,) = slack.messages()
    header, body, fields, footer = message["blocks"]
    assert header["text"]["text"] == ":warning: WARNING: Rate <up> & away"
    assert body["text"]["text"] == "&lt;!channel&gt; 12 %"
    assert sorted(one["text"] for one in fields["fields"]) == ["*component*\nfrequencies", "*counts*\n[1, 2]"]
    assert "2026-11-22 12:00:00 UTC" in footer["elements"][0]["text"]
    assert message["channel"] == "#ops"
    assert "&lt;up&gt; &amp; away" in message["text"]


def test_an_alert_as_long_as_can_be_still_arrives(control: Connection, slack: SlackSandbox, clock: FixedClock) -> None:
    raise_alert(
        control, fingerprint="f" * 3000, severity="critical", title="t&" * 30_000, body="b<" * 30_000,
        context={f"{number}" * 900: "v>" * 9000 for number in range(30)}, clock=clock,
    )  # fmt: skip
    assert _figures(_deliver(control, _channel(slack), clock)) == (1, 0, 0, 0)


def test_slack_unreachable_keeps_everything_and_tries_once(
    control: Connection, slack: SlackSandbox, clock: FixedClock
) -> None:
    _raise(control, 3)
    said: list[str] = []
    nowhere = SlackChannel(slack.token, "#ops", "http://127.0.0.1:9/api/")
    assert _figures(_deliver(control, nowhere, clock, said)) == (0, 1, 0, 3)
    assert "cannot be reached" in said[0]
    assert "FLEXPAY_SLACK_API_BASE" in said[0]
    clock.advance(timedelta(seconds=15))
    assert _figures(_deliver(control, _channel(slack), clock)) == (3, 0, 0, 0)


@pytest.mark.parametrize("address", ["ftp://slack.example/api/", "slack.example", "http://[", "http://127.0.0.1:port/"])
def test_a_rubbish_address_is_one_sentence(control: Connection, clock: FixedClock, address: str) -> None:
    _raise(control)
    said: list[str] = []
    delivery = _deliver(control, SlackChannel("xoxb-1", "#ops", address), clock, said)
    assert delivery.delivered == 0
    assert "FLEXPAY_SLACK_API_BASE" in said[0]


def test_pauses_double_up_to_five_minutes(control: Connection, clock: FixedClock) -> None:
    _raise(control)
    pauses = []
    for _ in range(7):
        _deliver(control, SlackChannel("xoxb-1", "#ops", "http://127.0.0.1:9/"), clock)
        (until,) = _not_before(control)
        pauses.append((until - clock.now()).total_seconds())
        clock.instant = until
    assert pauses == [15, 30, 60, 120, 240, 300, 300]
    assert pending_deliveries(control) == 1


def test_a_429_holds_the_whole_channel_for_as_long_as_slack_says(
    control: Connection, slack: SlackSandbox, clock: FixedClock
) -> None:
    _raise(control, 3)
    slack.order_fault("rate_limited", retry_after=77)
    assert _figures(_deliver(control, _channel(slack), clock)) == (0, 1, 0, 3)
    assert _not_before(control) == [START + timedelta(seconds=77)] * 3
    clock.advance(timedelta(seconds=76))
    assert (pending_deliveries(control), pending_deliveries(control, due_by=clock.now())) == (3, 0)
    assert _figures(_deliver(control, _channel(slack), clock)) == (0, 0, 0, 3)
    assert _sent(slack) == []
    clock.advance(timedelta(seconds=1))
    assert _figures(_deliver(control, _channel(slack), clock)) == (3, 0, 0, 0)


def test_a_refused_token_parks_with_the_reason_until_it_is_mended(
    control: Connection, slack: SlackSandbox, clock: FixedClock
) -> None:
    _raise(control, 2)
    wrong = SlackChannel("xoxb-wrong-token", "#ops", slack.api_base)
    assert _figures(_deliver(control, wrong, clock)) == (0, 0, 2, 0)
    (delivery,) = list_alerts(control, limit=1)[0].deliveries
    assert delivery.state == "parked"
    assert delivery.last_error is not None
    assert "invalid_auth" in delivery.last_error
    assert "FLEXPAY_SLACK_TOKEN" in delivery.last_error
    assert requeue_parked(control, channel="email") == 0
    assert requeue_parked(control) == 2
    assert _figures(_deliver(control, _channel(slack), clock)) == (2, 0, 0, 0)


def test_an_unknown_channel_parks_with_the_reason(control: Connection, slack: SlackSandbox, clock: FixedClock) -> None:
    _raise(control)
    said: list[str] = []
    assert _figures(_deliver(control, SlackChannel(slack.token, "ops", slack.api_base), clock, said)) == (0, 0, 1, 0)
    assert "channel_not_found" in said[0]
    assert "FLEXPAY_SLACK_CHANNEL" in said[0]


def test_a_channel_that_nobody_configured_leaves_its_alerts_waiting_and_says_so(
    control: Connection, slack: SlackSandbox, clock: FixedClock
) -> None:
    routes = {"critical": ("slack", "email")}
    raise_alert(
        control, fingerprint="f", severity="critical", title="t", body="b", context={}, clock=clock, routes=routes
    )
    said: list[str] = []
    delivery = _deliver(control, _channel(slack), clock, said)
    assert _figures(delivery) == (1, 0, 0, 1)
    assert delivery.unconfigured == ("email",)
    assert "1 alert(s) wait for email" in said[-1]
    assert _figures(deliver_alerts(control, {}, clock=clock, progress=said.append)) == (0, 0, 0, 1)


def test_two_relays_at_once_deliver_each_alert_once(
    control: Connection, control_url: str, slack: SlackSandbox, clock: FixedClock
) -> None:
    _raise(control, 40)
    together = threading.Barrier(2)

    def relay(_: int) -> AlertDelivery:
        with opened(control_url, purpose="test", role="control") as connection:
            together.wait(30)
            return _deliver(connection, _channel(slack), clock)

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(relay, range(2)))
    assert sum(one.delivered for one in both) == 40
    assert len(_sent(slack)) == len(set(_sent(slack))) == 40


def test_killed_between_sending_and_marking_it_is_sent_again_and_recognisable(
    control: Connection, control_url: str, slack: SlackSandbox, clock: FixedClock
) -> None:
    _raise(control)
    killed = subprocess.run(
        [sys.executable, "-c", DIE_AFTER_SENDING, control_url, slack.api_base, slack.token], check=False, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(slack.messages()) == 1
    assert pending_deliveries(control) == 1
    assert _figures(_deliver(control, _channel(slack), clock)) == (1, 0, 0, 0)
    first, second = slack.messages()
    assert first["client_msg_id"] == second["client_msg_id"]
    assert first["metadata"] == second["metadata"]


def test_an_error_after_the_effect_is_sent_again_and_recognisable(
    control: Connection, slack: SlackSandbox, clock: FixedClock
) -> None:
    _raise(control)
    slack.order_fault("server_error_after")
    assert _figures(_deliver(control, _channel(slack), clock)) == (0, 1, 0, 1)
    clock.advance(timedelta(minutes=1))
    assert _figures(_deliver(control, _channel(slack), clock)) == (1, 0, 0, 0)
    assert len({message["client_msg_id"] for message in slack.messages()}) == 1


def test_different_alerts_are_different_messages(control: Connection, slack: SlackSandbox, clock: FixedClock) -> None:
    _raise(control, 5)
    _deliver(control, _channel(slack), clock)
    assert len({message["client_msg_id"] for message in slack.messages()}) == 5


@dataclass
class _Broken:
    """A channel with a defect: it breaks its contract on the first alert."""

    seen: list[int] = field(default_factory=list)

    def send(self, alert: Alert) -> None:
        self.seen.append(alert.alert_id)
        if len(self.seen) == 1:
            raise ZeroDivisionError("a defect at sk_live_abcdef")


def test_a_defect_is_raised_but_holds_up_nothing_and_loses_nothing(control: Connection, clock: FixedClock) -> None:
    _raise(control, 3)
    broken = _Broken()
    with pytest.raises(ZeroDivisionError):
        _deliver(control, broken, clock)
    states = [astuple(record.deliveries[0]) for record in reversed(list_alerts(control, limit=10))]
    assert states[0] == ("slack", "pending", 1, "a defect at [secret removed]")
    assert [state[1] for state in states[1:]] == ["delivered", "delivered"]
    clock.advance(timedelta(minutes=1))
    assert _figures(_deliver(control, broken, clock)) == (1, 0, 0, 0)


def test_a_repeat_before_delivery_is_told(control: Connection, slack: SlackSandbox, clock: FixedClock) -> None:
    for _ in range(3):
        _raise(control)
    _deliver(control, _channel(slack), clock)
    (message,) = slack.messages()
    assert "repeated 2 times" in message["blocks"][-1]["elements"][0]["text"]


def test_the_sdk_is_loaded_only_when_something_is_sent() -> None:
    code = "import sys, flexpay_pipelines.alerts; sys.exit('slack_sdk' in sys.modules or 'psycopg' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2], timeout=60)
    assert done.returncode == 0
