"""What must hold when a sequence has come to rest, whatever happened in it.

What belongs here: the database against Stripe, against its own history, and each effect once. What does not: which days
were billed (`billing_days`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple
from datetime import timedelta
from typing import Any

from psycopg import sql

from flexpay_pipelines import billing
from flexpay_pipelines.payments import reconcile
from tests.model.world import World, quiet

# What an hourly job takes, and a few repetitions of a call.
PROMPT = timedelta(hours=3)
_STATUS = {
    "started": "active", "trial_started": "trialing", "paused": "paused", "resumed": "active", "past_due": "past_due",
    "recovered": "active", "suspended": "suspended", "canceled": "canceled",
}  # fmt: skip
_TERMS = ("plan", "payment_frequency", "amount_minor", "quantity", "currency")


def stripe_agrees(world: World) -> None:
    """Nothing differs; but for what was told late or typed by hand, which a mend mends."""
    found = reconcile(world.worker, world.gateway, clock=world.clock, progress=quiet)
    late = told_late(world)
    unexplained = [
        one
        for one in found.differences
        if one.subscription_ref not in world.typed and (one.kind != "next_payment" or one.subscription_ref not in late)
    ]
    assert not unexplained, [astuple(one) for one in unexplained]
    assert found.in_flight == 0
    if found.differences:
        world.mend(found.reconciliation_id)
        again = reconcile(world.worker, world.gateway, clock=world.clock, progress=quiet)
        assert not again.differences, [astuple(one) for one in again.differences]
    parked = world.admin.execute("SELECT operation, last_error FROM billing.stripe_commands WHERE state = 'parked'")
    assert parked.fetchall() == []


def told_late(world: World) -> set[str]:
    """Subscriptions of which Stripe was told something hours after it was true: it may have billed on its own dates."""
    rows = world.admin.execute(
        "SELECT subscription_ref FROM billing.subscriptions JOIN billing.stripe_commands AS c USING (subscription_id)"
        " WHERE coalesce(c.delivered_at, 'infinity') > c.created_at + %(most)s"
        " UNION SELECT subscription_ref FROM billing.subscriptions JOIN billing.subscription_events AS e"
        " USING (subscription_id) WHERE e.event <> 'started' AND e.recorded_at - e.occurred_at > %(most)s",
        {"most": PROMPT},
    )
    return {row["subscription_ref"] for row in rows}


def history_replays(world: World) -> None:
    """The ledger, folded in the order of time, gives today's tables: the status and the terms of each subscription."""
    replayed: dict[int, dict[str, Any]] = {}
    for event in world.admin.execute(
        "SELECT * FROM billing.subscription_events ORDER BY occurred_at, recorded_at, event_id"
    ):
        state = replayed.setdefault(event["subscription_id"], {})
        state |= {name: event[name] for name in _TERMS}
        if event["event"] != "changed":
            state["status"] = _STATUS[event["event"]]
    today = {
        row["subscription_id"]: {name: row[name] for name in (*_TERMS, "status")}
        for row in world.admin.execute("SELECT * FROM billing.subscriptions")
    }
    assert replayed == today
    assert billing.history_breaks(world.admin) == ()


def pauses_are_in_history_at_their_own_times(world: World) -> None:
    """Each pause that was begun and ended is there once, from its own start to its own end."""
    rows = world.admin.execute(
        "SELECT p.subscription_id, p.starts_at, p.ends_at, p.state FROM billing.subscription_pauses AS p"
        " WHERE p.kind <> 'payment_failure' AND p.state <> 'scheduled'"
    ).fetchall()
    told = Counter(
        (row["subscription_id"], row["event"], row["occurred_at"])
        for row in world.admin.execute("SELECT * FROM billing.subscription_events WHERE event IN ('paused', 'resumed')")
    )
    # A pause that was due before a payment failed or was made, and was begun after that was known, is dated with the
    # payment, as is each of several.
    payments = {
        (row["subscription_id"], row["occurred_at"])
        for row in world.admin.execute(
            "SELECT * FROM billing.subscription_events AS e WHERE event = 'past_due'"
            " OR event IN ('recovered', 'started') AND EXISTS (SELECT 1 FROM billing.subscription_pauses AS p"
            " WHERE p.subscription_id = e.subscription_id AND p.starts_at < e.occurred_at)"
        )
    }
    told = Counter({key: times for key, times in told.items() if (key[0], key[2]) not in payments})
    assert set(told.values()) <= {1}
    assert {key for key in told if key[1] == "paused"} <= {
        (row["subscription_id"], "paused", row["starts_at"]) for row in rows
    }
    assert {key for key in told if key[1] == "resumed"} <= {
        (row["subscription_id"], "resumed", row["ends_at"]) for row in rows if row["state"] == "completed"
    }


