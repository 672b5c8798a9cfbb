"""What may be chosen about the metrics, and how periods are written.

What belongs here: the policy, the names of definitions, grains and periods. What does not: any figure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from flexpay_pipelines.errors import BadInput

DEFINITION = "flexpay-1"
STRIPE_DEFINITION = "stripe"
ROLLING_DAYS = 30
GRAINS = ("day", "month")
FIRST_YEAR, LAST_YEAR = 1970, 2999
LONGEST_PAUSE_DAYS = 36_500

Grain = Literal["day", "month"]

_WRITTEN = {"day": re.compile(r"\d{4}-\d{2}-\d{2}"), "month": re.compile(r"\d{4}-\d{2}")}
_EXAMPLE = {"day": "2026-01-31", "month": "2026-01"}


@dataclass(frozen=True, slots=True)
class MetricPolicy:
    """How pauses count, and what converted figures are shown in.

    paused: `excluded` (not counted, by movements of their own) or `included` (counted like any other).
    paused_churn_days: a pause that lasts longer is churn, in days of 24 hours; None: never.
    reporting_currency: ISO 4217; the currency of rates over several currencies.
    """

    paused: Literal["excluded", "included"] = "excluded"
    paused_churn_days: int | None = 90
    reporting_currency: str = "EUR"

    def __post_init__(self) -> None:
        if self.paused not in ("excluded", "included"):
            raise BadInput(f"paused may be 'excluded' or 'included', not '{self.paused}'.")
        if self.paused_churn_days is not None and not 0 <= self.paused_churn_days <= LONGEST_PAUSE_DAYS:
            raise BadInput(
                f"paused_churn_days is a number of days from 0 to {LONGEST_PAUSE_DAYS}, not {self.paused_churn_days}."
            )
        check_currency(self.reporting_currency)


@dataclass(frozen=True, slots=True)
class Span:
    """Periods of one grain, from `first` to `last`, both included, each named by its first day."""

    grain: Grain
    first: date
    last: date

    @property
    def last_day(self) -> date:
        """The last day of the last period."""
        return self.last if self.grain == "day" else next_month(self.last) - timedelta(days=1)

    @property
    def days(self) -> list[date]:
        """Every day of them."""
        return [self.first + timedelta(days=number) for number in range((self.last_day - self.first).days + 1)]

    @property
    def since(self) -> date:
        """The day with whose midnight they begin."""
        return self.first

    @property
    def until(self) -> date:
        """The day with whose midnight they end."""
        return self.last_day + timedelta(days=1)


def next_month(day: date) -> date:
    """The first day of the month after."""
    return date(day.year + day.month // 12, day.month % 12 + 1, 1)


def previous_month(day: date) -> date:
    """The first day of the month before."""
    return (day.replace(day=1) - timedelta(days=1)).replace(day=1)


def choice(what: str, given: str, allowed: tuple[str, ...]) -> None:
    """Refuse anything but the choices, and name them.

    Raises:
        BadInput: `given` is none of `allowed`.
    """
    if given not in allowed:
        raise BadInput(f"'{given}' is no {what}: choose one of {', '.join(allowed)}.")


def check_currency(currency: str) -> None:
    """Refuse what is not written like an ISO 4217 code.

    Raises:
        BadInput: not three capital letters.
    """
    if not re.fullmatch("[A-Z]{3}", currency):
        raise BadInput(f"'{currency}' is no currency: write its ISO 4217 code, such as EUR.")


def span(grain: Grain, start: date, end: date) -> Span:
    """The periods that the two days lie in, and all between.

    Raises:
        BadInput: the end lies before the start, a year is out of reach, or the grain is unknown.
    """
    choice("grain", grain, GRAINS)
    if end < start:
        raise BadInput(f"The period ends ({end}) before it starts ({start}): swap --from and --to.")
    for day in (start, end):
        if not FIRST_YEAR <= day.year <= LAST_YEAR:
            raise BadInput(f"{day} is out of reach: years from {FIRST_YEAR} to {LAST_YEAR} can be computed.")
    return Span(grain, start, end) if grain == "day" else Span(grain, start.replace(day=1), end.replace(day=1))


def parse_span(grain: str, start: str, end: str) -> Span:
    """The same from periods as people write them: `2026-01-31` at day grain, `2026-01` at month grain.

    Raises:
        BadInput: not written so, no such day, or as `span`.
    """
    choice("grain", grain, GRAINS)
    known: Grain = "day" if grain == "day" else "month"
    return span(known, _parse(known, start), _parse(known, end))


def _parse(grain: Grain, text: str) -> date:
    complaint = f"'{text}' is no {grain}: write it as {_EXAMPLE[grain]}."
    if not _WRITTEN[grain].fullmatch(text):
        raise BadInput(complaint)
    try:
        return date.fromisoformat(text if grain == "day" else f"{text}-01")
    except ValueError:
        raise BadInput(complaint) from None
