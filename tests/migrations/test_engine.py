"""Deploy and revert: order, plans, refusals, locks, what stays and what is undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from flexpay_pipelines.database import CONTROL, advisory_lock, opened
from flexpay_pipelines.errors import BadInput, CheckFailed, DatabaseUnavailable, PermanentError, TransientError
from flexpay_pipelines.migrations import (
    Step,
    deploy,
    deployed,
    plan_deploy,
    plan_revert,
    revert,
    schema_drift,
    status,
    verify,
)

Write = Callable[..., Path]

SECOND = {
    "deploy": "CREATE TABLE billing.second (id bigint);",
    "revert": "DROP TABLE billing.second;",
    "verify": "SELECT id FROM billing.second;",
}


class Teller:
    """Keeps what the engine tells."""

    def __init__(self) -> None:
        self.recorded: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.waited: list[float] = []

    def record(self, step: Step) -> None:
        self.recorded.append((step.title, step.direction))

    def deploy(self, url: str, *components: str, root: Path) -> list[str]:
        steps = deploy(
            url, components, record=self.record, progress=self.said.append, sleep=self.waited.append, root=root
        )
        return [step.title for step in steps]


@pytest.fixture
def teller() -> Teller:
    return Teller()


def test_dependencies_are_deployed_first_and_nothing_twice(empty_url: str, write: Write, teller: Teller) -> None:
    write("pauses", deploy="CREATE TABLE billing.p (id bigint REFERENCES billing.first);", verify="TABLE billing.p;")
    write("core", 2, **SECOND)
    root = write("core")

    planned = [step.title for step in plan_deploy(empty_url, ["pauses"], root=root)]
    done = teller.deploy(empty_url, "pauses", root=root)

    assert done == planned == ["core 0001 step", "core 0002 step", "pauses 0001 step"]
    assert teller.recorded == [(title, "deploy") for title in done]
    assert teller.said[0] == "Deploying core 0001 step (2 statements)."
    assert deployed(empty_url) == {"core": "0002", "pauses": "0001"}
    assert teller.deploy(empty_url, "pauses", "core", root=root) == []
    assert len(teller.recorded) == 3


def test_a_revision_that_comes_later_is_deployed_below_what_depends_on_it(
    empty_url: str, write: Write, teller: Teller
) -> None:
    write("pauses", deploy="CREATE TABLE billing.p (id bigint);", verify="TABLE billing.p;")
    teller.deploy(empty_url, "pauses", root=write("core"))

    root = write("core", 2, **SECOND)
    behind = {row.component: (row.current, row.newest, row.pending) for row in status(empty_url, "billing", root=root)}
    done = teller.deploy(empty_url, "pauses", root=root)

    assert behind["core"] == ("0001", "0002", 1)
    assert behind["pauses"] == ("0001", "0001", 0)
    assert behind["rewards"] == (None, None, 0)
    assert done == ["core 0002 step"]


def test_revert_refuses_to_take_others_along_unasked(billing_url: str, teller: Teller) -> None:
    def of(component: str, *, cascade: bool = False) -> list[str]:
        return [step.component for step in plan_revert(billing_url, component, cascade=cascade)]

    with pytest.raises(BadInput, match="frequencies depend on core and would go with it"):
        plan_revert(billing_url, "core")
    with pytest.raises(BadInput, match="ask for it with cascade"):
        revert(billing_url, "core", record=teller.record, progress=teller.said.append)
    planned = of("core", cascade=True)

    assert of("pauses") == ["pauses"]
    assert set(planned) == {"core", "frequencies", "pauses", "rewards", "analytics"}
    assert planned == sorted(planned, key=lambda component: component == "core"), "core goes last"
    assert "core" in deployed(billing_url)
    steps = revert(billing_url, "core", cascade=True, record=teller.record, progress=teller.said.append)
    assert [step.component for step in steps] == planned
    assert deployed(billing_url) == {}
    assert revert(billing_url, "core", record=teller.record, progress=teller.said.append) == ()
    assert revert(billing_url, "pauses", record=teller.record, progress=teller.said.append) == ()


@pytest.mark.parametrize("kind", ["edited", "gone"])
def test_an_applied_file_that_was_edited_is_named_and_nothing_is_run(
    empty_url: str, write: Write, teller: Teller, kind: str
) -> None:
    root = write("core")
    teller.deploy(empty_url, "core", root=root)
    write("core", 2, **SECOND)
    if kind == "edited":
        with (root / "core" / "0001_step.deploy.sql").open("a") as file:
            file.write("-- one more line\n")
    else:
        for path in (root / "core").iterdir():
            path.unlink()

    for run in (
        lambda: teller.deploy(empty_url, "core", root=root),
        lambda: plan_deploy(empty_url, ["core"], root=root),
        lambda: revert(empty_url, "core", record=teller.record, progress=teller.said.append, root=root),
    ):
        with pytest.raises(PermanentError, match=r"edited or removed since: core/0001_step\.deploy\.sql"):
            run()
    assert deployed(empty_url) == {"core": "0001"}
    edited = {row.component: row.edited for row in status(empty_url, "billing", root=root)}
    assert edited["core"] == ("core/0001_step.deploy.sql",)


def test_a_failing_verification_undoes_its_own_revision_only(empty_url: str, write: Write, teller: Teller) -> None:
    write("core", 3, deploy="CREATE TABLE billing.third (id int);", verify="TABLE billing.third;")
    write("core", 2, **SECOND | {"verify": "SELECT no_such_column FROM billing.second;"})
    root = write("core")

    with pytest.raises(CheckFailed, match=r'core 0002 step was undone, .* column "no_such_column" does not exist\.$'):
        teller.deploy(empty_url, "core", root=root)

    assert deployed(empty_url) == {"core": "0001"}
    with opened(empty_url, purpose="test") as connection:
        row = connection.execute("SELECT to_regclass('billing.second') AS it, count(*) AS n FROM migrations.applied")
        assert row.fetchone() == {"it": None, "n": 1}
    write("core", 2, **SECOND)
    assert teller.deploy(empty_url, "core", root=root) == ["core 0002 step", "core 0003 step"]
    assert [title for title, _ in teller.recorded] == ["core 0001 step", "core 0002 step", "core 0003 step"]


def test_a_failing_statement_is_reported_with_its_line(empty_url: str, write: Write, teller: Teller) -> None:
    root = write("core", deploy="CREATE SCHEMA billing;\n\nCREATE TABLE billing.first (id no_such_type);\n")

    with pytest.raises(
        PermanentError,
        match=r'0001 step failed and was undone: type "no_such_type" does not exist \(0001_step.deploy.sql, line 3\)',
    ):
        teller.deploy(empty_url, "core", root=root)

    assert deployed(empty_url) == {}
    with opened(empty_url, purpose="test") as connection:
        assert connection.execute("SELECT to_regnamespace('billing') AS it").fetchone() == {"it": None}


def test_a_name_without_its_schema_lands_nowhere(empty_url: str, write: Write, teller: Teller) -> None:
    with pytest.raises(PermanentError, match="0001_step"):
        teller.deploy(empty_url, "core", root=write("core", deploy="CREATE TABLE first (id int);"))


def test_percent_signs_and_parameter_marks_are_left_alone(empty_url: str, write: Write, teller: Teller) -> None:
    told = "100% of %s, %(name)s, :name, $1, {x}, \\ and é"
    root = write("core", deploy=f"CREATE SCHEMA billing; CREATE TABLE billing.first AS SELECT '{told}'::text AS id;")

    teller.deploy(empty_url, "core", root=root)

    with opened(empty_url, purpose="test") as connection:
        assert connection.execute("SELECT id FROM billing.first").fetchone() == {"id": told}


def test_a_lock_that_is_not_released_is_waited_for_and_then_given_up(
    empty_url: str, write: Write, teller: Teller
) -> None:
    teller.deploy(empty_url, "core", root=write("core"))
    root = write("core", 2, deploy="CREATE TABLE billing.second (id int); ALTER TABLE billing.first ADD name text;")
    with opened(empty_url, purpose="long report") as other, other.transaction():
        other.execute("SELECT * FROM billing.first")
        with pytest.raises(
            TransientError, match=r"did not get a lock in 5 attempts.*flexpay long report, idle in trans"
        ):
            teller.deploy(empty_url, "core", root=root)

    assert teller.waited == [1.0, 2.0, 4.0, 8.0]
    assert "core 0002 step waits for a lock: attempt 2 of 5 in 1 s." in teller.said
    assert deployed(empty_url) == {"core": "0001"}
    with opened(empty_url, purpose="test") as connection:
        assert connection.execute("SELECT to_regclass('billing.second') AS it").fetchone() == {"it": None}


def test_a_lock_that_is_released_in_time_delays_only(empty_url: str, write: Write, teller: Teller) -> None:
    teller.deploy(empty_url, "core", root=write("core"))
    root = write("core", 2, deploy="ALTER TABLE billing.first ADD name text;", verify="SELECT name FROM billing.first;")
    with opened(empty_url, purpose="short report") as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM billing.first")

        steps = deploy(
            empty_url,
            ["core"],
            record=teller.record,
            progress=teller.said.append,
            sleep=lambda _: other.rollback(),
            root=root,
        )

    assert [step.title for step in steps] == ["core 0002 step"]
    assert teller.recorded[-1] == ("core 0002 step", "deploy")


def test_of_two_runs_at_once_one_refuses(empty_url: str, write: Write, teller: Teller) -> None:
    root = write("core")

    def deploy_meanwhile(step: Step) -> None:
        with pytest.raises(TransientError, match="Another process is at 'migrations'"):
            teller.deploy(empty_url, "core", root=write("core", 2, **SECOND))
        teller.record(step)

    deploy(empty_url, ["core"], record=deploy_meanwhile, progress=teller.said.append, root=root)
    with (
        opened(empty_url, purpose="another run") as other,
        advisory_lock(other, "migrations"),
        pytest.raises(TransientError, match="Another process is at 'migrations'"),
    ):
        teller.deploy(empty_url, "core", root=root)

    assert teller.recorded == [("core 0001 step", "deploy")]
    assert teller.deploy(empty_url, "core", root=root) == ["core 0002 step"]


def test_a_step_that_the_audit_log_could_not_take_is_handed_over_by_the_next_run(
    empty_url: str, write: Write, teller: Teller
) -> None:
    write("core", 2, **SECOND)
    root = write("core")

    def fail(step: Step) -> None:
        raise DatabaseUnavailable(f"no audit log for {step.title}")

    with pytest.raises(DatabaseUnavailable, match="core 0001 step"):
        deploy(empty_url, ["core"], record=fail, progress=teller.said.append, root=root)

    assert deployed(empty_url) == {"core": "0001"}
    assert teller.deploy(empty_url, "core", root=root) == ["core 0002 step"]
    assert [title for title, _ in teller.recorded] == ["core 0001 step", "core 0002 step"]
    with pytest.raises(DatabaseUnavailable):
        revert(empty_url, "core", record=fail, progress=teller.said.append, root=root)
    assert revert(empty_url, "core", record=teller.record, progress=teller.said.append, root=root) != ()
    assert teller.recorded[2:] == [("core 0002 step", "revert"), ("core 0001 step", "revert")]


def test_an_index_is_built_concurrently_outside_of_the_transaction(
    empty_url: str, write: Write, teller: Teller
) -> None:
    teller.deploy(empty_url, "core", root=write("core"))
    checked = (
        "SELECT 1 / count(*) FROM pg_index WHERE indexrelid = to_regclass('billing.first_other') "
        "AND indisvalid AND indrelid = 'billing.first'::regclass;"
    )
    index = """-- transaction: none
