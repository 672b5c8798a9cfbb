"""What must hold of the figures before anybody reads them: blocking checks that name customers and events.

What belongs here: the checks of run rate, months, events, payments and freshness. What does not: how they are found
(`analytics`), the checks of the churn model (`analytics`) and of balances (`analytics_balances`).
"""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

import dagster as dg

from flexpay_pipelines.defs.analytics import CHURN, MOVEMENTS, PAYMENT_HEALTH, SUMMARY, named, reporting
from flexpay_pipelines.defs.presentation import figures
from flexpay_pipelines.defs.resources import FlexPay
from flexpay_pipelines.session import Session

CHECKED = timedelta(days=400)
EXPECTED = timedelta(days=30)


def _result(breaks: Sequence[Mapping[str, Any]], *, passed: bool | None = None, **more: Any) -> dg.AssetCheckResult:
    counted = _total(breaks)
    return dg.AssetCheckResult(
        passed=not breaks if passed is None else passed,
        metadata={**figures({"count": counted}), "breaks": named(breaks, counted), **more},
    )


def _total(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many rows there are in all, where only the first are here."""
    return int(rows[0].get("total", len(rows))) if rows else 0


def _newest_day(session: Session) -> date | None:
    from flexpay_pipelines.analytics import how_fresh

    return how_fresh(reporting(session), now=session.clock.now()).newest_day


@dg.asset_check(asset=SUMMARY, blocking=True)
def movements_explain_mrr(flexpay: FlexPay) -> dg.AssetCheckResult:
    """End = start + movements, to the minor unit, in every segment; and the segments sum to the total."""
    from flexpay_pipelines.analytics import events_behind, identity_breaks

    with flexpay.session("identity check") as session:
        today = session.clock.now().date()
        breaks = identity_breaks(reporting(session), start=today - CHECKED, end=today)
        behind = events_behind(reporting(session), [row["day"] for row in breaks])
    return _result(breaks, events=named(behind, _total(behind)))


@dg.asset_check(asset=SUMMARY, blocking=True)
def months_agree_with_days(flexpay: FlexPay) -> dg.AssetCheckResult:
    """At month grain too: end = start + movements, segments sum to the total, and a month ends as its last day does."""
    from flexpay_pipelines.analytics import events_behind, month_breaks

    with flexpay.session("month check") as session:
        newest = _newest_day(session)
        breaks = [] if newest is None else month_breaks(reporting(session), last=newest)
        days = [date.fromisoformat(f"{row['period']}-01") + timedelta(days=n) for row in breaks for n in range(31)]
        behind = events_behind(reporting(session), days)
    return _result(breaks, events=named(behind, _total(behind)))


@dg.asset_check(asset=MOVEMENTS, blocking=True)
def intervals_are_whole(flexpay: FlexPay) -> dg.AssetCheckResult:
    """No gap and no overlap between run-rate intervals, and the current ones agree with today's subscriptions."""
    from flexpay_pipelines.analytics import interval_breaks

    with flexpay.session("interval check") as session:
        return _result(interval_breaks(reporting(session)))


@dg.asset_check(asset=MOVEMENTS, blocking=True)
def events_are_used_once(flexpay: FlexPay) -> dg.AssetCheckResult:
    """Every event shows in the interval that holds its instant, opens at most one, and opens it alone."""
    from flexpay_pipelines.analytics import event_breaks

    with flexpay.session("event check") as session:
        breaks = event_breaks(reporting(session))
    return _result(breaks)


@dg.asset_check(asset=PAYMENT_HEALTH, blocking=True)
def payments_match_run_rate(flexpay: FlexPay) -> dg.AssetCheckResult:
    """Who counts pays, who is over does not, and nobody pays years at once; 1 % (or three) may be otherwise."""
    from flexpay_pipelines.analytics import payment_breaks, plausible

    with flexpay.session("payment check") as session:
        newest = _newest_day(session)
        breaks = [] if newest is None else payment_breaks(reporting(session), day=newest)
    compared = figures({"compared": breaks[0]["compared"]} if breaks else {})
    return _result(breaks, passed=plausible(breaks), **compared)


@dg.asset_check(asset=MOVEMENTS, blocking=True)
def figures_are_fresh(flexpay: FlexPay) -> dg.AssetCheckResult:
    """No event was overlooked; a warning when days that have ended are not stored."""
    from flexpay_pipelines.analytics import how_fresh

    with flexpay.session("freshness check") as session:
        fresh = how_fresh(reporting(session), now=session.clock.now())
    return dg.AssetCheckResult(
        passed=not fresh.overlooked_events and not fresh.days_behind,
        severity=dg.AssetCheckSeverity.ERROR if fresh.overlooked_events else dg.AssetCheckSeverity.WARN,
        metadata=figures(fresh),
    )


@dg.asset_check(asset=CHURN, blocking=True)
def figures_are_in_range(flexpay: FlexPay) -> dg.AssetCheckResult:
    """Shares between 0 and 1, nothing negative that cannot be, parts not above their wholes; the last 30 days."""
    from flexpay_pipelines.analytics import expected_figures, unexpected

    with flexpay.session("range check") as session:
        newest = _newest_day(session)
        if newest is None:
            return _result([])
        shown = expected_figures(
            reporting(session), first=newest - EXPECTED, last=newest, currency=session.settings.reporting_currency
        )
    return _result(unexpected(shown))


defs = dg.Definitions(
    asset_checks=[
        movements_explain_mrr,
        months_agree_with_days,
        intervals_are_whole,
        events_are_used_once,
        payments_match_run_rate,
        figures_are_fresh,
        figures_are_in_range,
    ]
)
