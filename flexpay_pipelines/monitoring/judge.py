"""The judge that every trigger shares: it feeds ticks to the decision rule, asks the guards, and opens one incident.

All that it concludes is one transaction in the control database, under one lock: two judges at once, or one that is
killed, leave each tick judged once and each incident opened once.

What belongs here: state between ticks, guards, incidents. What does not: where a metric comes from (its own module),
the mathematics (`decision`), doing the rollback (`rollback`).
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from flexpay_pipelines.database import Connection
from flexpay_pipelines.monitoring.decision import (
    DecisionRule,
    DetectorState,
    Tick,
    initial,
    interrupted,
    naive,
    proves_harm,
    step,
)
from flexpay_pipelines.monitoring.judgement import (
    ATTEMPT_TIMEOUT,
    BREAKER_LIMIT,
    BREAKER_WINDOW,
    COOLDOWN,
    Case,
    Judgement,
)
from flexpay_pipelines.sql import queries


def last_judged(control: Connection, trigger: str, deploy_id: int) -> dict[str, Any] | None:
    """The newest row of ops.decisions for a deploy and trigger."""
    rows = list(queries("monitoring").recent_decisions(control, trigger=trigger, deploy_id=deploy_id, most=1))
    return rows[0] if rows else None


def judge(control: Connection, case: Case) -> Judgement:
    """Judge the ticks that have not been judged, write them down, and open an incident if the release does harm."""
    with control.transaction():
        queries("monitoring").lock_judging(control)
        return _Session(control, case).run()


class _Session:
    """One judging, under the lock."""

    def __init__(self, control: Connection, case: Case) -> None:
        self.control, self.case, self.sql = control, case, queries("monitoring")
        deploy_id = case.deploy.deploy_id
        recent = list(
            self.sql.recent_decisions(
                control, trigger=case.trigger, deploy_id=deploy_id, most=max(1, case.rule.naive_ticks - 1)
            )
        )
        self.last: dict[str, Any] | None = recent[0] if recent else None
        self.window = [(row["failures"] or 0, row["attempts"] or 0) for row in reversed(recent)]
        self.regime = self.sql.regime_began(control, since=case.deploy.deployed_at, now=case.now)
        self.incident: dict[str, Any] | None = self.sql.incident_of(control, trigger=case.trigger, deploy_id=deploy_id)
        self.rule, self.state, self.epoch = self._resume()
        self.rows: list[dict[str, Any]] = []

    def _resume(self) -> tuple[DecisionRule, DetectorState, datetime]:
        if self.last is None:
            return self.case.rule, initial(self.case.rule), self.case.deploy.deployed_at
        kept = self.last["evidence"]
        if not kept["calibrated"]:
            return self.case.rule, initial(self.case.rule), datetime.fromisoformat(kept["epoch_at"])
        rule = replace(
            self.case.rule,
            threshold=kept["rule"]["threshold"],
            grid=tuple(kept["rule"]["grid"]),
            dispersion=kept["rule"]["dispersion"],
        )
        state = DetectorState(
            scores=tuple(-math.inf if score is None else score for score in kept["scores"]),
            failures=kept["total"]["failures"],
            attempts=kept["total"]["attempts"],
            running=kept["running"],
            log_e=-math.inf if kept["log_e"] is None else kept["log_e"],
        )
        return rule, state, datetime.fromisoformat(kept["epoch_at"])

    def run(self) -> Judgement:
        new = [tick for tick in self.case.ticks if self.last is None or tick.tick_at > self.last["tick_at"]]
        late = self._late()
        for tick in new:
            self._take(tick, late)
            late = (0, 0)
        if not self.rows:
            return self._standing()
        verdict = self._newest_verdict()
        newest = self.rows[-1]
        newest["verdict"] = verdict
        component = self._act(newest) if verdict == "roll_back" else None
        self.sql.record_decisions(self.control, rows=json.dumps(self.rows), decided_at=self.case.now)
        return self._judgement(verdict, newest["evidence"], component)

    def _late(self) -> tuple[int, int]:
        """Attempts of ticks judged before that became known since: evidence counts when it arrives."""
        if self.last is None or not self.case.counts_late:
            return 0, 0
        known = self.sql.judged_totals(
            self.control, trigger=self.case.trigger, deploy_id=self.case.deploy.deploy_id, since=self.epoch
        )
        past = [t for t in self.case.ticks if self.epoch <= t.tick_at <= self.last["tick_at"] and t.readable]
        attempts = max(0, sum(int(t.attempts or 0) for t in past) - known["attempts"])
        failures = max(0, sum(int(t.failures or 0) for t in past) - known["failures"])
        return min(failures, attempts), attempts

    def _take(self, tick: Tick, late: tuple[int, int]) -> None:
        if self.regime is not None and self.regime > self.epoch and tick.tick_at >= self.regime:
            # What failed before the rollback took effect says nothing about what runs now.
            self.epoch, self.state, late = self.regime, initial(self.rule), (0, 0)
        failures, attempts = late
        if tick.readable:
            failures, attempts = failures + int(tick.failures or 0), attempts + int(tick.attempts or 0)
            self.state = step(self.state, failures, attempts, self.rule)
        else:
            failures, attempts = 0, 0
            self.state = interrupted(self.state)
        self.window = [*self.window[-(self.rule.naive_ticks - 1) :], (failures, attempts)]
        gathers = self.state.log_e >= 0
        evidence = self._evidence(late)
        if not tick.readable:
            evidence["because"] = "the metric could not be read at this tick"
        self.rows.append(
            {
                "trigger": self.case.trigger,
                "deploy_id": self.case.deploy.deploy_id,
                "tick_at": tick.tick_at.isoformat(),
                "verdict": "inconclusive" if not tick.readable else "watching" if gathers else "healthy",
                "failures": failures,
                "attempts": attempts,
                "evidence": evidence,
            }
        )

    def _evidence(self, late: tuple[int, int]) -> dict[str, Any]:
        state, seen = self.state, naive(self.window, self.rule)
        return {
            "scores": [score if math.isfinite(score) else None for score in state.scores],
            "log_e": state.log_e if math.isfinite(state.log_e) else None,
            "running": state.running,
            "total": {"failures": state.failures, "attempts": state.attempts},
            "epoch_at": self.epoch.isoformat(),
            "calibrated": self.case.calibrated,
            "late": {"failures": late[0], "attempts": late[1]},
            "rule": {
                "threshold": self.rule.threshold,
                "grid": list(self.rule.rates),
                "dispersion": self.rule.dispersion,
                "alpha": self.rule.alpha,
                "horizon": self.rule.horizon,
                "min_sample": self.rule.min_sample,
                "ticks_running": self.rule.ticks_running,
            },
            "naive": {
                "failures": seen.failures,
                "attempts": seen.attempts,
                "rate": seen.rate,
                "would_roll_back": seen.would_roll_back,
            },
            "source": self.case.source,
            "actor": self.case.actor,
        }

    def _newest_verdict(self) -> str:
        newest = self.rows[-1]
        if self.case.inconclusive_because:
            newest["evidence"] |= {"because": self.case.inconclusive_because, "running": 0}
            return "inconclusive"
        if newest["verdict"] == "inconclusive":
            return "inconclusive"
        proven = proves_harm(self.state, self.rule) if self.case.proven is None else self.case.proven
        if not self._ordered() and not proven:
            return str(newest["verdict"])
        because = self._held_because()
        if because:
            newest["evidence"]["held_because"] = because
            return "held"
        return "roll_back"

    def _ordered(self) -> bool:
        """Whether an incident stands open whose rollback has not been done: the order is given again."""
        found = self.incident
        return (
            found is not None
            and found["component"] is not None
            and found["closed_at"] is None
            and found["rollback_state"] not in ("done", "undone")
        )

    def _held_because(self) -> list[str]:
        case, because = self.case, []
        if case.now >= case.deploy.deployed_at + case.release_window:
            because.append(f"the newest deploy is older than {_hours(case.release_window)}")
        if self._ordered():
            return because
        if case.hold:
            because.append(case.hold)
        if self.incident is not None:
            because.append("this deploy was rolled back for this reason already")
        told = self.sql.guards(
            self.control,
            trigger=case.trigger,
            deploy_id=case.deploy.deploy_id,
            now=case.now,
            cooldown=COOLDOWN,
            breaker_window=BREAKER_WINDOW,
        )
        if told["of_this_deploy"]:
            because.append("another trigger has ordered a rollback of this deploy already")
        if told["cooling_down"]:
            because.append(f"the last rollback is less than {_hours(COOLDOWN)} ago")
        if told["in_breaker_window"] >= BREAKER_LIMIT:
            because.append(f"{told['in_breaker_window']} automatic rollbacks in {BREAKER_WINDOW.days} days")
        return because

    def _act(self, newest: dict[str, Any]) -> str:
        """Open the incident, unless it is open; the component to roll back."""
        if self.incident is not None:
            newest["evidence"]["attempt"] = self._attempt()
            return str(self.incident["component"])
        opened_at = self._harm_began()
        blame = self.case.blame(opened_at)
        newest["evidence"] |= {
            "attempt": 1,
            "opened_at": opened_at.isoformat(),
            "blame": {"component": blame.component, "reason": blame.reason, "candidates": list(blame.candidates)},
        }
        incident_id = self.sql.open_incident(
            self.control,
            trigger=self.case.trigger,
            deploy_id=self.case.deploy.deploy_id,
            component=blame.component,
            opened_at=opened_at,
            detected_at=self.case.now,
            evidence=json.dumps(newest["evidence"]),
        )
        self.incident = {"incident_id": incident_id, "component": blame.component}
        return blame.component

    def _harm_began(self) -> datetime:
        """The first tick with a failure since the evidence was last below one: an estimate of when the harm began."""
        earlier = self.sql.recent_decisions(
            self.control,
            trigger=self.case.trigger,
            deploy_id=self.case.deploy.deploy_id,
            most=self.rule.horizon,
        )
        told = [
            (row["tick_at"], row["failures"] or 0, row["evidence"]["log_e"], row["evidence"]["epoch_at"])
            for row in reversed(list(earlier))
        ]
        told += [
            (
                datetime.fromisoformat(row["tick_at"]),
                row["failures"],
                row["evidence"]["log_e"],
                row["evidence"]["epoch_at"],
            )
            for row in self.rows
        ]
        began = datetime.fromisoformat(self.rows[-1]["tick_at"])
        for tick_at, failures, log_e, epoch_at in reversed(told):
            if epoch_at != self.epoch.isoformat():
                break
            if failures:
                began = tick_at
            if log_e is None or log_e < 0:
                break
        return began

    def _attempt(self) -> int:
        found = self.incident or {}
        attempts = int(found.get("rollback_attempts") or 0)
        if found.get("rollback_state") is None:
            return 1
        started = found["attempt_started_at"] or found["rollback_at"]
        alive = found["rollback_state"] == "running" and self.case.now - started < ATTEMPT_TIMEOUT
        return max(1, attempts) if alive else attempts + 1

    def _standing(self) -> Judgement:
        """Nothing new: the last verdict stands, and an order that was not carried out is given again."""
        if self.last is None:
            return Judgement(
                self.case.trigger, self.case.deploy.deploy_id, "healthy", 0, 0, 0, 0.0, None, None,
                {"because": "no complete tick since the deploy"},
            )  # fmt: skip
        evidence, verdict, component = dict(self.last["evidence"]), self.last["verdict"], None
        if self._ordered() and not self.case.inconclusive_because:
            because = self._held_because()
            verdict = "held" if because else "roll_back"
            evidence |= {"held_because": because} if because else {"attempt": self._attempt()}
            component = None if because else str((self.incident or {})["component"])
        elif verdict == "roll_back":
            verdict = "watching"
        return self._judgement(verdict, evidence, component)

    def _judgement(self, verdict: str, evidence: dict[str, Any], component: str | None) -> Judgement:
        return Judgement(
            trigger=self.case.trigger,
            deploy_id=self.case.deploy.deploy_id,
            verdict=verdict,
            ticks_judged=len(self.rows),
            failures=self.state.failures,
            attempts=self.state.attempts,
            e_value=self.state.e_value,
            incident_id=None if self.incident is None else self.incident["incident_id"],
            component=component,
            evidence=evidence,
        )


def _hours(length: timedelta) -> str:
    return f"{length.total_seconds() / 3600:g} h"
