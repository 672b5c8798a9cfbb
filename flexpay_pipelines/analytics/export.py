"""Figures as files: CSV and Parquet with exactly the columns of docs/data-contract.md.

What belongs here: checking what is asked for, writing. What does not: what is in a dataset (`datasets`).
"""

from __future__ import annotations

import contextlib
import csv
import os
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

from flexpay_pipelines.analytics.datasets import DATASETS, Columns, Dataset, Request
from flexpay_pipelines.analytics.policy import MetricPolicy, check_currency, choice, parse_span
from flexpay_pipelines.database import Connection, copied
from flexpay_pipelines.errors import BadInput, disk_errors

FORMATS = ("csv", "parquet")
BATCH_ROWS = 50_000


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
        by: the segment; None: the total of mrr-summary, the payment frequencies of payments.
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
        return write_rows(rows, chosen.columns_by(by), format=format, out=out, native=currency is None)


def _closable(rows: Iterable[dict[str, Any]]) -> Generator[dict[str, Any], None, None]:
    yield from rows


def _check_segment(dataset: str, chosen: Dataset, by: str | None) -> None:
    if by is not None and not chosen.segments:
        raise BadInput(f"{dataset} has no segments: leave --by out.")
    if by is not None:
        choice(f"segment of {dataset}", by, chosen.segments)


def _check_currency(dataset: str, chosen: Dataset, currency: str | None) -> None:
    if currency is not None and not chosen.converts:
        raise BadInput(f"{dataset} comes in the customers' own currencies only: leave the currency out.")
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
    with _whole(out) as part:
        writer = _write_csv if format == "csv" else _write_parquet
        return writer(rows, columns, part, native)


def write_copied(
    connection: Connection, statement: str, parameters: Mapping[str, Any], columns: Columns, *, csv: Path, parquet: Path
) -> None:
    """Write what a COPY gives as CSV, with the names of `columns`, to both files, row by row nowhere."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - heavy
    from pyarrow import csv as reader  # noqa: PLC0415

    with _whole(csv) as part:
        with part.open("wb") as file, copied(connection, statement, parameters) as blocks:
            file.writelines(blocks)
            file.flush()
            os.fsync(file.fileno())
        options = reader.ConvertOptions(column_types=_arrow(columns, native=True), strings_can_be_null=True,
                                        quoted_strings_can_be_null=False, null_values=[""])  # fmt: skip
        with _whole(parquet) as other:
            pq.write_table(reader.read_csv(part, convert_options=options), other)


@contextlib.contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A temporary file beside `out`, renamed to it when it is complete."""
    with disk_errors("writing the export"):
        handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part")
        os.close(handle)
        part = Path(name)
        try:
            yield part
            part.chmod(0o644)
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)


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
        return str(int(value)) if native else _exact(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    return str(value)


def _exact(value: Decimal) -> str:
    """An exact amount without exponent or idle zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _write_parquet(rows: Iterable[dict[str, Any]], columns: Columns, path: Path, native: bool) -> int:
    import pyarrow as pa  # noqa: PLC0415 - heavy
    import pyarrow.parquet as pq  # noqa: PLC0415

    schema = _arrow(columns, native=native)
    iterator = iter(rows)
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(islice(iterator, BATCH_ROWS)):
            writer.write_batch(
                pa.record_batch(
                    [
                        pa.array([_typed(row[name], kind, native) for row in batch], schema.field(name).type)
                        for name, kind in columns.items()
                    ],
                    schema=schema,
                )
            )
            count += len(batch)
    return count


def _arrow(columns: Columns, *, native: bool) -> Any:
    """The types of the columns as Arrow has them."""
    import pyarrow as pa  # noqa: PLC0415

    types = {
        "text": pa.string(),
        "int": pa.int64(),
        "minor": pa.int64() if native else pa.decimal128(38, 14),
        "money": pa.decimal128(38, 4),
        "rate": pa.float64(),
    }
    return pa.schema([(name, types[kind]) for name, kind in columns.items()])


def _typed(value: Any, kind: str, native: bool) -> Any:
    if value is None:
        return None
    if kind == "rate":
        return float(value)
    if kind == "int" or (kind == "minor" and native):
        return int(value)
    return value
