"""Stripe over HTTP: the only module that imports the SDK.

What belongs here: one method for each call that we make, and the translation of its errors into ours. Every request
is paced here, pages included. What does not: deciding what to call (`delivery`, `linking`, `events`, `reconciliation`).

Answers are plain dicts, times epoch seconds, money minor units, as Stripe sends them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.money import PaymentFrequency
from flexpay_pipelines.payments.failures import (
    INTEGRATION_ERROR,
    StripePermanent,
    StripeRefusesUs,
    StripeTransient,
    failure_class,
)
from flexpay_pipelines.payments.pacing import Pace, Reserve, allowed_by_key

if TYPE_CHECKING:
    import stripe

API_VERSION = "2026-10-28.endive"
PAGE = 100
# A page that is refused for its pace is asked for again; reading must not end for that.
_READ_ATTEMPTS = 6
_LONGEST_READ_PAUSE_SECONDS = 8.0

Object = dict[str, Any]

INTERVALS: Mapping[PaymentFrequency, tuple[str, int]] = {
    PaymentFrequency.WEEKLY: ("week", 1),
    PaymentFrequency.BIWEEKLY: ("week", 2),
    PaymentFrequency.MONTHLY: ("month", 1),
    PaymentFrequency.QUARTERLY: ("month", 3),
    PaymentFrequency.YEARLY: ("year", 1),
}


class StripeGateway:
    """Stripe, or the sandbox, behind one key. Safe for several threads."""

    def __init__(
        self,
        api_key: str,
        api_base: str | None = None,
        *,
        timeout_seconds: float = 20,
        max_network_retries: int = 2,
        requests_per_second: float | None = None,
        endpoint_requests_per_second: float | None = None,
        sleep: Callable[[float], None] = time.sleep,
        shared_pace: Reserve | None = None,
    ) -> None:
        """
        Args:
            api_key: secret or restricted key.
            api_base: where Stripe answers; None is Stripe itself.
            timeout_seconds: for each request.
            max_network_retries: how often the SDK repeats a request after a broken connection, with the same key.
            requests_per_second: of all requests together; None: what Stripe allows the key.
            endpoint_requests_per_second: of one endpoint (method and path); None: as many as all together.
            sleep: waits for the pace, and between two readings of a page that was refused for its pace.
            shared_pace: shares the pace with other processes; None: it is this gateway's own.
        """
        self._api_key = api_key
        self._timeout_seconds = timeout_seconds
        self._max_network_retries = max_network_retries
        self._sleep = sleep
        self.requests_per_second = requests_per_second or allowed_by_key(api_key)
        self._pace = Pace(self.requests_per_second, endpoint_requests_per_second, sleep=sleep, shared=shared_pace)
        self.api_base = api_base or "https://api.stripe.com"

    @cached_property
    def _client(self) -> stripe.StripeClient:
        import stripe  # noqa: PLC0415 - the code location loads without it

        return stripe.StripeClient(
            self._api_key,
            base_addresses={"api": self.api_base},
            stripe_version=API_VERSION,
            max_network_retries=self._max_network_retries,
            http_client=stripe.RequestsClient(timeout=self._timeout_seconds),
        )

    def ping(self) -> None:
        """Ask for one event, to see whether Stripe answers and takes the key.

        Raises:
            StripeTransient: unreachable; one sentence.
            StripeRefusesUs: the key is wrong or lacks a right.
        """
        self._read_page("/v1/events", {"limit": 1})

    def customers(self) -> Iterator[list[Object]]:
        """Every customer, in pages."""
        return self._pages("/v1/customers", {})

    def prices(self) -> Iterator[list[Object]]:
        """Every price, in pages."""
        return self._pages("/v1/prices", {})

    def subscriptions(self) -> Iterator[list[Object]]:
        """Every subscription, canceled ones included, in pages."""
        return self._pages("/v1/subscriptions", {"status": "all"})

    def events(self, *, since: int | None, types: Sequence[str]) -> Iterator[list[Object]]:
        """Events of these types, created at `since` (epoch seconds) or later, newest first, in pages."""
        bound = {} if since is None else {"created": {"gte": since}}
        return self._pages("/v1/events", {"types": list(types), **bound})

    def subscription(self, identifier: str) -> Object:
        """One subscription, a canceled one included.

        Raises:
            StripePermanent: `code` is resource_missing when there is none.
        """
        return self._call("get", "/v1/subscriptions/{id}", {}, of=identifier)

    def invoice(self, identifier: str) -> Object:
        """One invoice."""
        return self._call("get", "/v1/invoices/{id}", {}, of=identifier)

    def payment_failure(self, invoice: str) -> Object:
        """Why the last attempt to collect an invoice failed.

        Returns:
            `payment_intent` (id), `type`, `code`, `decline_code`; each None where Stripe does not say.
        """
        found = self._call("get", "/v1/invoices/{id}", {"expand": ["payments.data.payment.payment_intent"]}, of=invoice)
        intents = [entry["payment"].get("payment_intent") for entry in found.get("payments", {}).get("data", [])]
        intent = next((one for one in reversed(intents) if isinstance(one, dict)), {})
        error = intent.get("last_payment_error") or {}
        return {
            "payment_intent": intent.get("id"),
            **{name: error.get(name) for name in ("type", "code", "decline_code")},
        }

    def pause(self, identifier: str, *, mode: str, resumes_at: int | None, key: str) -> None:
        """Stop collecting (`collection`: invoices are voided) or stop altogether (`subscription`), until resumed."""
        if mode == "subscription":
            parameters: Object = {
                "bill_for": {"unused_time_from": {"type": "none"}}, "invoicing_behavior": "pending_invoice_item",
            }  # fmt: skip
            self._call("post", "/v1/subscriptions/{id}/pause", parameters, of=identifier, key=key)
            return
        end = {} if resumes_at is None else {"resumes_at": resumes_at}
        self._update(identifier, {"pause_collection": {"behavior": "void", **end}}, key)

    def resume_subscription(self, identifier: str, *, key: str) -> None:
        """End a pause of the whole subscription, on its old dates; the time of the pause is not billed."""
        parameters = {"billing_cycle_anchor": {"type": "unchanged"}, "proration_behavior": "none"}
        self._call("post", "/v1/subscriptions/{id}/resume", parameters, of=identifier, key=key)

    def resume_collection(self, identifier: str, *, next_payment_at: int | None, key: str) -> None:
        """Collect again.

        Args:
            next_payment_at: the next payment's date (epoch seconds) where it has moved: nothing is billed before.
        """
        moved = {} if next_payment_at is None else _until(next_payment_at)
        # "" clears it; None would be left out, and change nothing.
        self._update(identifier, {"pause_collection": "", **moved}, key)

    def move_payment(self, identifier: str, next_payment_at: int, *, key: str) -> None:
        """Bill nothing before an instant (epoch seconds), and count the periods from it."""
        self._update(identifier, _until(next_payment_at), key)

    def change_price(
        self,
        identifier: str,
        *,
        item: Object,
        proration: str,
        proration_date: int | None = None,
        keep_date: int | None,
        key: str,
    ) -> None:
        """Put another price on the subscription's item.

        Args:
            item: `{"id": …, "price": …}` or `{"id": …, "price_data": …}`.
            proration: `create_prorations` or `none`.
            proration_date: prorate as of this instant (epoch seconds), not as of the call.
            keep_date: the next payment stays at this instant (epoch seconds), unbilled until then. Without it, another
                interval begins, and is billed, at once.
        """
        kept = {} if keep_date is None else _until(keep_date)
        dated = {} if proration_date is None else {"proration_date": proration_date}
        self._update(identifier, {"items": [item], "proration_behavior": proration, **dated, **kept}, key)

    def change_quantity(self, identifier: str, *, item: str, quantity: int, key: str) -> None:
        """Put another quantity on the subscription's item (its id), from the next invoice on."""
        parameters = {"items": [{"id": item, "quantity": quantity}], "proration_behavior": "none"}
        self._update(identifier, parameters, key)

    def cancel(self, identifier: str, *, key: str) -> None:
        """Cancel at once."""
        self._call("delete", "/v1/subscriptions/{id}", {}, of=identifier, key=key)

    def _update(self, identifier: str, parameters: Object, key: str) -> None:
        self._call("post", "/v1/subscriptions/{id}", parameters, of=identifier, key=key)

    def _pages(self, path: str, parameters: Object) -> Iterator[list[Object]]:
        after: Object = {}
        while True:
            page = self._read_page(path, {"limit": PAGE, **parameters, **after})
            if page["data"]:
                yield page["data"]
            if not page["has_more"] or not page["data"]:
                return
            after = {"starting_after": page["data"][-1]["id"]}

    def _read_page(self, path: str, parameters: Object) -> Object:
        for attempt in range(_READ_ATTEMPTS):
            try:
                return self._call("get", path, parameters)
            except StripeTransient as error:
                if error.unreachable or attempt == _READ_ATTEMPTS - 1:
                    raise
                self._sleep(error.retry_after or min(2.0**attempt / 4, _LONGEST_READ_PAUSE_SECONDS))
        raise AssertionError("the last attempt returns or raises")

    def _call(self, method: str, endpoint: str, parameters: Object, *, of: str = "", key: str | None = None) -> Object:
        options = {} if key is None else {"idempotency_key": key}
        self._pace.wait(f"{method} {endpoint}")
        with self._translated():
            answer: Any = self._client.raw_request(method, endpoint.replace("{id}", of), **parameters, **options)
        return dict(answer.data)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        import stripe  # noqa: PLC0415 - the code location loads without it

        try:
            yield
        except stripe.APIConnectionError as error:
            raise StripeTransient(
                f"Stripe does not answer at {self.api_base}: check the network and FLEXPAY_STRIPE_API_BASE, "
                "then run it again.",
                unreachable=True,
            ) from error
        except stripe.StripeError as error:
            self._explain(error)

    def _explain(self, error: stripe.StripeError) -> NoReturn:
        import stripe  # noqa: PLC0415 - as above

        said = f"{error.user_message or error} (HTTP {error.http_status}, request {error.request_id})"
        if isinstance(error, stripe.RateLimitError):
            raise StripeTransient(f"Stripe asks us to slow down: {said}.", retry_after=_retry_after(error)) from error
        if isinstance(error, stripe.AuthenticationError | stripe.PermissionError):
            raise StripeRefusesUs(f"Stripe refuses the key: {said}. Check FLEXPAY_STRIPE_API_KEY.") from error
        if (error.http_status or 500) >= 500:  # noqa: PLR2004 - HTTP: the server's own fault
            raise StripeTransient(f"Stripe failed: {said}.", key_is_spent=True) from error
        if error.http_status == 409:  # noqa: PLR2004 - HTTP: another request with this key is under way
            raise StripeTransient(f"Stripe is busy with the same request: {said}.") from error
        body = error.json_body if isinstance(error.json_body, dict) else {}
        kind = (body.get("error") or {}).get("type")
        raise StripePermanent(
            f"Stripe refuses: {said}.",
            failure_class=failure_class(kind, None) if kind else INTEGRATION_ERROR,
            code=error.code,
            key_is_spent=isinstance(error, stripe.IdempotencyError),
        ) from error


