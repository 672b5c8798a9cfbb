"""The trigger that judges the system itself: do runs fail since the newest release?

What belongs here: the judge of system errors. What does not: reading Dagster's runs (`defs` hands them over as ticks).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.monitoring.decision import SYSTEM_ERRORS, Blame, DecisionRule, Tick
from flexpay_pipelines.monitoring.deploys import newest_deploy
from flexpay_pipelines.monitoring.judge import judge
from flexpay_pipelines.monitoring.judgement import RELEASE_WINDOW, Case, Judgement
from flexpay_pipelines.monitoring.without_release import without_release

TRIGGER = "system_error_rate"


def judge_system_errors(
    control: Connection,
    *,
    clock: Clock,
    ticks: Sequence[Tick],
    rule: DecisionRule = SYSTEM_ERRORS,
    release_window: timedelta = RELEASE_WINDOW,
    actor: str = "sensor",
) -> Judgement:
    """Judge operations (runs that ended) and their failures.

    Args:
        ticks: complete ticks in order, best all since the newest deploy: those not judged yet are judged, and what was
            added to earlier ones since counts as late. Ticks before the deploy are left out. None or NaN: unreadable.
    """
    now = clock.now()
    deploy = newest_deploy(control, now=now)
    if deploy is None or now >= deploy.deployed_at + release_window:
        window = [tick for tick in ticks if tick.tick_at <= now][-rule.naive_ticks :]
        return without_release(control, trigger=TRIGGER, window=window, rule=rule, now=now, because="")
    end = deploy.deployed_at + release_window
    return judge(
        control,
        Case(
            trigger=TRIGGER,
            deploy=deploy,
            ticks=[tick for tick in ticks if deploy.deployed_at <= tick.tick_at < end],
            rule=rule,
            now=now,
            blame=lambda _: Blame("complete", "a system error does not name a component"),
            release_window=release_window,
            source="runs of the control database",
            actor=actor,
        ),
    )
