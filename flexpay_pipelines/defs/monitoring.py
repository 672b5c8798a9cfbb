"""Monitoring: what is measured, and the sensors that judge each release by it and start a rollback by themselves.

What belongs here: metric assets and sensors. What does not: the decision (`monitoring`), the rollback (`rollback`).
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from flexpay_pipelines.defs.migrations import LOCK_FILE, statement_times
from flexpay_pipelines.defs.payments import STRIPE_EVENTS
from flexpay_pipelines.defs.presentation import figures, table
from flexpay_pipelines.defs.resources import ACTOR_TAG, FlexPay
from flexpay_pipelines.defs.rollback import JOB_OF, JOBS
from flexpay_pipelines.session import Session

if TYPE_CHECKING:
    from flexpay_pipelines.monitoring import Judgement, Tick

LOG = logging.getLogger(__name__)
GROUP = "monitoring"
WINDOW = timedelta(hours=24)
TICK = timedelta(minutes=5)
FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
MOST_RUNS = 10_000


@dg.asset(key=["monitoring", "payment_metrics"], deps=[STRIPE_EVENTS], group_name=GROUP, kinds={"postgres"})
def payment_metrics(context: dg.AssetExecutionContext, flexpay: FlexPay) -> dg.MaterializeResult[None]:
    """First payment attempts of the last 24 hours and how many failed, by hour and by what each was exposed to."""
    from flexpay_pipelines.monitoring import payment_ticks

    with flexpay.step(context, "measure", "payments") as step:
        now = step.clock.now()
        ticks = payment_ticks(step.billing, start=now - WINDOW, end=now)
        attempts = sum(tick.attempts for tick in ticks)
        failures = sum(tick.failures for tick in ticks)
        hourly: dict[datetime, Counter[str]] = {}
        for tick in ticks:
            hour = tick.tick_at.replace(minute=0, second=0, microsecond=0)
            hourly.setdefault(hour, Counter()).update(
                attempts=tick.attempts, failures=tick.failures, issuer_declines=tick.issuer_declines
            )
        return dg.MaterializeResult(
            metadata={
                **figures({"attempts": attempts, "failures": failures}),
                **figures({"failure_rate": failures / attempts} if attempts else {}),
                "by_hour": table({"hour": hour, **counts} for hour, counts in sorted(hourly.items())),
            }
        )


@dg.asset(key=["monitoring", "system_errors"], group_name=GROUP, kinds={"dagster"})
def system_errors(context: dg.AssetExecutionContext, flexpay: FlexPay) -> dg.MaterializeResult[None]:
    """Runs of the last 24 hours and how many failed, by job."""
    with flexpay.step(context, "measure", "runs") as step:
        since = step.clock.now() - WINDOW
        runs = _finished_runs(context.instance, since)
        by_job: dict[str, Counter[str]] = {}
        for job, _, failed in runs:
            by_job.setdefault(job, Counter()).update(runs=1, failed=int(failed))
        rate = {"error_rate": sum(failed for _, _, failed in runs) / len(runs)} if runs else {}
        return dg.MaterializeResult(
            metadata={
                "runs": len(runs),
                **figures(rate),
                "by_job": table({"job": j, **c} for j, c in sorted(by_job.items())),
            }
        )


def _finished_runs(instance: dg.DagsterInstance, since: datetime) -> list[tuple[str, datetime, bool]]:
    """(job, when it ended, whether it failed) of each run that ended since."""
    records = instance.get_run_records(dg.RunsFilter(statuses=FINISHED, updated_after=since), limit=MOST_RUNS)
    return [
        (r.dagster_run.job_name, r.update_timestamp, r.dagster_run.status == dg.DagsterRunStatus.FAILURE)
        for r in records
    ]


@dg.asset(key=["monitoring", "database_performance"], group_name=GROUP, kinds={"postgres"})
def database_performance(context: dg.AssetExecutionContext, flexpay: FlexPay) -> dg.MaterializeResult[None]:
    """How long the statements that matter take: those of pg_stat_statements or, without it, of a few probes."""
    from flexpay_pipelines.monitoring import sample_database

    with flexpay.step(context, "measure", "database") as step:
        sample = sample_database(step.billing, clock=step.clock)
        return dg.MaterializeResult(metadata={"source": sample.source, "statements": statement_times(sample)})


collect_metrics = dg.define_asset_job(
    "collect_metrics",
    selection=dg.AssetSelection.assets(payment_metrics, system_errors, database_performance),
    description="Measure payments, runs and the database, for the UI to plot.",
)


def _act(session: Session, judgement: "Judgement") -> dg.RunRequest | dg.SkipReason:
    """Tell people what they must know, and ask for the rollback that the evidence calls for."""
    from flexpay_pipelines.alerts import raise_alert

    counts = f"{judgement.failures} of {judgement.attempts}"
    said = {
        "roll_back": ("critical", f"Rolling {judgement.component} back: {judgement.trigger} is too high"),
        "held": ("critical", f"{judgement.trigger} is too high, and a guard forbids an automatic rollback"),
        "inconclusive": ("warning", f"{judgement.trigger} cannot be judged: freeze deploys until it can"),
    }.get(judgement.verdict)
    if said is not None:
        raise_alert(
            session.control,
            fingerprint=f"{judgement.trigger}:{judgement.deploy_id}:{judgement.verdict}",
            severity="critical" if said[0] == "critical" else "warning",
            title=said[1],
            body=f"Since deploy {judgement.deploy_id}: {counts} failed; evidence {judgement.e_value:.3g}. "
            f"{judgement.evidence.get('because', '')}".strip(),
            context={"incident": judgement.incident_id, "component": judgement.component, "verdict": judgement.verdict},
            clock=session.clock,
        )
    if judgement.verdict != "roll_back" or judgement.component is None:
        return dg.SkipReason(f"{judgement.verdict}: {counts} failed, {judgement.ticks_judged} new ticks judged.")
    job = JOB_OF[judgement.component]
    config = {"incident_id": judgement.incident_id, "reason": f"{judgement.trigger}: {counts} failed since the deploy"}
    return dg.RunRequest(
        run_key=judgement.run_key,
        job_name=job,
        run_config={"ops": {f"{job}_{op}": {"config": config} for op in ("steps", "schema")}},
        tags={ACTOR_TAG: f"sensor {judgement.trigger}"},
    )


@dg.sensor(jobs=list(JOBS.values()), minimum_interval_seconds=60)
def payment_failure_rate(flexpay: FlexPay) -> dg.RunRequest | dg.SkipReason:
    """Roll back when more than 5 % of payments fail for a reason that the release can have caused."""
    from dataclasses import replace

    from flexpay_pipelines.monitoring import PAYMENT_FAILURES, judge_payment_failures

    with flexpay.session("judge payments") as session:
        rule = replace(PAYMENT_FAILURES, threshold=session.settings.payment_failure_threshold)
        return _act(session, judge_payment_failures(session.billing, session.control, clock=session.clock, rule=rule))


@dg.sensor(jobs=list(JOBS.values()), minimum_interval_seconds=60)
def system_error_rate(context: dg.SensorEvaluationContext, flexpay: FlexPay) -> dg.RunRequest | dg.SkipReason:
    """Roll back when more than 1 % of runs fail since the release."""
    from dataclasses import replace

    from flexpay_pipelines.monitoring import SYSTEM_ERRORS, judge_system_errors, newest_deploy

    with flexpay.session("judge system errors") as session:
        deploy = newest_deploy(session.control, now=session.clock.now())
        if deploy is None:
            return dg.SkipReason("Nothing was deployed yet.")
        ticks = _run_ticks(
            _finished_runs(context.instance, deploy.deployed_at), deploy.deployed_at, session.clock.now()
        )
        rule = replace(SYSTEM_ERRORS, threshold=session.settings.system_error_threshold)
        return _act(session, judge_system_errors(session.control, clock=session.clock, ticks=ticks, rule=rule))


def _run_ticks(runs: Sequence[tuple[str, datetime, bool]], start: datetime, end: datetime) -> list["Tick"]:
    from flexpay_pipelines.monitoring import Tick

    ended: Counter[int] = Counter()
    failed: Counter[int] = Counter()
    for _, at, has_failed in runs:
        number = (at.replace(tzinfo=at.tzinfo or start.tzinfo) - start) // TICK
        ended[number] += 1
        failed[number] += int(has_failed)
    return [Tick(start + number * TICK, ended[number], failed[number]) for number in range((end - start) // TICK)]


@dg.sensor(jobs=list(JOBS.values()), minimum_interval_seconds=300)
def database_degradation(flexpay: FlexPay) -> dg.RunRequest | dg.SkipReason:
    """Roll back when the database takes half as long again as before the release."""
    from flexpay_pipelines.monitoring import judge_database_performance

    with flexpay.session("judge database") as session:
        slowdown = session.settings.database_slowdown_threshold
        return _act(
            session,
            judge_database_performance(session.billing, session.control, clock=session.clock, slowdown=slowdown),
        )


@dg.sensor(jobs=list(JOBS.values()), minimum_interval_seconds=3600)
def security_vulnerability(flexpay: FlexPay) -> dg.RunRequest | dg.SkipReason:
    """Roll back a release that brought a critical vulnerability; alert people to one that was there before."""
    from flexpay_pipelines.monitoring import judge_vulnerabilities, previous_lock, read_advisories

    with flexpay.session("judge vulnerabilities") as session:
        if session.settings.advisories_file is None:
            return dg.SkipReason("FLEXPAY_ADVISORIES_FILE is not set: there is nothing to compare the lock file with.")
        judgement = judge_vulnerabilities(
            session.control,
            clock=session.clock,
            lock_file=LOCK_FILE,
            previous_lock=previous_lock(session.control),
            advisories=read_advisories(session.settings.advisories_file),
        )
        return _act(session, judgement)


def _newest_figures(session: Session) -> tuple[date, dict[str, Any]]:
    """Yesterday's figures or, until analytics has run at night, those of the day before; empty: there are neither."""
    from flexpay_pipelines.analytics import key_figures
    from flexpay_pipelines.errors import BadInput

    yesterday = session.clock.now().date() - timedelta(days=1)
    for day in (yesterday, yesterday - timedelta(days=1)):
        try:
            return day, key_figures(session.billing, day=day, reporting_currency=session.settings.reporting_currency)
        except BadInput as not_stored:
            LOG.info("%s", not_stored)
    return yesterday, {}


