"""A naive replay of a subscription's events, one after another, against which the set-based projection is held."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

STANDING = {"started": "active", "recovered": "active", "resumed": "active", "past_due": "past_due", "paused": "paused"}


@dataclass
class Replayed:
    """Today's row of a subscription, as its events amount to it."""

    status: str = "trialing"
    plan: str = ""
    payment_frequency: str = ""
    amount_minor: int = 0
    quantity: int = 0
    started_at: datetime | None = None
    billing_anchor: datetime | None = None
    canceled_at: datetime | None = None
    changed_at: datetime | None = None


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def replay(events: list[dict[str, str]], known_at: datetime) -> Replayed:
    """Replay rows of subscription_events.csv that stand in the order of the file."""
    row = Replayed()
    life, suspended, standing = "trialing", False, "active"
    started_yet = False
    for event in sorted(
        _distinct(events),
        key=lambda e: (
            instant(e["occurred_at"]),
            instant(e["recorded_at"]) if e.get("recorded_at") else known_at,
        ),
    ):
        what, at = event["event"], instant(event["occurred_at"])
        row.plan, row.payment_frequency = event["plan"], event["payment_frequency"]
        row.amount_minor, row.quantity, row.changed_at = int(event["amount_minor"]), int(event["quantity"]), at
        row.billing_anchor = row.billing_anchor or at
        row.started_at = row.started_at or at
        if what == "started":
            row.billing_anchor = at
            row.started_at = row.started_at if started_yet else at
            started_yet = True
        if what == "canceled" and life != "canceled":
            row.canceled_at = at
        life = {"started": "active", "trial_started": "trialing", "canceled": "canceled"}.get(what, life)
        if life != "canceled":
            row.canceled_at = None
        suspended = {"suspended": True, "started": False, "recovered": False}.get(what, suspended)
        standing = STANDING.get(what, standing)
    row.status = life if life != "active" else "suspended" if suspended else standing
    return row


def _distinct(events: list[dict[str, str]]) -> list[dict[str, str]]:
    """Each event once, where it stands first; without recorded_at it is the same as an equal one with it."""
    dated = {_all_but_recorded(event) for event in events if event.get("recorded_at")}
    found: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for event in events:
        if event.get("recorded_at") or _all_but_recorded(event) not in dated:
            found.setdefault(tuple(sorted(event.items())), event)
    return list(found.values())


def _all_but_recorded(event: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in event.items() if name != "recorded_at"))


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def replay_file(path: Path, known_at: datetime) -> dict[str, Replayed]:
    """Every subscription of a subscription_events.csv."""
    by_subscription: dict[str, list[dict[str, str]]] = {}
    for event in read(path):
        by_subscription.setdefault(event["subscription_id"], []).append(event)
    return {ref: replay(events, known_at) for ref, events in by_subscription.items()}
