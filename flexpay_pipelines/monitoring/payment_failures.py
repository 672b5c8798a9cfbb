"""The trigger that judges payments: did they begin to fail with the newest release?

What belongs here: the payment metrics of a judge, whether they can be trusted, which component is to blame.
What does not: the rule (`decision`), the guards (`judge`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.monitoring.decision import (
    PAYMENT_FAILURES,
    Blame,
    DecisionRule,
    Tick,
    above_baseline,
    dispersion,
    smallest_rollback,
)
from flexpay_pipelines.monitoring.deploys import Deploy, newest_deploy
from flexpay_pipelines.monitoring.judge import judge, last_judged
from flexpay_pipelines.monitoring.judgement import RELEASE_WINDOW, TICK, Case, Judgement
from flexpay_pipelines.monitoring.ticks import exposures, payment_counts, payment_ticks, source_hash
from flexpay_pipelines.monitoring.without_release import without_release
from flexpay_pipelines.sql import queries

BASELINE = timedelta(days=7)
STALE_AFTER = timedelta(hours=2)
LATENESS = timedelta(hours=1)
"""Stripe collects an invoice about an hour after it is due."""
MIN_DUE = 3

Metric = Literal["failures", "issuer_declines"]


def judge_payment_failures(
    billing: Connection,
    control: Connection,
    *,
    clock: Clock,
    rule: DecisionRule = PAYMENT_FAILURES,
    release_window: timedelta = RELEASE_WINDOW,
    tick: timedelta = TICK,
    actor: str = "sensor",
) -> Judgement:
    """Judge every complete tick since the newest deploy that was not judged yet, on failures that a release can cause.

    Payments that became known after their tick was judged count in the next one. Idempotent; two at once are safe.
    """
    watch = _Watch(
        billing=billing, control=control, trigger="payment_failure_rate", metric="failures", now=clock.now(),
        rule=rule, release_window=release_window, tick=tick, actor=actor,
    )  # fmt: skip
    return watch.judgement()


def judge_issuer_declines(
    billing: Connection,
    control: Connection,
    *,
    clock: Clock,
    rule: DecisionRule = PAYMENT_FAILURES,
    release_window: timedelta = RELEASE_WINDOW,
    tick: timedelta = TICK,
    actor: str = "sensor",
) -> Judgement:
    """The same for issuer declines, against their rate in the week before the deploy: a wrong amount is declined."""
    watch = _Watch(
        billing=billing, control=control, trigger="issuer_decline_rate", metric="issuer_declines", now=clock.now(),
        rule=rule, release_window=release_window, tick=tick, actor=actor,
    )  # fmt: skip
    return watch.judgement()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watch:
    """One look at one payment metric."""

    billing: Connection
    control: Connection
    trigger: str
    metric: Metric
    now: datetime
    rule: DecisionRule
    release_window: timedelta
    tick: timedelta
    actor: str

    def judgement(self) -> Judgement:
        deploy = newest_deploy(self.control, now=self.now)
        if deploy is None or self._all_judged(deploy):
            return self._without_release()
        end = min(self.now, deploy.deployed_at + self.release_window)
        rows, because = self._read(deploy.deployed_at, end)
        last = last_judged(self.control, self.trigger, deploy.deploy_id)
        calibrated, rule = last is not None and bool(last["evidence"]["calibrated"]), self.rule
        if not calibrated and not because:
            rule, because = self._calibrate(deploy)
            calibrated = not because
        if not calibrated:
            rows = rows[-1:]
        if not because:
            because = self._stale(rows[-1]["tick_at"] + self.tick if rows else end)
        return judge(
            self.control,
            Case(
                trigger=self.trigger,
                deploy=deploy,
                ticks=[Tick(row["tick_at"], row["attempts"] if calibrated else None, row[self.metric]) for row in rows],
                rule=rule,
                now=self.now,
                blame=lambda since: self._blame(since, end),
                inconclusive_because=because,
                release_window=self.release_window,
                calibrated=calibrated,
                source=f"payment_counts sha256 {source_hash('payment_counts')}",
                actor=self.actor,
            ),
        )

    def _all_judged(self, deploy: Deploy) -> bool:
        """Whether the release is too old, and each tick of its window has been judged."""
        closed = deploy.deployed_at + self.release_window
        if self.now < closed:
            return False
        last = last_judged(self.control, self.trigger, deploy.deploy_id)
        return last is not None and last["tick_at"] + 2 * self.tick > closed

    def _without_release(self) -> Judgement:
        seconds = self.tick.total_seconds()
        end = datetime.fromtimestamp(self.now.timestamp() // seconds * seconds, self.now.tzinfo)
        rows, because = self._read(end - self.rule.naive_ticks * self.tick, end)
        return without_release(
            self.control,
            trigger=self.trigger,
            window=[Tick(row["tick_at"], row["attempts"], row[self.metric]) for row in rows],
            rule=self.rule,
            now=self.now,
            because=because or self._stale(end),
        )

    def _read(self, start: datetime, end: datetime) -> tuple[list[dict[str, Any]], str]:
        """The counts; where the billing database does not give them, one unreadable tick and the reason."""
        import psycopg  # noqa: PLC0415 - the code location loads without it

        try:
            return payment_counts(self.billing, start=start, end=end, tick=self.tick), ""
        except psycopg.Error as error:
            newest = start + self.tick * max(0, (end - start) // self.tick - 1)
            unread = {"tick_at": newest, "attempts": None, "failures": None, "issuer_declines": None}
            return [unread], f"the payments cannot be read: {_one_line(error)}"

    def _stale(self, end: datetime) -> str:
        """Why silence is no good news: nothing recorded for two hours, though subscriptions fell due."""
        import psycopg  # noqa: PLC0415 - the code location loads without it

        start = end - STALE_AFTER
        try:
            fed = queries("monitoring").payment_feed(self.billing, start=start, until=end, due_until=start + LATENESS)
        except psycopg.Error as error:
            return f"the payments cannot be read: {_one_line(error)}"
        if fed["seen"] or fed["due"] < MIN_DUE:
            return ""
        return f"no payment was recorded for {STALE_AFTER}, though {fed['due']} subscriptions fell due"

    def _calibrate(self, deploy: Deploy) -> tuple[DecisionRule, str]:
        """The rule with the clustering, and for issuer declines the rate, of the week before: without its incidents."""
        start, end = deploy.deployed_at - BASELINE, deploy.deployed_at
        ill = list(queries("monitoring").incident_times(self.control, trigger=self.trigger, start=start, until=end))
        rows, because = self._read(start, end)
        if because:
            return self.rule, because
        healthy = [
            (int(row[self.metric]), int(row["attempts"]))
            for row in rows
            if not any(
                one["opened_at"] < row["tick_at"] + self.tick and row["tick_at"] <= one["ended_at"] for one in ill
            )
        ]
        rule = self.rule
        if self.metric == "issuer_declines":
            rule = above_baseline(rule, sum(k for k, _ in healthy), sum(n for _, n in healthy))
        return replace(rule, dispersion=max(rule.dispersion, dispersion(healthy))), ""

    def _blame(self, since: datetime, end: datetime) -> Blame:
        if self.metric == "issuer_declines":
            return Blame("complete", "issuers decline more than before the release")
        enabled = [row["feature"] for row in queries("monitoring").enabled_features(self.billing)]
        ticks = payment_ticks(self.billing, start=since, end=end, tick=self.tick)
        return smallest_rollback(exposures(ticks, enabled), self.rule)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
