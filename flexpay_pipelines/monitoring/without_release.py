"""Judging a metric while no release is young enough to be rolled back: people still hear of a bad hour.

What belongs here: that one verdict. What does not: the judge of a release (`judge`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from flexpay_pipelines.database import Connection
from flexpay_pipelines.monitoring.decision import DecisionRule, Tick, naive
from flexpay_pipelines.monitoring.judgement import Judgement
from flexpay_pipelines.sql import queries


def without_release(
    control: Connection, *, trigger: str, window: Sequence[Tick], rule: DecisionRule, now: datetime, because: str,
    proven: bool | None = None, source: str = "",
) -> Judgement:  # fmt: skip
    """No release to judge: nothing to roll back, yet a bad hour is `held`, so that a person hears of it.

    Args:
        window: the complete ticks of the last hour, the newest last.
        because: why the metric cannot be trusted; empty: it can.
        proven: whether the metric is bad; None: the naive rule says.
    """
    readable = [(int(t.failures or 0), int(t.attempts or 0)) for t in window if t.readable]
    seen = naive(readable, rule)
    bad = (seen.would_roll_back and seen.attempts >= rule.min_sample) if proven is None else proven
    verdict = "held" if bad else "healthy"
    if because or not window or not window[-1].readable:
        verdict, because = "inconclusive", because or "the metric could not be read"
    evidence: dict[str, Any] = {
        "because": because or "no deploy in the release window",
        "naive": {"failures": seen.failures, "attempts": seen.attempts, "rate": seen.rate},
        "source": source,
    }
    if verdict == "held":
        evidence["held_because"] = ["no deploy in the release window: there is nothing to roll back"]
    rows = [
        {
            "trigger": trigger, "deploy_id": None, "tick_at": window[-1].tick_at.isoformat(), "verdict": verdict,
            "failures": readable[-1][0] if readable else None, "attempts": readable[-1][1] if readable else None,
            "evidence": evidence,
        }
    ] if window else []  # fmt: skip
    with control.transaction():
        queries("monitoring").lock_judging(control)
        judged = queries("monitoring").record_decisions(control, rows=json.dumps(rows), decided_at=now)
    return Judgement(trigger, None, verdict, judged, seen.failures, seen.attempts, 0.0, None, None, evidence)
