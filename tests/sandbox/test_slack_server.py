"""The Slack stand-in: answers the real SDK as Slack does, keeps what it was sent, and leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError

from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.sandbox.slack_server import SlackSandbox, running_slack_server

HOLD = """
import signal
import sys
from pathlib import Path
from flexpay_pipelines.sandbox.slack_server import running_slack_server
# A shell in the background hands on an ignored SIGINT; a terminal does not.
signal.signal(signal.SIGINT, signal.default_int_handler)
with running_slack_server(Path(sys.argv[1])) as slack:
    print(slack.api_base, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def slack(tmp_path: Path) -> Iterator[SlackSandbox]:
    """A running stand-in."""
    with running_slack_server(tmp_path / "slack") as running:
        yield running


def _client(slack: SlackSandbox, token: str | None = None) -> WebClient:
    client = WebClient(slack.token if token is None else token, base_url=slack.api_base, retry_handlers=[])
    client.proxy = None
    return client


def _error(caught: pytest.ExceptionInfo[SlackApiError]) -> str:
    return str(caught.value.response["error"])


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_message_is_kept_as_it_was_sent(slack: SlackSandbox) -> None:
    answer = _client(slack).chat_postMessage(
        channel="#ops", text="hello", metadata={"event_type": "greeting", "event_payload": {"n": 1}}, client_msg_id="m1"
    )
    (message,) = slack.messages()
    assert (message["channel"], message["text"], message["client_msg_id"]) == ("#ops", "hello", "m1")
    assert message["metadata"] == {"event_type": "greeting", "event_payload": {"n": 1}}
    assert message["ts"] == answer["ts"]


def test_auth_test_names_the_workspace(slack: SlackSandbox) -> None:
    assert _client(slack).auth_test()["team"] == "FlexPay sandbox"


@pytest.mark.parametrize(("token", "error"), [("xoxb-wrong", "invalid_auth"), ("", "not_authed")])
def test_a_wrong_token_is_refused(slack: SlackSandbox, token: str, error: str) -> None:
    with pytest.raises(SlackApiError) as caught:
        _client(slack, token).chat_postMessage(channel="#ops", text="hello")
    assert _error(caught) == error
    assert slack.messages() == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"channel": "ops", "text": "x"}, "channel_not_found"),
        ({"channel": "#ops", "text": "x" * 40_001}, "msg_too_long"),
        ({"channel": "#ops", "text": ""}, "no_text"),
        ({"channel": "#ops", "text": "x", "blocks": [{"type": "video"}]}, "invalid_blocks"),
        ({"channel": "#ops", "text": "x", "blocks": [{"type": "section"}]}, "invalid_blocks"),
        (
            {"channel": "#ops", "text": "x", "blocks": [{"type": "header", "text": {"text": "y" * 151}}]},
            "invalid_blocks",
        ),
    ],
)
def test_what_slack_refuses_is_refused(slack: SlackSandbox, arguments: dict[str, object], error: str) -> None:
    with pytest.raises(SlackApiError) as caught:
        _client(slack).api_call("chat.postMessage", json=arguments)
    assert _error(caught) == error
    assert slack.messages() == []


def test_faults_happen_in_the_order_in_which_they_were_ordered(slack: SlackSandbox) -> None:
    slack.order_fault("rate_limited", retry_after=7)
    slack.order_fault("server_error", times=2)
    slack.order_fault("server_error_after")
    seen = []
    for _ in range(4):
        with pytest.raises(SlackApiError) as caught:
            _client(slack).chat_postMessage(channel="#ops", text="hello")
        seen.append((caught.value.response.status_code, caught.value.response.headers.get("retry-after")))
    assert seen == [(429, "7"), (500, None), (500, None), (500, None)]
    assert len(slack.messages()) == 1
    slack.order_fault("invalid_auth", times=5)
    slack.clear_faults()
    assert _client(slack).chat_postMessage(channel="#ops", text="again")["ok"]
    assert len(slack.messages()) == 2


def test_messages_outlive_the_server_and_half_a_line_is_not_one(tmp_path: Path) -> None:
    with running_slack_server(tmp_path) as first:
        _client(first).chat_postMessage(channel="#ops", text="kept")
    with (tmp_path / "messages.jsonl").open("a") as file:
        file.write('{"channel": "#o')
    assert [message["text"] for message in first.messages()] == ["kept"]


def test_a_port_in_use_is_said_in_one_sentence(slack: SlackSandbox, tmp_path: Path) -> None:
    taken = int(slack.api_base.split(":")[2].split("/")[0])
    with pytest.raises(BadInput, match=f"Port {taken} is in use"), running_slack_server(tmp_path / "other", port=taken):
        pass


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_running_when_its_user_is_stopped(tmp_path: Path, how: signal.Signals) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline().startswith("http://127.0.0.1:")
    with running_slack_server(tmp_path) as slack:
        holder.send_signal(how)
        holder.wait(30)
        holder.communicate()
        # Its other user still has it; then nobody.
        assert _client(slack).auth_test()["ok"]
        pid = int((tmp_path / "server.json").read_text().split('"pid": ')[1].split(",")[0])
        assert _alive(pid)
    with pytest.raises(OSError, match="refused"):
        _client(slack).auth_test()
