"""Deploys: the environment is checked, a backup taken, each component migrated and verified, the release recorded.

What belongs here: the assets of a deploy and their order. What does not: how a migration runs (`migrations`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from flexpay_pipelines.database import CONTROL
from flexpay_pipelines.defs.presentation import figures, table
from flexpay_pipelines.defs.resources import FlexPay, Step
from flexpay_pipelines.errors import CheckFailed
from flexpay_pipelines.migrations import COMPONENTS
from flexpay_pipelines.settings import CHECKOUT

if TYPE_CHECKING:
    from flexpay_pipelines.health import Finding
    from flexpay_pipelines.monitoring import DatabaseSample

GROUP = "migration"
LOCK_FILE = CHECKOUT / "requirements.lock"
ENVIRONMENT = dg.AssetKey(["deploy", "environment"])
BASELINE = dg.AssetKey(["deploy", "baseline"])
RELEASE = dg.AssetKey(["deploy", "release"])
PRE_DEPLOY_BACKUP = dg.AssetKey(["backups", "pre_deploy"])


class ReleaseConfig(dg.Config):
    """Which release is being deployed."""

    release: str = Field(default=version("flexpay-pipelines"), description="Name of the release, as in the audit log.")


def schema_key(component: str) -> dg.AssetKey:
    """The asset of a component's schema."""
    return dg.AssetKey(["schema", component])


@dg.asset(key=ENVIRONMENT, group_name=GROUP, kinds={"postgres"})
def environment(context: dg.AssetExecutionContext, flexpay: FlexPay) -> dg.MaterializeResult[None]:
    """Databases, versions, clocks, privileges, tools, disk and Stripe, looked at before anything is changed."""
    from flexpay_pipelines.health import check_environment

    with flexpay.step(context, "check", "environment") as step:
        findings = check_environment(
            billing_url=step.settings.billing,
            control_url=step.settings.control,
            home=step.settings.home,
            bin_folder=step.settings.postgres_bin,
            stripe_ping=step.session.gateway.ping,
        )
        return dg.MaterializeResult(metadata={"findings": _acceptable(findings), "checks": len(findings)})


def _acceptable(findings: Sequence["Finding"]) -> dg.MetadataValue:
    """The findings as a table, where none of them forbids going on."""
    from flexpay_pipelines.health import failing

    if critical := failing(findings, severity="critical"):
        raise CheckFailed(" ".join(f"{found.name}: {found.detail} {found.remedy}" for found in critical))
    return table(asdict(found) for found in findings)


@dg.asset(key=BASELINE, deps=[schema_key("ops")], group_name=GROUP, kinds={"postgres"})
def baseline(context: dg.AssetExecutionContext, flexpay: FlexPay) -> dg.MaterializeResult[None]:
    """How fast the database is before the first migration: what the sensor `database_degradation` compares with."""
    from flexpay_pipelines import migrations
    from flexpay_pipelines.monitoring import take_database_baseline

    with flexpay.step(context, "measure", "database before the deploy") as step:
        if "core" not in migrations.deployed(step.settings.billing):
            step.progress("Nothing is deployed yet, so there is nothing to measure.")
            return dg.MaterializeResult(metadata={"source": "nothing to measure on a first deploy"})
        sample = take_database_baseline(step.billing, step.control, clock=step.clock)
        return dg.MaterializeResult(metadata={"source": sample.source, "statements": statement_times(sample)})


def statement_times(sample: "DatabaseSample") -> dg.MetadataValue:
    """The statements of a sample with their calls and mean times."""
    return table(
        {"statement": name, "calls": calls, "mean_ms": round(total / calls, 3)}
        for name, (calls, total) in sorted(sample.times.items())
    )


def _url(step: Step, component: str) -> str:
    return step.settings.control if COMPONENTS[component].database == CONTROL else step.settings.billing


