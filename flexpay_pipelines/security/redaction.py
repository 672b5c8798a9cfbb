"""Redaction: card numbers and secrets leave a text before it is stored or sent.

What belongs here: what a card number or a secret looks like. What does not: where texts come from or go to.
It errs on hiding: a long number that happens to pass the Luhn check is hidden too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

CARD = "[card number removed]"
SECRET = "[secret removed]"  # noqa: S105 - what stands in a secret's place

SHORTEST_CARD, LONGEST_CARD = 13, 19
# No issuer's numbers begin with 0; 1 is for airlines' own accounts and for every date in milliseconds until 2033.
_FIRST_DIGITS = frozenset("23456789")
_DOUBLED = {str(digit): sum(divmod(2 * digit, 10)) for digit in range(10)}

# Digits in groups, as cards are printed: at most one blank or dash between two groups.
_DIGIT_GROUPS = re.compile(r"[0-9]+(?:[ \-\u00a0][0-9]+)*")
_GROUP = re.compile(r"[0-9]+")
_PRINTED_GROUP = range(4, 7)

# Begins only where a word begins: a long text without blanks is read once, not once from each letter.
_NOT_INSIDE_A_SCHEME = r"(?<![A-Za-z0-9+.\-])"
_SECRETS = (
    # Stripe: secret and restricted keys, webhook signing secrets.
    (re.compile(r"(?<![A-Za-z0-9])(?:[sr]k_[A-Za-z0-9_]{4,}|whsec_[A-Za-z0-9+/=_\-]{4,})"), SECRET),
    # Slack: every kind of token, and incoming webhooks, whose address is the secret.
    (re.compile(r"(?<![A-Za-z0-9])xox[a-z](?:\.[a-z]+)?-[A-Za-z0-9\-]{4,}"), SECRET),
    (re.compile(r"(?<![A-Za-z0-9])xapp-[A-Za-z0-9\-]{4,}"), SECRET),
    (re.compile(r"(hooks\.slack\.com/(?:services|workflows|triggers)/)[^\s\"'<>]+"), rf"\1{SECRET}"),
    # A URL's password, up to the last @: one that holds an unescaped @ or / is still hidden whole.
    (
        re.compile(rf"({_NOT_INSIDE_A_SCHEME}[A-Za-z][A-Za-z0-9+.\-]{{0,30}}://[^\s:/@\"'<>]*:)[^\s\"'<>]+(?=@)"),
        rf"\1{SECRET}",
    ),
    # password=… of a URL's query, of libpq's keyword form, of JSON and of an environment, quoted or not.
    (
        re.compile(
            r"(?i)((?:password|passwd|pwd)[\"']?\s*[=:]\s*)(?!\[secret removed\])"
            r"(?:'(?:\\.|[^'\\])*(?:'|$)|\"(?:\\.|[^\"\\])*(?:\"|$)|[^\s&,;\"')]+)"
        ),
        rf"\1{SECRET}",
    ),
    (re.compile(r"(?i)(?<![a-z])(bearer|basic)\s+[A-Za-z0-9+/=._~\-]{8,}"), rf"\1 {SECRET}"),
)
_SECRET_KEY = re.compile(
    r"(?i)(?:^|[_\-])(?:password|passwd|secret|token|api_?key|authorization|card_?number|cvc|cvv|pan)$"
)


def is_card_number(digits: str) -> bool:
    """Whether a string of digits alone may be a card's: 13 to 19 digits, a payment industry's first digit, Luhn.

    Source: ISO/IEC 7812-1 (major industry identifier; Annex B, the Luhn formula).
    """
    if not SHORTEST_CARD <= len(digits) <= LONGEST_CARD or digits[0] not in _FIRST_DIGITS:
        return False
    return _luhn(digits)


def _luhn(digits: str) -> bool:
    total = sum(int(digit) for digit in digits[-1::-2]) + sum(_DOUBLED[digit] for digit in digits[-2::-2])
    return total % 10 == 0


def redact(text: str) -> str:
    """The text without card numbers, Stripe keys, Slack tokens and passwords; NULs and lone surrogates replaced.

    What comes back can be stored in PostgreSQL. Redacting twice changes nothing more.
    """
    storable = text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    for pattern, instead in _SECRETS:
        storable = pattern.sub(instead, storable)
    return _DIGIT_GROUPS.sub(_hide_cards, storable)


def redact_json(value: Any) -> Any:
    """A JSON value with every text in it redacted, and the value of every key that names a secret hidden.

    What JSON cannot hold (dates, decimals, NaN) becomes text, so that the result can be stored as jsonb.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return CARD if is_card_number(str(abs(value))) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {redact(str(key)): _redact_named(str(key), entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact_json(entry) for entry in value]
    return redact(str(value))


def _redact_named(key: str, value: Any) -> Any:
    return SECRET if value is not None and _SECRET_KEY.search(key) else redact_json(value)


def _hide_cards(found: re.Match[str]) -> str:
    """Hide the cards among groups of digits; a card is whole groups, so that a date beside it does not hide it."""
    text = found.group()
    groups = [(group.start(), group.end()) for group in _GROUP.finditer(text)]
    kept, shown_to, first = [], 0, 0
    while first < len(groups):
        last = _card_from(text, groups, first)
        if last is None:
            first += 1
            continue
        kept += [text[shown_to : groups[first][0]], CARD]
        shown_to, first = groups[last][1], last + 1
    return "".join([*kept, text[shown_to:]])


def _card_from(text: str, groups: list[tuple[int, int]], first: int) -> int | None:
    """The last group of the longest card number that begins with group `first`."""
    longest, digits = None, ""
    for last in range(first, len(groups)):
        digits += text[slice(*groups[last])]
        if len(digits) > LONGEST_CARD:
            break
        if is_card_number(digits) and _grouped_as_a_card(text, groups[first : last + 1]):
            longest = last
    return longest


def _grouped_as_a_card(text: str, groups: list[tuple[int, int]]) -> bool:
    """Printed in fours to sixes, or with the same sign between all groups: not a number beside a date."""
    signs = {text[end] for _, end in groups[:-1]}
    return len(signs) <= 1 or all(end - start in _PRINTED_GROUP for start, end in groups[:-1])
