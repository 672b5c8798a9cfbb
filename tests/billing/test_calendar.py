"""Payment dates in the database against a naive calendar in Python."""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexpay_pipelines.database import Connection
from flexpay_pipelines.sql import MIGRATIONS_ROOT

DAYS = {"WEEKLY": 7, "BIWEEKLY": 14}
MONTHS = {"MONTHLY": 1, "QUARTERLY": 3, "YEARLY": 12}
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Africa/Cairo",
    "Pacific/Apia",
    "America/Sao_Paulo",
    "Asia/Tokyo",
]

frequencies = st.sampled_from([*DAYS, *MONTHS])
instants = st.datetimes(datetime(1996, 1, 1), datetime(2050, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds are naive
same_database = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def on_the_wall(anchor: datetime, frequency: str, n: int, zone: str) -> datetime:
    """The naive local date and time of the n-th payment."""
    local = anchor.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    if frequency in DAYS:
        return local + timedelta(days=DAYS[frequency] * n)
    year, month0 = divmod(local.year * 12 + local.month - 1 + MONTHS[frequency] * n, 12)
    return local.replace(year=year, month=month0 + 1, day=min(local.day, monthrange(year, month0 + 1)[1]))


def readings(local: datetime, zone: str) -> set[datetime]:
    """The instants that a local time may mean: two where it comes twice; where it is missing, either side's offset."""
    return {local.replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC) for fold in (0, 1)}


def payment_at(connection: Connection, anchor: datetime, frequency: str, n: int, zone: str) -> datetime:
    row = connection.execute("SELECT billing.payment_at(%s, %s, %s, %s) AS at", (anchor, frequency, n, zone)).fetchone()
    assert row is not None
    found: datetime = row["at"]
    return found


@same_database
@given(instants, frequencies, st.integers(1, 120), st.sampled_from(ZONES))
def test_the_nth_payment_has_the_local_date_and_time_of_the_anchor(
    billing: Connection, anchor: datetime, frequency: str, n: int, zone: str
) -> None:
    found = payment_at(billing, anchor, frequency, n, zone)
    local = on_the_wall(anchor, frequency, n, zone)
    assert found in readings(local, zone)
    if len(readings(local, zone)) == 1:
        assert found.astimezone(ZoneInfo(zone)).replace(tzinfo=None) == local


@pytest.mark.parametrize(
    ("anchor", "frequency", "zone", "dates"),
    [
        ("2027-01-31T10:00Z", "MONTHLY", "UTC", ["2027-02-28T10:00Z", "2027-03-31T10:00Z", "2027-04-30T10:00Z"]),
        ("2028-01-31T10:00Z", "MONTHLY", "UTC", ["2028-02-29T10:00Z", "2028-03-31T10:00Z"]),
        ("2027-11-30T10:00Z", "QUARTERLY", "UTC", ["2028-02-29T10:00Z", "2028-05-30T10:00Z"]),
        ("2028-02-29T10:00Z", "YEARLY", "UTC", ["2029-02-28T10:00Z", "2030-02-28T10:00Z", "2031-02-28T10:00Z",
                                                 "2032-02-29T10:00Z"]),
        # Late on the 31st in New York is the 1st in UTC: the customer's own day counts.
        ("2027-02-01T03:00Z", "MONTHLY", "America/New_York", ["2027-03-01T03:00Z", "2027-04-01T02:00Z"]),
        # 02:30 is missing on 28 March in Berlin, and paid when the clock has passed it; on 31 October it comes twice.
        ("2027-03-21T01:30Z", "WEEKLY", "Europe/Berlin", ["2027-03-28T01:30Z", "2027-04-04T00:30Z"]),
        ("2027-10-17T00:30Z", "BIWEEKLY", "Europe/Berlin", ["2027-10-31T01:30Z", "2027-11-14T01:30Z"]),
        # There was no 30 December 2011 in Apia.
        ("2011-11-30T22:00Z", "MONTHLY", "Pacific/Apia", ["2011-12-30T22:00Z", "2012-01-29T22:00Z"]),
    ],
)  # fmt: skip
def test_dates_that_calendars_get_wrong(
    billing: Connection, anchor: str, frequency: str, zone: str, dates: list[str]
) -> None:
    began = datetime.fromisoformat(anchor)
    found = [payment_at(billing, began, frequency, n, zone) for n in range(1, len(dates) + 1)]
    assert found == [datetime.fromisoformat(date) for date in dates]


@same_database
@given(instants, frequencies, st.tuples(st.integers(-400, 4000), st.integers(-3, 3)), st.sampled_from(ZONES))
def test_the_next_payment_is_the_first_after(
    billing: Connection, anchor: datetime, frequency: str, after: tuple[int, int], zone: str
) -> None:
    days, microseconds = after
    row = billing.execute(
        "SELECT n, p.at, p.at + %(us)s * interval '1 microsecond' AS after,"
        " billing.next_payment_at(%(anchor)s, %(f)s, %(anchor)s + %(days)s * interval '1"
        " day', %(zone)s) AS next_of_day,"
        " billing.next_payment_at(%(anchor)s, %(f)s, p.at + %(us)s * interval '1"
        " microsecond', %(zone)s) AS next_of_payment"
        " FROM (SELECT %(n)s::int AS n, billing.payment_at(%(anchor)s, %(f)s, %(n)s::int, %(zone)s) AS at) AS p",
        {"anchor": anchor, "f": frequency, "days": days, "zone": zone, "us": microseconds, "n": abs(days) % 60},
    ).fetchone()
    assert row is not None
    # Stepping through every payment is the oracle that the function must do without.
    period = DAYS.get(frequency) or 28 * MONTHS[frequency]
    dates = [
        step["at"]
        for step in billing.execute(
            "SELECT billing.payment_at(%s, %s, n, %s) AS at FROM generate_series(0, %s) AS n",
            (anchor, frequency, zone, max(days, 60 * 31 * 12) // period + 2 if days > 0 else 62),
        )
    ]
    assert row["next_of_day"] == min(date for date in dates if date > anchor + timedelta(days=days))
    assert row["next_of_payment"] == min(date for date in dates if date > row["after"])


@pytest.mark.parametrize(
    "call", ["payment_at(now(), 'DAILY', 1, 'UTC')", "next_payment_at(now(), 'daily', now(), 'UTC')"]
)
def test_an_unknown_frequency_is_an_error(billing: Connection, call: str) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="unknown payment frequency"):
        billing.execute(f"SELECT billing.{call}")


def test_an_unknown_zone_is_an_error(billing: Connection) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="time zone"):
        payment_at(billing, datetime(2026, 1, 1, tzinfo=UTC), "WEEKLY", 1, "Mars/Olympus")


def _run(connection: Connection, step: str) -> None:
    connection.execute((MIGRATIONS_ROOT / "core" / f"0002_payment_dates.{step}.sql").read_bytes())


def test_the_migration_can_be_taken_back_and_made_again(billing: Connection) -> None:
    _run(billing, "verify")
    _run(billing, "revert")
    with pytest.raises(psycopg.errors.UndefinedFunction):
        _run(billing, "verify")
    for step in ("deploy", "deploy", "verify"):
        _run(billing, step)


def test_verification_sees_a_wrong_calendar(billing: Connection) -> None:
    billing.execute(
        "CREATE OR REPLACE FUNCTION billing.payment_at(anchor timestamptz, payment_frequency"
        " text, n integer, zone text)"
        " RETURNS timestamptz LANGUAGE sql IMMUTABLE STRICT AS $$ SELECT anchor + n * interval '30 days' $$"
    )
    with pytest.raises(psycopg.errors.RaiseException, match="payment_at"):
        _run(billing, "verify")
