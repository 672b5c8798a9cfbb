"""From a CSV file to its staging table: streamed, with line numbers, nothing interpreted yet.

What belongs here: what can be wrong with a file as CSV (encoding, quoting, header, number of values, a cut end).
What does not: what a value may be (sql/queries/importing_values.sql).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flexpay_pipelines.billing.import_contract import ContractFile, RowProblem
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import disk_errors

if TYPE_CHECKING:
    import psycopg

BATCH_ROWS = 5_000
# A file that is not what it claims to be would fill the memory with faults: reading stops here.
MOST_MALFORMED = 1_000
CUT_SHORT = "and the file ends there without a line end: it was probably cut short"

Row = list[str]


class _Lines:
    """The physical lines of a file, remembering the last one."""

    def __init__(self, text: Iterable[str]) -> None:
        self.text = text
        self.last = ""

    def __iter__(self) -> Iterator[str]:
        for line in self.text:
            self.last = line
            yield line

    @property
    def ended(self) -> bool:
        """Whether the last line has a line end."""
        return self.last.endswith(("\n", "\r"))


class _Staging:
    """Reads one file into its staging table."""

    def __init__(self, file: ContractFile, problems: list[RowProblem]) -> None:
        self.file = file
        self.problems = problems
        self.malformed = 0
        self.rows = 0

    def fault(self, line: int, reason: str, column: str = "") -> None:
        self.malformed += 1
        self.problems.append(RowProblem(self.file.name, line, column, reason))

    def header(self, header: Row | None) -> bool:
        """Whether every column of the header is known, once, and none that is required is missing."""
        if not header:
            self.fault(1, f"the file is empty; a header row is expected: {','.join(self.file.columns)}")
            return False
        known = ", ".join(self.file.columns)
        before = self.malformed
        seen: set[str] = set()
        for name in header:
            if name in seen:
                self.fault(1, "the column stands twice in the header", shown(name))
            elif name not in self.file.columns:
                self.fault(1, f"the column is unknown; known are {known}", shown(name))
            seen.add(name)
        for name in self.file.required:
            if name not in seen:
                self.fault(1, "the column is missing from the header", name)
        return self.malformed == before

    def copy(self, connection: Connection, lines: _Lines) -> bool:
        """Read all rows; False when the header already forbids it."""
        from psycopg import sql  # noqa: PLC0415 - the code location loads without it

        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, None)
        except csv.Error as error:
            self.fault(1, _csv_reason(error))
            return False
        if not self.header(header) or header is None:
            return False
        statement = sql.SQL("COPY pg_temp.{} ({}) FROM STDIN (FORMAT csv)").format(
            sql.Identifier(self.file.staging), sql.SQL(", ").join(map(sql.Identifier, ("line", *header)))
        )
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            last = self._batches(copy, reader, len(header))
        if not lines.ended and last is not None and header[-1] in self.file.numbers:
            self.fault(last, f"the number is the end of the file, {CUT_SHORT}; end the last line", header[-1])
        return True

    def _batches(self, copy: psycopg.Copy, reader: Iterator[Row], width: int) -> int | None:
        """Send the rows in batches; the line of the last one that was whole, None when the last line was not."""
        batch: list[tuple[int, Row]] = []
        last: int | None = None
        for line, row in self._rows(reader):
            if len(row) == width:
                batch.append((line, row))
                last = line
            else:
                last = None
                self.fault(line, f"has {len(row)} values instead of {width}")
            if len(batch) == BATCH_ROWS:
                self._send(copy, batch)
                batch.clear()
        self._send(copy, batch)
        return last

    def _rows(self, reader: Iterator[Row]) -> Iterator[tuple[int, Row]]:
        """The rows that are CSV, each with the line that it begins on. Empty lines are left out."""
        while self.malformed < MOST_MALFORMED:
            line = reader.line_num + 1  # type: ignore[attr-defined]
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                self.fault(line, _csv_reason(error))
            else:
                if row:
                    yield line, row
        self.fault(line, f"is where reading stopped, after {MOST_MALFORMED} lines that are malformed")

    def _send(self, copy: psycopg.Copy, batch: list[tuple[int, Row]]) -> None:
        text = _as_csv(batch)
        try:
            data = text.encode()
        except UnicodeEncodeError:
            data = b"\0"
        if b"\0" in data:
            data = _as_csv([(line, row) for line, row in batch if self._storable(line, row)]).encode()
        copy.write(data)
        self.rows += len(batch)

    def _storable(self, line: int, row: Row) -> bool:
        for value in row:
            if "\0" in value:
                self.fault(line, "holds a NUL byte, which text never does")
                return False
            if any("\ud800" <= character <= "\udfff" for character in value):
                self.fault(line, f"is not UTF-8: {shown(value)}")
                return False
        return True


def _as_csv(batch: list[tuple[int, Row]]) -> str:
    buffer = io.StringIO()
    # "\r\n": the writer quotes just those line ends that are its own, and COPY takes neither of them unquoted.
    csv.writer(buffer, lineterminator="\r\n").writerows([line, *row] for line, row in batch)
    return buffer.getvalue()


def _csv_reason(error: csv.Error) -> str:
    said = str(error)
    if "unexpected end of data" in said:
        return 'a quoted value that begins here has no closing ": the file was probably cut short'
    if "field larger than field limit" in said:
        return "a value is longer than 131072 characters; is a quotation mark missing?"
    if "expected after" in said:
        return 'a closing " is followed by more text; a " inside a quoted value is written twice'
    return f"is not CSV: {said}"


def shown(value: str, most: int = 40) -> str:
    """A value as a message may hold it: printable, quoted, not too long."""
    printable = "".join(character if character.isprintable() else _escaped(character) for character in value)
    return f"'{printable[:most]}…'" if len(printable) > most else f"'{printable}'"


def _escaped(character: str) -> str:
    code = ord(character)
    # What surrogateescape made of a byte that is not UTF-8 is shown as that byte.
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else repr(character)[1:-1]  # noqa: PLR2004


def stage_file(connection: Connection, path: Path, file: ContractFile, problems: list[RowProblem]) -> int | None:
    """Stream a file into its staging table (text columns, `line` counts from 1); faults are added to `problems`.

    Returns: the number of rows staged; None when the header already forbids reading them.

    Raises:
        PermanentError: the file cannot be read.
    """
    staging = _Staging(file, problems)
    with (
        disk_errors(f"reading {file.name}"),
        path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        lines = _Lines(text)
        read = staging.copy(connection, lines)
    if problems and not lines.ended and problems[-1].reason.startswith("has ") and problems[-1].file == file.name:
        cut = problems.pop()
        problems.append(RowProblem(cut.file, cut.line, cut.column, f"{cut.reason}, {CUT_SHORT}"))
    return staging.rows if read else None
