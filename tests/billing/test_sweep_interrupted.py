"""The pause sweep beside others at work on the same rows, and killed: each transition once all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from flexpay_pipelines.billing import (
    SweepPolicy,
    plan_sweep,
)
from flexpay_pipelines.database import Connection, opened
from tests.billing.helpers import (
    DAY,
    HOUR,
    NOON,
    add_pause,
    clock_at,
    events,
    make_company,
    subscription,
    sweep,
)


def test_two_sweeps_at_once_do_each_transition_once(billing_url: str, billing: Connection) -> None:
    make_company(billing, 400)
    for number in range(1, 401):
        add_pause(billing, f"s{number}", NOON - 3 * HOUR, NOON - HOUR if number % 2 else NOON + DAY)

    def run(_: int) -> tuple[int, int]:
        with opened(billing_url, purpose="sweep") as connection:
            result = sweep(connection, policy=SweepPolicy(batch_size=7))
            return result.started, result.ended

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, range(4)))
    sweep(billing)
    assert billing.execute("SELECT count(*) AS n FROM billing.stripe_commands").fetchone() == {"n": 400}
    assert sum(started for started, _ in results) == 400
    assert sum(ended for _, ended in results) == 200
    for number in (1, 2, 399, 400):
        assert [event for event, _ in events(billing, f"s{number}")] == (
            ["paused", "resumed"] if number % 2 else ["paused"]
        )
    history = billing.execute(
        "SELECT event, count(*) AS n FROM billing.subscription_events WHERE event <>"
        " 'started' GROUP BY event ORDER BY event"
    ).fetchall()
    assert history == [{"event": "paused", "n": 400}, {"event": "resumed", "n": 200}]


def test_what_somebody_else_holds_is_left_to_him_and_done_next_time(billing_url: str, billing: Connection) -> None:
    make_company(billing)
    add_pause(billing, "s1", NOON - HOUR, NOON + DAY)
    add_pause(billing, "s2", NOON - HOUR, NOON + DAY)
    with opened(billing_url, purpose="application") as other, other.transaction():
        other.execute("UPDATE billing.subscription_pauses SET state = 'canceled' WHERE pause_id = 1")
        result = sweep(billing)
        assert (result.started, result.skipped) == (1, {"left to whoever holds it": 1})
    assert sweep(billing).due == 0
    assert (subscription(billing, "s1")["status"], subscription(billing, "s2")["status"]) == ("active", "paused")


def test_a_payment_being_recorded_does_not_hold_the_sweep_up(billing_url: str, billing: Connection) -> None:
    make_company(billing)
    add_pause(billing, "s1", NOON - HOUR, NOON + DAY)
    with opened(billing_url, purpose="application") as other, other.transaction():
        other.execute(
            "INSERT INTO billing.payments (payment_ref, subscription_id, occurred_at, amount_minor, currency, outcome)"
            " SELECT 'p', subscription_id, now(), 1, 'EUR', 'succeeded' FROM"
            " billing.subscriptions WHERE subscription_ref = 's1'"
        )
        assert sweep(billing).started == 1


KILLED_SWEEP = """
import os, signal, sys
from datetime import datetime
from flexpay_pipelines.billing import SweepPolicy, sweep_pauses
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import opened

batches = int(sys.argv[3])

def progress(_):
    global batches
    batches -= 1
    if batches == 0:
        os.kill(os.getpid(), signal.SIGKILL)

with opened(sys.argv[1], purpose="sweep") as connection:
    sweep_pauses(connection, clock=FixedClock(datetime.fromisoformat(sys.argv[2])), policy=SweepPolicy(batch_size=5),
                 progress=progress)
"""


@pytest.mark.parametrize("batches", [1, 3])
def test_a_killed_sweep_is_finished_once_by_the_next(billing_url: str, billing: Connection, batches: int) -> None:
    make_company(billing, 40)
    for number in range(1, 41):
        add_pause(billing, f"s{number}", NOON - 3 * HOUR, NOON - HOUR if number % 2 else NOON + DAY)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_SWEEP, billing_url, NOON.isoformat(), str(batches)],
        check=False,
        env=dict(os.environ),
    )
    assert killed.returncode == -signal.SIGKILL
    left = plan_sweep(billing, clock=clock_at())
    assert 0 < left.to_start < 40
    rest = sweep(billing)
    assert (rest.started, rest.ended) == (left.to_start, left.to_end)
    counts = billing.execute(
        "SELECT event, count(*) AS n, count(DISTINCT subscription_id) AS subscriptions FROM billing.subscription_events"
        " WHERE event <> 'started' GROUP BY event ORDER BY event"
    ).fetchall()
    assert [tuple(row.values()) for row in counts] == [("paused", 40, 40), ("resumed", 20, 20)]
    assert billing.execute("SELECT count(*) AS n FROM billing.stripe_commands").fetchone() == {"n": 40}
