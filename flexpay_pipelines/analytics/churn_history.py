"""The company's history as rows to learn from: who was with us on a past day, what was known of him, whether he left.

What belongs here: which days are looked at, and reading them. What does not: learning (`churn_training`), the terms
themselves (sql/queries/analytics_features).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from flexpay_pipelines.analytics.churn_terms import HORIZON_DAYS, TERMS
from flexpay_pipelines.analytics.days import day_of, midnight
from flexpay_pipelines.database import Connection, copied
from flexpay_pipelines.sql import queries

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STEP_DAYS = 15
TRAINING_DAYS = 16
FEWEST_TRAINING_DAYS = 4
# A random but fixed choice of customers is enough to learn from, and keeps memory and time bounded in a large company.
SAMPLED_CUSTOMERS = 10_000


@dataclass(frozen=True, slots=True)
class Snapshots:
    """The days at whose end customers are looked at; the 30 days after one part are over before the next begins."""

    training: tuple[date, ...]
    calibration: tuple[date, ...]
    test: tuple[date, ...]

    @property
    def all(self) -> tuple[date, ...]:
        """Every day, in order."""
        return (*self.training, *self.calibration, *self.test)


@dataclass(frozen=True)
class Rows:
    """Customers on days, one a row: `terms` 0 or 1 by TERMS, `churned` whether he was gone 30 days later."""

    days: NDArray[np.datetime64]
    customers: NDArray[np.int64]
    terms: NDArray[np.float64]
    plans: NDArray[np.str_]
    frequencies: NDArray[np.str_]
    churned: NDArray[np.bool_]

    def of(self, days: Sequence[date]) -> Rows:
        """The rows of these days."""
        import numpy as np  # noqa: PLC0415

        kept = np.isin(self.days, np.array(days, dtype="datetime64[D]"))
        return Rows(
            self.days[kept], self.customers[kept], self.terms[kept], self.plans[kept], self.frequencies[kept],
            self.churned[kept],
        )  # fmt: skip


def snapshots(day: date, first: date) -> Snapshots:
    """The days to learn from when `day` is scored, in a company that has had customers since `first`.

    Two days each to test and to calibrate on, 15 days apart, and up to sixteen to train on: none in the company's first
    30 days, and as few as there are.
    """

    def back(newest: date, count: int) -> tuple[date, ...]:
        days = (newest - timedelta(days=STEP_DAYS * n) for n in reversed(range(count)))
        return tuple(each for each in days if each >= first + timedelta(days=HORIZON_DAYS))

    gap = timedelta(days=HORIZON_DAYS + STEP_DAYS)
    newest = day - timedelta(days=HORIZON_DAYS)
    return Snapshots(back(newest - 2 * gap, TRAINING_DAYS), back(newest - gap, 2), back(newest, 2))


def first_day(connection: Connection) -> date | None:
    """Since when the company has customers; None while it has none."""
    first = queries("analytics_features").first_counted(connection)
    return None if first is None else day_of(connection, first)


@contextmanager
def terms_of_today(connection: Connection, *, day: date, paused_churn_days: int | None) -> Iterator[None]:
    """A row of terms in risk_features for everybody who is with us at the end of `day`, by all that is known now."""
    named = queries("analytics_features")
    named.open_terms(connection)
    named.open_today(connection)
    (named.open_credits if _has_rewards(connection) else named.open_no_credits)(connection)
    _insert(connection, day, paused_churn_days)
    connection.execute("ANALYZE pg_temp.risk_features")
    yield
    named.close_today(connection)


def read_history(
    connection: Connection, chosen: Snapshots, *, paused_churn_days: int | None, sample: int = SAMPLED_CUSTOMERS
) -> Rows:
    """The customers of every chosen day, judged by what was known by its end, with what became of them.

    What lies later, or was recorded later, has no part in it. Of more than `sample` customers, about so many are taken.
    """
    named = queries("analytics_features")
    _copy_sample(connection, sample)
    for day in chosen.all:
        at = midnight(connection, day + timedelta(days=1))
        named.forget_late(connection)
        if named.find_late(connection, at=at):
            queries("analytics_intervals").insert_repeated(connection)
            queries("analytics_intervals").insert_intervals(connection, marked=False)
        _insert(connection, day, paused_churn_days)
        later = at + timedelta(days=HORIZON_DAYS)
        named.mark_churned(connection, day=day, at=later, paused_churn_days=paused_churn_days)
    rows = _read(connection)
    named.close_history(connection)
    return rows


def _copy_sample(connection: Connection, sample: int) -> None:
    named = queries("analytics_features")
    named.open_terms(connection)
    named.open_history(connection)
    queries("analytics_intervals").see_payers(connection)
    queries("analytics_intervals").create_replay(connection)
    named.sample_customers(connection, share=sample / max(named.count_customers(connection), 1))
    connection.execute("ANALYZE pg_temp.risk_customers")
    named.copy_events(connection)
    named.copy_payments(connection)
    named.copy_intervals(connection)
    if _has_rewards(connection):
        named.copy_credits(connection)
    named.date_loaded_events(connection)
    named.date_loaded_payments(connection)
    named.date_loaded_credits(connection)
    named.index_history(connection)


def _insert(connection: Connection, day: date, paused_churn_days: int | None) -> None:
    queries("analytics_features").insert_features(
        connection,
        day=day,
        at=midnight(connection, day + timedelta(days=1)),
        horizon_days=HORIZON_DAYS,
        paused_churn_days=paused_churn_days,
    )


def _read(connection: Connection) -> Rows:
    import numpy as np  # noqa: PLC0415
    from pyarrow import csv  # noqa: PLC0415

    with copied(connection, "COPY pg_temp.risk_features TO STDOUT (FORMAT csv, HEADER)") as blocks:
        text = b"".join(blocks)
    wanted = csv.ConvertOptions(
        include_columns=["day", "customer_id", "plan", "frequency", "churned", *TERMS],
        column_types=dict.fromkeys(("plan", "frequency"), "string") | dict.fromkeys(("churned", *TERMS), "bool"),
        true_values=["t"],
        false_values=["f"],
    )
    table = csv.read_csv(io.BytesIO(text), convert_options=wanted)

    def column(name: str) -> Any:
        return table.column(name).to_numpy()

    # The order in which rows come back is not certain, and sums of floats depend on it.
    order = np.lexsort((column("customer_id"), column("day")))
    return Rows(
        days=column("day").astype("datetime64[D]")[order],
        customers=column("customer_id").astype(np.int64)[order],
        terms=np.column_stack([column(term) for term in TERMS]).astype(np.float64)[order],
        plans=column("plan").astype(str)[order],
        frequencies=column("frequency").astype(str)[order],
        churned=column("churned").astype(bool)[order],
    )


def _has_rewards(connection: Connection) -> bool:
    row = connection.execute("SELECT to_regclass('billing.reward_entries') IS NOT NULL AS there").fetchone()
    return bool(row and row["there"])
