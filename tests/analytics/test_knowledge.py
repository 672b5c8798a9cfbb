"""Figures as they were known: exchange rates and countries too."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from flexpay_pipelines.analytics import cohorts, summary
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from tests.analytics.ledger import write
from tests.analytics.reference import Event

AT = datetime(2026, 1, 5, 12, tzinfo=UTC)
DAY = AT.date()


@pytest.fixture
def company(billing: Connection) -> Connection:
    write(billing, [Event("bob-1", "bob", "started", AT, AT, currency="USD")])
    billing.execute("INSERT INTO billing.fx_rates VALUES ('2026-01-01', 'USD', 'EUR', 0.9)")
    return billing


def now_of(connection: Connection) -> datetime:
    row = connection.execute("SELECT clock_timestamp() AS now").fetchone()
    assert row is not None
    found: datetime = row["now"]
    return found


def in_euro(connection: Connection, known_at: datetime | None) -> Decimal:
    rows = summary(connection, start=DAY, end=DAY, grain="day", known_at=known_at, reporting_currency="EUR")
    found: Decimal = rows[0]["end"]
    return found


def test_a_rate_that_arrives_later_is_not_known_before(company: Connection) -> None:
    before = now_of(company)
    company.execute("INSERT INTO billing.fx_rates VALUES ('2026-01-05', 'USD', 'EUR', 0.8)")
    after = now_of(company)
    assert [in_euro(company, each) for each in (before, after, None)] == [10_800, 9_600, 9_600]
    month = date(2026, 1, 1)
    shown = [
        cohorts(company, start=month, end=month, known_at=each, reporting_currency="EUR")[0]["end"]
        for each in (before, after)
    ]
    assert shown == [10_800, 9_600]


def test_a_rate_that_is_corrected_or_removed_was_known_all_the_same(company: Connection) -> None:
    before = now_of(company)
    company.execute("UPDATE billing.fx_rates SET rate = 0.7")
    between = now_of(company)
    company.execute("DELETE FROM billing.fx_rates")
    assert [in_euro(company, each) for each in (before, between)] == [10_800, 8_400]
    with pytest.raises(BadInput, match="No rate from USD to EUR"):
        in_euro(company, None)


def test_a_history_of_rates_is_known_from_its_days_on(company: Connection) -> None:
    """The first rates of a pair are a history that was loaded: each counts as known from its date on."""
    assert in_euro(company, AT + timedelta(hours=1)) == 10_800
    company.execute("DELETE FROM billing.fx_rates")
    company.execute("TRUNCATE analytics.known_rates")
    company.execute(
        "INSERT INTO billing.fx_rates VALUES ('2026-01-01', 'USD', 'EUR', 0.5), ('2026-01-06', 'USD', 'EUR', 0.6)"
    )
    rows = summary(company, start=DAY, end=DAY + timedelta(days=3), grain="day", known_at=AT, reporting_currency="EUR")
    assert [row["end"] for row in rows] == [6_000] * 4


def test_the_country_is_the_one_that_was_known(company: Connection) -> None:
    moments = []
    for country in ("MX", None, "CA"):
        moments.append(now_of(company))
        company.execute("UPDATE billing.customers SET country = %s", (country,))
    shown = [
        summary(company, start=DAY, end=DAY, grain="day", by="country", known_at=each)[0]["segment"]
        for each in (*moments, now_of(company), None)
    ]
    assert shown == ["US", "MX", "unknown", "CA", "CA"]


def test_what_is_not_known_yet_is_not_shown(company: Connection) -> None:
    late = AT + timedelta(days=10)
    write(company, [replace(Event("bob-1", "bob", "canceled", AT, late), currency="USD")])
    assert len(summary(company, start=DAY, end=DAY, grain="day", known_at=late - timedelta(seconds=1))) == 1
    assert summary(company, start=DAY, end=DAY, grain="day", known_at=late) == []