def _until(instant: int) -> Object:
    """A trial up to an instant is Stripe's way to move a payment date unbilled; the mark says that it is no trial."""
    return {"trial_end": instant, "metadata": {"date_kept_until": str(instant)}}


def _retry_after(error: stripe.StripeError) -> float | None:
    value = (error.headers or {}).get("retry-after", (error.headers or {}).get("Retry-After"))
    return float(value) if value is not None and str(value).isdigit() else None


def construct_event(payload: bytes, signature: str | None, secrets: Sequence[str]) -> Object:
    """The event in a webhook's raw body, its signature and its age (5 minutes at most) verified.

    Args:
        payload: the body exactly as it came.
        signature: the header `Stripe-Signature`.
        secrets: the endpoint's signing secrets; one of them must fit.

    Raises:
        BadInput: the signature is missing, wrong or too old, or the body is no event.
    """
    import stripe  # noqa: PLC0415 - the code location loads without it

    refusal: Exception | None = None
    for secret in secrets:
        try:
            stripe.WebhookSignature.verify_header(payload, signature, secret, stripe.Webhook.DEFAULT_TOLERANCE)
            return _event(payload)
        except stripe.SignatureVerificationError as error:
            refusal = error
        except UnicodeDecodeError as error:
            raise BadInput("The webhook's body is not JSON: nothing was taken in.") from error
    said = getattr(refusal, "user_message", None) or refusal or "there is no secret"
    raise BadInput(f"The webhook is not signed by Stripe with the secret of its endpoint: {said}") from refusal


def _event(payload: bytes) -> Object:
    try:
        event = json.loads(payload)
    except ValueError as error:
        raise BadInput("The webhook's body is not JSON: nothing was taken in.") from error
    if not isinstance(event, dict) or event.get("object") != "event" or not _is_complete(event):
        raise BadInput("The webhook's body is not a Stripe event: nothing was taken in.")
    return event


def _is_complete(event: Object) -> bool:
    data = event.get("data")
    subject = data.get("object") if isinstance(data, dict) else None
    return (
        isinstance(event.get("id"), str)
        and isinstance(event.get("type"), str)
        and isinstance(event.get("created"), int)
        and isinstance(subject, dict)
        and isinstance(subject.get("id"), str)
    )