def _component_schema(component: str) -> dg.AssetsDefinition:
    before = [schema_key(name) for name in COMPONENTS[component].depends_on]
    if not before:
        # The control database holds the backup catalog: it comes before the backup, the billing components after it.
        before = [ENVIRONMENT] if COMPONENTS[component].database == CONTROL else [PRE_DEPLOY_BACKUP, BASELINE]

    @dg.asset(
        key=schema_key(component),
        deps=before,
        group_name=GROUP,
        kinds={"postgres", "sql"},
        pool="billing_db",
        description=f"The schema of component `{component}` at its newest revision, deployed and verified at once.",
    )
    def schema(context: dg.AssetExecutionContext, flexpay: FlexPay) -> dg.MaterializeResult[None]:
        from flexpay_pipelines import migrations

        with flexpay.step(context, "deploy", f"schema/{component}") as step:
            applied = migrations.deploy(
                _url(step, component),
                [component],
                record=lambda done: step.audit(
                    "done",
                    {"sha256": done.sha256},
                    action="migrate",
                    subject=f"{done.component}/{done.revision} {done.direction}",
                ),
                progress=step.progress,
            )
            revision = migrations.deployed(_url(step, component), database=COMPONENTS[component].database).get(
                component, "none"
            )
            step.details = {"revision": revision, "applied": [f"{a.revision}_{a.name}" for a in applied]}
            return dg.MaterializeResult(
                metadata={
                    "revision": revision,
                    "applied": table(
                        {"revision": a.revision, "name": a.name, "sha256": a.sha256[:12]} for a in applied
                    ),
                }
            )

    return schema


def _component_checks(component: str) -> dg.AssetChecksDefinition:
    database = COMPONENTS[component].database
    verified = dg.AssetCheckSpec(
        "verified",
        asset=schema_key(component),
        blocking=True,
        description="Every verify script passes on the live database.",
    )
    no_drift = dg.AssetCheckSpec(
        "no_drift", asset=schema_key(component), description="The live schema is what the migrations made of it."
    )

    @dg.multi_asset_check(name=f"schema_{component}_checks", specs=[verified, no_drift])
    def checks(flexpay: FlexPay) -> Iterator[dg.AssetCheckResult]:
        from flexpay_pipelines import migrations

        with flexpay.session(f"verify {component}") as session:
            url = session.settings.control if database == CONTROL else session.settings.billing
            wrong = _verify(url, component)
            drift = migrations.schema_drift(url, component)
        yield dg.AssetCheckResult(
            asset_key=schema_key(component),
            check_name="verified",
            passed=wrong is None,
            metadata={"database": database, "wrong": wrong or "nothing"},
        )
        yield dg.AssetCheckResult(
            asset_key=schema_key(component),
            check_name="no_drift",
            passed=not drift,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"drift": table({"object": found} for found in drift)},
        )

    return checks


def _verify(url: str, component: str) -> str | None:
    from flexpay_pipelines import migrations

    try:
        migrations.verify(url, component)
    except CheckFailed as error:
        return str(error)
    return None


@dg.asset(key=RELEASE, deps=[schema_key(name) for name in COMPONENTS], group_name=GROUP, kinds={"postgres"})
def release(context: dg.AssetExecutionContext, config: ReleaseConfig, flexpay: FlexPay) -> dg.MaterializeResult[None]:
    """The release, recorded once the databases are found healthy; from here on the sensors judge it."""
    from flexpay_pipelines import migrations
    from flexpay_pipelines.health import check_health
    from flexpay_pipelines.monitoring import keep_lock, record_deploy

    with flexpay.step(context, "deploy", f"release {config.release}") as step:
        findings = check_health(step.billing, step.control, clock=step.clock)
        health = _acceptable(findings)
        revisions = migrations.deployed(step.settings.billing) | migrations.deployed(
            step.settings.control, database=CONTROL
        )
        deploy_id = record_deploy(
            step.control,
            release=config.release,
            actor=step.actor,
            run_id=step.run_id,
            revisions=revisions,
            clock=step.clock,
        )
        keep_lock(step.control, deploy_id=deploy_id, lock_file=LOCK_FILE)
        step.details = {"deploy_id": deploy_id, "revisions": revisions}
        return dg.MaterializeResult(
            metadata={**figures({"deploy_id": deploy_id, "revisions": revisions}), "health": health}
        )


ASSETS = [environment, baseline, *(_component_schema(name) for name in COMPONENTS), release]
CHECKS = [_component_checks(name) for name in COMPONENTS]

deploy = dg.define_asset_job(
    "deploy",
    selection=dg.AssetSelection.assets(*(asset.key for asset in ASSETS), PRE_DEPLOY_BACKUP),
    description="Check the environment, back up, migrate and verify each component, check health, record the release.",
)

defs = dg.Definitions(assets=ASSETS, asset_checks=CHECKS, jobs=[deploy])
