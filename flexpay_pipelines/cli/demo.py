"""The scenes of `flexpay demo`: one company, from its first deploy to an incident that takes itself back.

What belongs here: the order of scenes and what each must show. What does not: any work: scenes are Dagster runs.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexpay_pipelines import money
from flexpay_pipelines.cli.output import plain, say, show_rows
from flexpay_pipelines.cli.runs import Outcome, Recorder, prepared_instance, require, run_job
from flexpay_pipelines.defs.resources import FlexPay
from flexpay_pipelines.errors import BadInput, CheckFailed, disk_errors
from flexpay_pipelines.session import session
from flexpay_pipelines.settings import Settings, export, load_settings, variable

if TYPE_CHECKING:
    import dagster as dg

    from flexpay_pipelines.sandbox.slack_server import SlackSandbox
    from flexpay_pipelines.sandbox.stripe_server import StripeSandbox

HISTORY_ENDS_BEFORE_NOW = timedelta(hours=36)
HOURS_SWEPT = 24
DAYS_ANALYSED = 90
FIRST_RELEASE = "demo-1"
BAD_RELEASE = "demo-2"
STEP = timedelta(minutes=15)
LONGEST_INCIDENT = timedelta(hours=8)
RECOVERY = timedelta(hours=4)
STATE = (
    "postgres/billing",
    "postgres/control",
    "stripe",
    "slack",
    "dagster",
    "backups",
    "backups-offsite",
    "reports",
    "scratch",
)


@dataclass
class Stage:
    """What the scenes share."""

    settings: Settings
    on: Recorder
    stripe: StripeSandbox
    slack: SlackSandbox
    customers: int
    seed: int
    history_end: datetime
    scenes: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    timeline: list[dict[str, Any]] = field(default_factory=list)

    def run(self, job: str, now: datetime, **options: Any) -> Outcome:
        """Run a job as if it were `now`; it must succeed with all its checks."""
        return require(run_job(job, on=self.on, now=now.isoformat(), **options))

    def happened(self, at: datetime, what: str) -> None:
        """Note a moment of the incident."""
        self.timeline.append({"at": at.isoformat(timespec="minutes"), "what": what})


def run_demo(*, customers: int, seed: int, as_json: bool) -> None:
    """Play all scenes, print the summary and write it to `demo/summary.json` below FLEXPAY_HOME.

    Raises:
        BadInput: the environment names real services, or the home holds data of somebody else.
        FlexPayError: a scene did not do its work.
    """
    settings = load_settings()
    started = time.monotonic()
    _start_afresh(settings)
    # The sandbox has the live limit of Stripe, not that of its test mode.
    export(variable("stripe_requests_per_second"), "100")
    with ExitStack() as stack:
        stage = stack.enter_context(_stage(load_settings(), customers, seed))
        for title, scene in SCENES:
            _play(stage, title, scene)
        summary = {
            "customers": customers,
            "seed": seed,
            "seconds": round(time.monotonic() - started, 1),
            "scenes": stage.scenes,
            "headline": _headline(stage.figures, stage.timeline),
            "figures": plain(stage.figures),
            "incident": stage.timeline,
        }
    path = settings.home / "demo" / "summary.json"
    with disk_errors("writing the summary"):
        path.write_text(json.dumps(summary, indent=2) + "\n")
    _show(summary, path, as_json=as_json)


def _start_afresh(settings: Settings) -> None:
    for name in ("billing_url", "control_url", "stripe_api_key"):
        if getattr(settings, name) is not None:
            raise BadInput(f"The demo runs on embedded services only: unset {variable(name)} first.")
    marker = settings.home / "demo"
    if (settings.home / "postgres").exists() and not marker.exists():
        raise BadInput(
            f"{settings.home} holds data that the demo did not make: set FLEXPAY_HOME to another folder for the demo."
        )
    with disk_errors("preparing the demo"):
        marker.mkdir(parents=True, exist_ok=True)
        for role in ("billing", "control"):
            _must_be_idle(settings.home / "postgres" / role)
        for name in STATE:
            shutil.rmtree(settings.home / name, ignore_errors=True)


def _must_be_idle(folder: Path) -> None:
    from flexpay_pipelines.sandbox import Cluster, in_use_elsewhere

    if in_use_elsewhere(folder):
        raise BadInput(
            "Another flexpay command uses the embedded databases: end it (make dev, perhaps), then run this again."
        )
    Cluster(folder).stop("immediate")


@contextmanager
def _stage(settings: Settings, customers: int, seed: int) -> Iterator[Stage]:
    from flexpay_pipelines.sandbox.slack_server import running_slack_server
    from flexpay_pipelines.sandbox.stripe_server import running_stripe_server

    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    say("Starting two PostgreSQL clusters, a Stripe sandbox and a Slack stand-in on this machine ...")
    with ExitStack() as stack:
        ready = stack.enter_context(prepared_instance(settings))
        stripe = stack.enter_context(running_stripe_server(ready.home / "stripe"))
        slack = stack.enter_context(running_slack_server(ready.home / "slack"))
        export(variable("stripe_api_key"), stripe.api_key)
        export(variable("stripe_api_base"), stripe.api_base)
        export(variable("slack_token"), slack.token)
        export(variable("slack_api_base"), slack.api_base)

        yield Stage(load_settings(), Recorder(stack), stripe, slack, customers, seed, now - HISTORY_ENDS_BEFORE_NOW)


def _play(stage: Stage, title: str, scene: Callable[[Stage], str]) -> None:
    number = len(stage.scenes) + 1
    say(f"\n[{number}/{len(SCENES)}] {title}")
    started = time.monotonic()
    came_of_it = scene(stage)
    seconds = round(time.monotonic() - started, 1)
    stage.scenes.append({"scene": title, "seconds": seconds, "result": came_of_it})
    say(f"    done in {seconds} s: {came_of_it}")


def _deploy(stage: Stage) -> str:
    outcome = stage.run("deploy", stage.history_end, ops={"deploy__release": {"release": FIRST_RELEASE}})
    schemas = sum(key.startswith("schema/") for key in outcome.outputs)
    return f"{schemas} components migrated and verified, release {FIRST_RELEASE}"


def _import(stage: Stage) -> str:
    from flexpay_pipelines.sandbox.company import write_company

    folder = stage.settings.home / "demo" / "company"
    with disk_errors("writing the demo company"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    write_company(
        folder,
        seed=stage.seed,
        end=stage.history_end,
        customers=stage.customers,
        progress=lambda text: say(f"    {text}"),
    )
    stage.run("import_data", stage.history_end, ops={"import_files": {"folder": str(folder)}})
    with session("demo") as opened:
        stage.stripe.set_clock(stage.history_end)
        stage.stripe.seed_from_billing(opened.billing)
        counts = opened.billing.execute(
            "SELECT (SELECT count(*) FROM billing.customers) AS customers,"
            " (SELECT count(*) FROM billing.subscription_events) AS events,"
            " (SELECT count(*) FROM billing.payments) AS payments"
        ).fetchone()
    linked = stage.run("link_stripe", stage.history_end).outputs["link_stripe_objects"]["linked"]
    stage.figures["imported"] = counts
    return f"{_counted(counts or {})}; {linked:,} subscriptions known to Stripe"


def _sweep(stage: Stage) -> str:
    totals = dict.fromkeys(("started", "ended", "suspended", "commands", "delivered"), 0)
    for number in range(HOURS_SWEPT):
        hour = stage.history_end + timedelta(hours=number)
        end = hour + timedelta(hours=1)
        stage.stripe.advance(end)
        key = hour.strftime("%Y-%m-%d-%H:00")
        outcome = stage.run("hourly_pause_sweep", end, partitions=(key, key))
        swept = outcome.outputs["billing/pause_sweep"]
        for name in ("started", "ended", "suspended", "commands"):
            totals[name] += swept[name]
        totals["delivered"] += outcome.outputs["billing/stripe_delivery"]["delivered"]
    compared = stage.run("stripe_reconciliation", _swept(stage)).outputs["billing/reconciliation"]["compared"]
    stage.figures["pauses"] = totals
    if not totals["started"] or not totals["ended"]:
        raise CheckFailed(
            "The sweeps found no pause to start or none to end: the demo company is not what it should be."
        )
    return f"{HOURS_SWEPT} hours: {_counted(totals)}; all {compared:,} subscriptions agree with Stripe"


def _swept(stage: Stage) -> datetime:
    return stage.history_end + timedelta(hours=HOURS_SWEPT)


def _analytics(stage: Stage) -> str:
    from flexpay_pipelines.defs.analytics import CHURN, COHORTS, MOVEMENTS, SUMMARY

    now = _swept(stage)
    last = now.date() - timedelta(days=1)
    first = last - timedelta(days=DAYS_ANALYSED - 1)
    stage.run(
        "daily_analytics",
        now,
        partitions=(first.isoformat(), last.isoformat()),
        selection=[MOVEMENTS, SUMMARY, CHURN, COHORTS],
    )
    report = stage.run("daily_analytics", now, partitions=(last.isoformat(), last.isoformat())).outputs[
        "analytics/daily_report"
    ]
    stage.figures["metrics"] = {key: value for key, value in report.items() if key != "trend"}
    return f"{DAYS_ANALYSED} days; the report of {last} is {report['report']}"


def _backup(stage: Stage) -> str:
    now = _swept(stage)
    made = stage.run("daily_backup", now).outputs["backups/daily"]
    proof = stage.run("backup_verification", now).outputs["backups/verified"]
    stage.figures["backup"] = {**made, "proof": proof}
    return f"{made['size_bytes'] / 1e6:.1f} MB, {made['rows']:,} rows; restored and equal: {proof['ok']}"


def _incident(stage: Stage) -> str:
    released = _swept(stage) + timedelta(minutes=5)
    before = _failure_rate(released - timedelta(hours=12), released)
    stage.run("deploy", released, ops={"deploy__release": {"release": BAD_RELEASE}})
    stage.stripe.order_fault("release", since=released)
    stage.happened(
        released, f"release {BAD_RELEASE} deployed; payments on frequencies other than monthly begin to fail"
    )
    now = released
    request = None
    while request is None:
        now += STEP
        if now > released + LONGEST_INCIDENT:
            raise CheckFailed(
                f"The sensor did not see the incident within {LONGEST_INCIDENT}: {stage.customers:,} customers make "
                "too few payments to tell it from chance, 5,000 make enough."
            )
        stage.stripe.advance(now)
        stage.run("stripe_exchange", now)
        request = _sensor_request(stage, now)
    during = _failure_rate(released, now)
    stage.happened(
        now,
        f"sensor payment_failure_rate: {during:.0%} of payments fail, {before:.1%} before; asks for {request.job_name}",
    )
    done = stage.run(
        str(request.job_name),
        now,
        ops={name: config["config"] for name, config in request.run_config["ops"].items()},
        tags={**request.tags, "dagster/run_key": request.run_key or ""},
    )
    changes = done.outputs[f"{request.job_name}_steps"]["changes"]
    stage.happened(now, f"{request.job_name} done in {done.seconds} s: {_counted(changes)}")
    stage.happened(now, f"Stripe told of {done.outputs['tell_stripe']['delivered']:,} changes")
    stage.run("deliver_alerts", now)
    heard = [message for message in stage.slack.messages() if "payment" in json.dumps(message).lower()]
    if not heard:
        raise CheckFailed("No alert about payments reached Slack.")
    stage.happened(now, f"{len(heard)} alert(s) reached Slack")
    return _recovery(stage, before=before, during=during, rolled_back=now)


def _recovery(stage: Stage, *, before: float, during: float, rolled_back: datetime) -> str:
    healthy = rolled_back + RECOVERY
    stage.stripe.advance(healthy)
    stage.run("stripe_exchange", healthy)
    after = _failure_rate(rolled_back, healthy)
    limit = stage.settings.payment_failure_threshold
    if not (during > limit >= after):
        raise CheckFailed(f"The rollback did not restore the healthy rate: {during:.1%} during, {after:.1%} after it.")
    stage.happened(healthy, f"{after:.1%} of payments fail: healthy again")
    stage.run("collect_metrics", healthy)
    compared = stage.run("stripe_reconciliation", healthy).outputs["billing/reconciliation"]["compared"]
    lost = _lost()
    if lost:
        raise CheckFailed(f"The rollback lost something: {lost}.")
    stage.happened(
        healthy, f"nothing lost: history replays to today's tables, and {compared:,} subscriptions agree with Stripe"
    )
    stage.figures["incident"] = {
        "failure_rate_before": before,
        "failure_rate_during": during,
        "failure_rate_after": after,
    }
    return f"payment failures {before:.1%} before, {during:.1%} during, {after:.1%} after"


def _sensor_request(stage: Stage, now: datetime) -> dg.RunRequest | None:
    import dagster as dg

    from flexpay_pipelines.definitions import defs

    context = dg.build_sensor_context(
        instance=stage.on.instance, resources={"flexpay": FlexPay(now=now.isoformat())}, definitions=defs
    )
    sensor = defs.get_repository_def().get_sensor_def("payment_failure_rate")
    requests = sensor.evaluate_tick(context).run_requests or []
    return requests[0] if requests else None


def _failure_rate(start: datetime, end: datetime) -> float:
    from flexpay_pipelines.monitoring import payment_ticks

    with session("demo") as opened:
        ticks = list(payment_ticks(opened.billing, start=start, end=end))
    attempts = sum(tick.attempts for tick in ticks)
    return sum(tick.failures for tick in ticks) / attempts if attempts else 0.0


def _lost() -> list[dict[str, Any]]:
    """Subscriptions whose history does not end in what the table says today."""
    from flexpay_pipelines.billing import history_breaks

    with session("demo") as opened:
        return [plain(found) for found in history_breaks(opened.billing)]


SCENES: tuple[tuple[str, Callable[[Stage], str]], ...] = (
    ("Deploy: check, back up, migrate, verify, record", _deploy),
    ("A company with 18 months of history, imported", _import),
    ("The pause sweep, hour by hour, told to Stripe", _sweep),
    ("MRR, churn and cohorts of 90 days, and the report", _analytics),
    ("The daily backup, proven by a restore", _backup),
    ("A bad release, seen and taken back", _incident),
)


def _counted(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())


def _headline(figures: Mapping[str, Any], timeline: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The figures that a person wants first, as they would be said."""
    metrics, backup, incident = figures["metrics"], figures["backup"], figures["incident"]
    released, seen = (datetime.fromisoformat(timeline[number]["at"]) for number in (0, 1))
    mrr, currency = metrics["reporting_mrr"], metrics["reporting_currency"]
    return {
        f"MRR on {metrics['day']}": money.show(Decimal(mrr), currency) if mrr is not None else "no exchange rate",
        "customers": f"{metrics['customers']:,}",
        "customer churn, 30 days": f"{float(metrics['churn_rate']):.1%}",
        "pauses swept": _counted(figures["pauses"]),
        "backup": f"{backup['size_bytes'] / 1e6:.1f} MB, {backup['rows']:,} rows in {backup['tables']} tables",
        "its proof": f"restored and compared in {backup['proof']['seconds']:.1f} s: "
        + ("equal" if backup["proof"]["ok"] else "NOT equal"),
        "bad release": f"seen after {seen - released}, taken back at once",
        "payments that failed": f"{incident['failure_rate_before']:.1%} before, "
        f"{incident['failure_rate_during']:.1%} during, {incident['failure_rate_after']:.1%} after",
    }


def _show(summary: dict[str, Any], path: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    print()
    show_rows(summary["scenes"], title="What ran")
    show_rows(summary["incident"], title="The incident, minute by minute")
    show_rows(({"figure": name, "value": value} for name, value in summary["headline"].items()), title="Key figures")
    print(
        f"All {len(summary['scenes'])} scenes did their work in {summary['seconds']} s. Summary: {path}. Now: make dev"
    )
