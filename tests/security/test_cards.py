"""The search for card numbers: finds one wherever it hides in the database, and nothing that merely looks long."""

from __future__ import annotations

import random

import pytest

from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import PermanentError
from flexpay_pipelines.security import CardColumn, card_numbers_in, is_card_number


@pytest.fixture
def scratch(billing: Connection) -> Connection:
    """A schema of its own in a billing database."""
    billing.execute("CREATE SCHEMA scratch")
    return billing


def test_a_billing_database_without_cards_has_none(billing: Connection) -> None:
    billing.execute(
        "INSERT INTO billing.customers (customer_ref, currency, email) VALUES ('c-1', 'EUR', 'a@example.com')"
    )
    assert card_numbers_in(billing) == ()


def test_cards_are_found_in_text_json_and_arrays_and_counted_by_row(scratch: Connection) -> None:
    scratch.execute(
        'CREATE TABLE scratch."Odd name" ("the note" text, body jsonb, tags text[], amount bigint, fine varchar(40))'
    )
    scratch.execute(
        """INSERT INTO scratch."Odd name" VALUES
        ('by 4242-4242-4242-4242', '{"object": {"note": "378282246310005"}}', '{a,"4000 0566 5566 5556"}', 1, 'x'),
        ('4242424242424242 and 5555 5555 5555 4444', '{"n": 6205500000000000004}', NULL, 4242424242424242, NULL),
        (NULL, NULL, NULL, NULL, NULL)"""
    )
    assert card_numbers_in(scratch, schema="scratch") == (
        CardColumn("Odd name", "body", 2),
        CardColumn("Odd name", "tags", 1),
        CardColumn("Odd name", "the note", 2),
    )


def test_partitions_are_read_once(scratch: Connection) -> None:
    scratch.execute("CREATE TABLE scratch.notes (day date, note text) PARTITION BY RANGE (day)")
    scratch.execute(
        "CREATE TABLE scratch.notes_2026 PARTITION OF scratch.notes FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')"
    )
    scratch.execute("INSERT INTO scratch.notes VALUES ('2026-05-01', '4242424242424242')")
    assert card_numbers_in(scratch, schema="scratch") == (CardColumn("notes", "note", 1),)


@pytest.mark.parametrize(
    "harmless",
    ["4242424242424241", "0.4242424242424242", "sub_4242424242424242", "a4242424242424242f", "424242424242424242424242",
     "1699999999999", "2026-11-22 03:00:00", "4242 4242 4242", "12345678-1234-1234-1234-123456789012"],
)  # fmt: skip
def test_what_merely_looks_long_is_left_alone(scratch: Connection, harmless: str) -> None:
    scratch.execute("CREATE TABLE scratch.notes (note text)")
    scratch.execute("INSERT INTO scratch.notes VALUES (%s)", (harmless,))
    assert card_numbers_in(scratch, schema="scratch") == ()


def test_the_database_and_redaction_agree_on_what_a_card_number_is(scratch: Connection) -> None:
    chance = random.Random(20261122)  # noqa: S311 - sample data
    numbers = [str(chance.randrange(10**length, 10 ** (length + 1))) for length in range(11, 20) for _ in range(300)]
    scratch.execute("CREATE TABLE scratch.notes (note text)")
    with scratch.cursor() as cursor, cursor.copy("COPY scratch.notes FROM STDIN") as copy:
        for number in numbers:
            copy.write_row((number,))
    expected = sum(map(is_card_number, numbers))
    assert expected > 100
    assert card_numbers_in(scratch, schema="scratch") == (CardColumn("notes", "note", expected),)


def test_nothing_to_look_at_is_not_good_news(billing: Connection) -> None:
    with pytest.raises(PermanentError, match="deploy it first"):
        card_numbers_in(billing, schema="nowhere")
