"""The trigger that judges the billing database: is it half as slow again as before the newest release?

Where pg_stat_statements is installed and loaded, the statements' own mean times are compared; elsewhere a few fixed
probe queries are timed. Either way R = sum(c m_now) / sum(c m_base), with m the mean time of a statement and c its
calls before the deploy; each reading feeds one trial to the decision rule: did R exceed 1.5?

What belongs here: measuring, the baseline, R. What does not: the rule (`decision`), the guards (`judge`).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.monitoring.decision import DATABASE_SLOWDOWN, Blame, DecisionRule, Tick
from flexpay_pipelines.monitoring.deploys import newest_deploy
from flexpay_pipelines.monitoring.judge import judge
from flexpay_pipelines.monitoring.judgement import RELEASE_WINDOW, TICK, Case, Judgement
from flexpay_pipelines.monitoring.without_release import without_release
from flexpay_pipelines.sql import queries

TRIGGER = "database_degradation"
BASELINE_CURSOR = "database_baseline"
SAMPLE_CURSOR = "database_sample"
PROBES = ("probe_payments", "probe_ledger", "probe_customers", "probe_outbox")
PROBE_RUNS = 5
MIN_CALLS = 30
MOST_STATEMENTS = 500
SLOWDOWN = 0.5

Timer = Callable[[], float]


@dataclass(frozen=True, slots=True)
class DatabaseSample:
    """How fast the database was at `taken_at`.

    Attributes:
        source: `statements` (pg_stat_statements: calls and total milliseconds since `reset_at`) or `probes` (one call
            each, milliseconds, the median of five).
        times: by statement: (calls, total milliseconds).
    """

    taken_at: datetime
    source: str
    times: dict[str, tuple[int, float]]
    reset_at: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "taken_at": self.taken_at.isoformat(),
            "source": self.source,
            "times": {name: list(pair) for name, pair in self.times.items()},
            "reset_at": None if self.reset_at is None else self.reset_at.isoformat(),
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> DatabaseSample:
        return cls(
            taken_at=datetime.fromisoformat(kept["taken_at"]),
            source=kept["source"],
            times={name: (int(calls), float(total)) for name, (calls, total) in kept["times"].items()},
            reset_at=None if kept["reset_at"] is None else datetime.fromisoformat(kept["reset_at"]),
        )


@dataclass(frozen=True, slots=True)
class Slowdown:
    """R, from how many statements; None with the reason where it cannot be told."""

    ratio: float | None
    statements: int
    because: str = ""


def sample_database(billing: Connection, *, clock: Clock, timer: Timer = time.perf_counter) -> DatabaseSample:
    """Measure the billing database now; takes some milliseconds."""
    statements = queries("monitoring")
    now = clock.now()
    if statements.statement_statistics_usable(billing):
        rows = statements.statement_statistics(billing, most=MOST_STATEMENTS)
        times = {row["statement"]: (int(row["calls"]), float(row["total_ms"])) for row in rows}
        return DatabaseSample(now, "statements", times, statements.statement_statistics_reset(billing))
    return DatabaseSample(now, "probes", {name: (1, _probe(billing, name, now, timer)) for name in PROBES})


def take_database_baseline(
    billing: Connection, control: Connection, *, clock: Clock, timer: Timer = time.perf_counter
) -> DatabaseSample:
    """Measure the database before a deploy and keep it as what the release is judged against. Call it in each deploy,
    before the first migration."""
    sample = sample_database(billing, clock=clock, timer=timer)
    kept = json.dumps(sample.to_json())
    for name in (BASELINE_CURSOR, SAMPLE_CURSOR):
        queries("monitoring").move_cursor(control, name=name, position=kept, moved_at=clock.now())
    return sample


def judge_database_performance(
    billing: Connection,
    control: Connection,
    *,
    clock: Clock,
    rule: DecisionRule = DATABASE_SLOWDOWN,
    slowdown: float = SLOWDOWN,
    release_window: timedelta = RELEASE_WINDOW,
    tick: timedelta = TICK,
    timer: Timer = time.perf_counter,
    actor: str = "sensor",
) -> Judgement:
    """Measure once for the present tick, and judge it; a tick that was missed cannot be measured afterwards.

    Args:
        slowdown: the rise of database time that counts as degraded (0.5: R > 1.5).
    """
    now = clock.now()
    deploy = newest_deploy(control, now=now)
    if deploy is None or now >= deploy.deployed_at + release_window:
        return without_release(control, trigger=TRIGGER, window=[Tick(now, 0, 0)], rule=rule, now=now, because="")
    found, sample = _measure(billing, control, clock, deploy.deployed_at, timer)
    slow = None if found.ratio is None else int(found.ratio > 1 + slowdown)
    tick_at = deploy.deployed_at + tick * ((now - deploy.deployed_at) // tick)
    judgement = judge(
        control,
        Case(
            trigger=TRIGGER,
            deploy=deploy,
            ticks=[Tick(tick_at, None if slow is None else 1, slow)],
            rule=rule,
            now=now,
            blame=lambda _: Blame("complete", f"database time is {found.ratio or 0:.2f} times what it was"),
            inconclusive_because=found.because,
            release_window=release_window,
            counts_late=False,
            source=f"R = {found.ratio} over {found.statements} statements",
            actor=actor,
        ),
    )
    if sample is not None:
        # After the verdict: a judge that is killed in between compares with the same older sample once more.
        queries("monitoring").move_cursor(
            control, name=SAMPLE_CURSOR, position=json.dumps(sample.to_json()), moved_at=now
        )
    return judgement


def compare(baseline: DatabaseSample, earlier: DatabaseSample, present: DatabaseSample) -> Slowdown:
    """R of `present` against `baseline`. Statement counters are read as the difference to the `earlier` sample."""
    if len({baseline.source, earlier.source, present.source}) > 1:
        return Slowdown(None, 0, "the baseline was measured in another way: it is taken anew at the next deploy")
    if len({baseline.reset_at, earlier.reset_at, present.reset_at}) > 1:
        return Slowdown(None, 0, "the statement counters were reset since the baseline")
    counted = present.source == "statements"
    weighted_now = weighted_base = 0.0
    used = 0
    for name, (base_calls, base_total) in baseline.times.items():
        calls, total = present.times.get(name, (0, 0.0))
        if counted:
            calls_then, total_then = earlier.times.get(name, (0, 0.0))
            calls, total = calls - calls_then, total - total_then
        if calls < 0 or total < 0:
            return Slowdown(None, 0, "a statement counter went backwards")
        if (counted and min(calls, base_calls) < MIN_CALLS) or calls == 0:
            continue
        used += 1
        weighted_now += base_calls * (total / calls)
        weighted_base += base_total
    if weighted_base <= 0:
        return Slowdown(None, 0, f"no statement was called {MIN_CALLS} times on both sides")
    return Slowdown(weighted_now / weighted_base, used)


def _measure(
    billing: Connection, control: Connection, clock: Clock, deployed_at: datetime, timer: Timer
) -> tuple[Slowdown, DatabaseSample | None]:
    import psycopg  # noqa: PLC0415 - the code location loads without it

    kept = queries("monitoring").cursor_position(control, name=BASELINE_CURSOR)
    baseline = None if kept is None else DatabaseSample.from_json(kept)
    if baseline is None or baseline.taken_at > deployed_at:
        return Slowdown(None, 0, "no baseline was taken before this deploy"), None
    earlier = queries("monitoring").cursor_position(control, name=SAMPLE_CURSOR)
    try:
        present = sample_database(billing, clock=clock, timer=timer)
    except psycopg.Error as error:
        return Slowdown(None, 0, f"the billing database cannot be measured: {' '.join(str(error).split())}"), None
    return compare(baseline, DatabaseSample.from_json(earlier or kept), present), present


def _probe(billing: Connection, name: str, until: datetime, timer: Timer) -> float:
    """Milliseconds of a probe: the median, so that one slow moment of the machine accuses nobody."""
    parameters = {"until": until} if name in ("probe_payments", "probe_ledger") else {}
    probe, taken = getattr(queries("monitoring"), name), []
    for _ in range(PROBE_RUNS):
        begun = timer()
        probe(billing, **parameters)
        taken.append((timer() - begun) * 1000)
    return statistics.median(taken)
