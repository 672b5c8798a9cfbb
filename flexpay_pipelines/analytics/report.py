"""The daily report: one page that opens offline, and the same figures as CSV and Parquet.

What belongs here: gathering figures and writing files. What does not: what the page says (`report_page`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from flexpay_pipelines.analytics.checks import freshness, identity_breaks, interval_breaks
from flexpay_pipelines.analytics.datasets import DATASETS
from flexpay_pipelines.analytics.days import midnight, time_zone
from flexpay_pipelines.analytics.export import FORMATS, write_copied, write_rows
from flexpay_pipelines.analytics.payment_figures import payments_health, recovery
from flexpay_pipelines.analytics.report_balances import standalone
from flexpay_pipelines.analytics.report_page import AT_RISK_ROWS, BAR_DAYS, Page, render, series_of, trend
from flexpay_pipelines.analytics.restatements import restatements
from flexpay_pipelines.analytics.stored import Row, StoredFigures, read_stored, require_stored, risk_rows
from flexpay_pipelines.analytics.stored_balances import stored_balances
from flexpay_pipelines.clock import Clock
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import disk_errors
from flexpay_pipelines.sql import queries

TREND_DAYS = 90
RISK_COLUMNS = {
    "period": "text",
    "customer_id": "text",
    "score": "rate",
    "reasons": "text",
    "currency": "text",
    "annualised_minor": "minor",
    "mrr": "money",
}


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """Where the report lies; `parquet` and `csv` by dataset."""

    html: Path
    parquet: dict[str, Path]
    csv: dict[str, Path]


def daily_report(
    connection: Connection, *, day: date, folder: Path, clock: Clock, reporting_currency: str, masked: bool = True
) -> ReportFiles:
    """Write report.html and each dataset as CSV and Parquet into `folder`, which is made where it is missing.

    The figures are the stored ones of the 90 days to `day`; payment health comes from the payments. `masked`: of the
    addresses of customers at risk only the first letter and what follows the @ is shown.

    Raises:
        BadInput: the day is not stored.
        PermanentError, TransientError: a file cannot be written.
    """
    with connection.transaction():
        # Sorts and hashes of all customers; days as the contract writes them. The settings end with the transaction.
        connection.execute(
            "SELECT set_config('work_mem', '128MB', true), set_config('DateStyle', 'ISO', true),"
            # Short statements: workers take longer to start than they save.
            " set_config('max_parallel_workers_per_gather', '0', true)"
        )
        snapshot = require_stored(connection, day)
        first = max(
            queries("analytics_report").first_stored_day(connection, since=day - timedelta(days=TREND_DAYS)) or day,
            day - timedelta(days=TREND_DAYS),
        )
        figures = read_stored(connection, first=first, last=day, reporting_currency=reporting_currency)
        since = day - timedelta(days=BAR_DAYS - 1)
        payments = payments_health(connection, start=since, end=day, grain="day")
        balances = stored_balances(connection, first=first, last=day)
        risks = risk_rows(connection, day=day, named=AT_RISK_ROWS, masked=masked)
        with disk_errors("making the folder of the report"):
            folder.mkdir(parents=True, exist_ok=True)
        html = folder / "report.html"
        page = Page(
            day=day,
            made_at=clock.now(),
            figures=figures,
            payments=payments,
            recovery=recovery(connection, start=since, end=day),
            balances=balances,
            risks=risks,
            scores=queries("analytics_risk").score_counts(connection, day=day),
            snapshot=snapshot,
            breaks=identity_breaks(connection, start=first, end=day),
            gaps=interval_breaks(connection),
            fresh=freshness(connection),
            restated=queries("analytics_report").restated_days(connection, first=first, last=day),
            restatements=restatements(connection, first=first, last=day),
            time_zone=time_zone(connection),
        )
        _write_page(render(page), html)
        written: dict[str, dict[str, Path]] = {kind: {} for kind in FORMATS}
        for name, rows, columns in _datasets(figures, payments, balances):
            for kind in FORMATS:
                written[kind][name] = folder / f"{name}.{kind}"
                native = name != "cohorts" or figures.shown is None
                write_rows(rows, columns, format=kind, out=written[kind][name], native=native)
        at = midnight(connection, day + timedelta(days=1))
        for name, columns, statement, parameters in (
            ("mrr-movements", DATASETS["mrr-movements"].columns, queries("analytics_report").copy_movements,
             {"first": first, "last": day}),
            ("churn-risk", RISK_COLUMNS, queries("analytics_risk").copy_scores, {"day": day, "at": at}),
        ):  # fmt: skip
            for kind in FORMATS:
                written[kind][name] = folder / f"{name}.{kind}"
            write_copied(connection, statement.sql, parameters, columns, csv=written["csv"][name],
                         parquet=written["parquet"][name])  # fmt: skip
        return ReportFiles(html, written["parquet"], written["csv"])


def _datasets(
    figures: StoredFigures, payments: list[Row], balances: Mapping[str, list[Row]]
) -> Iterable[tuple[str, list[Row], Any]]:
    yield "mrr-summary", figures.native_total, DATASETS["mrr-summary"].columns
    yield "churn", figures.churn, DATASETS["churn"].columns
    yield "cohorts", figures.cohorts, DATASETS["cohorts"].columns
    yield "payments-health", payments, DATASETS["payments-health"].columns
    for name, rows in balances.items():
        yield name, rows, DATASETS[name].columns


def _write_page(page: str, html: Path) -> None:
    with disk_errors("writing the report"):
        part = html.with_name(f".{html.name}.part")
        part.write_text(page, encoding="utf-8")
        part.replace(html)


def trend_svg(connection: Connection, *, day: date, reporting_currency: str, days: int = TREND_DAYS) -> str:
    """The MRR trend of the days to `day` as one small SVG that carries its own colours, for metadata in a UI.

    Raises:
        BadInput: the day is not stored.
    """
    require_stored(connection, day)
    since = queries("analytics_report").first_stored_day(connection, since=day - timedelta(days=days)) or day
    figures = read_stored(connection, first=since, last=day, reporting_currency=reporting_currency)
    svg = trend(series_of(day, figures))
    return standalone(svg)
