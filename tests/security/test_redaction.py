"""Redaction: no card number and no secret is left in what is stored or sent; ordinary text stays as it is."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexpay_pipelines.security import is_card_number, redact, redact_json


def _luhn_check_digit(digits: str) -> str:
    """The digit that makes the number valid, by the textbook: double every second digit from the right."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value if value < 10 else value - 9
    return str(-total % 10)


def _grouped(number: str, sizes: list[int], sign: str) -> str:
    groups: list[str] = []
    start = 0
    while start < len(number):
        size = sizes[len(groups) % len(sizes)]
        groups.append(number[start : start + size])
        start += size
    return sign.join(groups)


numbers = st.builds(
    lambda first, rest: first + rest + _luhn_check_digit(first + rest),
    st.sampled_from("23456789"),
    st.text("0123456789", min_size=11, max_size=17),
)
printed = st.builds(
    _grouped,
    numbers,
    st.sampled_from([[19], [4], [4, 6, 5], [4, 6, 4], [5], [6, 13]]),
    st.sampled_from([" ", "-", "\u00a0"]),
)
words = st.text(st.characters(exclude_categories=["Nd"]), max_size=30)


@given(words, printed, words)
def test_a_card_number_never_stays(before: str, number: str, after: str) -> None:
    assert number not in redact(f"{before} {number}, {after}")
    assert number not in redact(f"{before}{number}{after}")


@given(printed)
def test_a_date_beside_a_card_number_does_not_hide_it(number: str) -> None:
    assert number not in redact(f"2026-11-22 {number} 2026-11-22")


def test_the_date_beside_a_card_number_stays() -> None:
    assert redact("2026-11-22 4242 4242 4242 4242") == "2026-11-22 [card number removed]"


@given(st.text())
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    once = redact(text)
    assert redact(once) == once
    once.encode()
    assert "\x00" not in once


@given(st.text(st.sampled_from("0123456789 -[]=:@/?&'\"passwordk_slive.")))
def test_redacting_twice_changes_nothing_more_in_texts_made_of_our_own_signs(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@given(st.text("0123456789", min_size=1, max_size=40))
def test_digits_alone_stay_unless_they_are_a_card_number(digits: str) -> None:
    assert (redact(digits) == digits) != is_card_number(digits)


@pytest.mark.parametrize(
    "number",
    ["4242424242424242", "378282246310005", "30569309025904", "6011111111111117", "3566002020360505",
     "6205500000000000004", "2223003122003222", "4222222222222"],
)  # fmt: skip
def test_the_test_cards_that_stripe_publishes_are_card_numbers(number: str) -> None:
    assert is_card_number(number)
    assert not is_card_number(number[:-1] + str((int(number[-1]) + 1) % 10))


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("key sk_live_51HabcDEF refused", "51HabcDEF"),
        ("rk_test_abcdefgh", "abcdefgh"),
        ("signed with whsec_abc+/=def", "abc+/=def"),
        ("token=xoxb-123-456-abcDEF", "123-456-abcDEF"),
        ("xoxe.xoxp-1-abcdef", "abcdef"),
        ("xapp-1-A01-abc", "A01-abc"),
        ("https://hooks.slack.com/services/T0/B0/verysecret", "verysecret"),
        ("postgresql://billing:hunter2@db:5432/billing", "hunter2"),
        ("postgresql+psycopg2://billing:hun@ter/2@db/billing", "ter/2"),
        ("postgresql:///billing?host=/run&password=hunter2&sslmode=require", "hunter2"),
        ("host=db password='hun ter\\'2' user=x", "ter"),
        ("host=db password = hunter2", "hunter2"),
        ("password='hunter2 without an end", "hunter2"),
        ("password=[hunter2", "hunter2"),
        ("PGPASSWORD=hunter2 psql", "hunter2"),
        ('{"password": "hun\\"ter2"}', "ter2"),
        ("Authorization: Bearer abc.def-ghi", "abc.def-ghi"),
    ],
)
def test_secrets_are_removed(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert "[secret removed]" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "Payment failure rate 12.5 % in 2026-11-22 03:00:00+00:00, 1,234 of 9,876 attempts.",
        "backup 20261122T030000Z-daily-0a1b2c at /var/backups, 123456789012 bytes",
        "sub_1PabcDEF and in_1PabcDEF of cus_123; risk_score 0.71; task_force_one",
        "https://flexpay.example:8443/runs/1?page=2, mail ops@flexpay.example",
        "1699999999999 ms; 00004111111111111111111111",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


def test_a_long_text_without_blanks_is_read_in_linear_time() -> None:
    for rubbish in ("a" * 1_000_000, "a://" * 2_000, "1 " * 200_000, "password" * 50_000):
        assert redact(rubbish)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | printed | st.dates() | st.decimals(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@given(json_values, printed)
def test_json_holds_no_card_and_can_be_stored(value: object, number: str) -> None:
    shown = json.dumps(redact_json({"value": value, "note": [f"card {number}"]}), allow_nan=False)
    assert number not in json.loads(shown)["note"][0]
    assert "\\u0000" not in shown


def test_the_value_of_a_key_that_names_a_secret_is_hidden_whatever_it_is() -> None:
    shown = redact_json(
        {
            "slack_token": "abc",
            "API_KEY": 12,
            "db": {"password": ["a"]},
            "tokens_used": 5,
            "secret": None,
            4242424242424242: 1,
        }
    )
    assert shown == {
        "slack_token": "[secret removed]",
        "API_KEY": "[secret removed]",
        "db": {"password": "[secret removed]"},
        "tokens_used": 5,
        "secret": None,
        "[card number removed]": 1,
    }


def test_what_json_cannot_hold_becomes_text() -> None:
    moment = datetime(2026, 11, 22, tzinfo=UTC)
    assert redact_json([moment, Decimal("1.10"), float("nan"), 4242424242424242]) == [
        "2026-11-22 00:00:00+00:00", "1.10", "nan", "[card number removed]",
    ]  # fmt: skip
