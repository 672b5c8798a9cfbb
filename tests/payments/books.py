"""Both sides, the database and Stripe, and what a job does with them."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from dataclasses import dataclass
from functools import partial
from typing import Any

from flexpay_pipelines.billing import apply_payment_outcomes
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.payments import (
    MendPolicy,
    MendResult,
    Reconciliation,
    StripeGateway,
    deliver_commands,
    mend_differences,
    poll_events,
    reconcile,
)
from flexpay_pipelines.sandbox.stripe_server import StripeSandbox
from tests.payments.conftest import quiet, stripe_id


@dataclass
class Books:
    """Both sides, and what a job does with them."""

    billing: Connection
    gateway: StripeGateway
    clock: FixedClock
    stripe: StripeSandbox

    def compare(self, *, incremental: bool = False) -> Reconciliation:
        return reconcile(self.billing, self.gateway, clock=self.clock, progress=quiet, incremental=incremental)

    def kinds(self) -> dict[tuple[str, str], str]:
        """What differs now, and who mends it."""
        return {(one.subscription_ref, one.kind): one.by for one in self.compare().differences}

    def poll(self) -> None:
        effects = partial(apply_payment_outcomes, clock=self.clock, grace_days=7)
        poll_events(self.billing, self.gateway, clock=self.clock, apply=effects, progress=quiet)

    def write_mends(self, planned: Reconciliation, mode: str = "collection", **choice: Any) -> MendResult:
        return mend_differences(
            self.billing, self.gateway, planned=planned.reconciliation_id,
            policy=MendPolicy(pause_mode=mode, grace_days=7), clock=self.clock, progress=quiet, **choice,
        )  # fmt: skip

    def deliver(self) -> None:
        deliver_commands(self.billing, self.gateway, clock=self.clock, progress=quiet)

    def mend(self, planned: Reconciliation | None = None, mode: str = "collection", **choice: Any) -> MendResult:
        """The whole of it: a plan, events in, mends, commands out."""
        shown = planned or self.compare()
        self.poll()
        result = self.write_mends(shown, mode, **choice)
        self.deliver()
        return result

    def at_stripe(self, ref: str) -> dict[str, Any]:
        return self.gateway.subscription(stripe_id(self.billing, ref))

    def here(self, ref: str) -> dict[str, Any]:
        row = self.billing.execute("SELECT * FROM billing.subscriptions WHERE subscription_ref = %s", (ref,)).fetchone()
        assert row is not None
        return row

    def events(self, ref: str) -> list[tuple[str, Any, str | None]]:
        """What history says of a subscription after its start."""
        rows = self.billing.execute(
            "SELECT e.event, e.occurred_at, e.reason FROM billing.subscription_events AS e"
            " JOIN billing.subscriptions USING (subscription_id)"
            " WHERE subscription_ref = %s AND event <> 'started' ORDER BY e.event_id",
            (ref,),
        )
        return [(row["event"], row["occurred_at"], row["reason"]) for row in rows]

    def commands(self) -> list[tuple[str, str]]:
        rows = self.billing.execute("SELECT operation, state FROM billing.stripe_commands ORDER BY command_id")
        return [(row["operation"], row["state"]) for row in rows]


def rename(books: Books, identifier: str, ref: str) -> None:
    """Give a Stripe subscription another reference, as a person can in Stripe's own pages."""
    request = urllib.request.Request(  # noqa: S310 - our own server on loopback
        f"{books.stripe.api_base}/v1/subscriptions/{identifier}",
        data=urllib.parse.urlencode({"metadata[subscription_ref]": ref}).encode(),
        headers={"Authorization": f"Bearer {books.stripe.api_key}"},
    )
    with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - as above
        assert json.load(answer)["metadata"]["subscription_ref"] == ref
