"""The daily report, the scores behind it, and what it does when figures do not reconcile."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import combinations, product
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from flexpay_pipelines.analytics import (
    ChurnRisk,
    daily_report,
    export_dataset,
    identity_breaks,
    interval_breaks,
    refresh,
    refresh_churn_risk,
    trend_svg,
)
from flexpay_pipelines.analytics.stored_balances import BALANCES
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from tests.analytics.ledger import write
from tests.analytics.reference import Event

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
CLOCK = FixedClock(START + timedelta(days=100))
DAY = (START + timedelta(days=99)).date()
TOO_YOUNG = "The company has less than six months of history to learn from."


def event(name: str, day: int, subscription: str = "ann-1", **changes: object) -> Event:
    at = START + timedelta(days=day)
    return replace(Event(subscription, subscription.partition("-")[0], name, at, at), **changes)  # type: ignore[arg-type]


def fail(connection: Connection, subscription: str, failure_class: str, times: int, day: int = 95) -> None:
    connection.execute(
        "INSERT INTO billing.payments (payment_ref, subscription_id, occurred_at, amount_minor, currency, outcome,"
        " failure_class) SELECT subscription_ref || %s || n, subscription_id, %s, 100, currency, 'failed', %s"
        " FROM billing.subscriptions, generate_series(1, %s) AS n WHERE subscription_ref = %s",
        (failure_class, START + timedelta(days=day), failure_class, times, subscription),
    )


@pytest.fixture
def company(billing: Connection) -> Connection:
    write(
        billing,
        [
            event("started", 0),
            event("past_due", 95),
            event("started", 0, "bob-1", currency="USD", plan="<b>pro</b>"),
            event("started", 0, "cid-1"),
            event("paused", 60, "cid-1"),
            event("started", 60, "eve-1"),
            event("changed", 70, "eve-1", amount_minor=500),
            event("started", 0, "gus-1"),
            event("canceled", 50, "gus-1"),
        ],
    )
    fail(billing, "ann-1", "issuer_decline", 2)
    fail(billing, "bob-1", "integration_error", 9)
    refresh(billing, start=DAY - timedelta(days=95), end=DAY, clock=CLOCK)
    return billing


def test_scores_and_reasons(company: Connection) -> None:
    assert refresh_churn_risk(company, day=DAY, clock=CLOCK) == ChurnRisk(4, 1, "rule-1", TOO_YOUNG)
    rows = company.execute(
        "SELECT c.customer_ref, r.score::text AS score, r.reasons FROM analytics.churn_risk AS r"
        " JOIN billing.customers AS c USING (customer_id) ORDER BY 1"
    ).fetchall()
    assert [tuple(row.values()) for row in rows] == [
        ("ann", "0.700", ["2 failed payments in 30 days", "payment past due"]),
        ("bob", "0.000", []),
        ("cid", "0.400", ["paused for 39 days"]),
        ("eve", "0.350", ["downgraded in the last 90 days", "with us for 39 days"]),
    ]
    assert refresh_churn_risk(company, day=DAY, clock=CLOCK) == ChurnRisk(4, 1, "rule-1", TOO_YOUNG)


def test_nobody_is_scored_in_an_empty_company(billing: Connection) -> None:
    assert refresh_churn_risk(billing, day=DAY, clock=CLOCK) == ChurnRisk(
        0, 0, "rule-1", "The company has no customers yet."
    )


def test_the_page_stands_alone(company: Connection, tmp_path: Path) -> None:
    company.execute("INSERT INTO billing.fx_rates VALUES ('2025-12-01', 'USD', 'EUR', 0.9)")
    refresh_churn_risk(company, day=DAY, clock=CLOCK)
    files = daily_report(company, day=DAY, folder=tmp_path / "new" / "report", clock=CLOCK, reporting_currency="EUR")
    page = files.html.read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|<link|@import|url\(", page.replace("http://www.w3.org/2000/svg", ""))
    assert "&lt;b&gt;pro&lt;/b&gt;" in page
    assert "<b>pro</b>" not in page
    assert "ann@example.com" not in page
    assert "a***@example.com" in page
    assert "Exchange rates are missing" not in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(svg)  # noqa: S314 - our own text
    names = {"mrr-summary", "mrr-movements", "churn", "cohorts", "payments-health", "churn-risk"} | set(BALANCES)
    assert files.csv.keys() == files.parquet.keys() == names
    on_disk = {path.name for path in files.html.parent.iterdir()}
    assert on_disk == {"report.html"} | {f"{name}.{kind}" for name in names for kind in ("csv", "parquet")}
    assert "@" not in files.csv["churn-risk"].read_text(encoding="utf-8")


def test_without_rates_the_page_says_so(company: Connection, tmp_path: Path) -> None:
    files = daily_report(company, day=DAY, folder=tmp_path, clock=CLOCK, reporting_currency="EUR")
    page = files.html.read_text(encoding="utf-8")
    assert "Exchange rates are missing" in page
    assert "Not scored for this day" in page


def test_addresses_are_shown_whole_only_when_asked_for(company: Connection, tmp_path: Path) -> None:
    refresh_churn_risk(company, day=DAY, clock=CLOCK)
    ask = {"day": DAY, "clock": CLOCK, "reporting_currency": "EUR"}
    files = daily_report(company, folder=tmp_path, masked=False, **ask)  # type: ignore[arg-type]
    assert "ann@example.com" in files.html.read_text(encoding="utf-8")
    assert "@" not in files.csv["churn-risk"].read_text(encoding="utf-8")


def test_the_files_hold_what_the_export_gives(company: Connection, tmp_path: Path) -> None:
    """Movements and scores are copied from the database as they are; the export writes them row by row."""
    import pyarrow.parquet as pq

    refresh_churn_risk(company, day=DAY, clock=CLOCK)
    files = daily_report(company, day=DAY, folder=tmp_path / "report", clock=CLOCK, reporting_currency="EUR")
    out = {kind: tmp_path / f"movements.{kind}" for kind in ("csv", "parquet")}
    for kind, file in out.items():
        export_dataset(
            company, dataset="mrr-movements", start=(DAY - timedelta(days=90)).isoformat(), end=DAY.isoformat(),
            grain="day", by=None, currency=None, known_at=None, format=kind, out=file,
        )  # fmt: skip
    assert files.csv["mrr-movements"].read_bytes() == out["csv"].read_bytes()
    assert pq.read_table(files.parquet["mrr-movements"]).equals(pq.read_table(out["parquet"]))
    scores = pq.read_table(files.parquet["churn-risk"]).to_pylist()
    lines = files.csv["churn-risk"].read_text(encoding="utf-8").splitlines()
    assert [row["customer_id"] for row in scores] == ["ann", "cid", "eve", "bob"]
    assert scores[-1] == {
        "period": DAY.isoformat(), "customer_id": "bob", "score": 0.0, "reasons": "", "currency": "USD",
        "annualised_minor": 12_000, "mrr": 1000,
    }  # fmt: skip
    assert lines[0] == "period,customer_id,score,reasons,currency,annualised_minor,mrr"
    assert len(lines) == 5


def test_the_foot_of_the_page_says_what_was_restated(company: Connection, tmp_path: Path) -> None:
    ask = {"day": DAY, "clock": CLOCK, "reporting_currency": "EUR"}
    before = daily_report(company, folder=tmp_path, **ask).html.read_text(encoding="utf-8")  # type: ignore[arg-type]
    assert "0 of these days changed" in before
    assert "because of" not in before
    write(company, [event("changed", 90, "eve-1", amount_minor=2000)])
    refresh(company, start=DAY, end=DAY, clock=CLOCK)
    page = daily_report(company, folder=tmp_path, **ask).html.read_text(encoding="utf-8")  # type: ignore[arg-type]
    assert "10 of these days changed" in page
    event_id = company.execute("SELECT max(event_id) AS id FROM billing.subscription_events").fetchone()
    assert event_id is not None
    assert f"1 events that were new (number {event_id['id']})" in page
    assert f"10 days, {DAY - timedelta(days=9)} to {DAY}" in page
    assert f"{DAY}: 15 to 30 EUR" in page


def test_many_breaks_stay_readable(company: Connection, tmp_path: Path) -> None:
    """The first fifty are named, all are counted: on the page and in what the checks show."""
    write(company, [event("canceled", 20, f"many{n}-1") for n in range(120)])
    refresh(company, start=DAY, end=DAY, clock=CLOCK)
    found = interval_breaks(company)
    assert (len(found), found[0]["total"]) == (50, 124)
    company.execute("UPDATE analytics.mrr_summary SET end_minor = end_minor + 1")
    broken = identity_breaks(company, start=DAY - timedelta(days=95), end=DAY)
    assert len(broken) == 50
    assert broken[0]["total"] > 400
    page = daily_report(company, day=DAY, folder=tmp_path, clock=CLOCK, reporting_currency="EUR").html.read_text()
    assert "124 interval breaks" in page
    assert page.count("current state differs") == 10


def test_figures_that_do_not_reconcile_are_named(company: Connection, tmp_path: Path) -> None:
    company.execute("UPDATE analytics.mrr_summary SET end_minor = end_minor + 1 WHERE day = %s", (DAY,))
    company.execute("DELETE FROM analytics.mrr_movements WHERE movement = 'churn'")
    company.execute(
        "UPDATE analytics.run_rate_intervals SET valid_from = valid_from + interval '1 hour' WHERE status = 'past_due'"
    )
    problems = {row["problem"] for row in identity_breaks(company, start=DAY - timedelta(days=95), end=DAY)}
    assert problems == {
        "end is not start plus movements",
        "movements of customers do not sum to the total",
        "segments do not sum to the total",
    }
    assert {(row["problem"], row["customer_id"]) for row in interval_breaks(company)} >= {("gap", "ann")}
    page = daily_report(company, day=DAY, folder=tmp_path, clock=CLOCK, reporting_currency="EUR").html.read_text()
    assert "do not reconcile" in page


def _three_intervals() -> list[list[tuple[int, int | None]]]:
    """Every set of up to three intervals of one subscription on the days 1 to 4; None: without an end."""
    ends = {first: [*range(first + 1, 5), None] for first in (1, 2, 3)}
    return [
        list(zip(firsts, lasts, strict=True))
        for count in (1, 2, 3)
        for firsts in combinations(ends, count)
        for lasts in product(*(ends[first] for first in firsts))
    ]


def test_whatever_is_no_chain_is_named(billing: Connection) -> None:
    for intervals in _three_intervals():
        starts = [first for first, _ in intervals]
        wrong = {
            (first, "overlap" if last is None or (after is not None and last > after) else "gap")
            for (first, last), after in zip(intervals, [*starts[1:], None], strict=True)
            if last != after
        }
        with billing.transaction(force_rollback=True):
            for first, last in intervals:
                billing.execute(
                    "INSERT INTO analytics.run_rate_intervals (subscription_id, valid_from, valid_to, customer_id,"
                    " status, annualised_minor, plan, payment_frequency, currency, event_id)"
                    " VALUES (1, %s, %s, 1, 'active', 1, 'pro', 'MONTHLY', 'EUR', %s)",
                    (START + timedelta(first), None if last is None else START + timedelta(last), first),
                )
            assert {(row["event_id"], row["problem"]) for row in interval_breaks(billing)} == wrong, intervals


def test_a_subscription_unlike_its_ledger_is_named(company: Connection) -> None:
    found = {row["subscription_id"]: row for row in interval_breaks(company)}
    # The fixture writes every subscription as active with its first terms; the ledger knows better of four.
    assert found.keys() == {"ann-1", "cid-1", "eve-1", "gus-1"}
    assert found["gus-1"]["detail"].startswith("ledger: canceled basic MONTHLY 12000, subscription: active basic")
    company.execute("SELECT set_config('flexpay.ledger', 'import', false)")
    company.execute("UPDATE billing.subscriptions SET status = 'canceled' WHERE subscription_ref = 'gus-1'")
    assert "gus-1" not in {row["subscription_id"] for row in interval_breaks(company)}


def test_without_the_frequencies_the_ledger_is_taken_at_its_word(company: Connection) -> None:
    """A rollback of the component takes the column away."""
    company.execute("ALTER TABLE billing.subscriptions DROP COLUMN payment_frequency CASCADE")
    found = {row["subscription_id"] for row in interval_breaks(company)}
    assert found == {"ann-1", "cid-1", "eve-1", "gus-1"}


def test_a_change_by_the_application_agrees_with_its_ledger(company: Connection) -> None:
    company.execute(
        "UPDATE billing.subscriptions SET status = 'paused', changed_at = %s WHERE subscription_ref = 'bob-1'",
        (START + timedelta(days=98),),
    )
    refresh(company, start=DAY, end=DAY, clock=CLOCK)
    assert "bob-1" not in {row["subscription_id"] for row in interval_breaks(company)}
    row = company.execute(
        "SELECT movement FROM analytics.mrr_movements WHERE day = %s", (DAY - timedelta(days=1),)
    ).fetchall()
    assert row == [{"movement": "paused"}]


def test_a_page_for_an_empty_company(billing: Connection, tmp_path: Path) -> None:
    refresh(billing, start=DAY, end=DAY, clock=CLOCK)
    page = daily_report(billing, day=DAY, folder=tmp_path, clock=CLOCK, reporting_currency="EUR").html.read_text()
    assert "Nobody pays yet" in page


def test_the_trend_is_one_picture(company: Connection) -> None:
    root = ET.fromstring(trend_svg(company, day=DAY, reporting_currency="EUR"))  # noqa: S314 - our own text
    assert root.tag.endswith("svg")
    with pytest.raises(BadInput, match="No figures are stored"):
        trend_svg(company, day=DAY + timedelta(days=1), reporting_currency="EUR")
