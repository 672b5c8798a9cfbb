"""How the command shows results and asks before it acts.

What belongs here: tables, JSON, the question. What does not: any figure's meaning.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from flexpay_pipelines.errors import BadInput

# To the minute, UTC: a person reads no more of it.
_INSTANT = re.compile(r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}")

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
PlanOnly = Annotated[bool, typer.Option("--plan", help="Print what would be done and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]


def plain(value: Any) -> Any:
    """A result as JSON can hold it: times in ISO-8601, durations in seconds, decimals as text."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value) if isinstance(value, Decimal | Path) else value


def say(text: str) -> None:
    """A line for the person, on standard error, so that standard output stays the result."""
    typer.echo(text, err=True)


def show(result: Any, *, as_json: bool, title: str = "", columns: Sequence[str] = ()) -> None:
    """The result: all of it as JSON for programs; for people a table (of these columns) or a list of figures."""
    value = plain(result)
    if as_json:
        typer.echo(json.dumps(value, indent=2))
    elif isinstance(value, list):
        show_rows(({name: row[name] for name in columns or row} for row in value), title=title)
    else:
        show_rows(({"what": key, "value": item} for key, item in value.items()), title=title)


def show_rows(rows: Iterable[Mapping[str, Any]], *, title: str = "") -> None:
    """Rows as a table as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table

    shown = list(rows)
    console = Console(file=sys.stdout)
    if not shown:
        console.print(f"{title}: nothing" if title else "nothing")
        return
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for name in shown[0]:
        table.add_column(str(name), overflow="fold")
    for row in shown:
        table.add_row(*(_cell(cell) for cell in row.values()))
    console.print(table)


def _cell(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, dict):
        return "\n".join(f"{name}: {_cell(value)}" for name, value in cell.items())
    if isinstance(cell, list):
        return "\n".join(_cell(value) for value in cell)
    if isinstance(cell, str) and _INSTANT.match(cell):
        return cell[:16].replace("T", " ")
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)


def planned(plan: Any, *, plan_only: bool, yes: bool, as_json: bool, question: str) -> bool:
    """Show the plan and settle whether to go on.

    Returns:
        False when only the plan was wanted, or the answer was no.

    Raises:
        BadInput: nobody can be asked and `--yes` was not given.
    """
    if plan_only:
        show(plan, as_json=as_json, title="Plan")
        return False
    if yes:
        return True
    if not sys.stdin.isatty():
        raise BadInput(f"{question} Nobody can be asked here: add --yes to go on, or --plan to see what would be done.")
    show(plan, as_json=False, title="Plan")
    if typer.confirm(question, err=True):
        return True
    say("Nothing was changed.")
    return False
