"""The relay: takes alerts from the outbox to the channels, at least once, and never loses one.

What belongs here: claiming, retrying, parking. What does not: how a channel speaks (`slack`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from flexpay_pipelines.alerts.channels import Channel, ChannelBusy
from flexpay_pipelines.alerts.outbox import alert_of
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import PermanentError, TransientError
from flexpay_pipelines.security import redact
from flexpay_pipelines.sql import queries

FIRST_RETRY = timedelta(seconds=15)
LONGEST_RETRY = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class AlertDelivery:
    """What one run of the relay did.

    Attributes:
        delivered: deliveries made.
        retried: attempts that failed and will be made again.
        parked: deliveries given up until `requeue_parked`; the reason is in `last_error`.
        waiting: deliveries that are still to be made, for whatever reason.
        unconfigured: channels that alerts wait for and that nobody has configured.
    """

    delivered: int
    retried: int
    parked: int
    waiting: int
    unconfigured: tuple[str, ...] = ()


def deliver_alerts(
    control: Connection, channels: Mapping[str, Channel], *, clock: Clock, progress: Callable[[str], None]
) -> AlertDelivery:
    """Deliver every alert that is due to the channels given, oldest first.

    Each delivery is claimed by a row lock that lasts until it is marked: two relays never send the same one, and a
    relay that is killed between sending and marking leaves it to be sent again. A channel that fails for now is left
    alone for the rest of the run; its Retry-After, where it names one, holds for everything that waits for it.

    Raises:
        Exception: a channel broke its contract; its alert was put back and everything else was tried first.
    """
    made = {"delivered": 0, "retried": 0, "parked": 0}
    broken: list[Exception] = []
    open_channels = dict(channels)
    while open_channels:
        with control.transaction():
            row = queries("alerts").claim_delivery(control, channels=list(open_channels), now=clock.now())
            if row is None:
                break
            outcome = _deliver(control, open_channels[row["channel"]], row, clock=clock)
        made[outcome.state] += 1
        progress(outcome.sentence)
        if outcome.leave_alone:
            del open_channels[row["channel"]]
        if outcome.broken is not None:
            broken.append(outcome.broken)
    waiting = {row["channel"]: row["deliveries"] for row in queries("alerts").waiting_by_channel(control)}
    unconfigured = tuple(sorted(set(waiting) - set(channels)))
    for channel in unconfigured:
        progress(f"{waiting[channel]} alert(s) wait for {channel}: configure it, and they will be delivered.")
    if broken:
        raise broken[0]
    return AlertDelivery(**made, waiting=sum(waiting.values()), unconfigured=unconfigured)


def requeue_parked(control: Connection, *, channel: str | None = None) -> int:
    """Have parked deliveries (of one channel, or all) tried again, once their cause is mended; returns how many."""
    count: int = queries("alerts").requeue_parked(control, channel=channel)
    return count


@dataclass(frozen=True, slots=True)
class _Outcome:
    state: str
    sentence: str
    leave_alone: bool = False
    broken: Exception | None = None


def _deliver(control: Connection, channel: Channel, row: Mapping[str, object], *, clock: Clock) -> _Outcome:
    alert, name = alert_of(row), str(row["channel"])
    key = {"alert_id": alert.alert_id, "channel": name}
    about = f"alert {alert.alert_id} ({alert.severity}: {alert.title})"
    try:
        channel.send(alert)
    except PermanentError as error:
        reason = redact(str(error))
        queries("alerts").park_delivery(control, **key, reason=reason)
        return _Outcome("parked", f"{name} refused {about}: {reason}")
    except Exception as error:  # noqa: BLE001 - put back here, raised again by deliver_alerts when the rest is done
        reason = redact(str(error) or type(error).__name__)
        now = clock.now()
        queries("alerts").put_delivery_back(control, **key, reason=reason, until=now + _pause(row, error))
        _hold(control, name, error, now)
        known = isinstance(error, TransientError)
        sentence = f"{name} could not take {about} now: {reason}"
        return _Outcome("retried", sentence, leave_alone=known, broken=None if known else error)
    queries("alerts").mark_delivered(control, **key, now=clock.now())
    return _Outcome("delivered", f"{name} has {about}.")


def _pause(row: Mapping[str, object], error: Exception) -> timedelta:
    """Twice as long each time, up to a limit; never shorter than the channel asked for."""
    doublings = min(int(str(row["attempts"])), 16)
    pause: timedelta = min(FIRST_RETRY * 2**doublings, LONGEST_RETRY)
    asked = error.retry_after if isinstance(error, ChannelBusy) else None
    return pause if asked is None else max(asked, timedelta(0))


def _hold(control: Connection, channel: str, error: Exception, now: datetime) -> None:
    if isinstance(error, ChannelBusy) and error.retry_after is not None:
        queries("alerts").hold_channel(control, channel=channel, until=now + error.retry_after)
