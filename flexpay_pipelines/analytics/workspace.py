"""The temporary relations in which figures are computed, from ledger or stored intervals to summaries.

What belongs here: making, filling and dropping them, in one transaction. What does not: what is read from them
(`figures`) and what is kept (`refresh`). All rows stay in the database.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal

from flexpay_pipelines.analytics.bulk import COARSE_STATISTICS
from flexpay_pipelines.analytics.days import midnight
from flexpay_pipelines.analytics.knowledge import restore_countries, use_rates
from flexpay_pipelines.analytics.policy import Grain, MetricPolicy, Span, previous_month
from flexpay_pipelines.database import Connection
from flexpay_pipelines.errors import BadInput
from flexpay_pipelines.money import minor_digits
from flexpay_pipelines.sql import queries

WORTH_STATISTICS = 8 << 20
"""Bytes of a temporary relation from which on the planner is told what is in it."""

STORED_KINDS = ("total", "plan", "payment_frequency", "country", "currency")

# Written out, not LIKE the stored table: that would keep a lock on it.
_INTERVAL = (
    "subscription_id bigint, valid_from timestamptz, valid_to timestamptz, customer_id bigint, status text, "
    "paused_since timestamptz, annualised_minor bigint, plan text, payment_frequency text, currency text, "
    "country text, event_id bigint"
)
# Text of any length makes a table of three relations: what is short says so, where nothing else is long.
_TABLES = {
    "metric_currencies": "currency varchar(3) PRIMARY KEY",
    "metric_subscriptions": "subscription_id bigint NOT NULL, customer_id bigint NOT NULL, "
    "touched_from timestamptz NOT NULL",
    "metric_customers": "customer_id bigint NOT NULL",
    "metric_looked_up": _INTERVAL,
    "metric_plural": "customer_id bigint NOT NULL",
    "metric_paid_before": "subscription_id bigint NOT NULL, customer_id bigint NOT NULL",
    "metric_periods": "period date NOT NULL",
    "metric_windows": "period date NOT NULL, label varchar(10), last_period date, before_period date, "
    "before_day date, last_day date",
    "metric_rates": "period date, currency text, shown text, rate_before numeric, rate_now numeric, "
    "PRIMARY KEY (period, currency)",
    "metric_changes": "subscription_id bigint, customer_id bigint, currency text, country text, alone boolean, "
    "period date, kind_before analytics.standing, kind_after analytics.standing, run_before bigint, run_after bigint, "
    "paused_before bigint, paused_after bigint, plan_before text, plan_after text, frequency_before text, "
    "frequency_after text, ever_before boolean, class text",
    "metric_several": "customer_id bigint, currency text, country text, period date, "
    "run_before bigint, run_after bigint, with_before boolean, with_after boolean, ever_before boolean, "
    "splits boolean, paused bigint, resumed bigint, rest bigint, movement text, subscriptions integer, "
    "paused_subscriptions integer, spread boolean, plan text, payment_frequency text",
    "metric_movements": "period date, customer_id bigint, movement varchar(12), currency varchar(3), amount bigint",
    "metric_segment_changes": "period date, kind text, segment text, currency text, run_change bigint, "
    "new bigint, reactivation bigint, expansion bigint, contraction bigint, churn bigint, paused bigint, "
    "resumed bigint, transfer bigint, customers bigint, paying_customers bigint, subscriptions bigint, "
    "paused_subscriptions bigint",
    "metric_baseline": "kind text, segment text, currency text, run bigint, customers bigint, "
    "paying_customers bigint, subscriptions bigint, paused_subscriptions bigint",
    "metric_summary": "period date, kind text, segment text, currency text, run_start bigint, new bigint, "
    "reactivation bigint, expansion bigint, contraction bigint, churn bigint, paused bigint, resumed bigint, "
    "transfer bigint, run_end bigint, customers bigint, paying_customers bigint, subscriptions bigint, "
    "paused_subscriptions bigint",
    "metric_window_changes": "period date, currency varchar(3), customers_churned bigint, joined bigint, "
    "joined_churned bigint, new bigint, reactivation bigint, expansion bigint, contraction bigint, "
    "churn bigint, lost bigint",
    "metric_window_steps": "known date, period date, currency varchar(3), customers_churned bigint, joined bigint, "
    "joined_churned bigint, new bigint, reactivation bigint, expansion bigint, contraction bigint, "
    "churn bigint, lost bigint",
    "metric_window_pairs": "customer_id bigint, currency varchar(3), first_change date, last_change date, "
    "next_change date, first_window date, run_before bigint, run_after bigint, with_before boolean, "
    "with_after boolean, with_within boolean, splits boolean, ever_before boolean, pauses bigint",
    "metric_cohort_base": "cohort date, currency varchar(3), customers_start bigint, customers bigint, "
    "paying_customers bigint, run_start bigint, run_end bigint",
    "metric_rate_rows": "period text, definition text, currency text, customers_start bigint, "
    "customers_churned bigint, customer_churn_rate numeric, gross_mrr_churn numeric, net_mrr_churn numeric, "
    "nrr numeric, grr numeric, quick_ratio numeric, arpa numeric, ltv numeric, pause_rate numeric",
    "metric_unseen": "event_id bigint, subscription_id bigint, customer_id bigint, event text, "
    "occurred_at timestamptz, recorded_at timestamptz, plan text, payment_frequency text, amount_minor bigint, "
    "quantity integer, currency text",
    "metric_affected": f"{_INTERVAL}, stood_before boolean NOT NULL",
    "metric_fresh": _INTERVAL,
    "metric_cohort_changes": "cohort date, currency varchar(3), customers bigint, paying_customers bigint, run bigint",
    "metric_cohorts": "cohort date, period date, currency varchar(3), customers_start bigint, customers bigint, "
    "paying_customers bigint, run_start bigint, run_end bigint",
}
_OF_ONE_PASS = (
    "metric_customers",
    "metric_looked_up",
    "metric_plural",
    "metric_paid_before",
    "metric_periods",
    "metric_windows",
    "metric_rates",
    "metric_changes",
    "metric_several",
    "metric_movements",
    "metric_segment_changes",
    "metric_baseline",
    "metric_summary",
    "metric_window_pairs",
    "metric_window_steps",
    "metric_window_changes",
    "metric_cohort_base",
    "metric_cohorts",
)


@dataclass(frozen=True, slots=True)
class Workspace:
    """The relations while they exist, and the steps that fill them, in the order in which they stand here."""

    connection: Connection
    policy: MetricPolicy
    share: str = "TRUE"
    """Which customers are computed, as a condition on `customer_id`."""
    table: str = "run_rate_intervals"
    """Where stored intervals are, in schema analytics."""

    @property
    def pauses(self) -> dict[str, object]:
        """The policy on pauses as parameters of the statements."""
        return {"included": self.policy.paused == "included", "paused_churn_days": self.policy.paused_churn_days}

    def _statistics(self, relation: str) -> None:
        from psycopg import sql  # noqa: PLC0415 - the code location loads without it

        # What fits on a few pages costs more to analyse than any plan for it.
        if queries("analytics_windows").size(self.connection, relation=f"pg_temp.{relation}") > WORTH_STATISTICS:
            self.connection.execute(sql.SQL("ANALYZE pg_temp.{}").format(sql.Identifier(relation)))

    def replay_touched(self) -> None:
        """Fill metric_fresh with the intervals of touched subscriptions since they were, as the ledger has them now.

        The first of each is the stored one in which it stood before.
        """
        named = queries("analytics_intervals")
        named.insert_affected(self.connection)
        self._statistics("metric_affected")
        named.see_ledger_since_touched(self.connection)
        named.create_replay(self.connection)
        if named.insert_fresh(self.connection):
            self._find_repeated()
            self.connection.execute("TRUNCATE pg_temp.metric_fresh")
            named.insert_fresh(self.connection)
        self._statistics("metric_fresh")

    def replay_everything(self, known_at: datetime | None = None) -> None:
        """Fill metric_intervals from the whole ledger as it was known at `known_at` (None: now).

        Where an event can repeat an earlier one is seen in the same pass; those few subscriptions are replayed again.
        """
        named = queries("analytics_intervals")
        self._see_ledger(known_at=known_at)
        named.create_replay(self.connection)
        # Without lookups: what reads whole tables would do so one by one where it expects few rows.
        named.allow_lookups(self.connection, wanted="off")
        named.insert_intervals(self.connection, marked=True)
        named.allow_lookups(self.connection, wanted="on")
        if named.touch_crowded(self.connection):
            self._statistics("metric_subscriptions")
            self._see_ledger(only_touched=True, known_at=known_at)
            self._find_repeated()
            named.forget_touched(self.connection)
            named.insert_intervals(self.connection, marked=False)

    def look_up_touched(self) -> None:
        """Choose the customers of touched subscriptions, with their intervals as they are stored."""
        self._statistics("metric_subscriptions")
        queries("analytics_movements").choose_touched_customers(self.connection)
        self._statistics("metric_looked_up")

    def _see_ledger(self, *, only_touched: bool = False, known_at: datetime | None = None) -> None:
        from psycopg import sql  # noqa: PLC0415

        touched = "subscription_id IN (SELECT subscription_id FROM metric_subscriptions)" if only_touched else "TRUE"
        known = sql.SQL("TRUE") if known_at is None else sql.SQL("recorded_at <= {}").format(sql.Literal(known_at))
        view = sql.SQL(
            "CREATE OR REPLACE TEMP VIEW metric_ledger AS"
            " SELECT *, cast(NULL AS timestamptz) AS paused_since"
            " FROM billing.subscription_events WHERE {} AND {} AND {}"
        )
        self.connection.execute(view.format(sql.SQL(touched), known, sql.SQL(self.share)))
        queries("analytics_intervals").see_payers(self.connection)

    def _find_repeated(self) -> None:
        queries("analytics_intervals").insert_repeated(self.connection)
        self._statistics("metric_repeated")

    def read_ledger(self, known_at: datetime | None) -> None:
        """Fill metric_intervals, a table, from the ledger and with the countries as they were known at `known_at`."""
        use_rates(self.connection, known_at)
        self.replay_everything(known_at)
        restore_countries(self.connection, known_at)
        self._statistics("metric_intervals")

    def see_stored(self) -> None:
        """Make metric_intervals a view of the stored intervals."""
        from psycopg import sql  # noqa: PLC0415

        view = sql.SQL("CREATE OR REPLACE TEMP VIEW metric_intervals AS SELECT * FROM {} WHERE {}")
        self.connection.execute(view.format(sql.Identifier("analytics", self.table), sql.SQL(self.share)))

    def clear(self) -> None:
        """Make room for another pass over the same intervals."""
        from psycopg import sql  # noqa: PLC0415

        relations = [sql.Identifier("pg_temp", name) for name in _OF_ONE_PASS]
        self.connection.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(relations)))

    def choose_customers(self, since: date | None, until: date) -> None:
        """Restrict the pass to customers of whom something changes on [since, until); all where `since` is None.

        Customers who were looked up before stay in it: who does not change then adds nothing.
        """
        named = queries("analytics_movements")
        if since is None:
            named.see_every_customer(self.connection)
            return
        named.choose_customers(
            self.connection,
            since=midnight(self.connection, since),
            until=midnight(self.connection, until),
            paused_churn_days=self.policy.paused_churn_days,
        )
        self._statistics("metric_looked_up")
        named.see_chosen_customers(self.connection)

    def class_changes(self, grain: Grain, until: date, back_to: date | None = None) -> None:
        """From intervals to classed changes per customer and period, for all of the chosen customers' history.

        `back_to`: the first day whose changes matter, at day grain. Of what was before, only what stood is looked at.
        """
        began = "-infinity" if back_to is None else midnight(self.connection, back_to)
        named = queries("analytics_movements")
        named.insert_plural(self.connection)
        if back_to is not None:
            named.insert_paid_before(self.connection, back_to=began, **self.pauses)
        named.insert_changes(
            self.connection, grain=grain, until=midnight(self.connection, until), back_to=began, **self.pauses
        )
        self._statistics("metric_changes")
        named.insert_several(self.connection)
        self._statistics("metric_several")

    def movements(self) -> None:
        """From classed changes to a row for each movement."""
        queries("analytics_movements").insert_movements(self.connection)
        self._statistics("metric_movements")

    def summarise(self, periods: Span, kinds: tuple[str, ...], stored_baseline: date | None = None) -> None:
        """Start, movements and end of every segment in every period.

        `stored_baseline`: a day whose stored figures may be built on, the day before the first period.
        """
        self.sum_changes(periods, kinds, stored_baseline)
        self.add_up()

    def sum_changes(self, periods: Span, kinds: tuple[str, ...], stored_baseline: date | None = None) -> None:
        """What changes in every segment in every period, and where it stood before: sums over customers."""
        named = queries("analytics_summary")
        queries("analytics_windows").insert_periods(
            self.connection, grain=periods.grain, first=periods.first, last=periods.last
        )
        segments = queries("analytics_segments")
        within = {"first": periods.first, "last": periods.last}
        if "customer" in kinds:
            segments.insert_customer_changes(self.connection, **within)
        segments.insert_placed_changes(self.connection, kinds=list(kinds), **within)
        segments.insert_whole_changes(self.connection, kinds=list(kinds), **within)
        if {"plan", "payment_frequency"} & set(kinds):
            segments.insert_lone_changes(self.connection, kinds=list(kinds), **within)
            segments.insert_present_customers(self.connection, kinds=list(kinds), **within)
            segments.insert_allotted_changes(self.connection, kinds=list(kinds), **within)
        if stored_baseline is None:
            at = midnight(self.connection, periods.since)
            named.insert_baseline(self.connection, kinds=list(kinds), at=at, **self.pauses)
        else:
            named.insert_stored_baseline(self.connection, kinds=list(kinds), day=stored_baseline)

    def add_up(self) -> None:
        """From changes to start, movements and end."""
        self._statistics("metric_segment_changes")
        queries("analytics_summary").insert_summary(self.connection)
        self._statistics("metric_summary")

    def windows(self, periods: Span, *, days: int = 1, month_ends: bool = False) -> None:
        """The windows that are shown: the periods themselves, or so many days to the end of each."""
        named = queries("analytics_windows")
        if month_ends:
            named.insert_month_end_windows(self.connection, first=periods.first, last=periods.last, span=days)
        elif periods.grain == "month":
            named.insert_month_windows(self.connection, first=periods.first, last=periods.last)
        else:
            named.insert_day_windows(self.connection, first=periods.first, last=periods.last, span=days)
        # Crossed with other relations, one row or a thousand make a difference.
        self.connection.execute("ANALYZE pg_temp.metric_windows")

    def native_rates(self) -> None:
        """Show every amount in its own currency."""
        queries("analytics_currencies").insert_native_rates(self.connection)

    def settle_unknown_rates(self) -> None:
        """Show windows for which a rate is unknown in their own currency, where it is one, or no amount of them."""
        queries("analytics_currencies").settle_unknown_rates(self.connection)

    def reporting_rates(self, currency: str) -> None:
        """Show every amount in one currency. A rate is per whole unit: minor units differ by their decimals."""
        known = self.currencies()
        queries("analytics_currencies").insert_reporting_rates(
            self.connection,
            reporting_currency=currency,
            currencies=known,
            factors=[Decimal(1).scaleb(minor_digits(currency) - minor_digits(each)) for each in known],
        )

    def currencies(self) -> list[str]:
        """The currencies that customers pay in."""
        return [row["currency"] for row in queries("analytics_currencies").currencies(self.connection)]

    def missing_rate(self, *, rolling: bool = False) -> tuple[str, date] | None:
        """The first currency and day for which a rate is needed and unknown."""
        row = queries("analytics_currencies").missing_rate(self.connection, rolling=rolling)
        return None if row is None else (row["currency"], row["day"])

    def window_steps(self, days: int, base: date | None = None) -> None:
        """Compare both ends of windows of so many days, as far as changes after `base` (None: all) make them differ."""
        named = queries("analytics_rates")
        named.insert_window_pairs(self.connection, span=days, base=base)
        self._statistics("metric_window_pairs")
        named.set_window_pauses(self.connection)
        named.insert_window_steps(self.connection, span=days, base=base)

    def window_changes(self, days: int, base: date | None = None) -> None:
        """Both ends of each window compared: the steps added up, on top of the stored day `base`, if any.

        Then only customers of whom something changes after it need have been chosen.
        """
        queries("analytics_rates").insert_window_changes(self.connection, span=days, base=base)


def no_rate(currency: str, day: date, reporting_currency: str) -> BadInput:
    """What to tell a user who lacks an exchange rate."""
    return BadInput(
        f"No rate from {currency} to {reporting_currency} is known for {day} or before: import one with fx_rates.csv, "
        f"or leave the currency out for native figures."
    )


def lead_in(periods: Span, days: int) -> Span:
    """The periods and those before them that a comparison over so many days (one month at month grain) looks at."""
    first = periods.first - timedelta(days=days) if periods.grain == "day" else previous_month(periods.first)
    return Span(periods.grain, first, periods.last)


@contextmanager
def ledger_workspace(connection: Connection, policy: MetricPolicy, known_at: datetime | None) -> Iterator[Workspace]:
    """A workspace over intervals replayed from the ledger, as it was known at `known_at` (None: now)."""
    with connection.transaction():
        _create(connection)
        queries("analytics_currencies").insert_currencies(connection)
        connection.execute(f"CREATE TEMP TABLE metric_intervals ({_INTERVAL})".encode())
        workspace = Workspace(connection, policy)
        workspace.read_ledger(known_at)
        yield workspace
        _drop(connection, "metric_intervals")


@contextmanager
def stored_workspace(connection: Connection, policy: MetricPolicy) -> Iterator[Workspace]:
    """A workspace over the stored intervals."""
    with connection.transaction():
        yield lasting_workspace(connection, policy)
        _drop(connection)
        connection.execute("DROP VIEW pg_temp.metric_intervals")


def lasting_workspace(
    connection: Connection, policy: MetricPolicy, *, share: str = "TRUE", table: str = "run_rate_intervals"
) -> Workspace:
    """A workspace for as long as the connection lasts, over the intervals of these customers in that table."""
    _create(connection)
    named = queries("analytics_currencies")
    if not named.insert_stored_currencies(connection):
        named.insert_currencies(connection)
    use_rates(connection, None)
    workspace = Workspace(connection, policy, share, table)
    workspace.see_stored()
    return workspace


def set_up(connection: Connection) -> None:
    """The settings with which a workspace is filled; they end with the transaction."""
    # Sorts of the whole ledger and of ten rows go through the same statements.
    connection.execute(
        "SELECT set_config('work_mem', '256MB', true), set_config('maintenance_work_mem', '256MB', true),"
        # What is joined sideways is two or three rows made of the row at hand: cheaper made anew than looked up.
        " set_config('enable_memoize', 'off', true)"
    )
    connection.execute(COARSE_STATISTICS)


def _create(connection: Connection) -> None:
    from psycopg import sql  # noqa: PLC0415

    set_up(connection)
    tables = [
        sql.SQL("CREATE TEMP TABLE {} ({})").format(sql.Identifier(name), sql.SQL(columns))
        for name, columns in _TABLES.items()
    ]
    connection.execute(sql.SQL("; ").join(tables))
    queries("analytics_movements").create_alone(connection)
    queries("analytics_movements").create_classed(connection)
    queries("analytics_movements").create_customer_periods(connection)


def _drop(connection: Connection, *others: str) -> None:
    """The views go with the tables."""
    from psycopg import sql  # noqa: PLC0415

    names = [sql.Identifier("pg_temp", name) for name in (*others, *_TABLES)]
    connection.execute(
        "DROP VIEW IF EXISTS pg_temp.metric_chosen, pg_temp.metric_replayed, pg_temp.metric_events,"
        " pg_temp.metric_ledger, pg_temp.metric_payers, pg_temp.metric_arrived, pg_temp.metric_fx_rates"
    )
    connection.execute("DROP TABLE IF EXISTS pg_temp.metric_repeated")
    connection.execute(sql.SQL("DROP TABLE {} CASCADE").format(sql.SQL(", ").join(names)))
