"""`flexpay deploy`.

What belongs here: the deploy command. What does not: the steps of a deploy (`defs/migrations`).
"""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated, Any

import typer

from flexpay_pipelines.cli.output import AsJson, PlanOnly, Yes, planned, show
from flexpay_pipelines.cli.runs import recorder, require, run_job
from flexpay_pipelines.session import session

EXAMPLES = """
Examples:

- `flexpay deploy --plan` : which migrations are pending

- `flexpay deploy --release 2026.11.2 --yes` : deploy without being asked
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("deploy", epilog=EXAMPLES)(deploy)


def deploy(
    release: Annotated[str, typer.Option(help="Name of the release.")] = version("flexpay-pipelines"),
    plan: PlanOnly = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Check the environment, back up, migrate each component, check health, record the release."""
    with recorder() as on:
        if planned(_plan(release), plan_only=plan, yes=yes, as_json=as_json, question=f"Deploy {release}?"):
            outcome = require(run_job("deploy", on=on, ops={"deploy__release": {"release": release}}))
            show(
                {"release": release, "run_id": outcome.run_id, "seconds": outcome.seconds},
                as_json=as_json,
                title="Deployed",
            )


def _plan(release: str) -> dict[str, Any]:
    from flexpay_pipelines import migrations

    steps: list[dict[str, Any]] = []
    with session("plan deploy") as opened:
        for database, url in (("control", opened.settings.control), ("billing", opened.settings.billing)):
            names = [name for name, component in migrations.COMPONENTS.items() if component.database == database]
            steps += [
                {key: str(value) for key, value in asdict(step).items()} for step in migrations.plan_deploy(url, names)
            ]
    migrating = [f"{s['component']}/{s['revision']} {s['name']}" for s in steps] or ["nothing is pending"]
    return {
        "release": release,
        "1 check": "environment: databases, tools, disk, Stripe",
        "2 back up": "the billing database",
        "3 migrate": migrating,
        "4 verify": "every component",
        "5 record": "the release, after a health check",
    }
