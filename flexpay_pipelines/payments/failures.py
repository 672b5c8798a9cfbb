"""How payments and calls to Stripe fail, and whose fault each failure is.

What belongs here: the failure classes of `payments.failure_class`, and the errors that the gateway raises.
What does not: what is done about them (`delivery`, monitoring).
"""

from __future__ import annotations

from flexpay_pipelines.errors import PermanentError, TransientError

ISSUER_DECLINE = "issuer_decline"
BLOCK = "block"
INTEGRATION_ERROR = "integration_error"
PROVIDER_ERROR = "provider_error"
UNCLASSIFIED = "unclassified"

# Declines by fraud rules, ours or Stripe's: neither the issuer's word nor a release's fault.
_BLOCKED = frozenset({"fraudulent", "merchant_blacklist", "previously_declined_do_not_retry"})
_OURS = frozenset({"invalid_request_error", "idempotency_error", "authentication_error"})


def failure_class(error_type: str | None, decline_code: str | None) -> str:
    """Whose fault a failed payment is, from its error's `type` and `decline_code`.

    Returns:
        issuer_decline, block, integration_error (ours), provider_error (Stripe's), or unclassified where Stripe
        gives no reason: a release can be the cause of that, so it must not look like a decline.
    """
    if error_type == "card_error":
        return BLOCK if decline_code in _BLOCKED else ISSUER_DECLINE
    if error_type in _OURS:
        return INTEGRATION_ERROR
    return PROVIDER_ERROR if error_type == "api_error" else UNCLASSIFIED


class StripeTransient(TransientError):
    """The same call may succeed later.

    Attributes:
        failure_class: whose fault it is.
        retry_after: seconds that Stripe asks us to wait, or None.
        key_is_spent: Stripe has stored this failure under the idempotency key, and would only repeat it.
        unreachable: Stripe was not reached or did not answer; the effect may or may not have happened.
    """

    def __init__(
        self, message: str, *, retry_after: float | None = None, key_is_spent: bool = False, unreachable: bool = False
    ) -> None:
        super().__init__(message)
        self.failure_class = PROVIDER_ERROR
        self.retry_after = retry_after
        self.key_is_spent = key_is_spent
        self.unreachable = unreachable


class StripePermanent(PermanentError):
    """The same call will fail again.

    Attributes:
        failure_class: whose fault it is.
        code: Stripe's error code, such as `resource_missing`, or None.
        key_is_spent: the idempotency key was used with other parameters.
    """

    def __init__(
        self, message: str, *, failure_class: str, code: str | None = None, key_is_spent: bool = False
    ) -> None:
        super().__init__(message)
        self.failure_class = failure_class
        self.code = code
        self.key_is_spent = key_is_spent


class StripeRefusesUs(PermanentError):
    """The key is wrong or lacks a right: every call would fail, so nothing may be parked because of it."""