def who_owes_has_a_grace_period(world: World) -> None:
    """Nobody is past due for ever: a grace period runs, or a pause after which one begins."""
    rows = world.admin.execute(
        "SELECT subscription_ref FROM billing.subscriptions AS s WHERE s.status = 'past_due' AND NOT EXISTS"
        " (SELECT 1 FROM billing.subscription_pauses AS p WHERE p.subscription_id = s.subscription_id"
        " AND p.state IN ('scheduled', 'active'))"
    ).fetchall()
    # While pauses are off there are no grace periods, and what failed then has none.
    assert not rows or "pauses" in world.turned_off, rows


def each_effect_once(world: World) -> None:
    """Stripe's events show what each command did, once; what was superseded before it was tried did nothing."""
    made = Counter[tuple[str, str]]()
    for key, change in _changes(world):
        made[key, change] += 1
    assert set(made.values()) <= {1}, made
    for command in world.admin.execute(
        "SELECT idempotency_key, operation, state, attempts, last_error FROM billing.stripe_commands"
    ):
        done = {change for key, change in made if key == command["idempotency_key"]}
        assert command["state"] in ("delivered", "superseded"), command
        if command["state"] == "superseded":
            # The relay's own answer that it was superseded is an attempt; an end at Stripe that was read in needs none.
            # One whose connection was cut after Stripe had done it could make no note of the attempt.
            answered = command["last_error"] != "the subscription is canceled"
            assert not done or command["attempts"] > answered or world.cuts, (command, done)
        elif command["operation"] == "pause":
            assert "paused" in done, (command, done)


def no_balance_is_negative(world: World) -> None:
    """At no instant, by what was known then and by what is known now."""
    assert not billing.negative_balances(world.admin)
    for order in ("reward_entry_id", "occurred_at, reward_entry_id"):
        low = world.admin.execute(
            sql.SQL(
                "SELECT customer_id, occurred_at, balance FROM (SELECT *, sum(effect_minor) OVER"
                " (PARTITION BY customer_id ORDER BY {}) AS balance FROM billing.reward_entries) AS b"
                " WHERE balance < 0"
            ).format(sql.SQL(order))
        ).fetchall()
        assert low == [], order


def _changes(world: World) -> Iterator[tuple[str, str]]:
    """What changed at Stripe by a command's call: its key, and what."""
    before: dict[str, dict[str, Any]] = {}
    types = ["customer.subscription." + name for name in ("updated", "paused", "resumed", "deleted")]
    events = [event for page in world.gateway.events(since=None, types=types) for event in page]
    for event in reversed(events):
        subject = event["data"]["object"]
        after = _facts(subject)
        key = event["request"]["idempotency_key"]
        for name, value in after.items():
            if key is not None and value != before.get(subject["id"], {"paused": False}).get(name, value):
                yield _command_key(key), {"paused": "paused" if value else "resumed"}.get(name, name)
        before[subject["id"]] = after


def _facts(subject: dict[str, Any]) -> dict[str, Any]:
    item = subject["items"]["data"][0]
    return {
        "paused": subject["pause_collection"] is not None or subject["status"] == "paused",
        "price": item["price"]["id"],
        "quantity": item["quantity"],
        "date": subject["trial_end"],
        "canceled": subject["status"] == "canceled",
    }


def _command_key(key: str) -> str:
    """`7:resume:3` of `7:resume:3:1:collection`: without the generation and the step."""
    return ":".join(key.split(":")[:3])


ALL = (
    stripe_agrees,
    history_replays,
    pauses_are_in_history_at_their_own_times,
    who_owes_has_a_grace_period,
    each_effect_once,
    no_balance_is_negative,
)
