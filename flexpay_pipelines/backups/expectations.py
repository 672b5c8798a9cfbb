"""What a restored billing database must hold to be believed: great-expectations suites over its tables.

What belongs here: the suites and running them in the database. What does not: comparing with the manifest (`contents`).
Only rules that the schema or its triggers enforce stand here: a breach means that the data was damaged, not that
business was odd that day.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from flexpay_pipelines.database import sqlalchemy_url

_CURRENCY = "^[A-Z]{3}$"
_FREQUENCIES = ["WEEKLY", "BIWEEKLY", "MONTHLY", "QUARTERLY", "YEARLY"]
_STATUSES = ["trialing", "active", "paused", "past_due", "suspended", "canceled"]
_EVENTS = [
    "started", "trial_started", "changed", "paused", "resumed", "past_due", "recovered", "suspended", "canceled"
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """How one suite ended: the table, how many expectations were evaluated, a phrase for each that was not met."""

    table: str
    evaluated: int
    failures: tuple[str, ...]


def check_expectations(url: str, tables: Collection[str], progress: Callable[[str], None]) -> tuple[SuiteResult, ...]:
    """Run the suites of those tables (`billing.customers`, …) that are there, inside the database.

    Raises:
        RuntimeError: an expectation could not be evaluated at all.
    """
    wanted = [table for table in _SUITES if table in tables]
    if not wanted:
        return ()
    progress(f"Checking the expectations of {', '.join(wanted)}.")
    import great_expectations as gx  # noqa: PLC0415 - takes seconds
    from great_expectations.data_context.types import base  # noqa: PLC0415

    context = gx.get_context(
        mode="ephemeral",
        project_config=base.DataContextConfig(
            store_backend_defaults=base.InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            analytics_enabled=False,
            progress_bars=base.ProgressBarsConfig(globally=False),
        ),
    )
    source = context.data_sources.add_postgres("restored", connection_string=_address(url))
    try:
        return tuple(_run(gx, source, table, tables) for table in wanted)
    finally:
        source.get_engine().dispose()


def _address(url: str) -> str:
    # great-expectations demands a host; the driver prefers the socket folder in the query.
    # A dollar sign is its own mark for a variable.
    parts = urlsplit(sqlalchemy_url(url, "psycopg2"))
    netloc = parts.netloc if parts.hostname else f"{parts.netloc}localhost"
    return urlunsplit(parts._replace(netloc=netloc)).replace("$", r"\$")


def _run(gx: Any, source: Any, table: str, tables: Collection[str]) -> SuiteResult:
    schema, name = table.split(".", 1)
    batch = source.add_table_asset(table, table_name=name, schema_name=schema).add_batch_definition_whole_table("all")
    suite = gx.ExpectationSuite(name=table, expectations=_SUITES[table](gx.expectations, tables))
    outcome = batch.get_batch().validate(suite)
    return SuiteResult(table, len(outcome.results), tuple(_phrase(table, r) for r in outcome.results if not r.success))


def _phrase(table: str, result: Any) -> str:
    expectation = result.expectation_config
    broken = result.exception_info
    if broken.get("raised_exception") or any(
        isinstance(b, dict) and b.get("raised_exception") for b in broken.values()
    ):
        return f"{table}: {expectation.type} could not be evaluated ({str(broken)[:300]})"
    count = result.result.get("unexpected_count", result.result.get("observed_value"))
    what = expectation.description or f"{expectation.type} of {expectation.kwargs.get('column')}"
    return f"{table}: {what}: {count} rows do not"


def _customers(e: Any, _tables: Collection[str]) -> list[Any]:
    return [
        e.ExpectColumnValuesToBeUnique(column="customer_id", description="customer ids are unique"),
        e.ExpectColumnValuesToBeUnique(column="customer_ref", description="outside customer ids are unique"),
        e.ExpectColumnValuesToMatchRegex(
            column="currency", regex=_CURRENCY, description="currencies are ISO 4217 codes"
        ),
    ]


def _subscriptions(e: Any, tables: Collection[str]) -> list[Any]:
    by_frequency = [
        e.ExpectColumnValuesToBeInSet(
            column="payment_frequency", value_set=_FREQUENCIES, description="payment frequencies are known ones"
        )
    ]
    return [
        e.ExpectColumnValuesToBeUnique(column="subscription_ref", description="outside subscription ids are unique"),
        e.ExpectColumnValuesToBeInSet(column="status", value_set=_STATUSES, description="statuses are known ones"),
        e.ExpectColumnValuesToBeBetween(column="amount_minor", min_value=0, description="prices are not negative"),
        e.ExpectColumnValuesToBeBetween(column="quantity", min_value=1, description="quantities are positive"),
        e.UnexpectedRowsExpectation(
            description="subscriptions are in the currency of their customer",
            unexpected_rows_query=(
                "SELECT s.subscription_id FROM {batch} AS s LEFT JOIN billing.customers AS c "
                "ON c.customer_id = s.customer_id AND c.currency = s.currency WHERE c.customer_id IS NULL"
            ),
        ),
        *(by_frequency if "billing.frequency_changes" in tables else []),
    ]


def _payments(e: Any, _tables: Collection[str]) -> list[Any]:
    return [
        e.ExpectColumnValuesToBeUnique(column="payment_ref", description="no payment is there twice"),
        e.ExpectColumnValuesToBeInSet(
            column="outcome", value_set=["succeeded", "failed"], description="payments succeeded or failed"
        ),
        e.ExpectColumnValuesToBeBetween(column="amount_minor", min_value=0, description="amounts are not negative"),
        e.ExpectColumnValuesToMatchRegex(
            column="currency", regex=_CURRENCY, description="currencies are ISO 4217 codes"
        ),
        e.UnexpectedRowsExpectation(
            description="only a failed payment has a reason of failure",
            unexpected_rows_query=(
                "SELECT payment_id FROM {batch} "
                "WHERE outcome <> 'failed' AND (failure_class IS NOT NULL OR failure_code IS NOT NULL)"
            ),
        ),
    ]


def _subscription_events(e: Any, _tables: Collection[str]) -> list[Any]:
    return [
        e.ExpectColumnValuesToBeInSet(column="event", value_set=_EVENTS, description="events are known ones"),
        e.ExpectColumnValuesToBeBetween(column="amount_minor", min_value=0, description="prices are not negative"),
        e.UnexpectedRowsExpectation(
            description="events belong to subscriptions",
            unexpected_rows_query=(
                "SELECT v.event_id FROM {batch} AS v LEFT JOIN billing.subscriptions AS s "
                "ON s.subscription_id = v.subscription_id WHERE s.subscription_id IS NULL"
            ),
        ),
    ]


def _reward_entries(e: Any, _tables: Collection[str]) -> list[Any]:
    return [
        e.ExpectColumnValuesToBeBetween(column="amount_minor", min_value=1, description="amounts are positive"),
        e.UnexpectedRowsExpectation(
            description="reward balances are not negative",
            unexpected_rows_query="SELECT customer_id FROM {batch} GROUP BY customer_id HAVING sum(effect_minor) < 0",
        ),
    ]


_SUITES: dict[str, Callable[[Any, Collection[str]], list[Any]]] = {
    "billing.customers": _customers,
    "billing.subscriptions": _subscriptions,
    "billing.payments": _payments,
    "billing.subscription_events": _subscription_events,
    "billing.reward_entries": _reward_entries,
}
