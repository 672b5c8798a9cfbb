"""What a piece of work has at hand: the settings, the clock, the two databases and Stripe, opened when first used.

What belongs here: opening and closing. What does not: what is done with them; Dagster, without which most commands do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING

from flexpay_pipelines.clock import Clock, FixedClock, SystemClock, parse_instant
from flexpay_pipelines.database import BILLING, CONTROL, Connection, connect, opened
from flexpay_pipelines.settings import Settings, load_settings

if TYPE_CHECKING:
    from flexpay_pipelines.payments import StripeGateway


class Session:
    """One piece of work's connections, each opened when it is first asked for and closed with the session."""

    def __init__(self, stack: ExitStack, settings: Settings, clock: Clock, purpose: str) -> None:
        self._stack = stack
        self._settings = settings
        self._purpose = purpose
        self.clock = clock

    @cached_property
    def settings(self) -> Settings:
        """The settings, with both databases set: embedded ones are started where the environment names none."""
        from flexpay_pipelines.sandbox.services import local_services

        return self._stack.enter_context(local_services(self._settings))

    @cached_property
    def billing(self) -> Connection:
        """A connection to the billing database."""
        return self._stack.enter_context(opened(self.settings.billing, purpose=self._purpose, role=BILLING))

    @cached_property
    def control(self) -> Connection:
        """A connection to the control database."""
        return self._stack.enter_context(opened(self.settings.control, purpose=self._purpose, role=CONTROL))

    @cached_property
    def gateway(self) -> StripeGateway:
        """The way to Stripe, at the pace of all processes; the sandbox server where the environment names no key."""
        from flexpay_pipelines.payments import SharedPace, StripeGateway
        from flexpay_pipelines.sandbox.services import local_services

        settings = self._stack.enter_context(local_services(self._settings, databases=(), stripe=True))
        if settings.stripe_api_key is None:
            raise AssertionError("local_services sets the key or raises")
        pace = SharedPace(
            partial(connect, self.settings.billing, purpose="stripe pace", role=BILLING, connect_timeout=2)
        )
        self._stack.callback(pace.close)
        return StripeGateway(
            settings.stripe_api_key.get_secret_value(),
            settings.stripe_api_base,
            requests_per_second=settings.stripe_requests_per_second,
            endpoint_requests_per_second=settings.stripe_endpoint_requests_per_second,
            shared_pace=pace.reserve,
        )


@contextmanager
def session(purpose: str, *, now: str | None = None) -> Iterator[Session]:
    """Open a session under the environment's settings; `now` is an instant to act as if it were the present."""
    clock = FixedClock(parse_instant(now)) if now else SystemClock()
    with ExitStack() as stack:
        yield Session(stack, load_settings(), clock, purpose)
