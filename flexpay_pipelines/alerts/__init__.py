"""Alerts: what somebody must know, written with the deed that caused it and delivered later, at least once.

What belongs here: the outbox of alerts, the routes by severity, the relay, and the channels. What does not: deciding
that something is wrong (`monitoring`, `health`, the sensors).
"""

from flexpay_pipelines.alerts.channels import ROUTES, Alert, Channel, ChannelBusy, Severity
from flexpay_pipelines.alerts.delivery import AlertDelivery, deliver_alerts, requeue_parked
from flexpay_pipelines.alerts.outbox import (
    AlertRecord,
    Delivery,
    alert_raised,
    list_alerts,
    pending_deliveries,
    raise_alert,
)
from flexpay_pipelines.alerts.slack import SlackChannel

__all__ = [
    "ROUTES",
    "Alert",
    "AlertDelivery",
    "AlertRecord",
    "Channel",
    "ChannelBusy",
    "Delivery",
    "Severity",
    "SlackChannel",
    "alert_raised",
    "deliver_alerts",
    "list_alerts",
    "pending_deliveries",
    "raise_alert",
    "requeue_parked",
]
