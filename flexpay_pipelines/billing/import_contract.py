"""The files of the data contract that `flexpay import` reads: names, columns, and what a fault is called.

What belongs here: the shape of the files, as data, and the error that names every bad row.
What does not: reading them (`import_reading`), what their values may be (sql/queries/importing_values.sql).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flexpay_pipelines.errors import BadInput

SHOWN_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class ContractFile:
    """One file: columns that must be there, columns that may be, and those that hold numbers."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    component: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns, in the order of the contract."""
        return self.required + self.optional

    @property
    def staging(self) -> str:
        """The temporary table that its rows are read into, all text."""
        return f"staged_{self.name.removesuffix('.csv')}"


# In the order in which they are loaded.
CONTRACT = (
    ContractFile("plans.csv", ("plan",), ("name",)),
    ContractFile(
        "customers.csv", ("customer_id", "currency"), ("country", "email", "time_zone", "stripe_customer_id")
    ),
    ContractFile(
        "subscription_events.csv",
        (
            "subscription_id", "customer_id", "occurred_at", "event", "plan", "payment_frequency", "amount_minor",
            "quantity", "currency",
        ),
        ("recorded_at",),
        numbers=("amount_minor", "quantity"),
    ),
    ContractFile(
        "pauses.csv",
        ("pause_id", "subscription_id", "starts_at", "ends_at", "kind"),
        ("reason", "state"),
        component="pauses",
    ),
    ContractFile(
        "payments.csv",
        ("payment_id", "subscription_id", "occurred_at", "amount_minor", "currency", "outcome"),
        ("failure_class", "failure_code", "attempt"),
        numbers=("amount_minor", "attempt"),
    ),
    ContractFile(
        "rewards.csv",
        ("customer_id", "occurred_at", "kind", "amount_minor"),
        ("expires_at",),
        numbers=("amount_minor",),
        component="rewards",
    ),
    ContractFile(
        "fx_rates.csv", ("date", "currency", "reporting_currency", "rate"), numbers=("rate",)
    ),
)  # fmt: skip
FILE_NAMES = tuple(file.name for file in CONTRACT)


@dataclass(frozen=True, slots=True)
class RowProblem:
    """One fault: `line` counts from 1 (the header), `column` is empty where the whole line is meant."""

    file: str
    line: int
    column: str
    reason: str

    def __str__(self) -> str:
        column = f", column {self.column}" if self.column else ""
        return f"{self.file}, line {self.line}{column}: {self.reason}"


class BadRows(BadInput):
    """Rows of an import cannot be used; nothing was imported. The message has a line for each of the first hundred."""

    def __init__(self, problems: Sequence[RowProblem], total: int) -> None:
        self.problems = tuple(problems)
        self.total = total
        head = "1 fault" if total == 1 else f"{total} faults"
        lines = [f"Nothing was imported: mend {head} and import again.", *map(str, self.problems[:SHOWN_PROBLEMS])]
        if total > SHOWN_PROBLEMS:
            lines.append(f"… and {total - SHOWN_PROBLEMS} more.")
        super().__init__("\n".join(lines))
