"""A rollback beside others at work on the same rows, and killed: everything once all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, opened
from flexpay_pipelines.errors import FlexPayError, TransientError
from flexpay_pipelines.rollback import (
    plan_rollback,
    undo_rollback,
)
from tests.rollback.helpers import (
    live,
    one,
    rolled,
    rows,
)


@pytest.fixture
def urls(billing_url: str, control_url: str) -> tuple[str, str]:
    return billing_url, control_url


def test_two_at_once_do_it_once(
    company: Connection, control: Connection, billing_url: str, control_url: str, clock: FixedClock
) -> None:
    before = live(company)
    outcomes: list[object] = []
    barrier = threading.Barrier(2)

    def run() -> None:
        with opened(billing_url, purpose="one") as billing, opened(control_url, purpose="one") as mine:
            barrier.wait()
            try:
                outcomes.append(rolled(billing, mine, clock, "complete", batch_size=2).rollback_id)
            except FlexPayError as error:
                outcomes.append(type(error))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Either the second was refused, or it came after the first and found nothing to change.
    assert len([outcome for outcome in outcomes if isinstance(outcome, int)]) == (
        1 if TransientError in outcomes else 2
    )
    first = min(outcome for outcome in outcomes if isinstance(outcome, int))
    others = [outcome for outcome in outcomes if isinstance(outcome, int) and outcome != first]
    for number in [*others, first]:
        undo_rollback(company, control, rollback_id=number, actor="grace", clock=clock)
    assert live(company) == before


def test_a_writer_in_the_way_is_waited_for_or_left_for_the_next_pass(
    company: Connection, control: Connection, billing_url: str, clock: FixedClock
) -> None:
    """A row that becomes non-monthly behind the rollback's key is found by the next pass."""
    monthly = one(
        company,
        "SELECT min(subscription_id) FROM billing.subscriptions"
        " WHERE payment_frequency = 'MONTHLY' AND status = 'active'",
    )
    meddled: list[str] = []

    def meddle(said: str) -> None:
        if "moved to monthly" in said and not meddled:
            meddled.append(said)
            with opened(billing_url, purpose="meddler") as other:
                other.execute(
                    "UPDATE billing.subscriptions SET payment_frequency = 'WEEKLY' WHERE subscription_id = %s",
                    (monthly,),
                )

    rolled(company, control, clock, "frequencies", batch_size=20, progress=meddle)
    assert meddled
    assert (
        one(
            company,
            "SELECT count(*) FROM billing.subscriptions WHERE payment_frequency <> 'MONTHLY' AND status <> 'canceled'",
        )
        == 0
    )


KILLED = """
import os, signal, sys
from datetime import datetime
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import opened
from flexpay_pipelines.rollback import roll_back, undo_rollback

what, billing_url, control_url, now, step = sys.argv[1:]
left = int(step)

def progress(said):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

with opened(billing_url, purpose="killed") as billing, opened(control_url, purpose="killed") as control:
    clock = FixedClock(datetime.fromisoformat(now))
    if what == "undo":
        undo_rollback(billing, control, rollback_id=1, actor="ada", clock=clock, progress=progress, batch_size=13)
    else:
        roll_back(billing, control, component="complete", actor="ada", reason="a test", incident_id=None,
                  run_id=None, clock=clock, progress=progress, batch_size=13)
"""


def killed(what: str, urls: tuple[str, str], clock: FixedClock, step: int) -> int:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(KILLED),
            what,
            *urls,
            clock.now().isoformat(),
            str(step),
        ],
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return done.returncode


def let_the_dead_go(billing: Connection) -> None:
    """Wait until the server has noticed that the killed client is gone: its lock is free."""
    billing.execute("SELECT pg_advisory_lock(hashtextextended('flexpay rollback', 0))")
    billing.execute("SELECT pg_advisory_unlock(hashtextextended('flexpay rollback', 0))")


STEPS = [1, 2, 4, 7, 11, 14]


@pytest.mark.parametrize(
    "step", [*STEPS, *(pytest.param(n, marks=pytest.mark.soak) for n in range(1, 20) if n not in STEPS)]
)
def test_killed_anywhere_it_is_finished_once(
    company: Connection, control: Connection, urls: tuple[str, str], clock: FixedClock, step: int
) -> None:
    before = live(company)
    expected = plan_rollback(company, "complete").changes
    code = killed("roll_back", urls, clock, step)
    assert code in (-signal.SIGKILL, 0)
    let_the_dead_go(company)
    result = rolled(company, control, clock, "complete", batch_size=13)
    if code:
        assert result.rollback_id == 1
        assert one(control, "SELECT count(*) FROM ops.rollbacks") == 1
        assert result.changes == expected
    moves = "SELECT count(*) FROM billing.subscription_events WHERE reason LIKE 'rollback %'"
    assert one(company, moves) == expected["subscriptions_moved_to_monthly"] + expected["subscriptions_resumed"]
    undo = killed("undo", urls, clock, step) if code else 0
    let_the_dead_go(company)
    for row in rows(control, "SELECT rollback_id FROM ops.rollbacks ORDER BY rollback_id DESC"):
        undo_rollback(company, control, rollback_id=row["rollback_id"], actor="grace", clock=clock, batch_size=13)
    assert undo in (-signal.SIGKILL, 0)
    assert live(company) == before
    assert one(company, moves.replace("'rollback %'", "'undo %'")) == one(company, moves)
