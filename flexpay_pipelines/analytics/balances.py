"""What is owed at the end of each period: reward credit, money received in advance, run rate that is paused.

What belongs here: these balances for any range, grain and moment of knowledge, in the customers' own currencies. What
does not: the stored daily balances (`stored_balances`). Amounts are whole minor units; periods are written `2026-01-31`
or `2026-01`. The cost grows with entries, payments and pauses, not with customers x days.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from typing import Any

from flexpay_pipelines.analytics.days import midnight
from flexpay_pipelines.analytics.policy import Grain, MetricPolicy, Span, span
from flexpay_pipelines.analytics.workspace import ledger_workspace
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.sql import queries

Row = dict[str, Any]

_TABLES = {
    "metric_billed": "payment_id bigint, subscription_id bigint, currency text, amount bigint, received integer, "
    "first_day integer, days integer, over integer",
    "metric_service": "payment_id bigint, starts integer, ends integer, pause_ends integer, elapsed bigint, "
    "length bigint",
    "metric_courses": "currency text, amount bigint, days integer, from_day integer, to_day integer, served bigint, "
    "moving integer, payments bigint",
}


def rewards_liability(
    connection: Connection, *, start: date, end: date, grain: Grain, known_at: datetime | None = None
) -> list[Row]:
    """Reward credit that customers have left: `opening + earned - spent - expired - reversed = closing`, by currency.

    Aged by when it runs out, seen from the end of the period: `overdue, within_30_days, within_90_days,
    within_365_days, later, never`; they sum to `closing`. `customers` have any left.

    Raises:
        BadInput: the range or the grain makes no sense, or rewards are not deployed.
    """
    periods = span(grain, start, end)
    if not rewards_deployed(connection):
        raise BadInput("There is no reward ledger in this database: run flexpay deploy, or leave rewards out.")
    return liability_rows(connection, periods, known_at)


def rewards_deployed(connection: Connection) -> bool:
    """Whether there is a reward ledger; a rollback takes it away."""
    return bool(queries("analytics_liability").rewards_deployed(connection))


def liability_rows(connection: Connection, periods: Span, known_at: datetime | None) -> list[Row]:
    """`rewards_liability` of periods that were checked."""
    rows = queries("analytics_liability").liability_rows(
        connection, first=periods.first, last=periods.last, grain=periods.grain, known_at=known_at
    )
    return labelled(rows, periods.grain)


def deferred_revenue(
    connection: Connection, *, start: date, end: date, grain: Grain, known_at: datetime | None = None
) -> list[Row]:
    """Money received for days that had not come yet: `opening + received - recognised = closing`, by currency.

    Straight-line by the day over the billed period, which stands still while the subscription is paused;
    `closing_paused` is the part of `closing` that does. docs/metrics.md says which period a payment is for.

    Raises:
        BadInput: the range or the grain makes no sense.
    """
    periods = span(grain, start, end)
    with ledger_workspace(connection, MetricPolicy(), known_at):
        return deferred_rows(connection, periods, known_at)


def deferred_rows(connection: Connection, periods: Span, known_at: datetime | None) -> list[Row]:
    """`deferred_revenue` of periods that were checked, from the intervals of the workspace that is open."""
    named = queries("analytics_deferred")
    with _temporary(connection):
        named.insert_billed_periods(
            connection,
            since=midnight(connection, periods.since),
            until=midnight(connection, periods.until),
            known_at=known_at,
        )
        _statistics(connection, "metric_billed")
        named.insert_service_stretches(connection)
        _statistics(connection, "metric_service")
        named.insert_deferred_courses(
            connection, since_day=periods.first - timedelta(days=1), last_day=periods.last_day
        )
        _statistics(connection, "metric_courses")
        rows = named.deferred_rows(connection, first=periods.first, last=periods.last, grain=periods.grain)
        return labelled(rows, periods.grain)


def paused_revenue(
    connection: Connection, *, start: date, end: date, grain: Grain, known_at: datetime | None = None
) -> list[Row]:
    """Run rate that is paused at the end of each period, by currency, and for how long: `up_to_30_days`, ….

    `subscriptions, annualised_minor, mrr, up_to_30_days, up_to_90_days, longer`: the last three sum to
    `annualised_minor`. Every pause counts, however long.

    Raises:
        BadInput: the range or the grain makes no sense.
    """
    periods = span(grain, start, end)
    with ledger_workspace(connection, MetricPolicy(), known_at):
        return paused_rows(connection, periods)


def paused_rows(connection: Connection, periods: Span) -> list[Row]:
    """`paused_revenue` of periods that were checked, from the intervals of the workspace that is open."""
    rows = queries("analytics_deferred").paused_rows(
        connection, first=periods.first, last=periods.last, grain=periods.grain
    )
    return labelled(rows, periods.grain)


def labelled(rows: Iterable[Row], grain: Grain) -> list[Row]:
    """The rows with their periods as people write them."""
    return [row | {"period": row["period"].isoformat()[: 10 if grain == "day" else 7]} for row in rows]


@contextmanager
def _temporary(connection: Connection) -> Iterator[None]:
    from psycopg import sql  # noqa: PLC0415 - the code location loads without it

    with connection.transaction():
        # Every step is one pass over many rows; a plan made for few, a nested loop, would be quadratic.
        connection.execute("SELECT set_config('enable_nestloop', 'off', true)")
        for name, columns in _TABLES.items():
            connection.execute(
                sql.SQL("CREATE TEMP TABLE {} ({}) ON COMMIT DROP").format(sql.Identifier(name), sql.SQL(columns))
            )
        yield
        for name in _TABLES:
            connection.execute(sql.SQL("DROP TABLE pg_temp.{}").format(sql.Identifier(name)))
        connection.execute("SELECT set_config('enable_nestloop', 'on', true)")


def _statistics(connection: Connection, relation: str) -> None:
    from psycopg import sql  # noqa: PLC0415

    connection.execute(sql.SQL("ANALYZE pg_temp.{}").format(sql.Identifier(relation)))
