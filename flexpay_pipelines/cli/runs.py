"""Runs: every change that the command makes is a Dagster run, recorded in the control database for the UI to show.

What belongs here: the Dagster instance and how a job is run on it. What does not: which job, and with what.
"""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from flexpay_pipelines.database import CONTROL, connect, sqlalchemy_url
from flexpay_pipelines.errors import EXIT_BAD_INPUT, BadInput, FlexPayError, disk_errors
from flexpay_pipelines.sandbox.services import local_services
from flexpay_pipelines.settings import CHECKOUT, Settings, export, load_settings, variable

if TYPE_CHECKING:
    import dagster as dg

LOCATION = "flexpay_pipelines"
# Of each of the instance's three storages; one is kept open, the others while several threads write.
MOST_CONNECTIONS = 20
RECYCLE_SECONDS = 3600
REPOSITORY_LABEL = f"__repository__@{LOCATION}"


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `outputs` holds the metadata of its assets and ops by name, as plain values."""

    job: str
    run_id: str
    succeeded: bool
    seconds: float
    error: str | None
    exit_code: int
    outputs: dict[str, dict[str, Any]]
    failed_checks: tuple[str, ...]


@contextmanager
def prepared_instance(settings: Settings) -> Iterator[Settings]:
    """Settings with the databases running and Dagster's home made, for this process and its children."""
    with local_services(settings) as ready:
        # Dagster would try for half a minute, and then say it in a hundred lines.
        connect(ready.control, purpose="look", role=CONTROL).close()
        home = ready.home / "dagster"
        with disk_errors("preparing Dagster's home"):
            home.mkdir(parents=True, exist_ok=True)
            (home / "dagster.yaml").write_text((CHECKOUT / "dagster.yaml").read_text())
        export("DAGSTER_HOME", str(home))
        # Steps and child processes find the databases open, instead of each looking after embedded ones.
        export(variable("billing_url"), ready.billing)
        export(variable("control_url"), ready.control)
        # SQLAlchemy's default driver is psycopg 3; Dagster's NOTIFY needs psycopg2.
        export("FLEXPAY_DAGSTER_STORAGE_URL", sqlalchemy_url(ready.control, "psycopg2"))
        export("FLEXPAY_HOME", str(ready.home))
        yield ready


class Recorder:
    """The Dagster instance in the control database, opened when the first run needs it: a plan needs none."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    @cached_property
    def instance(self) -> dg.DagsterInstance:
        """The instance, whose connections are kept."""
        import dagster as dg

        opened = self._stack.enter_context(dg.DagsterInstance.get())
        keep_connections(opened)
        return opened


@contextmanager
def recorder() -> Iterator[Recorder]:
    """What records runs, with the databases running from now to the end."""
    with prepared_instance(load_settings()), ExitStack() as stack:
        yield Recorder(stack)


def keep_connections(on: dg.DagsterInstance) -> None:
    """Let an instance use its connections again; a run would otherwise open one for each event that it writes."""
    from sqlalchemy import event
    from sqlalchemy.pool import QueuePool

    on.optimize_for_webserver(statement_timeout=0, pool_recycle=RECYCLE_SECONDS, max_overflow=MOST_CONNECTIONS)
    if not event.contains(QueuePool, "checkout", _must_be_alive):
        event.listen(QueuePool, "checkout", _must_be_alive)


def _must_be_alive(connection: Any, _record: object, _proxy: object) -> None:
    """Have a connection that the server has closed (a restart, a failover) opened anew, as if it were the first."""
    import psycopg2
    from sqlalchemy.exc import DisconnectionError

    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except psycopg2.Error as error:
        raise DisconnectionError from error


def actor() -> str:
    """Who acts: the name of the account at the terminal."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def run_job(
    name: str,
    *,
    on: Recorder,
    ops: Mapping[str, Any] | None = None,
    partitions: tuple[str, str] | None = None,
    selection: Sequence[dg.AssetKey] | None = None,
    tags: Mapping[str, str] | None = None,
    now: str | None = None,
) -> Outcome:
    """Run a job of the code location here and now, recorded as the UI's own runs are.

    Args:
        name: the job.
        on: what records it.
        ops: config by op or asset name (`{"restore": {"backup_id": …}}`).
        partitions: first and last partition, for partitioned jobs.
        selection: run only these assets of the job.
        now: act as if this instant were the present.
    """
    from flexpay_pipelines.definitions import defs
    from flexpay_pipelines.defs.resources import ACTOR_TAG

    ranged = {} if partitions is None or partitions[0] == partitions[1] else _range_tags(*partitions)
    started = time.monotonic()
    result = defs.resolve_job_def(name).execute_in_process(
        instance=on.instance,
        run_config={
            "ops": {op: {"config": dict(config)} for op, config in (ops or {}).items()},
            "loggers": {"plain": {}},
            "resources": {"flexpay": {"config": {"now": now} if now else {}}},
        },
        partition_key=partitions[0] if partitions and not ranged else None,
        asset_selection=list(selection) if selection else None,
        tags={".dagster/repository": REPOSITORY_LABEL, ACTOR_TAG: actor(), **ranged, **(tags or {})},
        raise_on_error=False,
    )
    return _outcome(name, result, time.monotonic() - started)


