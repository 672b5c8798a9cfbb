"""The files: exact columns, exact text, whole or not at all."""

from __future__ import annotations

import csv
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from flexpay_pipelines.analytics import DATASETS, FORMATS, export_dataset
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput, PermanentError
from tests.analytics.ledger import write
from tests.analytics.reference import Event

AT = datetime(2026, 1, 5, tzinfo=UTC)
CONTRACT = {
    "mrr-movements": "period, customer_id, currency, movement, annualised_minor, mrr",
    "mrr-summary": "period, segment, currency, start, new, reactivation, expansion, contraction, churn, paused, "
    "resumed, transfer, fx, end, customers, paying_customers, subscriptions, paused_subscriptions",
    "churn": "period, definition, customers_start, customers_churned, customer_churn_rate, gross_mrr_churn, "
    "net_mrr_churn, nrr, grr, quick_ratio, arpa, ltv, pause_rate",
    "cohorts": "cohort, period, months, currency, customers_start, customers, paying_customers, customer_retention, "
    "start, end, run_rate_retention",
    "payments-health": "period, payment_frequency, attempts, succeeded, failed, success_rate, issuer_decline, block, "
    "integration_error, provider_error, other_failure, recovered",
    "dunning": "period, payment_frequency, episodes, recovered, recovery_rate, median_days, p90_days",
    "rewards-liability": "period, currency, opening, earned, spent, expired, reversed, closing, customers, overdue, "
    "within_30_days, within_90_days, within_365_days, later, never",
    "deferred-revenue": "period, currency, opening, received, recognised, closing, closing_paused",
    "paused-revenue": "period, currency, subscriptions, annualised_minor, mrr, up_to_30_days, up_to_90_days, longer",
    "restatements": "period, restated_at, segment_kind, segment, currency, figure, before, after, events, "
    "moved_customers, first_events",
}
CONVERTED = ("mrr-movements", "mrr-summary", "churn", "cohorts")


def ask(connection: Connection, out: Path, **changes: Any) -> int:
    wanted: dict[str, Any] = {
        "dataset": "mrr-movements",
        "start": "2026-01-01",
        "end": "2026-01-31",
        "grain": "day",
        "by": None,
        "currency": None,
        "known_at": None,
        "format": "csv",
        "out": out,
    }
    return export_dataset(connection, **(wanted | changes))


@pytest.fixture
def company(billing: Connection) -> Connection:
    write(
        billing,
        [
            Event("ann-1", "ann", "started", AT, AT, payment_frequency="WEEKLY", amount_minor=1001),
            Event("bob-1", "bob", "started", AT, AT + timedelta(days=20), currency="USD"),
            Event("ann-1", "ann", "canceled", AT + timedelta(days=10), AT + timedelta(days=10)),
        ],
    )
    billing.execute(
        "INSERT INTO billing.fx_rates VALUES ('2026-01-01', 'USD', 'EUR', 0.92), ('2026-01-08', 'USD', 'EUR', 0.93)"
    )
    return billing


