"""What can be rolled back, and what that would change, read before anything is done.

What belongs here: the components, plans and their counts. What does not: changing anything (`engine`, `undo`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.sql import queries

Component = Literal["frequencies", "pauses", "rewards", "complete"]
COMPLETE = ("rewards", "pauses", "frequencies")
"""The components of a complete rollback, the one that was built last first."""


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """What a rollback would do now.

    Attributes:
        component: as asked for; `complete` holds every deployed component.
        changes: how many, by kind: `subscriptions_moved_to_monthly`, `frequency_changes_canceled`, `pauses_ended`,
            `pauses_canceled`, `subscriptions_resumed`, `reward_balances_archived`, `stripe_commands`,
            `features_turned_off`.
        warnings: sentences that a person should read before saying yes.
    """

    component: str
    changes: dict[str, int]
    warnings: tuple[str, ...]


def plan_rollback(billing: Connection, component: str) -> RollbackPlan:
    """Count what `roll_back` would change. Changes nothing.

    Raises:
        BadInput: an unknown component, or one that is not deployed.
    """
    changes: dict[str, int] = {}
    warnings: list[str] = []
    for one in affected_components(billing, component):
        flag = queries("rollback").feature_state(billing, component=one)
        _add(changes, "features_turned_off", int(flag is not None and flag["enabled"]))
        if flag is None or not flag["enabled"]:
            warnings.append(f"The feature '{one}' is off already.")
        found = dict(getattr(queries("rollback"), f"plan_{one}")(billing))
        warnings += _warnings(found)
        for name, count in found.items():
            if name not in _WARNINGS:
                _add(changes, name, count)
    return RollbackPlan(component, changes, tuple(warnings))


def affected_components(billing: Connection, component: str) -> tuple[str, ...]:
    """The deployed components that a rollback of `component` takes back, in the order in which it does.

    Raises:
        BadInput: an unknown component, one that is not deployed, or no archive to keep things in.
    """
    known = get_args(Component)
    if component not in known:
        raise BadInput(f"There is no component '{component}' to roll back: choose one of {', '.join(known)}.")
    deployed = queries("rollback").deployed_components(billing)
    if not deployed["archive"]:
        raise BadInput(
            "The rollback archive is not deployed, and nothing may be taken back without keeping it: "
            "deploy the component 'core' first."
        )
    if component == "complete":
        found = tuple(one for one in COMPLETE if deployed[one])
        if not found:
            raise BadInput("No component that could be rolled back is deployed in this database.")
        return found
    if not deployed[component]:
        raise BadInput(f"The component '{component}' is not deployed in this database: there is nothing to roll back.")
    return (component,)


def summed_changes(counts: Iterable[dict[str, Any]]) -> dict[str, int]:
    """The same kinds of counts as a plan's, from what a rollback has archived."""
    changes: dict[str, int] = {}
    for row in counts:
        _add(changes, _KINDS[row["component"], row["subject"], row["state"]], row["entries"])
        if row["commands"]:
            _add(changes, "stripe_commands", row["commands"])
    return changes


_KINDS = {
    ("frequencies", "feature", None): "features_turned_off",
    ("pauses", "feature", None): "features_turned_off",
    ("rewards", "feature", None): "features_turned_off",
    ("frequencies", "subscription", None): "subscriptions_moved_to_monthly",
    ("frequencies", "frequency_change", "scheduled"): "frequency_changes_canceled",
    ("pauses", "pause", "active"): "pauses_ended",
    ("pauses", "pause", "scheduled"): "pauses_canceled",
    ("pauses", "subscription", None): "subscriptions_resumed",
    ("rewards", "reward_balance", None): "reward_balances_archived",
}

_WARNINGS = {
    "without_monthly_price": (
        "{} subscriptions have no monthly price for their plan and currency: "
        "theirs is derived from what they pay a year, half up."
    ),
    "paid_ahead": "{} subscriptions pay for a quarter or a year: their next payment date stays as it is.",
    "paused_who_owe": (
        "{} subscriptions owe a payment: past due when their pause has ended, they are suspended "
        "once their grace period is over and pauses are on again."
    ),
    "grace_periods": "{} grace periods after failed payments go on.",
    "paused_without_pause": "{} subscriptions are paused without a pause on record: they stay paused.",
}


def _warnings(found: dict[str, int]) -> list[str]:
    return [says.format(found[name]) for name, says in _WARNINGS.items() if found.get(name)]


def _add(changes: dict[str, int], name: str, count: int) -> None:
    changes[name] = changes.get(name, 0) + count
