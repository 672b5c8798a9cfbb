"""Backups: taken before a deploy and daily, proven by a restore, copied elsewhere, kept for thirty days.

What belongs here: the backup assets, jobs and schedule. What does not: how a backup is made (`backups`).
"""

from collections.abc import Iterator
from typing import Literal

import dagster as dg
from pydantic import Field

from flexpay_pipelines.defs.migrations import PRE_DEPLOY_BACKUP, schema_key
from flexpay_pipelines.defs.presentation import figures, table
from flexpay_pipelines.defs.resources import FlexPay

GROUP = "backup"
POOL = "backup"
DAILY = dg.AssetKey(["backups", "daily"])
VERIFIED = dg.AssetKey(["backups", "verified"])
OFFSITE = dg.AssetKey(["backups", "offsite"])


def _backup(
    key: dg.AssetKey, kind: Literal["daily", "pre_deploy"], deps: list[dg.AssetKey], what: str
) -> dg.AssetsDefinition:
    @dg.asset(key=key, deps=deps, group_name=GROUP, kinds={"postgres"}, pool=POOL, description=what)
    def backup(context: dg.AssetExecutionContext, flexpay: FlexPay) -> dg.MaterializeResult[None]:
        from flexpay_pipelines.backups import create_backup

        with flexpay.step(context, "backup", kind) as step:
            made = create_backup(
                step.settings.billing,
                step.control,
                folder=step.settings.backups,
                kind=kind,
                clock=step.clock,
                progress=step.progress,
                bin_folder=step.settings.postgres_bin,
                actor=step.actor,
            )
            step.details = {"backup_id": made.backup_id, "manifest_sha256": made.manifest_sha256}
            return dg.MaterializeResult(metadata=figures(made))

    return backup


pre_deploy = _backup(
    PRE_DEPLOY_BACKUP,
    "pre_deploy",
    [schema_key("ops")],
    "The billing database as it was before the deploy, with a manifest of checksums, row counts and content hashes.",
)
daily = _backup(
    DAILY,
    "daily",
    [schema_key("core")],
    "The billing database at one snapshot, every day at 03:00, kept for thirty days.",
)


@dg.asset(key=OFFSITE, deps=[DAILY], group_name=GROUP, kinds={"file"}, pool=POOL)
def offsite(context: dg.AssetExecutionContext, flexpay: FlexPay) -> dg.MaterializeResult[None]:
    """The newest backup's copy in another place, compared by checksum."""
    from flexpay_pipelines.backups import copy_offsite, list_backups
    from flexpay_pipelines.errors import PermanentError

    with flexpay.step(context, "copy offsite", "newest backup") as step:
        newest = next((b for b in list_backups(step.control) if b.kind == "daily"), None)
        if newest is None:
            raise PermanentError("There is no daily backup to copy: run job daily_backup.")
        place = copy_offsite(
            step.control,
            newest.backup_id,
            folder=step.settings.backups_offsite,
            clock=step.clock,
            progress=step.progress,
        )
        step.details = {"backup_id": newest.backup_id}
        return dg.MaterializeResult(metadata=figures({"backup_id": newest.backup_id, "path": place}))


@dg.op(pool=POOL)
def prune(context: dg.OpExecutionContext, flexpay: FlexPay) -> None:
    """Remove backups past their retention, here and in the other place; the newest proven one always stays."""
    from flexpay_pipelines.backups import prune_backups as remove_old

    with flexpay.step(context, "prune", "backups") as step:
        removed = remove_old(
            step.control,
            folder=step.settings.backups,
            offsite_folder=step.settings.backups_offsite,
            retention_days=step.settings.backup_retention_days,
            clock=step.clock,
        )
        step.details = {"removed": list(removed)}
        context.add_output_metadata(figures({"removed": list(removed)}))


@dg.job(description="Remove backups past their retention; the newest proven one always stays.")
def prune_backups() -> None:
    """The job of `flexpay backup prune`, and of the schedule behind each daily backup."""
    prune()


RESTORES = dg.AssetCheckSpec(
    "restores", asset=VERIFIED, blocking=True,
    description="Restored into a scratch cluster, row counts, content hashes, schema and expectations all hold.",
)  # fmt: skip