def lines(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("dataset", list(CONTRACT))
@pytest.mark.parametrize("format", FORMATS)
def test_columns(company: Connection, tmp_path: Path, dataset: str, format: str) -> None:  # noqa: A002
    import pyarrow.parquet as pq

    out = tmp_path / f"x.{format}"
    currency = "EUR" if dataset in CONVERTED else None
    span = {"start": "2026-01", "end": "2026-02", "grain": "month"}
    if "month" not in DATASETS[dataset].grains:
        span = {"start": "2026-01-01", "end": "2026-02-28", "grain": "day"}
    count = ask(company, out, dataset=dataset, format=format, currency=currency, **span)
    columns = lines(out)[0] if format == "csv" else pq.read_table(out).column_names
    assert columns == CONTRACT[dataset].split(", ")
    assert count == (len(lines(out)) - 1 if format == "csv" else pq.read_table(out).num_rows)
    assert list(tmp_path.iterdir()) == [out]


def test_native_movements(company: Connection, tmp_path: Path) -> None:
    assert ask(company, tmp_path / "m.csv") == 3
    assert lines(tmp_path / "m.csv")[1:] == [
        ["2026-01-05", "ann", "EUR", "new", "52052", "4337.6667"],
        ["2026-01-05", "bob", "USD", "new", "12000", "1000.0000"],
        ["2026-01-15", "ann", "EUR", "churn", "-52052", "-4337.6667"],
    ]


def test_converted_movements_keep_rates_apart(company: Connection, tmp_path: Path) -> None:
    ask(company, tmp_path / "m.csv", currency="EUR")
    found = [line for line in lines(tmp_path / "m.csv") if line[1] == "bob"]
    assert found == [
        ["2026-01-05", "bob", "EUR", "new", "11040", "920.0000"],
        ["2026-01-08", "bob", "EUR", "fx", "120", "10.0000"],
    ]


def test_known_at_shows_what_was_known(company: Connection, tmp_path: Path) -> None:
    ask(company, tmp_path / "then.csv", known_at=AT + timedelta(days=1))
    assert [line[1:4] for line in lines(tmp_path / "then.csv")[1:]] == [["ann", "EUR", "new"]]


def test_parquet_keeps_money_exact(company: Connection, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    ask(company, tmp_path / "m.parquet", format="parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    assert str(table.schema.field("annualised_minor").type) == "int64"
    assert table.column("mrr").to_pylist() == [Decimal("4337.6667"), Decimal("1000.0000"), Decimal("-4337.6667")]


def test_summary_by_customer_names_the_outside_id(company: Connection, tmp_path: Path) -> None:
    ask(
        company, tmp_path / "s.csv", dataset="mrr-summary", start="2026-01", end="2026-01", grain="month", by="customer"
    )
    found = lines(tmp_path / "s.csv")[1:]
    assert [line[1] for line in found] == ["bob"]


def test_payment_health(company: Connection, tmp_path: Path) -> None:
    company.execute(
        "INSERT INTO billing.payments (payment_ref, subscription_id, occurred_at, amount_minor, currency, outcome,"
        " failure_class, attempt) SELECT 'p' || n, subscription_id, %s, 100, 'EUR', outcome, class, attempt"
        " FROM billing.subscriptions, (VALUES (1, 'failed', 'issuer_decline', 1), (2, 'succeeded', NULL, 2),"
        " (3, 'failed', 'odd', 1)) AS v (n, outcome, class, attempt) WHERE subscription_ref = 'ann-1'",
        (AT + timedelta(days=2),),
    )
    ask(company, tmp_path / "p.csv", dataset="payments-health")
    assert lines(tmp_path / "p.csv")[1:] == [
        ["2026-01-07", "WEEKLY", "3", "1", "2", "0.333333", "1", "0", "0", "0", "1", "1"]
    ]


@pytest.mark.parametrize("dataset", ["payments-health", "dunning"])
def test_the_segment_gives_its_column_its_name(company: Connection, tmp_path: Path, dataset: str) -> None:
    company.execute(
        "INSERT INTO billing.payments (payment_ref, subscription_id, occurred_at, amount_minor, currency, outcome,"
        " failure_class) SELECT 'p', subscription_id, %s, 100, 'EUR', 'failed', 'block' FROM billing.subscriptions"
        " WHERE subscription_ref = 'ann-1'",
        (AT + timedelta(days=2),),
    )
    ask(company, tmp_path / "p.csv", dataset=dataset, by="plan")
    assert [line[:3] for line in lines(tmp_path / "p.csv")] == [
        ["period", "plan", {"payments-health": "attempts", "dunning": "episodes"}[dataset]],
        ["2026-01-07", "basic", "1"],
    ]


def test_balances(company: Connection, tmp_path: Path) -> None:
    company.execute(
        "INSERT INTO billing.reward_entries (customer_id, occurred_at, kind, amount_minor)"
        " SELECT customer_id, %(at)s, 'earned', 500 FROM billing.customers WHERE customer_ref = 'ann'",
        {"at": AT},
    )
    company.execute(
        "INSERT INTO billing.payments (payment_ref, subscription_id, occurred_at, amount_minor, currency, outcome)"
        " SELECT 'p', subscription_id, %(at)s, 700, 'EUR', 'succeeded' FROM billing.subscriptions"
        " WHERE subscription_ref = 'ann-1'",
        {"at": AT},
    )
    asked: dict[str, Any] = {"start": "2026-01", "end": "2026-01", "grain": "month"}
    ask(company, tmp_path / "r.csv", dataset="rewards-liability", **asked)
    assert lines(tmp_path / "r.csv")[1:] == [
        ["2026-01", "EUR", "0", "500", "0", "0", "0", "500", "1", "0", "0", "0", "0", "0", "500"]
    ]
    ask(company, tmp_path / "d.csv", dataset="deferred-revenue", **asked)
    assert lines(tmp_path / "d.csv")[1:] == [["2026-01", "EUR", "0", "700", "700", "0", "0"]]
    ask(company, tmp_path / "p.csv", dataset="paused-revenue", **asked)
    assert lines(tmp_path / "p.csv")[1:] == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dataset": "revenue"}, "mrr-movements, mrr-summary, churn, cohorts, payments-health"),
        ({"grain": "week"}, "day, month"),
        ({"format": "xlsx"}, "csv, parquet"),
        ({"start": "2026-01"}, "'2026-01' is no day: write it as 2026-01-31"),
        ({"start": "2026-02-30"}, "'2026-02-30' is no day"),
        ({"grain": "month"}, "'2026-01-01' is no month: write it as 2026-01"),
        ({"start": "2026-02-01"}, "ends .2026-01-31. before it starts"),
        ({"start": "0001-01-01"}, "out of reach"),
        ({"by": "plan"}, "'plan' is no segment of mrr-movements: choose one of customer"),
        ({"dataset": "mrr-summary", "by": "city"}, "customer, plan, payment_frequency, country, currency"),
        ({"dataset": "churn", "by": "plan"}, "churn has no segments"),
        ({"dataset": "payments-health", "by": "country"}, "payment_frequency, plan, attempt, failure_class"),
        ({"dataset": "deferred-revenue", "currency": "EUR"}, "own currencies only: leave the currency out"),
        ({"dataset": "churn"}, "Customers pay in EUR, USD"),
        ({"dataset": "cohorts"}, "cohorts comes by month only"),
        ({"dataset": "payments-health", "currency": "EUR"}, "leave the currency out"),
        ({"currency": "euro"}, "'euro' is no currency"),
        ({"currency": "GBP"}, "No rate from EUR to GBP is known"),
    ],
)
def test_bad_input_is_named_and_leaves_no_file(
    company: Connection, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence):
        ask(company, tmp_path / "x.csv", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_older_file(company: Connection, tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    out.write_text("older")
    with pytest.raises(BadInput):
        ask(company, out, currency="GBP")
    assert out.read_text() == "older"
    with pytest.raises(PermanentError, match="writing the export"):
        ask(company, tmp_path / "missing" / "x.csv")


def test_every_dataset_is_in_the_contract() -> None:
    assert {name: ", ".join(dataset.columns) for name, dataset in DATASETS.items()} == CONTRACT
