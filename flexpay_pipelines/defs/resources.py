"""What assets work with: the settings, the clock, the two databases and Stripe, opened when first used.

What belongs here: opening and closing. What does not: what is done with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeAlias

import dagster as dg
from pydantic import Field

from flexpay_pipelines.clock import Clock, FixedClock, SystemClock, parse_instant
from flexpay_pipelines.database import BILLING, CONTROL, Connection, connect, opened
from flexpay_pipelines.errors import FlexPayError, TransientError
from flexpay_pipelines.settings import Settings, load_settings

if TYPE_CHECKING:
    from flexpay_pipelines.payments import StripeGateway
    from flexpay_pipelines.security import Outcome

ACTOR_TAG = "flexpay/actor"
AnyContext: TypeAlias = dg.AssetExecutionContext | dg.OpExecutionContext


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


class FlexPay(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The settings, databases, Stripe and clock that a run works with.

    Secrets are read from the environment when the run needs them, so none can stand in a run's config.
    """

    now: str | None = Field(
        default=None,
        description="Act as if this instant (ISO-8601 with offset) were the present; unset: the machine's clock.",
    )

    @contextmanager
    def session(self, purpose: str) -> Iterator[Session]:
        """The connections of one step, closed at its end."""
        with session(purpose, now=self.now) as opened_session:
            yield opened_session

    @contextmanager
    def step(self, context: AnyContext, action: str, subject: str) -> Iterator[Step]:
        """A session whose work is written to the audit log, done or failed, and whose errors stop or allow retries.

        Raises:
            dagster.Failure: what an engine refused or could not do; retried only when it may succeed later.
        """
        with self.session(action) as opened_session:
            step = Step(opened_session, context, action, subject)
            try:
                yield step
            except FlexPayError as error:
                step.audit("failed", {"error": str(error)})
                raise dg.Failure(
                    str(error),
                    metadata={"exit_code": error.exit_code},
                    allow_retries=isinstance(error, TransientError),
                ) from error
            except BaseException as error:
                step.audit("failed", {"error": type(error).__name__})
                raise
            step.audit("done", step.details)


class Step:
    """A session in the hands of one step of a run: who acts, what is done to what, and what came of it."""

    def __init__(self, opened_session: Session, context: AnyContext, action: str, subject: str) -> None:
        self.session = opened_session
        self.settings = opened_session.settings
        self.clock = opened_session.clock
        self.progress = context.log.info
        self.run_id = context.run.run_id
        self.actor = context.run.tags.get(ACTOR_TAG, "dagster")
        self.details: dict[str, Any] = {}
        self._action = action
        self._subject = subject

    @property
    def billing(self) -> Connection:
        """A connection to the billing database."""
        return self.session.billing

    @property
    def control(self) -> Connection:
        """A connection to the control database."""
        return self.session.control

    def audit(
        self, outcome: Outcome, details: Mapping[str, Any], *, action: str | None = None, subject: str | None = None
    ) -> None:
        """Write to the audit log; on its very first deploy the control database has none yet."""
        from flexpay_pipelines.security import audit

        if self.control.execute("SELECT to_regclass('ops.audit_log') IS NOT NULL AS there").fetchone() == {
            "there": True
        }:
            audit.record(
                self.control, actor=self.actor, action=action or self._action, subject=subject or self._subject,
                outcome=outcome, details=dict(details), run_id=self.run_id,
            )  # fmt: skip
