"""What an import makes of good rows: counts, values, projection; twice is once; all or nothing, also when killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flexpay_pipelines.billing.import_contract import BadRows
from flexpay_pipelines.billing.importing import LOCK, FileCounts, ImportResult, import_directory
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection, advisory_lock, opened
from flexpay_pipelines.errors import TransientError

Make = Callable[..., Path]
Load = Callable[..., ImportResult]
Contents = Callable[[], dict[str, list[dict[str, Any]]]]

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def subscription(billing: Connection, ref: str) -> dict[str, Any]:
    row = billing.execute("SELECT * FROM billing.subscriptions WHERE subscription_ref = %s", (ref,)).fetchone()
    assert row is not None
    return row


def test_everything_arrives(billing: Connection, make: Make, load: Load, contents: Contents) -> None:
    result = load(make())
    assert {name: (count.rows, count.new, count.known) for name, count in result.files.items()} == {
        "plans.csv": (2, 2, 0),
        "customers.csv": (2, 2, 0),
        "subscription_events.csv": (4, 4, 0),
        "pauses.csv": (2, 2, 0),
        "payments.csv": (3, 3, 0),
        "rewards.csv": (3, 3, 0),
        "fx_rates.csv": (1, 1, 0),
    }
    found = contents()
    assert {(row["plan"], row["name"]) for row in found["plans"]} == {("pro", "Pro"), ("basic", "basic")}
    assert {(row["customer_ref"], row["time_zone"], row["country"]) for row in found["customers"]} == {
        ("c1", "Europe/Berlin", "DE"),
        ("c2", "UTC", None),
    }
    assert {(row["pause_ref"], row["state"]) for row in found["subscription_pauses"]} == {
        ("p1", "active"),
        ("p2", "scheduled"),
    }
    assert {(row["payment_ref"], row["attempt"], row["failure_code"]) for row in found["payments"]} == {
        ("m1", 1, "insufficient_funds"),
        ("m2", 2, None),
        ("m3", 1, None),
    }
    prices = {(r["plan"], r["payment_frequency"], r["currency"], r["amount_minor"]) for r in found["plan_prices"]}
    assert prices == {("pro", "MONTHLY", "EUR", 1999), ("basic", "WEEKLY", "USD", 250)}
    balance = billing.execute("SELECT balance_minor FROM billing.reward_balances").fetchall()
    assert balance == [{"balance_minor": 200}]
    assert {row["source"] for row in found["subscription_events"]} == {"import"}
    # A row without recorded_at became known with the import.
    assert {row["recorded_at"] for row in found["subscription_events"]} == {
        NOW,
        datetime(2026, 1, 31, 8, 0, 5, tzinfo=UTC),
    }


def test_the_projection(billing: Connection, make: Make, load: Load) -> None:
    load(make())
    one, two = subscription(billing, "s1"), subscription(billing, "s2")
    assert (one["status"], one["payment_frequency"], one["amount_minor"]) == ("active", "MONTHLY", 1999)
    # 31 January in Berlin, month ends clamped: 28 February has passed, 31 March is next (09:00 summer time).
    assert one["next_payment_at"] == datetime(2026, 3, 31, 7, tzinfo=UTC)
    assert (two["status"], two["payment_frequency"], two["quantity"]) == ("paused", "WEEKLY", 3)
    assert two["started_at"] == two["billing_anchor"] == datetime(2026, 1, 24, tzinfo=UTC)
    assert two["changed_at"] == datetime(2026, 2, 20, tzinfo=UTC)
    # Paused on 20 February: the payment that was next then.
    assert two["next_payment_at"] == datetime(2026, 2, 21, tzinfo=UTC)


def test_twice_is_once_also_after_life_has_gone_on(
    billing: Connection, make: Make, load: Load, contents: Contents
) -> None:
    folder = make()
    load(folder)
    before = contents()
    again = load(folder, now=NOW + timedelta(days=1))
    assert {count.new for count in again.files.values()} == {0}
    assert again.files["rewards.csv"] == FileCounts(3, 0, 3)
    assert contents() == before
    # A sweep has started one pause since, and somebody has ended the other early.
    billing.execute("UPDATE billing.subscription_pauses SET state = 'active', version = 2 WHERE pause_ref = 'p2'")
    billing.execute(
        "UPDATE billing.subscription_pauses SET state = 'completed', ends_at = '2026-03-02Z', version = 2"
        " WHERE pause_ref = 'p1'"
    )
    billing.execute("UPDATE billing.subscriptions SET status = 'active' WHERE subscription_ref = 's2'")
    before = contents()
    assert {count.new for count in load(folder).files.values()} == {0}
    assert contents() == before


def test_duplicates_inside_a_directory_count_once(make: Make, load: Load) -> None:
    events = "s1,c1,2026-01-31T08:00:00Z,started,pro,MONTHLY,1999,1,EUR,\n"
    result = load(
        make(
            plans_more="pro,\n",
            customers_more="c1,EUR,,,,\n",
            subscription_events_more=events,
            payments_more="m2,s1,2026-02-01T08:00:00Z,1999,EUR,succeeded,,,\n",
            fx_rates_more="2026-01-31,USD,EUR,0.92150\n",
        )
    )
    for name in ("plans.csv", "customers.csv", "subscription_events.csv", "payments.csv", "fx_rates.csv"):
        assert result.files[name].known == 1, name
    # Two equal reward rows are two rewards.
    assert result.files["rewards.csv"].known == 0


def test_a_contradiction_of_what_is_known(make: Make, load: Load, contents: Contents) -> None:
    load(make())
    before = contents()
    with pytest.raises(BadRows) as error:
        load(
            make(
                payments="payment_id,subscription_id,occurred_at,amount_minor,currency,outcome\n"
                "m1,s1,2026-01-31T08:00:00Z,2000,EUR,failed\n",
                customers="currency,customer_id\nUSD,c1\n",
                subscription_events=None,
                pauses="pause_id,subscription_id,starts_at,ends_at,kind\np1,s2,2026-02-20T00:00:00Z,,customer\n",
            )
        )
    assert [(problem.file, problem.line, problem.column) for problem in error.value.problems] == [
        ("customers.csv", 2, "currency"),
        ("pauses.csv", 2, "ends_at"),
        ("payments.csv", 2, "amount_minor"),
    ]
    assert contents() == before


def test_columns_in_any_order_a_byte_order_mark_and_windows_line_ends(
    make: Make, load: Load, contents: Contents
) -> None:
    load(make(plans='\ufeffname,plan\r\n"Pro, the\r\nbest",pro\r\n,basic\r\n'))
    assert {row["name"] for row in contents()["plans"]} == {"Pro, the\r\nbest", "basic"}


def test_a_dry_run_says_the_same_and_changes_nothing(make: Make, load: Load, contents: Contents) -> None:
    folder = make()
    planned = load(folder, dry_run=True)
    assert planned.dry_run
    assert not any(contents().values())
    assert load(folder).files == planned.files


def test_late_events_project_again_from_the_whole_history(billing: Connection, make: Make, load: Load) -> None:
    load(make())
    # The database itself has written history since: resumed on 25 February, and a late cancellation before that.
    billing.execute(
        "UPDATE billing.subscriptions SET status = 'active', version = version + 1, changed_at = '2026-02-25Z'"
        " WHERE subscription_ref = 's2'"
    )
    header = "subscription_id,customer_id,occurred_at,event,plan,payment_frequency,amount_minor,quantity,currency\n"
    events = header + "s2,c2,2026-02-22T00:00:00Z,changed,pro,MONTHLY,1999,2,USD\n"
    only = dict.fromkeys(("pauses", "payments", "rewards", "fx_rates", "plans", "customers"))
    version = subscription(billing, "s2")["version"]
    assert load(make(subscription_events=events, **only)).files["subscription_events.csv"].new == 1
    row = subscription(billing, "s2")
    # The database's own event of 25 February is the newest, and it carried the terms known then.
    assert (row["status"], row["plan"], row["payment_frequency"]) == ("active", "basic", "WEEKLY")
    assert row["version"] > version
    events = header + "s2,c2,2026-02-27T00:00:00Z,canceled,basic,WEEKLY,250,3,USD\n"
    load(make(subscription_events=events, **only))
    row = subscription(billing, "s2")
    assert (row["status"], row["canceled_at"]) == ("canceled", datetime(2026, 2, 27, tzinfo=UTC))
    assert row["next_payment_at"] is None
    # The import's writes left no events of their own; later writes do again.
    count = "SELECT count(*) AS n FROM billing.subscription_events WHERE source = 'database'"
    assert billing.execute(count).fetchone() == {"n": 1}
    billing.execute("UPDATE billing.subscriptions SET status = 'active' WHERE subscription_ref = 's2'")
    assert billing.execute(count).fetchone() == {"n": 2}


def test_a_second_import_meanwhile_is_refused(billing_url: str, make: Make, load: Load) -> None:
    with (
        opened(billing_url, purpose="other") as other,
        advisory_lock(other, LOCK),
        pytest.raises(TransientError, match="Another process"),
    ):
        load(make())
    assert load(make()).files["plans.csv"].new == 2


def test_a_sweep_that_writes_meanwhile_is_not_overwritten(
    billing: Connection, billing_url: str, make: Make, load: Load
) -> None:
    """The import waits for a transaction that is changing the subscription, and projects what that one wrote."""
    load(make())
    header = "subscription_id,customer_id,occurred_at,event,plan,payment_frequency,amount_minor,quantity,currency\n"
    only = dict.fromkeys(("pauses", "payments", "rewards", "fx_rates", "plans", "customers"))
    folder = make(subscription_events=header + "s1,c1,2026-02-01T00:00:00Z,changed,pro,MONTHLY,2500,1,EUR\n", **only)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with opened(billing_url, purpose="importer") as mine:
                import_directory(mine, folder, clock=FixedClock(NOW), progress=lambda _: None)
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    with opened(billing_url, purpose="sweep") as sweep:
        with sweep.transaction():
            sweep.execute(
                "UPDATE billing.subscriptions SET status = 'paused', version = version + 1, changed_at = '2026-02-20Z'"
                " WHERE subscription_ref = 's1'"
            )
            importer = threading.Thread(target=run)
            importer.start()
            waiting = (
                "SELECT count(*) AS n FROM pg_stat_activity"
                " WHERE application_name = 'flexpay importer' AND wait_event_type = 'Lock'"
            )
            while importer.is_alive() and billing.execute(waiting).fetchone() != {"n": 1}:
                pass
            assert importer.is_alive()
        importer.join(60)
    assert not failures
    assert subscription(billing, "s1")["status"] == "paused"


@pytest.mark.parametrize("step", ["Reading payments.csv.", "Checking the rows.", "Loading the rows that are new."])
def test_killed_at_any_step_it_leaves_nothing_and_the_next_run_imports_all(
    billing_url: str, make: Make, load: Load, contents: Contents, step: str
) -> None:
    folder = make()
    program = (
        "import os, signal, sys\n"
        "from datetime import UTC, datetime\n"
        "from pathlib import Path\n"
        "from flexpay_pipelines.billing.importing import import_directory\n"
        "from flexpay_pipelines.clock import FixedClock\n"
        "from flexpay_pipelines.database import opened\n"
        "def progress(said):\n"
        "    if said == sys.argv[3]:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "with opened(sys.argv[1], purpose='killed') as connection:\n"
        "    import_directory(connection, Path(sys.argv[2]), clock=FixedClock(datetime(2026, 3, 1, 12, tzinfo=UTC)),\n"
        "                     progress=progress)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, billing_url, str(folder), step], check=False, env=dict(os.environ), timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    assert not any(contents().values())
    assert load(folder).files["payments.csv"].new == 3
