"""The stored intervals brought up to date with the ledger, at the cost of what is new in it.

What belongs here: which subscriptions are replayed, and that none is forgotten. What does not: the replay (the SQL),
the figures (`refresh`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

from flexpay_pipelines.analytics.bulk import first_rows_of
from flexpay_pipelines.analytics.days import day_of
from flexpay_pipelines.analytics.policy import Span
from flexpay_pipelines.analytics.second_session import SecondSession
from flexpay_pipelines.analytics.stored_cohorts import changed_month
from flexpay_pipelines.analytics.workspace import Workspace
from flexpay_pipelines.sql import queries


@dataclass(frozen=True, slots=True)
class Touched:
    """What a refresh replayed: how many subscriptions, since when they may differ, how far the ledger was read.

    `cohorts`: the month whose stored cohorts differ by what these customers were and are; None: count them anew.
    `anew`: the whole ledger was read.
    """

    subscriptions: int
    since: datetime | None
    event_high_water: int
    cohorts: date | None = None
    anew: bool = False


def bring_intervals_up_to_date(
    work: Workspace,
    asked: Span,
    progress: Callable[[str], None],
    second: SecondSession,
    meanwhile: Callable[[], object],
) -> Touched:
    """Replay the subscriptions that have events which the stored intervals do not hold, and those of moved customers.

    An event may be committed after one with a larger id. The ids that were missing below the mark are kept, and looked
    for again until the transactions that were writing to the ledger then have ended. Hence the order of the statements:
    who ended before the ledger is read is seen in it; who has not is among the writers afterwards.

    `second` replays its share of the ledger; `meanwhile` is done with the own share until it has.
    """
    connection = work.connection
    named = queries("analytics_intervals")
    known = named.interval_progress(connection)
    if known is not None and known["event_high_water"] > named.ledger_end(connection):
        known = None  # Another ledger.
    writing = set(named.ledger_writers(connection))
    mark, gaps = (0, _multirange([])) if known is None else (known["event_high_water"], known["gaps"])
    if known is None:
        named.see_all_arrived(connection)
    else:
        named.insert_unseen(connection, event_high_water=mark, gaps=gaps)
        named.see_unseen_arrived(connection)
    extent = named.ledger_extent(connection, event_high_water=mark, gaps=gaps)
    if known is None:
        touched = _replay_everything(work, progress, second, meanwhile)
    else:
        touched = _replay_touched(work, asked, progress)
    unsettled = [*extent["gaps"]]
    if known is not None and writing & set(known["writers"]):
        unsettled += extent["still_missing"]
    named.keep_progress(
        connection,
        event_high_water=extent["event_high_water"],
        events=extent["events"] + (0 if known is None else known["events"]),
        gaps=_multirange(unsettled),
        writers=named.ledger_writers(connection),
    )
    return replace(touched, event_high_water=extent["event_high_water"], anew=known is None)


def _multirange(ranges: list[Any]) -> Any:
    from psycopg.types.multirange import Multirange  # noqa: PLC0415 - the code location loads without it

    return Multirange(ranges)


def _replay_everything(
    work: Workspace, progress: Callable[[str], None], second: SecondSession, meanwhile: Callable[[], object]
) -> Touched:
    connection = work.connection
    named = queries("analytics_intervals")
    ledger = named.whole_ledger(connection)
    progress(f"Replaying the history of all {ledger['subscriptions']} subscriptions.")
    connection.execute("DELETE FROM analytics.run_rate_intervals")
    connection.execute("DELETE FROM analytics.moved_customers")
    queries("analytics_currencies").insert_currencies(connection)
    with first_rows_of(connection, "analytics.run_rate_intervals"):
        work.replay_everything()
        if second.there is not None:
            meanwhile()
            second.wait_for_staged()
            queries("analytics_second_session").store_intervals(connection)
    return Touched(ledger["subscriptions"], ledger["since"], 0)


def _replay_touched(work: Workspace, asked: Span, progress: Callable[[str], None]) -> Touched:
    connection = work.connection
    named = queries("analytics_intervals")
    named.prefer_lookups(connection)
    named.touch_subscriptions(connection)
    touched = named.touched(connection)
    progress(f"Replaying the history of {touched['subscriptions']} subscriptions that have new events.")
    if not touched["subscriptions"]:
        return Touched(0, None, 0)
    work.look_up_touched()
    work.replay_touched()
    named.forget_stale_intervals(connection)
    named.keep_fresh_intervals(connection)
    cohorts = changed_month(work, asked, day_of(connection, touched["since"]))
    queries("analytics_movements").look_up_fresh(connection)
    queries("analytics_currencies").insert_touched_currencies(connection)
    return Touched(touched["subscriptions"], touched["since"], 0, cohorts)
