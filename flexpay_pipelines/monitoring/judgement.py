"""What goes into the judge and what comes out of it, and the constants of its guards.

What belongs here: shapes. What does not: judging (`judge`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flexpay_pipelines.monitoring.decision import Blame, DecisionRule, Tick
from flexpay_pipelines.monitoring.deploys import Deploy

RELEASE_WINDOW = timedelta(hours=24)
TICK = timedelta(minutes=5)
COOLDOWN = timedelta(hours=6)
BREAKER_WINDOW = timedelta(days=7)
BREAKER_LIMIT = 2
ATTEMPT_TIMEOUT = timedelta(minutes=30)
"""After this long, a rollback that is still `running` counts as dead, and may be asked for again."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge concluded.

    Attributes:
        trigger: the metric's name.
        deploy_id: the release that was judged; None: there is none young enough.
        verdict: `healthy`; `watching` (evidence gathers); `roll_back`; `held` (the metric is bad, but a guard forbids
            acting: tell a person); `inconclusive` (data missing: tell a person, freeze deploys, never act).
        ticks_judged: ticks that this call added to ops.decisions.
        failures, attempts: totals since the deploy (or since the last rollback of it).
        e_value: evidence against the release; 1/alpha asks for a rollback.
        incident_id, component: of `roll_back`: the incident, and the smallest rollback that ends it.
        evidence: everything the verdict rests on, as stored.
    """

    trigger: str
    deploy_id: int | None
    verdict: str
    ticks_judged: int
    failures: int
    attempts: int
    e_value: float
    incident_id: int | None
    component: str | None
    evidence: dict[str, Any]

    @property
    def attempt(self) -> int:
        """The how-manieth try at the incident's rollback this verdict asks for."""
        return int(self.evidence.get("attempt", 1))

    @property
    def run_key(self) -> str:
        """Names the rollback run, so that asking again does not start it again."""
        return f"rb:{self.deploy_id}:{self.trigger}:{self.attempt}"


@dataclass(frozen=True, slots=True)
class Case:
    """What a metric's module hands to the judge.

    Attributes:
        ticks: complete ticks in order; those judged already are counted again, so that late attempts are seen.
        inconclusive_because: the metric cannot be trusted at present; empty: it can.
        blame: names the smallest rollback, from the instant at which the harm began; asked only when one is due.
        proven: whether the harm is a fact that needs no statistics; None: the decision rule says.
        hold: why a person must decide even though the metric is bad; empty: the guards alone say.
        calibrated: whether `rule` holds what was learnt from before the deploy; the first calibrated one is kept.
        counts_late: whether `ticks` holds the judged ones too, so that what came in late can be told.
    """

    trigger: str
    deploy: Deploy
    ticks: Sequence[Tick]
    rule: DecisionRule
    now: datetime
    blame: Callable[[datetime], Blame]
    inconclusive_because: str = ""
    release_window: timedelta = RELEASE_WINDOW
    proven: bool | None = None
    hold: str = ""
    calibrated: bool = True
    counts_late: bool = True
    source: str = ""
    actor: str = "sensor"
