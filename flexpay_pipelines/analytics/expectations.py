"""What stored figures must look like to be believed: great-expectations suites over their rows.

What belongs here: ranges and relations within a row. What does not: sums over rows (`checks`, `stored_balances`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

from flexpay_pipelines.analytics.payment_figures import payments_health
from flexpay_pipelines.analytics.stored import read_stored
from flexpay_pipelines.database import Connection

Row = dict[str, Any]
_SHARES = ("customer_churn_rate", "grr", "pause_rate")


def unexpected(figures: Mapping[str, list[Row]]) -> list[Row]:
    """What is not as expected in the rows of `churn`, `cohorts`, `mrr-summary` and `payments-health`.

    Columns: `dataset, expectation, rows` (how many), `periods` (the first of them). Datasets without rows are left out.

    Raises:
        RuntimeError: an expectation could not be evaluated.
    """
    wanted = {name: rows for name, rows in figures.items() if rows and name in _SUITES}
    if not wanted:
        return []
    import great_expectations as gx  # noqa: PLC0415 - takes seconds
    import pandas as pd  # noqa: PLC0415
    from great_expectations.data_context.types import base  # noqa: PLC0415

    context = gx.get_context(
        mode="ephemeral",
        project_config=base.DataContextConfig(
            store_backend_defaults=base.InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            analytics_enabled=False,
            progress_bars=base.ProgressBarsConfig(globally=False),
        ),
    )
    source = context.data_sources.add_pandas("figures")
    found: list[Row] = []
    for name, rows in wanted.items():
        frame = pd.DataFrame(rows)
        for column in frame.columns.difference(["period", "cohort", "segment", "currency", "definition"]):
            frame[column] = pd.to_numeric(frame[column], errors="coerce")
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        suite = gx.ExpectationSuite(name=name, expectations=_SUITES[name](gx.expectations))
        outcome = batch.get_batch({"dataframe": frame}).validate(suite, result_format="COMPLETE")
        found += [_finding(name, frame, result) for result in outcome.results if not result.success]
    return found


def expected_figures(connection: Connection, *, first: date, last: date, currency: str) -> dict[str, list[Row]]:
    """The stored rows of these days that there are expectations of, by dataset.

    Raises:
        BadInput: the range makes no sense.
    """
    figures = read_stored(connection, first=first, last=last, reporting_currency=currency)
    return {
        "churn": figures.churn,
        "cohorts": figures.cohorts,
        "mrr-summary": figures.native_total,
        "payments-health": payments_health(connection, start=first, end=last, grain="day"),
    }


def _finding(name: str, frame: Any, result: Any) -> Row:
    places = result.result.get("unexpected_index_list")
    if places is None:
        raise RuntimeError(f"{name}: {result.expectation_config.type} could not be evaluated: {result.exception_info}")
    periods = frame.loc[places, "period"].drop_duplicates().head(5)
    return {
        "dataset": name,
        "expectation": result.expectation_config.description,
        "rows": len(places),
        "periods": ", ".join(periods),
    }


def _between(e: Any, column: str, low: float | None, high: float | None, said: str) -> Any:
    return e.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high, description=f"{column} {said}")


def _at_least(e: Any, larger: str, smaller: str) -> Any:
    return e.ExpectColumnPairValuesAToBeGreaterThanB(
        column_A=larger,
        column_B=smaller,
        or_equal=True,
        ignore_row_if="either_value_is_missing",
        description=f"{smaller} is not above {larger}",
    )


def _churn(e: Any) -> list[Any]:
    return [
        *(_between(e, name, 0, 1, "is a share") for name in _SHARES),
        *(_between(e, name, 0, None, "is not negative") for name in ("gross_mrr_churn", "quick_ratio", "arpa", "ltv")),
        _at_least(e, "customers_start", "customers_churned"),
    ]


def _cohorts(e: Any) -> list[Any]:
    return [
        _between(e, "customer_retention", 0, 1, "is a share"),
        _at_least(e, "customers_start", "customers"),
        _at_least(e, "customers", "paying_customers"),
    ]


def _summary(e: Any) -> list[Any]:
    return [
        *(
            _between(e, name, 0, None, "is not negative")
            for name in ("start", "end", "customers", "subscriptions", "paused_subscriptions")
        ),
        *(_between(e, name, None, 0, "is not positive") for name in ("contraction", "churn", "paused")),
        *(_between(e, name, 0, None, "is not negative") for name in ("new", "expansion", "resumed")),
        _at_least(e, "customers", "paying_customers"),
    ]


def _payments(e: Any) -> list[Any]:
    return [
        _between(e, "success_rate", 0, 1, "is a share"),
        _at_least(e, "attempts", "succeeded"),
        _at_least(e, "attempts", "failed"),
        _at_least(e, "succeeded", "recovered"),
    ]


_SUITES: Mapping[str, Callable[[Any], list[Any]]] = {
    "churn": _churn,
    "cohorts": _cohorts,
    "mrr-summary": _summary,
    "payments-health": _payments,
}
