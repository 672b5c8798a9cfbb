"""Database performance, vulnerabilities, business figures: each speaks when it should."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.monitoring import (
    Advisory,
    DatabaseSample,
    Thresholds,
    business_health,
    judge_database_performance,
    judge_vulnerabilities,
    keep_lock,
    previous_lock,
    read_advisories,
    record_deploy,
    response_seconds,
    sample_database,
    take_database_baseline,
)
from flexpay_pipelines.monitoring.database_performance import compare
from flexpay_pipelines.sandbox import Cluster

TICK = timedelta(minutes=5)
THEN = datetime(2026, 3, 1, tzinfo=UTC)


class Stopwatch:
    """A timer that says that each probe took `milliseconds`."""

    def __init__(self, milliseconds: float) -> None:
        self.milliseconds, self.now, self.calls = milliseconds, 0.0, 0

    def __call__(self) -> float:
        self.calls += 1
        if self.calls % 2 == 0:
            self.now += self.milliseconds / 1000
        return self.now


def release(control: Connection, clock: FixedClock) -> None:
    record_deploy(control, release="r1", actor="ada", run_id=None, revisions={}, clock=clock)


def test_a_slow_database_is_rolled_back_and_a_fast_one_is_not(
    billing: Connection, control: Connection, clock: FixedClock
) -> None:
    take_database_baseline(billing, control, clock=clock, timer=Stopwatch(10))
    release(control, clock)
    for _ in range(24):
        clock.advance(TICK)
        assert judge_database_performance(billing, control, clock=clock, timer=Stopwatch(14)).verdict == "healthy"
    verdicts = []
    for _ in range(24):
        clock.advance(TICK)
        verdicts.append(judge_database_performance(billing, control, clock=clock, timer=Stopwatch(16)))
    found = next(one for one in verdicts if one.verdict == "roll_back")
    assert found.component == "complete"
    assert 8 <= verdicts.index(found) <= 14
    assert "1.60 times" in found.evidence["blame"]["reason"]
    assert judge_database_performance(billing, control, clock=clock, timer=Stopwatch(16)).ticks_judged == 0


def test_without_a_baseline_nothing_is_known(billing: Connection, control: Connection, clock: FixedClock) -> None:
    release(control, clock)
    clock.advance(TICK)
    found = judge_database_performance(billing, control, clock=clock)
    assert (found.verdict, found.evidence["because"]) == ("inconclusive", "no baseline was taken before this deploy")
    take_database_baseline(billing, control, clock=clock)
    clock.advance(TICK)
    assert judge_database_performance(billing, control, clock=clock).verdict == "inconclusive"


def test_probes_really_measure(billing: Connection, clock: FixedClock) -> None:
    sample = sample_database(billing, clock=clock)
    assert sample.source == "probes"
    assert all(calls == 1 and 0 < total < 10_000 for calls, total in sample.times.values())
    assert DatabaseSample.from_json(sample.to_json()) == sample


def statements(**times: tuple[int, float]) -> DatabaseSample:
    return DatabaseSample(THEN, "statements", dict(times), THEN)


def test_the_ratio_is_weighted_by_the_calls_of_before() -> None:
    base = statements(a=(100, 1000.0), b=(300, 300.0), rare=(5, 1.0))
    present = statements(a=(150, 2000.0), b=(400, 400.0), rare=(500, 9999.0), fresh=(999, 9999.0))
    found = compare(base, base, present)
    assert found.statements == 2
    assert found.ratio == pytest.approx((100 * 1000 / 50 + 300 * 100 / 100) / (1000 + 300))


def test_counters_that_were_reset_prove_nothing() -> None:
    base = statements(a=(100, 1000.0))
    assert compare(base, base, replace(base, reset_at=THEN + TICK)).ratio is None
    backwards = compare(base, statements(a=(200, 2000.0)), statements(a=(150, 1500.0)))
    assert (backwards.ratio, backwards.because) == (None, "a statement counter went backwards")
    assert "30 times" in compare(base, base, statements(a=(110, 1100.0))).because
    assert "in another way" in compare(base, base, replace(base, source="probes")).because


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Cluster]:
    """A server with pg_stat_statements, where one with its contrib modules is installed."""
    folder = Path("/usr/lib/postgresql/15/bin")
    if not folder.exists():
        pytest.skip("needs a PostgreSQL with contrib modules; the embedded one has none")
    options = {"fsync": "off", "listen_addresses": "''", "shared_preload_libraries": "'pg_stat_statements'"}
    cluster = Cluster(tmp_path / "counting", bin_folder=folder, options=options)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.destroy()


def test_statement_counters_are_used_where_there_are_any(
    counting: Cluster, control: Connection, clock: FixedClock
) -> None:
    with opened(counting.url(), purpose="test") as busy:
        busy.execute("CREATE EXTENSION pg_stat_statements")

        def work(seconds: float) -> None:
            for _ in range(30):
                busy.execute("SELECT pg_sleep(%s)", (seconds,))

        work(0.002)
        assert take_database_baseline(busy, control, clock=clock).source == "statements"
        release(control, clock)
        work(0.02)
        clock.advance(TICK)
        slow = judge_database_performance(busy, control, clock=clock)
        assert (slow.failures, slow.attempts) == (1, 1)
        work(0.0001)
        clock.advance(TICK)
        assert judge_database_performance(busy, control, clock=clock).failures == 1
        busy.execute("SELECT pg_stat_statements_reset()")
        clock.advance(TICK)
        reset = judge_database_performance(busy, control, clock=clock)
        assert reset.verdict == "inconclusive"
        assert "reset" in reset.evidence["because"]


def test_a_database_that_is_gone_is_inconclusive(
    billing: Connection, billing_url: str, control: Connection, clock: FixedClock
) -> None:
    take_database_baseline(billing, control, clock=clock)
    release(control, clock)
    clock.advance(TICK)
    with opened(billing_url, purpose="broken") as broken:
        billing.execute("SELECT pg_terminate_backend(%s)", (broken.info.backend_pid,))
        found = judge_database_performance(broken, control, clock=clock)
    assert found.verdict == "inconclusive"
    assert "cannot be measured" in found.evidence["because"]


ADVISORIES = [
    Advisory("GHSA-1", "Some_Package", ">=2.0,<2.3.1", "critical"),
    Advisory("GHSA-2", "other", "<9", "medium"),
]


@pytest.mark.parametrize(
    ("lock", "previous", "verdict"),
    [
        ("some-package==2.3.0\n", "some-package==1.9\n", "roll_back"),
        ("some-package==2.3.0\n", "", "roll_back"),
        ("some-package==2.3.0\n", "some.package==2.2\n", "held"),
        ("some-package==2.3.0\n", None, "held"),
        ("some-package==2.3.1\nother==1\n", "some-package==2.3.0\n", "healthy"),
        ("# some-package==2.3.0\n", "", "healthy"),
        ("Some.Package[extra] == 2.3.0 ; python_version > '3' \\\n    --hash=sha256:0\n", "", "roll_back"),
    ],
)
def test_only_a_vulnerability_that_the_release_brought_is_rolled_back(
    control: Connection, clock: FixedClock, tmp_path: Path, *, lock: str, previous: str | None, verdict: str
) -> None:
    file = tmp_path / "requirements.lock"
    file.write_text(lock)
    release(control, clock)
    clock.advance(TICK)

    def judged() -> Any:
        return judge_vulnerabilities(
            control, lock_file=file, previous_lock=previous, advisories=ADVISORIES, clock=clock
        )

    found = judged()
    assert found.verdict == verdict
    assert (found.incident_id is not None) == (verdict == "roll_back")
    clock.advance(TICK)
    again = judged()
    assert (again.verdict, again.incident_id) == (found.verdict, found.incident_id)
    clock.advance(timedelta(days=2))
    assert judged().verdict == ("healthy" if verdict == "healthy" else "held")


def test_a_lock_file_that_cannot_be_read_is_inconclusive(
    control: Connection, clock: FixedClock, tmp_path: Path
) -> None:
    release(control, clock)
    clock.advance(TICK)
    (tmp_path / "binary.lock").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.lock", "binary.lock"):
        clock.advance(TICK)
        found = judge_vulnerabilities(
            control, lock_file=tmp_path / name, previous_lock="", advisories=ADVISORIES, clock=clock
        )
        assert found.verdict == "inconclusive"
        assert name in found.evidence["because"]


def test_an_advisory_that_cannot_be_read_is_named(control: Connection, clock: FixedClock, tmp_path: Path) -> None:
    file = tmp_path / "requirements.lock"
    file.write_text("x==1\n")
    with pytest.raises(BadInput, match="GHSA-9 names no versions"):
        judge_vulnerabilities(
            control,
            lock_file=file,
            previous_lock="",
            advisories=[Advisory("GHSA-9", "x", "all of them", "low")],
            clock=clock,
        )
    file.write_text("x==what\n")
    with pytest.raises(BadInput, match="pins x to 'what'"):
        judge_vulnerabilities(
            control, lock_file=file, previous_lock="", advisories=[Advisory("GHSA-9", "x", "<1", "low")], clock=clock
        )


def test_business_health_speaks_above_its_thresholds_only() -> None:
    assert business_health(0.10, 50, Thresholds()) == ()
    churn, risk, slow = business_health(Decimal("0.101"), 51, Thresholds(), api_seconds=lambda: 2.5)
    assert churn.message == "Churn of 30 days is 10.1%, above 10.0%."
    assert risk.message == "51 customers are at high risk of leaving, more than 50."
    assert slow.message == "The payment API took 2.50 s to answer, longer than 2 s."
    missing = business_health(None, None, Thresholds(), api_seconds=lambda: math.nan)
    assert [breach.name for breach in missing] == ["churn", "high_risk_customers", "api_response"]
    assert all(breach.missing for breach in missing)
    assert not churn.missing
    assert business_health(0, 0, Thresholds(), api_seconds=2.0) == ()


def test_a_response_is_timed_and_its_error_passed_on() -> None:
    assert response_seconds(lambda: None, Stopwatch(1500))() == pytest.approx(1.5)

    def unreachable() -> None:
        raise psycopg.OperationalError("no answer")

    with pytest.raises(psycopg.OperationalError):
        response_seconds(unreachable)()


def test_the_last_release_s_lock_is_kept(control: Connection, clock: FixedClock, tmp_path: Path) -> None:
    file = tmp_path / "requirements.lock"

    def deployed(lock: str) -> str:
        file.write_text(lock)
        number = record_deploy(control, release="r", actor="ada", run_id=None, revisions={}, clock=clock)
        keep_lock(control, deploy_id=number, lock_file=file)
        clock.advance(TICK)
        return judge_vulnerabilities(
            control, lock_file=file, previous_lock=previous_lock(control), advisories=ADVISORIES, clock=clock
        ).verdict

    assert deployed("some-package==2.0\n") == "held"
    assert deployed("some-package==1.9\n") == "healthy"
    assert deployed("some-package==2.0\n") == "roll_back"


def test_advisories_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "advisories.jsonl"
    entry = {"id": "GHSA-1", "package": "x", "affected": "<2", "severity": "Critical"}
    file.write_text(f"{json.dumps(entry)}\n\n")
    assert read_advisories(file) == (Advisory("GHSA-1", "x", "<2", "critical"),)
    for second, says in (
        ("{", "advisories.jsonl line 2 is not an advisory"),
        ("[3]", "line 2"),
        (json.dumps({"id": "GHSA-2"}), "line 2"),
        (json.dumps({**entry, "severity": "dire"}), "severity 'dire' is none of low, medium, high, critical"),
    ):
        file.write_text(f"{json.dumps(entry)}\n{second}\n")
        with pytest.raises(BadInput, match=says):
            read_advisories(file)
    with pytest.raises(BadInput, match="cannot be read"):
        read_advisories(tmp_path / "nowhere.jsonl")