-- A failed attempt leaves an invalid index; it goes first.
DROP INDEX CONCURRENTLY IF EXISTS billing.first_other;
CREATE UNIQUE INDEX CONCURRENTLY first_other ON billing.first ((id % 10));
"""
    root = write("core", 2, deploy=index, revert="DROP INDEX billing.first_other;", verify=checked)
    with opened(empty_url, purpose="test") as connection:
        connection.execute("INSERT INTO billing.first VALUES (1), (11)")
        with pytest.raises(
            PermanentError, match="failed outside a transaction, what it did before stays: could not create"
        ):
            teller.deploy(empty_url, "core", root=root)
        assert deployed(empty_url) == {"core": "0001"}
        connection.execute("DELETE FROM billing.first WHERE id = 11")

    assert teller.deploy(empty_url, "core", root=root) == ["core 0002 step"]
    assert [step.title for step in revert(
        empty_url, "core", record=teller.record, progress=teller.said.append, root=root
    )] == ["core 0002 step", "core 0001 step"]  # fmt: skip


def test_a_ledger_changed_by_hand_is_not_trusted(empty_url: str, write: Write, teller: Teller) -> None:
    root = write("core")
    teller.deploy(empty_url, "core", root=root)
    with opened(empty_url, purpose="test") as connection:
        connection.execute("UPDATE migrations.alembic_version SET version_num = 'core_0007'")

    with pytest.raises(PermanentError, match="alembic_version has core_0007, which the engine did not apply"):
        teller.deploy(empty_url, "core", root=root)


def test_a_session_that_is_cut_off_is_one_sentence(empty_url: str, write: Write, teller: Teller) -> None:
    root = write("core", deploy="CREATE SCHEMA billing; SELECT pg_terminate_backend(pg_backend_pid());")

    with pytest.raises(
        DatabaseUnavailable, match="The connection was lost during core 0001 step, nothing of it was done"
    ):
        teller.deploy(empty_url, "core", root=root)

    assert deployed(empty_url) == {}


def test_unknown_components_and_mixed_databases_are_refused(empty_url: str, teller: Teller) -> None:
    known = "known are core, frequencies, pauses, rewards, analytics, ops"
    runs: list[Callable[[], object]] = [
        lambda: plan_deploy(empty_url, ["nonsense"]),
        lambda: deploy(empty_url, ["core", "nonsense"], record=teller.record, progress=teller.said.append),
        lambda: plan_revert(empty_url, "nonsense"),
        lambda: revert(empty_url, "nonsense", record=teller.record, progress=teller.said.append),
        lambda: verify(empty_url, "nonsense"),
        lambda: schema_drift(empty_url, "nonsense"),
    ]
    for run in runs:
        with pytest.raises(BadInput, match=f"no component 'nonsense': {known}"):
            run()
    with pytest.raises(BadInput, match="different databases"):
        plan_deploy(empty_url, ["ops", "pauses"])
    assert plan_deploy(empty_url, []) == ()
    assert deployed(empty_url) == {}


def test_a_database_that_is_not_there_is_one_sentence(empty_url: str, teller: Teller) -> None:
    url = empty_url.replace("/test_", "/missing_")
    for run in (
        lambda: plan_deploy(url, ["ops"]),
        lambda: deploy(url, ["ops"], record=teller.record, progress=teller.said.append),
        lambda: status(url, CONTROL),
    ):
        with pytest.raises(DatabaseUnavailable, match=r"Cannot open the control database .*FLEXPAY_CONTROL_URL"):
            run()


def test_a_plan_changes_nothing(empty_url: str) -> None:
    assert plan_deploy(empty_url, ["analytics"]) != ()

    with psycopg.connect(empty_url) as connection:
        made = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname IN ('migrations', 'billing')")
        assert made.fetchall() == []
