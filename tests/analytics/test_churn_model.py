"""The churn model in companies of which the test knows why customers leave."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import numpy as np
import pytest

from flexpay_pipelines.analytics import (
    ChurnModel,
    calibration,
    calibration_svg,
    churn_model,
    comparison,
    drift,
    lift_svg,
    refresh,
    refresh_churn_risk,
    weights_in_words,
)
from flexpay_pipelines.analytics.churn_history import Snapshots, read_history
from flexpay_pipelines.analytics.churn_terms import RULE, Scorecard
from flexpay_pipelines.analytics.churn_training import scores
from flexpay_pipelines.analytics.days import midnight
from flexpay_pipelines.database import BILLING, Connection, opened
from flexpay_pipelines.migrations import COMPONENTS
from flexpay_pipelines.sandbox import Cluster
from tests.analytics.churn_company import CLOCK, FIRST, LAST, add_events, add_payments, found
from tests.conftest import clone, make_template

EARLIER = LAST - timedelta(days=30)


def _template(cluster: Cluster, name: str, *, driven: bool) -> str:
    make_template(cluster, name, [each.name for each in COMPONENTS.values() if each.database == BILLING])
    with opened(cluster.url(name), purpose="test") as connection:
        found(connection, driven=driven)
    return name


@pytest.fixture(scope="module")
def driven_template(cluster: Cluster) -> str:
    return _template(cluster, "churn_driven", driven=True)


@pytest.fixture(scope="module")
def random_template(cluster: Cluster) -> str:
    return _template(cluster, "churn_random", driven=False)


@pytest.fixture
def driven(cluster: Cluster, driven_template: str) -> Iterator[Connection]:
    for url in clone(cluster, driven_template):
        with opened(url, purpose="test") as connection:
            yield connection


@pytest.fixture
def at_random(cluster: Cluster, random_template: str) -> Iterator[Connection]:
    for url in clone(cluster, random_template):
        with opened(url, purpose="test") as connection:
            yield connection


def model_of(connection: Connection, day: date) -> ChurnModel:
    model = churn_model(connection, day)
    assert model is not None
    return model


def scored(connection: Connection, day: date) -> list[dict[str, Any]]:
    return connection.execute(
        "SELECT customer_id, score::float8 AS score, reasons, model FROM analytics.churn_risk WHERE day = %s"
        " ORDER BY score DESC, customer_id",
        (day,),
    ).fetchall()


def brier(probability: Any, churned: Any) -> float:
    return float(((probability - churned) ** 2).mean())


def test_what_drives_churn_is_learnt_and_named(driven: Connection) -> None:
    result = refresh_churn_risk(driven, day=LAST, clock=CLOCK)
    assert result.model == f"logistic-{LAST}"
    assert "Beats the base rate and the rule" in result.why
    model = model_of(driven, LAST)
    for other in ("rule", "base_rate"):
        assert model.evaluation["model"]["brier"] < model.evaluation[other]["brier"]
        assert model.evaluation["model"]["log_loss"] < model.evaluation[other]["log_loss"]
        assert model.evaluation["model"]["average_precision"] > model.evaluation[other]["average_precision"]
    rows = scored(driven, LAST)
    assert len(rows) == result.scored > 1_000
    past_due = driven.execute(
        "SELECT count(DISTINCT customer_id) AS n FROM analytics.run_rate_intervals"
        " WHERE status = 'past_due' AND valid_to IS NULL"
    ).fetchone()
    assert past_due is not None
    for row in rows[: past_due["n"]]:
        assert row["reasons"][0] in {"payment past due", "1 failed payment in 30 days"}
    assert rows[0]["score"] > 0.5 > rows[past_due["n"]]["score"]
    assert result.expected_churn == pytest.approx(sum(row["score"] for row in rows), abs=0.1)
    assert result.high == sum(row["score"] >= 0.7 for row in rows)


def test_later_departures_are_foretold_better_than_by_the_rule(driven: Connection) -> None:
    """Scored as of 30 days ago; what came since is known to the test and was not to the model."""
    refresh_churn_risk(driven, day=EARLIER, clock=CLOCK)
    rows = _rows_of(driven, EARLIER)
    by_customer = {row["customer_id"]: row["score"] for row in scored(driven, EARLIER)}
    foretold = np.array([by_customer[customer] for customer in rows.customers])
    assert model_of(driven, EARLIER).snapshots["test"]["days"][-1] == (EARLIER - timedelta(days=30)).isoformat()
    assert brier(foretold, rows.churned) < 0.9 * brier(rows.churned.mean(), rows.churned)
    assert brier(foretold, rows.churned) < 0.95 * brier(scores(RULE, rows), rows.churned)
    assert foretold.sum() == pytest.approx(rows.churned.sum(), rel=0.25)


def _rows_of(connection: Connection, day: date) -> Any:
    with connection.transaction():
        return read_history(connection, Snapshots((day,), (), ()), paused_churn_days=90)


def test_the_database_scores_as_training_does(driven: Connection) -> None:
    refresh_churn_risk(driven, day=EARLIER, clock=CLOCK)
    model = model_of(driven, EARLIER)
    rows = _rows_of(driven, EARLIER)
    expected = scores(Scorecard(name=model.model, **model.scorecard), rows)
    found_there = {row["customer_id"]: row["score"] for row in scored(driven, EARLIER)}
    assert sorted(found_there) == rows.customers.tolist()
    assert [found_there[each] for each in rows.customers] == pytest.approx(expected.tolist(), abs=0.0005001)


def test_the_same_history_gives_the_same_model(driven: Connection) -> None:
    refresh_churn_risk(driven, day=LAST, clock=CLOCK)
    first = (scored(driven, LAST), model_of(driven, LAST))
    refresh_churn_risk(driven, day=LAST, clock=CLOCK)
    assert (scored(driven, LAST), model_of(driven, LAST)) == first


def test_the_checks_pass_while_nothing_changes(driven: Connection) -> None:
    refresh_churn_risk(driven, day=LAST, clock=CLOCK)
    model = model_of(driven, LAST)
    kept, alike = calibration(model), drift(model)
    assert kept.passed, kept.message
    assert alike.passed, alike.message
    assert kept.error is not None
    assert kept.limit is not None
    assert kept.error < kept.limit < 0.05
    assert len(kept.rows) == 10


def test_customers_unlike_those_of_training_are_noticed(driven: Connection) -> None:
    standing = driven.execute(
        "SELECT customer_id, plan FROM analytics.run_rate_intervals WHERE status = 'active' AND valid_to IS NULL"
        " AND mod(customer_id, 2) = 0"
    ).fetchall()
    at = midnight(driven, LAST) + timedelta(hours=3)
    add_events(driven, [(row["customer_id"], "past_due", at, row["plan"]) for row in standing])
    add_payments(driven, [(row["customer_id"], at, "failed") for row in standing])
    refresh(driven, start=LAST, end=LAST, clock=CLOCK)
    refresh_churn_risk(driven, day=LAST, clock=CLOCK)
    alike = drift(model_of(driven, LAST))
    assert not alike.passed
    assert "score" in alike.message
    assert "payment past due" in alike.message
    assert "new" not in alike.message


def test_departures_that_nobody_expected_are_noticed(driven: Connection) -> None:
    standing = driven.execute(
        "SELECT customer_id, plan FROM analytics.run_rate_intervals WHERE valid_to IS NULL AND status = 'active'"
        " AND mod(customer_id, 12) = 0"
    ).fetchall()
    at = midnight(driven, LAST - timedelta(days=20))
    add_events(driven, [(row["customer_id"], "canceled", at, row["plan"]) for row in standing])
    refresh(driven, start=LAST, end=LAST, clock=CLOCK)
    refresh_churn_risk(driven, day=LAST, clock=CLOCK)
    model = model_of(driven, LAST)
    assert model.trained, model.reason
    kept = calibration(model)
    assert not kept.passed
    assert "more than chance explains" in kept.message
    assert sum(row["off"] for row in kept.rows) >= 3


def test_churn_at_random_gets_no_model(at_random: Connection) -> None:
    result = refresh_churn_risk(at_random, day=LAST, clock=CLOCK)
    assert result.model == "rule-1"
    assert "not surely better than the base rate" in result.why
    model = model_of(at_random, LAST)
    assert not model.trained
    assert [row["scored by"] for row in comparison(model)] == ["model", "rule", "base rate"]
    assert calibration(model).passed
    assert drift(model).passed
    assert {row["points"] for row in weights_in_words(model)} == set(RULE.weights.values())


def test_too_little_history_leaves_it_to_the_rule(driven: Connection) -> None:
    young = refresh_churn_risk(driven, day=FIRST.date() + timedelta(days=170), clock=CLOCK)
    assert (young.model, young.why) == ("rule-1", "The company has less than six months of history to learn from.")
    assert young.expected_churn is None
    few = refresh_churn_risk(driven, day=FIRST.date() + timedelta(days=215), clock=CLOCK)
    assert few.model == "rule-1"
    assert "customers left in the training days; 200 are needed" in few.why


def test_the_pictures_and_tables_show_the_model(driven: Connection) -> None:
    refresh_churn_risk(driven, day=LAST, clock=CLOCK)
    model = model_of(driven, LAST)
    strongest = [row["when"] for row in weights_in_words(model)[:3]]
    assert "payment past due" in strongest
    for svg in (calibration_svg(model), lift_svg(model)):
        assert svg is not None
        assert svg.count("<polyline") == 2


def test_a_sample_is_the_same_each_time(driven: Connection) -> None:
    chosen = Snapshots((EARLIER,), (), ())
    with driven.transaction():
        whole = read_history(driven, chosen, paused_churn_days=90)
        one = read_history(driven, chosen, paused_churn_days=90, sample=1_000)
        two = read_history(driven, chosen, paused_churn_days=90, sample=1_000)
    assert one.customers.tolist() == two.customers.tolist()
    assert 0.25 < len(one.customers) / len(whole.customers) < 0.42
    assert set(one.customers.tolist()) < set(whole.customers.tolist())


def test_it_scores_without_rewards(driven: Connection) -> None:
    """A rollback of the rewards sets their ledger aside."""
    driven.execute("ALTER TABLE billing.reward_entries SET SCHEMA archive")
    assert refresh_churn_risk(driven, day=LAST, clock=CLOCK).model == f"logistic-{LAST}"
