"""Migration files: what is accepted, what is refused and why, and how statements are told apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexpay_pipelines.errors import PermanentError
from flexpay_pipelines.migrations import COMPONENTS, history
from flexpay_pipelines.migrations.files import split_statements
from flexpay_pipelines.sql import MIGRATIONS_ROOT

Write = Callable[..., Path]


def test_every_migration_of_the_product_is_found() -> None:
    found = history(MIGRATIONS_ROOT)

    assert list(found) == list(COMPONENTS)
    count = sum(len(migrations) for migrations in found.values())
    assert 3 * count == len(list(MIGRATIONS_ROOT.rglob("*.sql")))
    assert found["core"][0].title == "core 0001 ledger"


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("core/0002_next.deploy.sql", "SELECT 1;", "0002_next has no revert and no verify file"),
        ("core/0003_step.deploy.sql", "SELECT 1;", "has no revert and no verify file"),
        ("core/next.deploy.sql", "SELECT 1;", "next.deploy.sql is misnamed"),
        ("core/0001_Step.deploy.sql", "SELECT 1;", "is misnamed"),
        ("core/0001_step.verify.sql", "-- nothing\n", "is empty"),
        ("core/0001_step.deploy.sql", "BEGIN; SELECT 1;", "contains 'BEGIN'"),
        ("core/0001_step.deploy.sql", "SELECT 1; -- so far\n commit;", "contains 'commit'"),
        ("payouts/0001_step.deploy.sql", "SELECT 1;", "not the folder of a known component"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(write: Write, path: str, text: str, complaint: str) -> None:
    root = write("core")
    (root / path).parent.mkdir(exist_ok=True)
    (root / path).write_text(text)

    with pytest.raises(PermanentError, match=complaint):
        history(root)


def test_a_gap_in_the_numbers_is_named(write: Write) -> None:
    write("core")
    root = write("core", 3)

    with pytest.raises(PermanentError, match=r"0003_step\.deploy\.sql should have the number 0002"):
        history(root)


def test_a_file_that_is_not_utf8_is_named(write: Write) -> None:
    root = write("core")
    (root / "core" / "0001_step.revert.sql").write_bytes(b"SELECT '\xff';")

    with pytest.raises(PermanentError, match=r"0001_step\.revert\.sql is not UTF-8"):
        history(root)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="does not exist"):
        history(tmp_path / "nowhere")


PIECES = [
    "SELECT 1",
    "SELECT ';'",
    "SELECT 'it''s; so'",
    "SELECT E'a\\';b'",
    'SELECT ";" FROM "a"";b"',
    "DO $$ BEGIN RAISE NOTICE 'x;y'; END $$",
    "DO $body$ SELECT $$;$$; $body$",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END",
    "SELECT 1 /* ; */ + 2",
    "SELECT 1 -- ; '\n + 2",
    "SELECT $1",
]


@given(st.lists(st.sampled_from(PIECES)), st.sampled_from(["", " ", "\n-- it's; a comment\n", ";;", "/* ' */"]))
def test_statements_are_counted_whatever_they_contain(pieces: list[str], between: str) -> None:
    text = "".join(f"{piece};{between}" for piece in pieces)

    assert len(split_statements(text)) == len(pieces)
