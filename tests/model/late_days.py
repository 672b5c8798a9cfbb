"""What holds of Stripe's invoices however late Stripe was told: no day paid twice, nothing collected during a pause.

What belongs here: statements that need no calendar of ours. What does not: which days must have been billed
(`billing_days`, for whoever was told in time). That the dates agree again once they are mended, `invariants` says.

- Of two invoices that were collected, the later one's period begins when the earlier one's has ended. Only a change of
  frequency at once begins one earlier: the rest of the running one is credited. Stripe counts its periods in UTC; where
  it was told a date (a pause moved it), that is counted on the customer's clock, on which a period may be over an hour
  earlier, or days where the two are of another day of the month: nobody pays for that time twice.
- From the moment in which Stripe was told of a pause until it was told of its end, or the pause ended, no invoice was
  collected. How late it was told does not matter.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from tests.model.world import World

_MOMENT = timedelta(seconds=1)
_CLOCK_CHANGE = timedelta(hours=1)
# From the last of February to the first of March, of which the one month ends on the 29th and the other on the 1st.
_MONTH_ENDS = timedelta(days=3)
_FORTNIGHT = timedelta(days=14)


def no_day_is_paid_twice(world: World) -> None:
    for ref, member in zip(world.refs, world.company.members, strict=True):
        changes = world.admin.execute(
            "SELECT c.created_at, coalesce(c.delivered_at, '9999-01-01') AS at FROM billing.stripe_commands AS c"
            " JOIN billing.subscriptions USING (subscription_id)"
            " WHERE subscription_ref = %s AND operation = 'change_price'"
            " AND parameters ->> 'proration' = 'create_prorations'",
            (ref,),
        ).fetchall()
        for one, following in pairwise(_collected(world, ref)):
            ends = _end(one, ZoneInfo(member.zone), _changed_at(one, changes))
            changed = _changed_at(following, changes) is not None
            assert changed or _instant(following["created"]) >= ends, (ref, one["id"], following["id"])


def _changed_at(invoice: dict[str, Any], changes: list[dict[str, Any]]) -> datetime | None:
    """When the change at once was made that an invoice is of; None where it is of none."""
    made = _instant(invoice["created"])
    # The answer may have been lost: what was made is known to be delivered later, or never.
    asked = [row["created_at"] for row in changes if row["created_at"] <= made <= row["at"]]
    return max(asked) if asked and invoice["billing_reason"] == "subscription_update" else None


def _end(invoice: dict[str, Any], zone: ZoneInfo, changed_at: datetime | None) -> datetime:
    """The earliest instant at which an invoice's period is over, on Stripe's calendar or on the customer's.

    A change at once was credited and begins its period when it was made, however late Stripe was told of it.
    """
    begins, ends = _instant(invoice["created"]), _instant(invoice["period_end"])
    late = begins - (changed_at or begins)
    by_months = ends - begins > _FORTNIGHT
    another_day = by_months and (late > timedelta(0) or begins.astimezone(zone).day != begins.day)
    return ends - late - _CLOCK_CHANGE - (_MONTH_ENDS if another_day else timedelta(0))


def no_pause_is_billed(world: World) -> None:
    for ref in world.refs:
        told = world.admin.execute(
            "SELECT operation, delivered_at AS at, created_at, (parameters ->> 'resumes_at')::timestamptz AS ends_at"
            " FROM billing.stripe_commands AS c JOIN billing.subscriptions USING (subscription_id)"
            " WHERE subscription_ref = %s AND operation IN ('pause', 'resume') AND delivered_at IS NOT NULL"
            " ORDER BY command_id",
            (ref,),
        ).fetchall()
        made = [_instant(one["created"]) for one in _collected(world, ref)]
        for number, pause in enumerate(told):
            if pause["operation"] == "pause":
                # Where a connection was cut, Stripe can have been told before anybody could make a note of it.
                at = "created_at" if world.cuts else "at"
                resumed = [row[at] for row in told[number + 1 :] if row["operation"] == "resume"]
                # A collection that is paused until an instant goes on then by itself.
                ends = [pause["ends_at"]] if world.company.pause_mode == "collection" and pause["ends_at"] else []
                until = min([*resumed, *ends, world.now])
                paused = [at for at in made if pause["at"] < at < until - _MOMENT]
                assert not paused, (ref, pause, paused)


def _collected(world: World, ref: str) -> list[dict[str, Any]]:
    return [one for one in world.stand.invoices(world.stripe_id(ref)) if one["status"] in ("paid", "open")]


def _instant(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
