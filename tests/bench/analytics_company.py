"""The company that the analytics bench measures, and what it is measured against, as plain SQL.

What belongs here: statements. What does not: timing (`analytics`).
"""

from __future__ import annotations

DAYS = 730

# What a server does by itself in the hours after much was written.
TIDYING = ("VACUUM ANALYZE", "CHECKPOINT")

# Ten ways a subscription lives, 3.9 events each: pauses, dunning, churn, coming back. Every eighth belongs to a
# customer who has one already. The ledger is written in order of time, as it arrives in life.
COMPANY = (
    # Keys and history are right as written below: checking them row by row would take most of the loading.
    "SET session_replication_role = replica",
    "SET max_parallel_workers_per_gather = 0",
    "SELECT setseed(0.25)",
    "INSERT INTO billing.plans (plan, name) SELECT 'plan-' || n, 'Plan ' || n FROM generate_series(1, 6) AS n",
    "INSERT INTO billing.customers (customer_ref, currency, country)"
    " SELECT 'c' || n, (ARRAY['EUR', 'EUR', 'USD', 'GBP'])[1 + n %% 4],"
    " (ARRAY['DE', 'FR', 'US', 'GB', 'AT', 'NL', 'ES', 'IT', 'SE', NULL])[1 + n %% 10]"
    " FROM generate_series(1, %(all)s - %(all)s / 8) AS n",
    "INSERT INTO billing.subscriptions (subscription_ref, customer_id, plan, status, amount_minor, currency,"
    " started_at, billing_anchor, payment_frequency, changed_at)"
    " SELECT 's' || n, customer_id, 'plan-' || 1 + n %% 6, 'active', 500 + 100 * (n %% 37), currency, at, at,"
    " (ARRAY['MONTHLY', 'MONTHLY', 'WEEKLY', 'BIWEEKLY', 'QUARTERLY', 'YEARLY'])[1 + n %% 6], at"
    " FROM (SELECT n, CASE WHEN n <= %(all)s - %(all)s / 8 THEN n ELSE n - (%(all)s - %(all)s / 8) END AS customer_id,"
    " timestamptz '2024-01-01' + random() * 600 * interval '1 day' AS at FROM generate_series(1, %(all)s) AS n) AS s"
    " JOIN billing.customers USING (customer_id)",
    "CREATE TEMP TABLE lives AS SELECT s.*, e.event, e.position,"
    " s.started_at + (timestamptz '2024-01-01' + %(days)s * interval '1 day' - s.started_at)"
    " * (0.95 * (e.position - 1 + random() * least(1, e.position - 1)) / e.events) AS at"
    " FROM billing.subscriptions AS s JOIN (SELECT w.way, p.event, p.position, cardinality(w.events) AS events"
    " FROM (SELECT n - 1 AS way, string_to_array(events, ' ') AS events FROM unnest(ARRAY["
    "'started', 'started canceled', 'started changed changed changed', 'started paused resumed changed',"
    "'started changed canceled started', 'started past_due recovered changed',"
    "'trial_started started changed paused resumed', 'started changed past_due suspended started',"
    "'started paused changed canceled', 'started changed changed paused resumed canceled'"
    "]) WITH ORDINALITY AS w (events, n)) AS w, unnest(w.events) WITH ORDINALITY AS p (event, position)) AS e"
    " ON s.subscription_id / 7 %% 10 = e.way",
    "INSERT INTO billing.subscription_events (subscription_id, customer_id, event, occurred_at, recorded_at, plan,"
    " payment_frequency, amount_minor, quantity, currency, source)"
    " SELECT subscription_id, customer_id, event, at, at,"
    " CASE WHEN position > 2 AND subscription_id %% 3 = 0 THEN 'plan-1' ELSE plan END, payment_frequency,"
    " amount_minor + 100 * (position / 2 * (subscription_id %% 5 - 1)), 1, currency, 'import' FROM lives ORDER BY at",
    "DROP TABLE lives",
)

