"""Figures as files: CSV and Parquet with exactly the columns of docs/data-contract.md.

What belongs here: datasets, columns, types, writing. What does not: how a figure is computed (`figures`).
"""

from __future__ import annotations

import contextlib
import csv
import os
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

from flexpay_pipelines.analytics import figures
from flexpay_pipelines.analytics.policy import MetricPolicy, Span, check_currency, choice, parse_span
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput, disk_errors

FORMATS = ("csv", "parquet")
BATCH_ROWS = 50_000

# What a column holds: text; int; minor (annualised minor units: whole in native currency, exact when converted);
# money (minor units with four decimals); rate (a share or a ratio, six decimals).
Columns = Mapping[str, str]

_AMOUNTS = (
    "start",
    "new",
    "reactivation",
    "expansion",
    "contraction",
    "churn",
    "paused",
    "resumed",
    "transfer",
    "fx",
    "end",
)
_RATES = ("customer_churn_rate", "gross_mrr_churn", "net_mrr_churn", "nrr", "grr", "quick_ratio")


@dataclass(frozen=True, slots=True)
class Request:
    """What one export asks for, checked."""

    periods: Span
    by: str | None
    currency: str | None
    known_at: datetime | None
    policy: MetricPolicy


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset: its columns in order, where its rows come from, and what may be asked of it."""

    columns: Columns
    rows: Callable[[Connection, Request], Iterable[dict[str, Any]]]
    segments: tuple[str, ...] = ()
    has_amounts: bool = True
    grains: tuple[str, ...] = ("day", "month")


def _movements(connection: Connection, ask: Request) -> Iterator[dict[str, Any]]:
    return figures.iterate_movements(
        connection, ask.periods, known_at=ask.known_at, reporting_currency=ask.currency, policy=ask.policy
    )


def _summary(connection: Connection, ask: Request) -> Iterator[dict[str, Any]]:
    return figures.iterate_summary(
        connection, ask.periods, by=ask.by, known_at=ask.known_at, reporting_currency=ask.currency, policy=ask.policy
    )


def _churn(connection: Connection, ask: Request) -> list[dict[str, Any]]:
    return figures.churn(
        connection,
        start=ask.periods.first,
        end=ask.periods.last,
        grain=ask.periods.grain,
        known_at=ask.known_at,
        reporting_currency=ask.currency,
        policy=ask.policy,
    )


def _cohorts(connection: Connection, ask: Request) -> list[dict[str, Any]]:
    return figures.cohorts(
        connection,
        start=ask.periods.first,
        end=ask.periods.last,
        known_at=ask.known_at,
        reporting_currency=ask.currency,
        policy=ask.policy,
    )


def _payments_health(connection: Connection, ask: Request) -> list[dict[str, Any]]:
    return figures.payments_health(
        connection, start=ask.periods.first, end=ask.periods.last, grain=ask.periods.grain, known_at=ask.known_at
    )


DATASETS: Mapping[str, Dataset] = {
    "mrr-movements": Dataset(
        {
            "period": "text",
            "customer_id": "text",
            "currency": "text",
            "movement": "text",
            "annualised_minor": "minor",
            "mrr": "money",
        },
        _movements,
        segments=("customer",),
    ),
    "mrr-summary": Dataset(
        {"period": "text", "segment": "text", "currency": "text"}
        | dict.fromkeys(_AMOUNTS, "minor")
        | dict.fromkeys(("customers", "paying_customers", "subscriptions", "paused_subscriptions"), "int"),
        _summary,
        segments=figures.SEGMENTS,
    ),
    "churn": Dataset(
        {"period": "text", "definition": "text", "customers_start": "int", "customers_churned": "int"}
        | dict.fromkeys(_RATES, "rate")
        | {"arpa": "money", "ltv": "money", "pause_rate": "rate"},
        _churn,
    ),
    "cohorts": Dataset(
        {"cohort": "text", "period": "text", "months": "int", "currency": "text"}
        | dict.fromkeys(("customers_start", "customers", "paying_customers"), "int")
        | {"customer_retention": "rate", "start": "minor", "end": "minor", "run_rate_retention": "rate"},
        _cohorts,
        grains=("month",),
    ),
    "payments-health": Dataset(
        {"period": "text", "payment_frequency": "text", "attempts": "int", "succeeded": "int", "failed": "int"}
        | {"success_rate": "rate"}
        | dict.fromkeys(
            ("issuer_decline", "block", "integration_error", "provider_error", "other_failure", "recovered"), "int"
        ),
        _payments_health,
        segments=("payment_frequency",),
        has_amounts=False,
    ),
}


def export_dataset(
    connection: Connection,
    *,
    dataset: str,
    start: str,
    end: str,
    grain: str,
    by: str | None,
    currency: str | None,
    known_at: datetime | None,
    format: str,  # noqa: A002 - the word of the command line
    out: Path,
    policy: MetricPolicy | None = None,
) -> int:
    """Write a dataset to a file, whole or not at all; gives the number of rows.

    Args:
        start: the first period, `2026-01-31` at day grain, `2026-01` at month grain.
        end: the last period, included.
        by: the segment of mrr-summary; None: the total.
        currency: report amounts in this currency; None: each in its own.
        known_at: show what was known then; None: now.

    Raises:
        BadInput: an unknown dataset, grain, segment, format or period (the message names the choices), or an exchange
            rate is missing.
        PermanentError, TransientError: the file cannot be written.
    """
    choice("dataset", dataset, tuple(DATASETS))
    choice("format", format, FORMATS)
    chosen = DATASETS[dataset]
    periods = parse_span(grain, start, end)
    if grain not in chosen.grains:
        raise BadInput(f"{dataset} comes by {' and '.join(chosen.grains)} only: use --grain {chosen.grains[0]}.")
    _check_segment(dataset, chosen, by)
    _check_currency(dataset, chosen, currency)
    ask = Request(periods, by, currency, known_at, policy or MetricPolicy())
    with contextlib.closing(_closable(chosen.rows(connection, ask))) as rows:
        return write_rows(rows, chosen.columns, format=format, out=out, native=currency is None)


def _closable(rows: Iterable[dict[str, Any]]) -> Generator[dict[str, Any], None, None]:
    yield from rows


def _check_segment(dataset: str, chosen: Dataset, by: str | None) -> None:
    if by is not None and not chosen.segments:
        raise BadInput(f"{dataset} has no segments: leave --by out.")
    if by is not None:
        choice(f"segment of {dataset}", by, chosen.segments)


def _check_currency(dataset: str, chosen: Dataset, currency: str | None) -> None:
    if currency is not None and not chosen.has_amounts:
        raise BadInput(f"{dataset} counts attempts and has no amounts: leave the currency out.")
    if currency is not None:
        check_currency(currency)


def write_rows(
    rows: Iterable[dict[str, Any]],
    columns: Columns,
    *,
    format: str,  # noqa: A002
    out: Path,
    native: bool = True,
) -> int:
    """Write rows to `out` through a temporary file beside it, renamed when it is complete; gives their number."""
    with disk_errors("writing the export"):
        handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part")
        os.close(handle)
        part = Path(name)
        try:
            writer = _write_csv if format == "csv" else _write_parquet
            count = writer(rows, columns, part, native)
            part.chmod(0o644)
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)
    return count


def _write_csv(rows: Iterable[dict[str, Any]], columns: Columns, path: Path, native: bool) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_text(row[name], kind, native) for name, kind in columns.items()])
            count += 1
        file.flush()
        os.fsync(file.fileno())
    return count


def _text(value: Any, kind: str, native: bool) -> str:
    if value is None:
        return ""
    if kind == "minor":
        return str(int(value)) if native else _plain(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    return str(value)


def _plain(value: Decimal) -> str:
    """An exact amount without exponent or idle zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _write_parquet(rows: Iterable[dict[str, Any]], columns: Columns, path: Path, native: bool) -> int:
    import pyarrow as pa  # noqa: PLC0415 - heavy
    import pyarrow.parquet as pq  # noqa: PLC0415

    types = {
        "text": pa.string(),
        "int": pa.int64(),
        "minor": pa.int64() if native else pa.decimal128(38, 14),
        "money": pa.decimal128(38, 4),
        "rate": pa.float64(),
    }
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    iterator = iter(rows)
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(islice(iterator, BATCH_ROWS)):
            writer.write_batch(
                pa.record_batch(
                    [
                        pa.array([_typed(row[name], kind, native) for row in batch], types[kind])
                        for name, kind in columns.items()
                    ],
                    schema=schema,
                )
            )
            count += len(batch)
    return count


def _typed(value: Any, kind: str, native: bool) -> Any:
    if value is None:
        return None
    if kind == "rate":
        return float(value)
    if kind == "int" or (kind == "minor" and native):
        return int(value)
    return value
