"""The datasets of docs/data-contract.md: their columns in order, and which figure fills them.

What belongs here: columns, types, what may be asked of a dataset. What does not: files (`export`), how a figure is
computed (`figures`, `payment_figures`, `balances`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flexpay_pipelines.analytics import balances, figures, payment_figures, restatements
from flexpay_pipelines.analytics.policy import MetricPolicy, Span
from flexpay_pipelines.database import Connection

# What a column holds: text; int; minor (annualised minor units: whole in native currency, exact when converted);
# money (minor units with four decimals); rate (a share or a ratio, six decimals).
Columns = Mapping[str, str]

_AMOUNTS = (
    "start",
    "new",
    "reactivation",
    "expansion",
    "contraction",
    "churn",
    "paused",
    "resumed",
    "transfer",
    "fx",
    "end",
)
_RATES = ("customer_churn_rate", "gross_mrr_churn", "net_mrr_churn", "nrr", "grr", "quick_ratio")


@dataclass(frozen=True, slots=True)
class Request:
    """What one export asks for, checked."""

    periods: Span
    by: str | None
    currency: str | None
    known_at: datetime | None
    policy: MetricPolicy


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset: its columns in order, where its rows come from, and what may be asked of it.

    `names_segment`: the second column bears the name of the segment asked for. `converts`: to another currency.
    """

    columns: Columns
    rows: Callable[[Connection, Request], Iterable[dict[str, Any]]]
    segments: tuple[str, ...] = ()
    names_segment: bool = False
    converts: bool = True
    grains: tuple[str, ...] = ("day", "month")

    def columns_by(self, by: str | None) -> Columns:
        """The columns when the segment is asked for."""
        if by is None or not self.names_segment:
            return self.columns
        return {(by if place == 1 else name): kind for place, (name, kind) in enumerate(self.columns.items())}


def _movements(connection: Connection, ask: Request) -> Iterator[dict[str, Any]]:
    return figures.iterate_movements(
        connection, ask.periods, known_at=ask.known_at, reporting_currency=ask.currency, policy=ask.policy
    )


def _summary(connection: Connection, ask: Request) -> Iterator[dict[str, Any]]:
    return figures.iterate_summary(
        connection, ask.periods, by=ask.by, known_at=ask.known_at, reporting_currency=ask.currency, policy=ask.policy
    )


def _churn(connection: Connection, ask: Request) -> list[dict[str, Any]]:
    return figures.churn(
        connection,
        start=ask.periods.first,
        end=ask.periods.last,
        grain=ask.periods.grain,
        known_at=ask.known_at,
        reporting_currency=ask.currency,
        policy=ask.policy,
    )


def _cohorts(connection: Connection, ask: Request) -> list[dict[str, Any]]:
    return figures.cohorts(
        connection,
        start=ask.periods.first,
        end=ask.periods.last,
        known_at=ask.known_at,
        reporting_currency=ask.currency,
        policy=ask.policy,
    )


def _restatements(connection: Connection, ask: Request) -> Iterator[dict[str, Any]]:
    return restatements.iterate_restatements(connection, ask.periods, known_at=ask.known_at)


def _plain(figure: Callable[..., list[dict[str, Any]]]) -> Callable[[Connection, Request], list[dict[str, Any]]]:
    """A figure that is asked for by its periods and what was known."""

    def rows(connection: Connection, ask: Request) -> list[dict[str, Any]]:
        segment = {} if ask.by is None else {"by": ask.by}
        return figure(
            connection,
            start=ask.periods.first,
            end=ask.periods.last,
            grain=ask.periods.grain,
            known_at=ask.known_at,
            **segment,
        )

    return rows


DATASETS: Mapping[str, Dataset] = {
    "mrr-movements": Dataset(
        {
            "period": "text",
            "customer_id": "text",
            "currency": "text",
            "movement": "text",
            "annualised_minor": "minor",
            "mrr": "money",
        },
        _movements,
        segments=("customer",),
    ),
    "mrr-summary": Dataset(
        {"period": "text", "segment": "text", "currency": "text"}
        | dict.fromkeys(_AMOUNTS, "minor")
        | dict.fromkeys(("customers", "paying_customers", "subscriptions", "paused_subscriptions"), "int"),
        _summary,
        segments=figures.SEGMENTS,
    ),
    "churn": Dataset(
        {"period": "text", "definition": "text", "customers_start": "int", "customers_churned": "int"}
        | dict.fromkeys(_RATES, "rate")
        | {"arpa": "money", "ltv": "money", "pause_rate": "rate"},
        _churn,
    ),
    "cohorts": Dataset(
        {"cohort": "text", "period": "text", "months": "int", "currency": "text"}
        | dict.fromkeys(("customers_start", "customers", "paying_customers"), "int")
        | {"customer_retention": "rate", "start": "minor", "end": "minor", "run_rate_retention": "rate"},
        _cohorts,
        grains=("month",),
    ),
    "payments-health": Dataset(
        {"period": "text", "payment_frequency": "text", "attempts": "int", "succeeded": "int", "failed": "int"}
        | {"success_rate": "rate"}
        | dict.fromkeys(
            ("issuer_decline", "block", "integration_error", "provider_error", "other_failure", "recovered"), "int"
        ),
        _plain(payment_figures.payments_health),
        segments=payment_figures.ATTEMPT_SEGMENTS,
        names_segment=True,
        converts=False,
    ),
    "dunning": Dataset(
        {"period": "text", "payment_frequency": "text", "episodes": "int", "recovered": "int"}
        | dict.fromkeys(("recovery_rate", "median_days", "p90_days"), "rate"),
        _plain(payment_figures.dunning),
        segments=payment_figures.EPISODE_SEGMENTS,
        names_segment=True,
        converts=False,
    ),
    "rewards-liability": Dataset(
        {"period": "text", "currency": "text"}
        | dict.fromkeys(("opening", "earned", "spent", "expired", "reversed", "closing"), "minor")
        | {"customers": "int"}
        | dict.fromkeys(("overdue", "within_30_days", "within_90_days", "within_365_days", "later", "never"), "minor"),
        _plain(balances.rewards_liability),
        converts=False,
    ),
    "deferred-revenue": Dataset(
        {"period": "text", "currency": "text"}
        | dict.fromkeys(("opening", "received", "recognised", "closing", "closing_paused"), "minor"),
        _plain(balances.deferred_revenue),
        converts=False,
    ),
    "paused-revenue": Dataset(
        {"period": "text", "currency": "text", "subscriptions": "int", "annualised_minor": "minor", "mrr": "money"}
        | dict.fromkeys(("up_to_30_days", "up_to_90_days", "longer"), "minor"),
        _plain(balances.paused_revenue),
        converts=False,
    ),
    "restatements": Dataset(
        dict.fromkeys(("period", "restated_at", "segment_kind", "segment", "currency", "figure"), "text")
        | {"before": "minor", "after": "minor", "events": "int", "moved_customers": "int", "first_events": "text"},
        _restatements,
        converts=False,
        grains=("day",),
    ),
}
