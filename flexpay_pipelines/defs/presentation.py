"""How results look in the UI: figures, tables and durations as metadata.

What belongs here: turning engines' results into metadata. What does not: computing any figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg

ROWS_SHOWN = 50


def figures(result: Any) -> dict[str, dg.MetadataValue]:
    """A result (dataclass or mapping) as metadata, a value a field; empty fields are left out."""
    pairs = (
        ((field.name, getattr(result, field.name)) for field in fields(result))
        if is_dataclass(result)
        else dict(result).items()
    )
    return {str(name): _value(value) for name, value in pairs if value is not None}


def _value(value: Any) -> dg.MetadataValue:
    if isinstance(value, bool | int | float | str):
        return dg.MetadataValue.bool(value) if isinstance(value, bool) else _plain(value)
    if isinstance(value, datetime):
        return dg.MetadataValue.timestamp(value)
    if isinstance(value, timedelta):
        return dg.MetadataValue.text(str(value))
    if isinstance(value, Path):
        return dg.MetadataValue.path(value)
    if isinstance(value, Mapping | list | tuple):
        return dg.MetadataValue.json(_jsonable(value))
    return dg.MetadataValue.text(str(value))


def _plain(value: float | str) -> dg.MetadataValue:
    if isinstance(value, int):
        return dg.MetadataValue.int(value)
    return dg.MetadataValue.float(value) if isinstance(value, float) else dg.MetadataValue.text(str(value))


def _jsonable(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    return value.isoformat() if isinstance(value, datetime | date) else str(value)


def table(rows: Iterable[Mapping[str, Any]], *, empty: str = "nothing") -> dg.MetadataValue:
    """Rows as a Markdown table, the first fifty of them, with a count of the rest."""
    shown = [dict(row) for row in rows]
    if not shown:
        return dg.MetadataValue.md(empty)
    names = list(shown[0])
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(_cell(row.get(name)) for name in names) + " |" for row in shown[:ROWS_SHOWN]]
    if len(shown) > ROWS_SHOWN:
        lines.append(f"\n… and {len(shown) - ROWS_SHOWN} more")
    return dg.MetadataValue.md("\n".join(lines))


def _cell(value: Any) -> str:
    text = "" if value is None else value.isoformat(timespec="minutes") if isinstance(value, datetime) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