def _api_seconds(session: Session) -> float:
    from flexpay_pipelines.errors import TransientError
    from flexpay_pipelines.monitoring import response_seconds

    try:
        return response_seconds(session.gateway.ping)()
    except TransientError as unreachable:
        LOG.warning("%s", unreachable)
        return math.nan


@dg.sensor(minimum_interval_seconds=3600)
def business_health(flexpay: FlexPay) -> dg.SkipReason:
    """Alert when churn is above 10 %, more than 50 customers are at high risk, or Stripe answers in over 2 s."""
    from flexpay_pipelines.alerts import raise_alert
    from flexpay_pipelines.monitoring import Thresholds
    from flexpay_pipelines.monitoring import business_health as judge_business

    with flexpay.session("judge business") as session:
        settings = session.settings
        day, known = _newest_figures(session)
        breaches = judge_business(
            known.get("churn_rate"),
            known.get("high_risk"),
            Thresholds(
                churn_rate=settings.churn_alert_threshold,
                high_risk=settings.high_risk_alert_threshold,
                api_seconds=settings.api_response_alert_seconds,
            ),
            api_seconds=_api_seconds(session),
        )
        for breach in breaches:
            raise_alert(
                session.control,
                fingerprint=f"business:{breach.name}",
                severity="warning",
                title=f"No figure for {breach.name}" if breach.missing else f"Threshold crossed: {breach.name}",
                body=breach.message,
                context={"value": breach.value, "threshold": breach.threshold, "day": day.isoformat()},
                clock=session.clock,
            )
    return dg.SkipReason(f"{len(breaches)} figure(s) of {day} are missing or past their threshold.")


defs = dg.Definitions(
    assets=[payment_metrics, system_errors, database_performance],
    jobs=[collect_metrics],
    schedules=[
        dg.ScheduleDefinition(name="metrics_every_15_minutes", job=collect_metrics, cron_schedule="*/15 * * * *")
    ],
    sensors=[payment_failure_rate, system_error_rate, database_degradation, security_vulnerability, business_health],
)