class VerificationConfig(dg.Config):
    """Which backup to prove."""

    backup_id: str | None = Field(default=None, description="The backup to prove; unset: the newest.")


@dg.asset(
    key=VERIFIED,
    deps=[DAILY],
    group_name=GROUP,
    kinds={"postgres", "greatexpectations"},
    pool=POOL,
    check_specs=[RESTORES],
)
def verified(
    context: dg.AssetExecutionContext, config: VerificationConfig, flexpay: FlexPay
) -> Iterator[dg.MaterializeResult[None]]:
    """The proof that a backup is one: restored for real into a scratch cluster and compared with its manifest."""
    from flexpay_pipelines.backups import list_backups, verify_backup
    from flexpay_pipelines.errors import PermanentError

    with flexpay.step(context, "verify backup", config.backup_id or "newest") as step:
        known = [b.backup_id for b in list_backups(step.control)]
        if not known:
            raise PermanentError("There is no backup to verify: run job daily_backup.")
        backup_id = config.backup_id or known[0]
        proof = verify_backup(
            step.control,
            backup_id,
            scratch_folder=step.settings.home / "scratch",
            clock=step.clock,
            progress=step.progress,
            bin_folder=step.settings.postgres_bin,
        )
        step.details = {"backup_id": backup_id, "ok": proof.ok, "failures": list(proof.failures)}
        yield dg.MaterializeResult(
            metadata={"backup_id": backup_id, **figures(proof)},
            check_results=[
                dg.AssetCheckResult(
                    check_name=RESTORES.name,
                    passed=proof.ok,
                    metadata={"failures": table({"failure": f} for f in proof.failures)},
                )
            ],
        )


class RestoreConfig(dg.Config):
    """What to restore, and why."""

    backup_id: str | None = Field(
        default=None, description="The backup to restore; unset: the newest that was verified."
    )


@dg.op(pool=POOL)
def restore(context: dg.OpExecutionContext, config: RestoreConfig, flexpay: FlexPay) -> None:
    """Restore a backup beside the live database, compare it with its manifest, swap the two; the old one is kept."""
    from flexpay_pipelines.backups import restore_backup

    with flexpay.step(context, "restore", config.backup_id or "newest verified backup") as step:
        done = restore_backup(
            step.control,
            config.backup_id,
            billing_url=step.settings.billing,
            clock=step.clock,
            progress=step.progress,
            actor=step.actor,
            backup_folder=step.settings.backups,
            bin_folder=step.settings.postgres_bin,
        )
        step.details = {"backup_id": done.backup_id, "kept_database": done.kept_database}
        context.add_output_metadata(figures(done))


@dg.job(
    description="Restore a backup over the billing database. Needs a person; the database of before is kept and named."
)
def restore_backup() -> None:
    """The job of `flexpay restore`."""
    restore()


daily_backup = dg.define_asset_job(
    "daily_backup",
    selection=dg.AssetSelection.assets(DAILY, OFFSITE),
    description="Back the billing database up and copy it elsewhere.",
)
backup_verification = dg.define_asset_job(
    "backup_verification",
    selection=dg.AssetSelection.assets(VERIFIED),
    description="Prove the newest backup by restoring it.",
)


@dg.asset_sensor(asset_key=DAILY, job=backup_verification, minimum_interval_seconds=60)
def backup_made(context: dg.SensorEvaluationContext, asset_event: dg.EventLogEntry) -> dg.RunRequest:
    """Prove each daily backup as soon as it is made."""
    return dg.RunRequest(run_key=f"verify:{asset_event.run_id}:{context.cursor or 0}")


defs = dg.Definitions(
    assets=[pre_deploy, daily, offsite, verified],
    jobs=[daily_backup, backup_verification, prune_backups, restore_backup],
    schedules=[
        dg.ScheduleDefinition(name="daily_backup_at_03_00", job=daily_backup, cron_schedule="0 3 * * *"),
        dg.ScheduleDefinition(name="prune_backups_at_06_00", job=prune_backups, cron_schedule="0 6 * * *"),
    ],
    sensors=[backup_made],
)