def _range_tags(first: str, last: str) -> dict[str, str]:
    return {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}


def _outcome(name: str, result: dg.ExecuteInProcessResult, seconds: float) -> Outcome:
    error, exit_code = _failure(result)
    outputs: dict[str, dict[str, Any]] = {}
    failed_checks: list[str] = []
    for event in result.all_events:
        if event.is_step_materialization:
            materialization = event.step_materialization_data.materialization
            outputs["/".join(materialization.asset_key.path)] = _values(materialization.metadata)
        elif event.event_type_value == "STEP_OUTPUT" and event.step_output_data.metadata:
            outputs.setdefault(event.step_key or name, _values(event.step_output_data.metadata))
        elif event.event_type_value == "ASSET_CHECK_EVALUATION":
            evaluation = event.asset_check_evaluation_data
            if not evaluation.passed:
                failed_checks.append(f"{evaluation.asset_key.to_user_string()}:{evaluation.check_name}")
    return Outcome(
        job=name,
        run_id=result.run_id,
        succeeded=result.success,
        seconds=round(seconds, 2),
        error=error,
        exit_code=exit_code,
        outputs=outputs,
        failed_checks=tuple(failed_checks),
    )


def _values(metadata: Mapping[str, Any]) -> dict[str, Any]:
    import dagster as dg

    # What is Markdown is a table of the UI's; a command that shows its rows asks the database.
    plain = {key: value for key, value in metadata.items() if not isinstance(value, dg.MarkdownMetadataValue)}
    return {key: getattr(value, "value", value) for key, value in plain.items()}


def _failure(result: dg.ExecuteInProcessResult) -> tuple[str | None, int]:
    """The first step's error as a sentence, and the exit code that goes with it."""
    if result.success:
        return None, 0
    for event in result.all_events:
        if event.is_step_failure:
            failure = event.step_failure_data
            said = failure.user_failure_data
            if said is not None and said.description:
                code = said.metadata.get("exit_code")
                return said.description, int(getattr(code, "value", 1) or 1)
            if failure.error is not None:
                root = failure.error
                while root.cause is not None:
                    root = root.cause
                return root.message.strip(), 1
    return "The run did not finish; its log in the UI says why.", 1


class RunFailed(FlexPayError):
    """A run that the command started did not succeed."""


def require(outcome: Outcome) -> Outcome:
    """The outcome, if the run succeeded.

    Raises:
        RunFailed, BadInput: the run's error, and the id under which the UI shows it.
    """
    if outcome.succeeded and not outcome.failed_checks:
        return outcome
    checks = f"Checks failed: {', '.join(outcome.failed_checks)}." if outcome.failed_checks else ""
    sentence = f"{outcome.error or checks} (run {outcome.run_id[:8]} of job {outcome.job})"
    raise BadInput(sentence) if outcome.exit_code == EXIT_BAD_INPUT else RunFailed(sentence)
