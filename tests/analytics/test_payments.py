"""Payment health and dunning: by hand, and against plain loops on random attempts."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexpay_pipelines.analytics import dunning, payments_health
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from tests.analytics.ledger import ORIGIN, write
from tests.analytics.money import DAY, Payment, episodes, known, pay, started

AT = datetime(2026, 1, 5, tzinfo=UTC)
JANUARY: dict[str, Any] = {"start": date(2026, 1, 1), "end": date(2026, 1, 31), "grain": "month"}


def failed(at: datetime, attempt: int = 1, failure_class: str | None = "issuer_decline", **rest: Any) -> Payment:
    return Payment("ann-1", at, outcome="failed", attempt=attempt, failure_class=failure_class, **rest)


@pytest.fixture
def company(billing: Connection) -> Connection:
    write(billing, [started("ann-1", AT - 30 * DAY), started("bob-1", AT, plan="pro", payment_frequency="YEARLY")])
    pay(
        billing,
        [
            failed(AT),
            failed(AT + DAY, 2, "block"),
            Payment("ann-1", AT + 3 * DAY, attempt=3),
            failed(AT + 20 * DAY, 1, None),
            Payment("bob-1", AT),
        ],
    )
    return billing


@pytest.mark.parametrize(
    ("by", "wanted"),
    [
        ("payment_frequency", {"MONTHLY": (4, 1, 3), "YEARLY": (1, 1, 0)}),
        ("plan", {"basic": (4, 1, 3), "pro": (1, 1, 0)}),
        ("attempt", {"1": (3, 1, 2), "2": (1, 0, 1), "3": (1, 1, 0)}),
        ("failure_class", {"block": (1, 0, 1), "issuer_decline": (1, 0, 1), "none": (2, 2, 0), "unknown": (1, 0, 1)}),
    ],
)
def test_attempts_by_segment(company: Connection, by: str, wanted: dict[str, tuple[int, int, int]]) -> None:
    rows = payments_health(company, **JANUARY, by=by)
    assert {row[by]: (row["attempts"], row["succeeded"], row["failed"]) for row in rows} == wanted


def test_an_episode_is_won_by_the_attempt_that_succeeds(company: Connection) -> None:
    """The first is won after three days; the second, of an unknown class, is not."""
    (row,) = dunning(company, **JANUARY)
    assert (row["payment_frequency"], row["episodes"], row["recovered"]) == ("MONTHLY", 2, 1)
    assert (row["recovery_rate"], row["median_days"], row["p90_days"]) == (Fraction(1, 2), 3, 3)
    by_class = {row["failure_class"]: row["recovered"] for row in dunning(company, **JANUARY, by="failure_class")}
    assert by_class == {"issuer_decline": 1, "unknown": 0}


def test_half_and_nine_tenths_of_the_recoveries(billing: Connection) -> None:
    """Ten recoveries after 1 to 10 hours: half came within 5, nine tenths within 9."""
    write(billing, [started("ann-1", AT)])
    for n in range(1, 11):
        at = AT + n * DAY
        billing.execute(
            "INSERT INTO billing.payments (payment_ref, subscription_id, occurred_at, amount_minor, currency, outcome)"
            " SELECT o || %s, subscription_id, t, 1, 'EUR', o FROM billing.subscriptions,"
            " (VALUES ('failed', %s), ('succeeded', %s)) AS v (o, t)",
            (n, at, at + timedelta(hours=n)),
        )
    (row,) = dunning(billing, **JANUARY)
    assert (row["episodes"], row["recovered"]) == (10, 10)
    assert (str(row["median_days"]), str(row["p90_days"])) == ("0.208333", "0.375000")


def test_what_is_paid_after_a_long_silence_was_not_won_back(billing: Connection) -> None:
    write(billing, [started("ann-1", AT)])
    pay(billing, [failed(AT), Payment("ann-1", AT + 61 * DAY), failed(AT + 70 * DAY), Payment("ann-1", AT + 130 * DAY)])
    rows = dunning(billing, start=date(2026, 1, 1), end=date(2026, 12, 31), grain="month")
    assert [(row["period"], row["recovered"]) for row in rows] == [("2026-01", 0), ("2026-03", 1)]


def test_known_at_shows_what_was_known(company: Connection) -> None:
    (row,) = dunning(company, **JANUARY, known_at=AT + 2 * DAY)
    assert (row["episodes"], row["recovered"], row["median_days"]) == (1, 0, None)


def test_a_segment_that_dunning_does_not_have(company: Connection) -> None:
    with pytest.raises(BadInput, match="'attempt' is no segment of dunning: choose one of payment_frequency"):
        dunning(company, **JANUARY, by="attempt")
    with pytest.raises(BadInput, match="'country' is no segment of payments"):
        payments_health(company, **JANUARY, by="country")


attempts = st.lists(
    st.builds(
        Payment,
        subscription=st.sampled_from(["ann-1", "bob-1"]),
        occurred_at=st.integers(0, 400).map(lambda n: ORIGIN + n * timedelta(hours=12)),
        outcome=st.sampled_from(["succeeded", "failed", "failed"]),
        attempt=st.integers(1, 3),
        recorded_at=st.integers(0, 220).map(lambda n: ORIGIN + n * DAY),
    ),
    max_size=14,
)


@pytest.mark.parametrize("examples", [25, pytest.param(3_000, marks=pytest.mark.soak)])
def test_episodes_agree_with_plain_loops(billing: Connection, examples: int) -> None:
    first = ORIGIN.date() + 31 * DAY
    last = first + 119 * DAY
    write(billing, [started("ann-1", ORIGIN), started("bob-1", ORIGIN, plan="pro")])

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(attempts, st.one_of(st.none(), st.integers(0, 220).map(lambda n: ORIGIN + n * DAY)))
    def compare(payments: list[Payment], known_at: datetime | None) -> None:
        with billing.transaction(force_rollback=True):
            pay(billing, payments)
            days = dunning(billing, start=first, end=last, grain="day", by="plan", known_at=known_at)
            months = dunning(billing, start=first, end=last, grain="month", by="plan", known_at=known_at)
        wanted: dict[tuple[str, str], list[timedelta | None]] = {}
        for began, took in episodes(known(payments, known_at)):
            if first <= began.occurred_at.date() <= last:
                plan = {"ann-1": "basic", "bob-1": "pro"}[began.subscription]
                wanted.setdefault((began.occurred_at.date().isoformat(), plan), []).append(took)
        found = {(row["period"], row["plan"]): row for row in days}
        assert found.keys() == wanted.keys()
        for key, all_took in wanted.items():
            won = sorted(took for took in all_took if took is not None)
            row = found[key]
            assert (row["episodes"], row["recovered"]) == (len(all_took), len(won))
            assert row["median_days"] == (pytest.approx(won[(len(won) - 1) // 2] / DAY) if won else None)
            assert row["p90_days"] == (pytest.approx(won[-(-9 * len(won) // 10) - 1] / DAY) if won else None)
        for column in ("episodes", "recovered"):
            assert sum(row[column] for row in days) == sum(row[column] for row in months)

    compare()
