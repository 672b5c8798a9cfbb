"""Payments: everything between the billing database and Stripe.

What belongs here: the gateway, the outbox's relay, events in, links, reconciliation. What does not: deciding that a
subscription changes (`billing`), the stand-in for Stripe (`sandbox`).
"""

from flexpay_pipelines.payments.delivery import DeliveryResult, deliver_commands, pending_commands
from flexpay_pipelines.payments.events import EventsResult, apply_events, poll_events, store_event, store_events
from flexpay_pipelines.payments.failures import StripePermanent, StripeRefusesUs, StripeTransient, failure_class
from flexpay_pipelines.payments.linking import link_subscriptions
from flexpay_pipelines.payments.mending import MendPolicy, MendResult, mend_differences
from flexpay_pipelines.payments.pacing import SharedPace
from flexpay_pipelines.payments.parking import ParkedCommand, Retried, alert_parked, parked_commands, retry_parked
from flexpay_pipelines.payments.passes import alert_persistent
from flexpay_pipelines.payments.reconciliation import KINDS, Difference, Reconciliation, open_differences, reconcile
from flexpay_pipelines.payments.stripe_gateway import StripeGateway, construct_event

__all__ = [
    "KINDS",
    "DeliveryResult",
    "Difference",
    "EventsResult",
    "MendPolicy",
    "MendResult",
    "ParkedCommand",
    "Reconciliation",
    "Retried",
    "SharedPace",
    "StripeGateway",
    "StripePermanent",
    "StripeRefusesUs",
    "StripeTransient",
    "alert_parked",
    "alert_persistent",
    "apply_events",
    "construct_event",
    "deliver_commands",
    "failure_class",
    "link_subscriptions",
    "mend_differences",
    "open_differences",
    "parked_commands",
    "pending_commands",
    "poll_events",
    "reconcile",
    "retry_parked",
    "store_event",
    "store_events",
]
