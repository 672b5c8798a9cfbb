"""A sweeping process is killed around every commit, and sweeps run against each other: the next finishes, once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from flexpay_pipelines.billing import SweepPolicy, sweep_pauses
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.sandbox import Cluster
from tests.billing.helpers import DAY, HOUR, NOON, add_pause, make_company
from tests.conftest import clone, make_template
from tests.killing import KILLED, commits_in, kill, points_of, wait_until_gone

SUBSCRIPTIONS = 24
POLICY = SweepPolicy(batch_size=3)
State = list[tuple[object, ...]]
Fresh = Callable[[], AbstractContextManager[str]]

# Everything that a sweep writes, but for ids and the time of writing.
STATE = (
    "SELECT subscription_ref, status, version, changed_at, change_reason, next_payment_at, billing_anchor"
    " FROM billing.subscriptions ORDER BY 1",
    "SELECT pause_ref, state, version, changed_at, starts_at, ends_at FROM billing.subscription_pauses ORDER BY 1",
    "SELECT subscription_id, event, occurred_at, reason FROM billing.subscription_events ORDER BY 1, event_id",
    "SELECT idempotency_key, operation, parameters::text, state FROM billing.stripe_commands ORDER BY 1",
)


def sweep_at_noon(url: str, purpose: str = KILLED) -> None:
    """The work that is killed."""
    with opened(url, purpose=purpose) as connection:
        sweep_pauses(connection, clock=FixedClock(NOON), policy=POLICY, progress=lambda _: None)


@pytest.fixture(scope="module")
def company(cluster: Cluster) -> str:
    """A template database in which every kind of transition is due, several of each, in batches of three."""
    template = make_template(cluster, "sweep_kills_template", ["core", "frequencies", "pauses"])
    with opened(cluster.url(template), purpose="test") as connection:
        make_company(connection, SUBSCRIPTIONS)
        for number in range(1, SUBSCRIPTIONS + 1):
            _plan_pauses(connection, f"s{number}", number % 6)
    return template


def _plan_pauses(connection: Connection, ref: str, kind: int) -> None:
    status = {2: "paused", 3: "past_due", 5: "canceled"}.get(kind)
    if status:
        connection.execute(
            "UPDATE billing.subscriptions SET status = %s, version = version + 1, changed_at = %s"
            " WHERE subscription_ref = %s",
            (status, NOON - 9 * DAY, ref),
        )
    if kind in (0, 5):
        add_pause(connection, ref, NOON - HOUR, NOON + DAY)
    elif kind == 1:
        add_pause(connection, ref, NOON - 3 * HOUR, NOON - HOUR)
    elif kind == 2:
        add_pause(connection, ref, NOON - 9 * DAY, NOON - HOUR, state="active")
        add_pause(connection, ref, NOON - HOUR, NOON + DAY)
    elif kind == 3:
        add_pause(connection, ref, NOON - 9 * DAY, NOON - 2 * DAY, kind="payment_failure", state="active")
    elif kind == 4:
        add_pause(connection, ref, NOON - 5 * HOUR, NOON - 4 * HOUR)
        add_pause(connection, ref, NOON - 4 * HOUR, None, kind="admin")


@pytest.fixture
def fresh(cluster: Cluster, company: str) -> Fresh:
    """Makes a copy of the company's database for as long as a block lasts."""

    @contextmanager
    def copy() -> Iterator[str]:
        yield from clone(cluster, company)

    return copy


def state_of(url: str) -> State:
    with opened(url, purpose="test") as connection:
        return [tuple(row.values()) for query in STATE for row in connection.execute(query.encode())]


def _undisturbed(url: str) -> tuple[list[str], State]:
    points = points_of(sweep_at_noon, url)
    return points, state_of(url)


def _killed_then_finished(url: str, at: int) -> State:
    assert kill(sweep_at_noon, url, at=at)
    wait_until_gone(url)
    sweep_at_noon(url, "test")
    return state_of(url)


def test_a_sweep_killed_at_any_commit_is_finished_by_the_next(fresh: Fresh) -> None:
    with fresh() as url:
        points, expected = _undisturbed(url)
    commits = commits_in(points)
    assert len(commits) >= SUBSCRIPTIONS
    for at in commits[::8]:
        with fresh() as url:
            assert _killed_then_finished(url, at) == expected, f"killed at point {at}, {points[at - 1]}"


@pytest.mark.soak
def test_a_sweep_killed_at_any_point_is_finished_by_the_next(fresh: Fresh) -> None:
    with fresh() as url:
        points, expected = _undisturbed(url)
    for at in range(1, len(points) + 1):
        with fresh() as url:
            assert _killed_then_finished(url, at) == expected, f"killed at point {at}, {points[at - 1]}"


def _together(url: str, sweeps: int) -> None:
    forks = multiprocessing.get_context("forkserver")
    processes = [forks.Process(target=sweep_at_noon, args=(url, f"sweep {n}")) for n in range(sweeps)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


@pytest.mark.parametrize("sweeps", [2, 4])
def test_sweeps_at_once_do_the_work_once(fresh: Fresh, sweeps: int) -> None:
    with fresh() as url:
        _, expected = _undisturbed(url)
    with fresh() as url:
        _together(url, sweeps)
        # What one held, the other left: it is still due, and the next sweep finds it.
        sweep_at_noon(url)
        assert state_of(url) == expected


@pytest.mark.soak
def test_sweeps_at_once_of_which_one_is_killed(fresh: Fresh) -> None:
    with fresh() as url:
        points, expected = _undisturbed(url)
    # Spread over the whole sweep by a stride without a common factor.
    for n in range(100):
        with fresh() as url:
            forks = multiprocessing.get_context("forkserver")
            other = forks.Process(target=sweep_at_noon, args=(url, "other"))
            other.start()
            kill(sweep_at_noon, url, at=1 + n * 37 % len(points))
            other.join()
            assert other.exitcode == 0
            wait_until_gone(url)
            sweep_at_noon(url)
            assert state_of(url) == expected
