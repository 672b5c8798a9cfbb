"""What assets work with: a session for each step, its work audited, its errors told to Dagster.

What belongs here: the resource and the step. What does not: opening connections (`session`), what is done with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import dagster as dg
from pydantic import Field

from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import FlexPayError, TransientError
from flexpay_pipelines.session import Session, session

if TYPE_CHECKING:
    from flexpay_pipelines.security import Outcome

ACTOR_TAG = "flexpay/actor"
AnyContext: TypeAlias = dg.AssetExecutionContext | dg.OpExecutionContext


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
