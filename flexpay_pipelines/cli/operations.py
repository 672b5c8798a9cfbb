"""`flexpay env`, `flexpay health`, `flexpay alerts`, `flexpay audit`: what an operator looks at.

What belongs here: the commands that look. What does not: what they look at.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from flexpay_pipelines.cli.output import AsJson, PlanOnly, Yes, plain, planned, say, show
from flexpay_pipelines.cli.runs import recorder, require, run_job
from flexpay_pipelines.errors import CheckFailed
from flexpay_pipelines.session import session

AUDITED = ("occurred_at", "actor", "action", "subject", "outcome")
ALERTED = ("raised_at", "severity", "title", "deliveries")
LOOKED_AT = ("name", "severity", "detail", "remedy")

env = typer.Typer(help="The settings, and whether the environment fits them.", no_args_is_help=True)
alerts = typer.Typer(help="Alerts that were raised, and their delivery.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(env, name="env")
    app.add_typer(alerts, name="alerts")
    app.command("health")(health)
    app.command("audit")(audit)


@env.command("template", epilog="Example: `flexpay env template > .env.production.template`")
def template() -> None:
    """Every variable, what it means, its default."""
    from flexpay_pipelines.settings import template as text

    typer.echo(text(), nl=False)


@env.command("check")
def check(as_json: AsJson = False) -> None:
    """Databases, versions, clocks, privileges, tools, disk and Stripe; exits with 1 if something must be mended."""
    from flexpay_pipelines.health import check_environment

    with session("check environment") as opened:
        findings = check_environment(
            billing_url=opened.settings.billing,
            control_url=opened.settings.control,
            home=opened.settings.home,
            bin_folder=opened.settings.postgres_bin,
            stripe_ping=opened.gateway.ping,
        )
    _report(findings, as_json=as_json, title="Environment")


def health(as_json: AsJson = False) -> None:
    """Indexes, triggers, sessions, outboxes, due pauses and backups; exits with 1 if a finding is critical."""
    from flexpay_pipelines.health import check_health

    with session("check health") as opened:
        findings = check_health(opened.billing, opened.control, clock=opened.clock)
    _report(findings, as_json=as_json, title="Health")


def _report(findings: object, *, as_json: bool, title: str) -> None:
    rows = plain(findings)
    show(rows, as_json=as_json, title=title, columns=LOOKED_AT)
    wrong = [row["name"] for row in rows if not row["ok"] and row["severity"] == "critical"]
    if wrong:
        raise CheckFailed(f"{len(wrong)} critical finding(s): {', '.join(wrong)}. The remedy stands beside each.")


@alerts.command("list")
def list_(limit: Annotated[int, typer.Option(help="How many.")] = 20, as_json: AsJson = False) -> None:
    """The newest alerts, and whether they reached their channels."""
    from flexpay_pipelines.alerts import list_alerts

    with session("list alerts") as opened:
        records = [plain(record) for record in list_alerts(opened.control, limit=limit)]
    rows = [{**record["alert"], "deliveries": record["deliveries"]} for record in records]
    show(rows, as_json=as_json, title="Alerts", columns=ALERTED)


@alerts.command("deliver")
def deliver(
    retry_parked: Annotated[
        bool, typer.Option(help="Also send what a channel refused, now that it is mended.")
    ] = False,
    plan: PlanOnly = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send what is still waiting."""
    from flexpay_pipelines.alerts import pending_deliveries

    with recorder() as on:
        with session("plan alert delivery") as opened:
            waiting = pending_deliveries(opened.control)
        if planned({"waiting": waiting}, plan_only=plan, yes=yes, as_json=as_json, question="Send them now?"):
            outcome = require(run_job("deliver_alerts", on=on, ops={"deliver": {"retry_parked": retry_parked}}))
            show({"run_id": outcome.run_id, **outcome.outputs["deliver"]}, as_json=as_json, title="Delivered")


def audit(
    days: Annotated[int, typer.Option(help="How many days back.")] = 7,
    limit: Annotated[int, typer.Option(help="How many entries.")] = 50,
    subject: Annotated[str | None, typer.Option(help="Only what was done to this.")] = None,
    as_json: AsJson = False,
) -> None:
    """Who did what to what, and how it ended."""
    from flexpay_pipelines.security import audit as trail

    with session("read audit log") as opened:
        since = opened.clock.now() - timedelta(days=days)
        entries = [plain(entry) for entry in trail.entries(opened.control, since=since, limit=limit, subject=subject)]
    if not entries:
        say(f"Nothing in the last {days} days.")
    show(entries, as_json=as_json, title="Audit trail", columns=AUDITED)
