"""What an alert is, what a channel must do, and which severity goes where.

What belongs here: the contract between the outbox and the channels. What does not: any one channel (`slack`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

from flexpay_pipelines.errors import TransientError

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")

# Where each severity is delivered. Info stays in the log and in ops.alerts. The table of deliveries knows the channels
# slack, email, sms and pagerduty.
ROUTES: Mapping[str, tuple[str, ...]] = {"info": (), "warning": ("slack",), "critical": ("slack",)}


@dataclass(frozen=True, slots=True)
class Alert:
    """What somebody must know, already redacted. Instants are UTC."""

    alert_id: int
    fingerprint: str
    severity: str
    title: str
    body: str
    context: dict[str, Any]
    raised_at: datetime
    repeats: int
    last_raised_at: datetime


class ChannelBusy(TransientError):
    """The channel asks for patience; nothing more may be sent to it for a while."""

    def __init__(self, message: str, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Channel(Protocol):
    """A way to reach people."""

    def send(self, alert: Alert) -> None:
        """Deliver the alert. It may come twice: the receiver must be able to see that it is the same one.

        Raises:
            TransientError: try again later (`ChannelBusy`: not before its `retry_after`).
            PermanentError: it will not work until somebody changes something; the message says what.
        """
        ...
