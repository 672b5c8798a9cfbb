"""Random small directories: what goes in is what stands in the tables, once, whatever the order and however often."""

from __future__ import annotations

import csv
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexpay_pipelines.billing.importing import import_directory
from flexpay_pipelines.clock import FixedClock
from flexpay_pipelines.database import Connection
from tests.importing.replay import replay_file

NOW = datetime(2026, 6, 1, tzinfo=UTC)
ORIGIN = datetime(2026, 1, 1, tzinfo=UTC)
EVENTS = ["started", "trial_started", "changed", "paused", "resumed", "past_due", "recovered", "suspended", "canceled"]
FREQUENCIES = ["WEEKLY", "BIWEEKLY", "MONTHLY", "QUARTERLY", "YEARLY"]
# Coarse, so that events of the same instant are common.
INSTANTS = st.integers(0, 40).map(lambda halves: (ORIGIN + timedelta(days=halves * 3.5)).isoformat())
IDS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8)

event = st.fixed_dictionaries(
    {
        "subscription": st.integers(0, 3),
        "occurred_at": INSTANTS,
        "event": st.sampled_from(EVENTS),
        "plan": st.sampled_from(["basic", "pro"]),
        "payment_frequency": st.sampled_from(FREQUENCIES),
        "amount_minor": st.integers(0, 10**12),
        "quantity": st.integers(1, 1000),
        "recorded_at": st.one_of(st.just(""), INSTANTS),
    }
)
payment = st.fixed_dictionaries(
    {
        "occurred_at": INSTANTS,
        "amount_minor": st.integers(0, 10**12),
        "outcome": st.sampled_from(["succeeded", "failed"]),
        "attempt": st.integers(1, 5),
    }
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=IDS,
    events=st.lists(event, min_size=1, max_size=25),
    payments=st.lists(payment, max_size=10),
    spent=st.lists(st.integers(1, 100), max_size=5),
)
def test_round_trip(
    billing: Connection,
    suffix: str,
    events: list[dict[str, str | int]],
    payments: list[dict[str, str | int]],
    spent: list[int],
) -> None:
    # Each example has a customer of its own: history cannot be deleted.
    count = billing.execute("SELECT count(*) AS n FROM billing.customers").fetchone()
    assert count is not None
    tag = f"{suffix}-{count['n']}"
    events = [{**row, "subscription": f"s{row['subscription']}-{tag}"} for row in events]
    first = str(events[0]["subscription"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, "plans.csv", [{"plan": "basic"}, {"plan": "pro"}])
        write(folder, "customers.csv", [{"currency": "EUR", "customer_id": f"c-{tag}"}])
        history: list[dict[str, str | int]] = [
            {
                "subscription_id": row.pop("subscription"),
                "customer_id": f"c-{tag}",
                **row,
                # The product of price and quantity is bounded by the contract.
                "amount_minor": int(row["amount_minor"]) // int(row["quantity"]),
                "currency": "EUR",
            }
            for row in events
        ]
        write(folder, "subscription_events.csv", history)
        write(
            folder,
            "payments.csv",
            [
                {"payment_id": f"m{place}-{tag}", "subscription_id": first, "currency": "EUR", **row}
                for place, row in enumerate(payments)
            ],
            "payment_id,subscription_id,occurred_at,amount_minor,currency,outcome,attempt",
        )
        rewards: list[dict[str, str | int]] = [{"kind": "earned", "amount_minor": sum(spent) + 1}]
        rewards.extend({"kind": "spent", "amount_minor": amount} for amount in spent)
        write(
            folder,
            "rewards.csv",
            [{"customer_id": f"c-{tag}", "occurred_at": ORIGIN.isoformat(), **row} for row in rewards],
        )
        clock = FixedClock(NOW)
        once = import_directory(billing, folder, clock=clock, progress=lambda _: None)
        distinct = {tuple(sorted(row.items())) for row in history}
        dated, undated = (
            {tuple(sorted((k, v) for k, v in row.items() if k != "recorded_at")) for row in history if chosen(row)}
            for chosen in (lambda row: row["recorded_at"], lambda row: not row["recorded_at"])
        )
        # An event without recorded_at is the same as an equal one with it.
        assert once.files["subscription_events.csv"].new == len(distinct) - len(undated & dated)
        assert once.files["payments.csv"].new == len(payments)
        assert once.files["rewards.csv"].new == len(rewards)

        expected = replay_file(folder / "subscription_events.csv", NOW)
        found = {
            row["subscription_ref"]: row
            for row in billing.execute(
                "SELECT * FROM billing.subscriptions WHERE right(subscription_ref, %s) = %s", (len(tag) + 1, f"-{tag}")
            )
        }
        assert found.keys() == expected.keys()
        for ref, replayed in expected.items():
            assert {key: found[ref][key] for key in vars(replayed)} == vars(replayed)
        total = billing.execute(
            "SELECT coalesce(sum(amount_minor), 0) AS total, count(*) AS n FROM billing.payments"
            " WHERE right(payment_ref, %s) = %s",
            (len(tag) + 1, f"-{tag}"),
        ).fetchone()
        assert total == {"total": sum(int(row["amount_minor"]) for row in payments), "n": len(payments)}
        again = import_directory(billing, folder, clock=FixedClock(NOW + timedelta(days=1)), progress=lambda _: None)
        assert {count.new for count in again.files.values()} == {0}


def write(folder: Path, name: str, rows: list[dict[str, str | int]], header: str = "") -> None:
    with (folder / name).open("w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, header.split(",") if header else list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
