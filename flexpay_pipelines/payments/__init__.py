"""Payments: everything between the billing database and Stripe.

What belongs here: the gateway, the outbox's relay, events in, links, reconciliation. What does not: deciding that a
subscription changes (`billing`), the stand-in for Stripe (`sandbox`).
"""

from flexpay_pipelines.payments.delivery import DeliveryResult, deliver_commands, pending_commands
from flexpay_pipelines.payments.events import EventsResult, apply_events, poll_events, store_events
from flexpay_pipelines.payments.failures import StripePermanent, StripeRefusesUs, StripeTransient, failure_class
from flexpay_pipelines.payments.linking import link_subscriptions
from flexpay_pipelines.payments.reconciliation import Difference, Reconciliation, reconcile
from flexpay_pipelines.payments.stripe_gateway import StripeGateway, construct_event

__all__ = [
    "DeliveryResult",
    "Difference",
    "EventsResult",
    "Reconciliation",
    "StripeGateway",
    "StripePermanent",
    "StripeRefusesUs",
    "StripeTransient",
    "apply_events",
    "construct_event",
    "deliver_commands",
    "failure_class",
    "link_subscriptions",
    "pending_commands",
    "poll_events",
    "reconcile",
    "store_events",
]
