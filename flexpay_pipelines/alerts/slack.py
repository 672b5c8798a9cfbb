"""The Slack channel: an alert as a message, by Slack's Web API.

What belongs here: the message's shape, and what Slack's errors mean for us. What does not: retries (`delivery`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import timedelta
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

from flexpay_pipelines.alerts.channels import Alert, ChannelBusy
from flexpay_pipelines.errors import PermanentError, TransientError

if TYPE_CHECKING:
    from slack_sdk import WebClient
    from slack_sdk.errors import SlackApiError

SLACK_API = "https://slack.com/api/"
TIMEOUT_SECONDS = 10
EVENT_TYPE = "flexpay_alert"

# Slack's limits: characters of a header, a section, a field; fields of a section.
_HEADER, _SECTION, _FIELD, _FIELDS = 150, 3000, 2000, 10
_SIGN = {"info": ":information_source:", "warning": ":warning:", "critical": ":rotating_light:"}

_TRANSIENT = frozenset(
    {"ratelimited", "rate_limited", "message_limit_exceeded", "internal_error", "fatal_error", "service_unavailable",
     "request_timeout", "team_added_to_org", "accesslimited", "org_login_required"}
)  # fmt: skip
_TOKEN = "put a valid bot token with the scope chat:write into FLEXPAY_SLACK_TOKEN"  # noqa: S105 - advice, not a token
_CHANNEL = "check FLEXPAY_SLACK_CHANNEL and invite the bot to it"
_REMEDY = {
    **dict.fromkeys(("invalid_auth", "not_authed", "token_revoked", "token_expired", "account_inactive"), _TOKEN),
    **dict.fromkeys(("missing_scope", "no_permission", "not_allowed_token_type"), _TOKEN),
    **dict.fromkeys(("channel_not_found", "not_in_channel", "is_archived", "restricted_action"), _CHANNEL),
}


class SlackChannel:
    """Delivers alerts to one Slack channel.

    A message carries `client_msg_id` (the same for the same alert), metadata of type `flexpay_alert` with the alert_id,
    and the alert's number in its last line: one that comes twice can be recognised by Slack, by programs and by people.
    """

    def __init__(self, token: str, channel: str, api_base: str = SLACK_API) -> None:
        self._token = token
        self._channel = channel
        self._api_base = api_base
        self._client: WebClient | None = None

    def send(self, alert: Alert) -> None:
        """Post the alert.

        Raises:
            ChannelBusy: Slack asks us to wait (HTTP 429), or for now cannot answer.
            TransientError: Slack cannot be reached.
            PermanentError: the token, the channel or the message is refused; says what to mend.
        """
        from slack_sdk.errors import SlackApiError  # noqa: PLC0415 - heavy

        try:
            self._connected().chat_postMessage(channel=self._channel, **message(alert))
        except SlackApiError as error:
            raise _explained(error) from error
        except (OSError, HTTPException, UnicodeDecodeError) as error:
            reason = getattr(error, "reason", None) or error or type(error).__name__
            raise TransientError(f"Slack at {self._api_base} cannot be reached ({reason}): {_ADDRESS}.") from error

    def _connected(self) -> WebClient:
        if self._client is None:
            from slack_sdk import WebClient  # noqa: PLC0415 - heavy

            host = _host(self._api_base)
            # The SDK logs what it raises, which is said once already.
            quiet = logging.getLogger(f"{__name__}.sdk")
            quiet.setLevel(logging.CRITICAL)
            # No retries of its own: the outbox repeats, and knows across processes when.
            self._client = WebClient(
                self._token, base_url=self._api_base, timeout=TIMEOUT_SECONDS, retry_handlers=[], logger=quiet
            )
            if host in ("127.0.0.1", "::1", "localhost"):
                self._client.proxy = None  # the SDK takes the environment's proxy, and knows no NO_PROXY
        return self._client


def _host(address: str) -> str:
    try:
        parts = urlsplit(address)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts.hostname
    except ValueError:
        pass
    raise PermanentError(f"Slack's address '{address}' is no http or https URL: {_ADDRESS}.")


_ADDRESS = "check the network and FLEXPAY_SLACK_API_BASE"


def message(alert: Alert) -> dict[str, Any]:
    """The arguments of chat.postMessage, but for the channel: blocks, fallback text, and the marks of a duplicate."""
    sign = _SIGN.get(alert.severity, "")
    headline = f"{sign} {alert.severity.upper()}: {alert.title}"
    fields = [
        {"type": "mrkdwn", "text": _cut(f"*{_escaped(str(name))}*\n{_escaped(_shown(value))}", _FIELD)}
        for name, value in list(alert.context.items())[:_FIELDS]
    ]
    repeats = f" · repeated {alert.repeats} times" if alert.repeats else ""
    footer = (
        f"alert {alert.alert_id} · {alert.raised_at:%Y-%m-%d %H:%M:%S} UTC · `{_escaped(alert.fingerprint)}`{repeats}"
    )
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": _cut(headline, _HEADER), "emoji": True}}
    ]
    if alert.body.strip():
        blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": _cut(_escaped(alert.body), _SECTION)}})
    if fields:
        blocks.append({"type": "section", "fields": fields})
    blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": _cut(footer, _FIELD)}]})
    identity = f"flexpay:alert:{alert.alert_id}:{alert.fingerprint}:{alert.raised_at.isoformat()}"
    return {
        "text": _cut(_escaped(headline), _SECTION),
        "blocks": blocks,
        "client_msg_id": str(uuid5(NAMESPACE_URL, identity)),
        "metadata": {
            "event_type": EVENT_TYPE,
            "event_payload": {"alert_id": alert.alert_id, "fingerprint": alert.fingerprint, "severity": alert.severity},
        },
    }


def _explained(error: SlackApiError) -> TransientError | PermanentError:
    response = error.response
    data = response.data if isinstance(response.data, Mapping) else {}
    code = str(data.get("error") or f"HTTP {response.status_code}")
    if response.status_code == 429 or code in ("ratelimited", "rate_limited"):  # noqa: PLR2004 - HTTP's own number
        return ChannelBusy(
            "Slack asks us to send less often (429): it is tried again later.", _retry_after(response.headers)
        )
    if response.status_code >= 500 or code in _TRANSIENT:  # noqa: PLR2004 - HTTP's own number
        return ChannelBusy(
            f"Slack cannot answer for now ({code}): it is tried again later.", _retry_after(response.headers)
        )
    needed = f" (needed: {data['needed']})" if data.get("needed") else ""
    return PermanentError(f"Slack refuses the message ({code}{needed}): {_REMEDY.get(code, 'see its API reference')}.")


def _retry_after(headers: Mapping[str, str]) -> timedelta | None:
    named = {name.lower(): value for name, value in headers.items()}.get("retry-after", "")
    return timedelta(seconds=int(named)) if named.isdecimal() and len(named) < 6 else None  # noqa: PLR2004 - a day or so


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _escaped(text: str) -> str:
    """Slack's three control characters, so that nobody is mentioned and no link is made by what a message quotes."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
