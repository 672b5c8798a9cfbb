"""What becomes of the ledger's odder histories: repetitions, and what happens in the middle of a pause."""

from __future__ import annotations

from datetime import timedelta

from flexpay_pipelines.analytics import movements
from flexpay_pipelines.database import Connection
from tests.analytics.ledger import write
from tests.analytics.reference import Event
from tests.analytics.test_definitions import START, event


def _moved(connection: Connection, events: list[Event]) -> list[tuple[int, str, int]]:
    write(connection, events)
    first = START.date()
    rows = movements(connection, start=first, end=first + timedelta(days=200), grain="day")
    return [
        (
            (START.fromisoformat(row["period"]).date() - first).days, row["movement"], int(row["annualised_minor"])
        )
        for row in rows
    ]  # fmt: skip


def test_what_repeats_an_event_after_another_at_the_same_instant_counts_once(billing: Connection) -> None:
    """The second `paused` is the first once more, not a pause that follows on the resumption."""
    pause, resumption = event("paused", 5), event("resumed", 5)
    assert _moved(billing, [event("started", 0), pause, resumption, pause]) == [(0, "new", 12_000)]


def test_a_pause_asked_for_again_later_is_another(billing: Connection) -> None:
    """Recorded at another time, it is no repetition."""
    pause, resumption = event("paused", 5), event("resumed", 5)
    again = event("paused", 5, recorded_at=pause.recorded_at + timedelta(hours=1))
    found = _moved(billing, [event("started", 0), pause, resumption, again])
    assert found == [(0, "new", 12_000), (5, "paused", -12_000), (95, "churn", 0)]


def test_a_pause_ages_from_its_first_request_whatever_changes_in_it(billing: Connection) -> None:
    inside = [event("changed", 20, amount_minor=2000), event("paused", 30), event("changed", 60, amount_minor=1000)]
    found = _moved(billing, [event("started", 0), event("paused", 5), *inside])
    assert found == [(0, "new", 12_000), (5, "paused", -12_000), (95, "churn", 0)]


def test_a_pause_ages_anew_after_one_that_ended(billing: Connection) -> None:
    found = _moved(
        billing,
        [event("started", 0), event("paused", 5), event("resumed", 50), event("paused", 60), event("changed", 70)],
    )
    assert found == [
        (0, "new", 12_000), (5, "paused", -12_000), (50, "resumed", 12_000), (60, "paused", -12_000),
        (150, "churn", 0),
    ]  # fmt: skip