# A day after: changes of terms, pauses, cancellations and new subscribers; each day of others.
NEW_DAY = (
    "SET session_replication_role = replica",
    "INSERT INTO billing.subscription_events (subscription_id, customer_id, event, occurred_at, recorded_at, plan,"
    " payment_frequency, amount_minor, quantity, currency, source)"
    " SELECT s.subscription_id, s.customer_id,"
    " (ARRAY['changed', 'changed', 'paused', 'canceled', 'started'])[1 + n %% 5], at, at,"
    " s.plan, s.payment_frequency, s.amount_minor + 300, 1, s.currency, 'import'"
    " FROM (SELECT n, 1 + ((%(day)s * %(new)s + n)::bigint * 7919) %% %(all)s AS subscription_id,"
    " timestamptz '2024-01-01' + (%(days)s + %(day)s + n / (%(new)s + 1.0)) * interval '1 day' AS at"
    " FROM generate_series(1, %(new)s) AS n) AS e"
    " JOIN billing.subscriptions AS s USING (subscription_id)",
)

# One pass: every event sorted by customer and time, and as many rows written.
FLOOR = (
    "CREATE TABLE floor AS SELECT e.*, lag(e.amount_minor) OVER w AS amount_before, row_number() OVER w AS position"
    " FROM billing.subscription_events AS e"
    " WINDOW w AS (PARTITION BY e.customer_id ORDER BY e.occurred_at, e.recorded_at, e.event_id)"
)

# The common way, as in dbt's MRR playbook: subscriptions as periods, a row for each customer and month between the
# first and the last, revenue joined to it, compared with the month before and classed. Segments it has not.
SPINE = (
    "CREATE TABLE spine AS WITH periods AS (SELECT customer_id, subscription_id, occurred_at AS start_date,"
    " lead(occurred_at) OVER (PARTITION BY subscription_id ORDER BY occurred_at, recorded_at, event_id) AS end_date,"
    " CASE WHEN event IN ('canceled', 'paused', 'suspended', 'trial_started') THEN 0 ELSE amount_minor * quantity"
    " * CASE payment_frequency WHEN 'WEEKLY' THEN 52 WHEN 'BIWEEKLY' THEN 26 WHEN 'MONTHLY' THEN 12"
    " WHEN 'QUARTERLY' THEN 4 ELSE 1 END END AS amount FROM billing.subscription_events),"
    " months AS (SELECT at AS date_month FROM generate_series(timestamptz '2024-01-01',"
    " timestamptz '2024-01-01' + %(days)s * interval '1 day', '1 month') AS at),"
    " customers AS (SELECT customer_id, date_trunc('month', min(start_date)) AS date_month_start"
    " FROM periods GROUP BY customer_id),"
    " customer_months AS (SELECT c.customer_id, m.date_month FROM customers AS c"
    " JOIN months AS m ON m.date_month >= c.date_month_start),"
    " joined AS (SELECT m.customer_id, m.date_month, coalesce(sum(p.amount), 0) AS amount FROM customer_months AS m"
    " LEFT JOIN periods AS p ON p.customer_id = m.customer_id AND p.start_date < m.date_month + interval '1 month'"
    " AND (p.end_date >= m.date_month + interval '1 month' OR p.end_date IS NULL)"
    " GROUP BY m.customer_id, m.date_month),"
    " active AS (SELECT *, amount > 0 AS is_active,"
    " min(CASE WHEN amount > 0 THEN date_month END) OVER (PARTITION BY customer_id) AS first_active_month FROM joined),"
    " lagged AS (SELECT *, coalesce(lag(amount) OVER w, 0) AS previous_amount,"
    " coalesce(lag(is_active) OVER w, false) AS previous_is_active FROM active"
    " WINDOW w AS (PARTITION BY customer_id ORDER BY date_month))"
    " SELECT *, amount - previous_amount AS amount_change, CASE"
    " WHEN date_month = first_active_month THEN 'new' WHEN is_active AND NOT previous_is_active THEN 'reactivation'"
    " WHEN previous_is_active AND NOT is_active THEN 'churn' WHEN amount > previous_amount THEN 'upgrade'"
    " WHEN amount < previous_amount THEN 'downgrade' END AS change_category FROM lagged"
)
