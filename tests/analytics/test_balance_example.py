"""The worked example of balances in docs/metrics.md, computed from its own tables."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest

from flexpay_pipelines.analytics import deferred_revenue, dunning, rewards_liability
from flexpay_pipelines.database import Connection
from tests.analytics.ledger import write
from tests.analytics.money import Entry, Payment, book, pay
from tests.analytics.reference import Event
from tests.analytics.test_definitions import table

MONTHS: dict[str, Any] = {"start": date(2026, 1, 1), "end": date(2026, 3, 31), "grain": "month"}


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.fixture
def ann(billing: Connection) -> Connection:
    write(
        billing,
        [
            Event("ann-1", "ann", row["event"], instant(row["when"]), instant(row["when"]), amount_minor=3100)
            for row in table("balance events")
        ],
    )
    pay(
        billing,
        [
            Payment("ann-1", instant(row["when"]), int(row["amount_minor"]), row["outcome"], int(row["attempt"]))
            for row in table("payments")
        ],
    )
    book(
        billing,
        [
            Entry(
                "ann",
                instant(row["when"]),
                row["kind"],
                int(row["amount_minor"]),
                instant(row["expires"]) if row["expires"] else None,
            )
            for row in table("rewards")
        ],
    )
    return billing


@pytest.mark.parametrize(
    ("name", "figure"), [("deferred", deferred_revenue), ("dunning", dunning), ("liability", rewards_liability)]
)
def test_the_worked_example(ann: Connection, name: str, figure: Any) -> None:
    wanted = table(name)
    found = [{column: str(row[column]) for column in wanted[0]} for row in figure(ann, **MONTHS)]
    assert found == wanted
