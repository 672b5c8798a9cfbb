-- What can be known of a customer at the end of a day: the terms that churn risk is judged by.
-- risk_intervals, risk_payments and risk_credits are what may be looked at; only what had occurred counts, and only what
-- was known (known_at) by then.

-- name: open_terms#
-- description: Where the terms of customers on days are put.
CREATE TEMPORARY TABLE risk_features (
    day date, customer_id bigint, plan text, frequency text, paused_days float8, tenure_days float8, failed bigint,
    pauses bigint, unpaid_days float8, churned boolean, past_due boolean, failed_1 boolean, failed_2 boolean, failed_3 boolean,
    failed_before boolean, is_paused boolean, paused_30 boolean, ages_out boolean, pauses_1 boolean, pauses_2 boolean,
    downgraded boolean, upgraded boolean, new_30 boolean, new_90 boolean, new_180 boolean, overdue boolean, renews boolean,
    came_back boolean, several boolean, pays_little boolean, pays_much boolean, has_credit boolean
) ON COMMIT DROP;

-- name: open_today#
-- description: All customers, and all that is known of them now.
CREATE TEMPORARY VIEW risk_intervals AS SELECT * FROM analytics.run_rate_intervals;
CREATE TEMPORARY VIEW risk_payments AS
SELECT
    s.customer_id,
    p.occurred_at,
    p.outcome = 'succeeded' AS succeeded,
    coalesce(p.failure_class, '') IN ('integration_error', 'provider_error') AS ours,
    timestamptz '-infinity' AS known_at
FROM billing.payments AS p
INNER JOIN billing.subscriptions AS s ON p.subscription_id = s.subscription_id;

-- name: open_credits#
-- description: Their rewards.
CREATE TEMPORARY VIEW risk_credits AS
SELECT
    customer_id,
    occurred_at,
    effect_minor,
    timestamptz '-infinity' AS known_at
FROM billing.reward_entries;

-- name: open_no_credits#
-- description: Rewards are a component of their own, which may not be there.
CREATE TEMPORARY VIEW risk_credits AS
SELECT
    cast(NULL AS bigint) AS customer_id,
    cast(NULL AS timestamptz) AS occurred_at,
    cast(NULL AS bigint) AS effect_minor,
    cast(NULL AS timestamptz) AS known_at
WHERE FALSE;

-- name: close_today#
-- description: Temporary views outlive their transaction unless they are dropped.
DROP VIEW pg_temp.risk_intervals, pg_temp.risk_payments, pg_temp.risk_credits;
DROP TABLE pg_temp.risk_features;

-- name: open_history#
-- description: A sample of customers, copied once for all days that are looked at, and what was known of them by a day's end:
-- the intervals as they stand, but for those subscriptions of which something came late, which are replayed without it.
CREATE TEMPORARY TABLE risk_customers (customer_id bigint PRIMARY KEY) ON COMMIT DROP;
CREATE TEMPORARY TABLE risk_events (LIKE billing.subscription_events, known_at timestamptz) ON COMMIT DROP;
CREATE TEMPORARY TABLE risk_payments (
    customer_id bigint, occurred_at timestamptz, succeeded boolean, ours boolean, known_at timestamptz
) ON COMMIT DROP;
CREATE TEMPORARY TABLE risk_credits (
    customer_id bigint, occurred_at timestamptz, effect_minor bigint, known_at timestamptz
) ON COMMIT DROP;
CREATE TEMPORARY TABLE risk_truth (LIKE analytics.run_rate_intervals) ON COMMIT DROP;
CREATE TEMPORARY TABLE risk_late (subscription_id bigint PRIMARY KEY, at timestamptz) ON COMMIT DROP;
CREATE TEMPORARY TABLE metric_intervals (LIKE analytics.run_rate_intervals) ON COMMIT DROP;
CREATE TEMPORARY VIEW metric_ledger AS
SELECT
    e.*,
    cast(NULL AS timestamptz) AS paused_since
FROM risk_events AS e
INNER JOIN risk_late AS l ON e.subscription_id = l.subscription_id AND e.known_at < l.at;
CREATE TEMPORARY VIEW risk_intervals AS
SELECT t.*
FROM risk_truth AS t
WHERE NOT EXISTS (SELECT 1 FROM risk_late AS l WHERE l.subscription_id = t.subscription_id)
UNION ALL
SELECT m.* FROM metric_intervals AS m;

-- name: index_history#
-- description: The copies are read once for each day.
CREATE INDEX ON pg_temp.risk_truth (customer_id);
CREATE INDEX ON pg_temp.risk_events (subscription_id, occurred_at);
ANALYZE pg_temp.risk_events, pg_temp.risk_payments, pg_temp.risk_credits, pg_temp.risk_truth;

-- name: forget_late#
-- description: Makes room for the next day.
TRUNCATE pg_temp.risk_late, pg_temp.metric_intervals, pg_temp.metric_repeated;

-- name: close_history#
-- description: Leaves nothing behind.
DROP VIEW pg_temp.risk_intervals, pg_temp.metric_replayed, pg_temp.metric_events, pg_temp.metric_ledger,
pg_temp.metric_payers;
DROP TABLE pg_temp.risk_customers, pg_temp.risk_events, pg_temp.risk_payments, pg_temp.risk_credits, pg_temp.risk_truth,
pg_temp.risk_late, pg_temp.metric_intervals, pg_temp.metric_repeated, pg_temp.risk_features;

-- name: count_customers()$
-- description: How many customers there ever were.
SELECT count(*) AS customers FROM billing.customers;

-- name: sample_customers(share)!
-- description: The customers that training looks at: the same ones each time, and all of them where the share is 1.
INSERT INTO risk_customers (customer_id)
SELECT customer_id
FROM billing.customers
WHERE :share >= 1 OR mod(abs(hashint8extended(customer_id, 0) / 2), 1000000) < :share * 1000000;

-- name: copy_events()!
-- description: Every event of the sampled customers, with the instant at which it counts as known.
INSERT INTO risk_events
SELECT
    e.*,
    e.recorded_at AS known_at
FROM billing.subscription_events AS e
INNER JOIN risk_customers AS c ON e.customer_id = c.customer_id;

-- name: copy_payments()!
-- description: Every payment attempt of the sampled customers.
INSERT INTO risk_payments (customer_id, occurred_at, succeeded, ours, known_at)
SELECT
    s.customer_id,
    p.occurred_at,
    p.outcome = 'succeeded' AS succeeded,
    coalesce(p.failure_class, '') IN ('integration_error', 'provider_error') AS ours,
    p.recorded_at AS known_at
FROM billing.payments AS p
INNER JOIN billing.subscriptions AS s ON p.subscription_id = s.subscription_id
INNER JOIN risk_customers AS c ON s.customer_id = c.customer_id;

-- name: copy_credits()!
-- description: The reward ledger of the sampled customers.
INSERT INTO risk_credits (customer_id, occurred_at, effect_minor, known_at)
SELECT
    r.customer_id,
    r.occurred_at,
    r.effect_minor,
    r.recorded_at AS known_at
FROM billing.reward_entries AS r
INNER JOIN risk_customers AS c ON r.customer_id = c.customer_id;

-- name: copy_intervals()!
-- description: The intervals of the sampled customers, as they are known today: what really happened.
INSERT INTO risk_truth
SELECT i.*
FROM analytics.run_rate_intervals AS i
INNER JOIN risk_customers AS c ON i.customer_id = c.customer_id;

-- name: date_loaded_events()!
-- description: Events loaded from files count as known when they occurred: the files of a past do not say when it was known.
-- A load is one instant at which a hundred rows or more were recorded that span more than the 30 days Stripe keeps events.
UPDATE risk_events AS r
SET known_at = r.occurred_at
FROM (
    SELECT known_at
    FROM risk_events
    GROUP BY known_at
    HAVING count(*) >= 100 AND max(occurred_at) - min(occurred_at) > make_interval(days => 30)
) AS loads
WHERE r.known_at = loads.known_at;

-- name: date_loaded_payments()!
-- description: The same for payments.
UPDATE risk_payments AS r
SET known_at = r.occurred_at
FROM (
    SELECT known_at
    FROM risk_payments
    GROUP BY known_at
    HAVING count(*) >= 100 AND max(occurred_at) - min(occurred_at) > make_interval(days => 30)
) AS loads
WHERE r.known_at = loads.known_at;

-- name: date_loaded_credits()!
-- description: The same for rewards.
UPDATE risk_credits AS r
SET known_at = r.occurred_at
FROM (
    SELECT known_at
    FROM risk_credits
    GROUP BY known_at
    HAVING count(*) >= 100 AND max(occurred_at) - min(occurred_at) > make_interval(days => 30)
) AS loads
WHERE r.known_at = loads.known_at;

-- name: find_late(at)!
-- description: Subscriptions of which something had occurred by then that was not known yet: they are replayed without it.
INSERT INTO risk_late (subscription_id, at)
SELECT DISTINCT
    subscription_id,
    cast(:at AS timestamptz) AS at
FROM risk_events
WHERE occurred_at < :at AND known_at >= :at;

-- name: first_counted()$
-- description: Since when the company has customers.
SELECT min(valid_from) AS first_counted FROM analytics.run_rate_intervals WHERE status IN ('active', 'past_due', 'paused');

-- name: insert_features(day, at, horizon_days, paused_churn_days)!
-- description: A row of terms for each customer who is with us at the end of the day, as far as that was known.
INSERT INTO risk_features (
    day, customer_id, plan, frequency, paused_days, tenure_days, failed, pauses, unpaid_days, past_due, failed_1, failed_2,
    failed_3, failed_before, is_paused, paused_30, ages_out, pauses_1, pauses_2, downgraded, upgraded, new_30, new_90, new_180,
    overdue, renews, came_back, several, pays_little, pays_much, has_credit
)
WITH known AS MATERIALIZED (
    SELECT
        i.*,
        i.valid_to IS NULL OR i.valid_to >= :at AS is_last,
        i.status IN ('active', 'past_due') AS counted
    FROM risk_intervals AS i
    WHERE i.valid_from < :at
),

standing AS (
    SELECT
        k.customer_id,
        max(k.currency) AS currency,
        count(*) AS subscriptions,
        sum(k.annualised_minor) AS annualised_minor,
        bool_or(k.status = 'past_due') AS past_due,
        max(extract(EPOCH FROM :at - k.paused_since)) / 86400 AS paused_days,
        (array_agg(k.plan ORDER BY k.annualised_minor DESC, k.subscription_id ASC))[1] AS plan,
        (array_agg(k.payment_frequency ORDER BY k.annualised_minor DESC, k.subscription_id ASC))[1] AS frequency
    FROM known AS k
    WHERE k.is_last
        AND (
            k.counted
            OR (
                k.status = 'paused'
                AND coalesce(k.paused_since + make_interval(hours => 24 * cast(:paused_churn_days AS integer)), 'infinity') >= :at
            )
        )
    GROUP BY k.customer_id
    HAVING sum(k.annualised_minor) > 0
),

steps AS (
    SELECT
        k.*,
        lag(k.counted) OVER w AS counted_before,
        lag(k.annualised_minor) OVER w AS annualised_before
    FROM known AS k
    WINDOW w AS (PARTITION BY k.subscription_id ORDER BY k.valid_from)
),

past AS (
    SELECT
        s.customer_id,
        min(s.valid_from) FILTER (WHERE s.counted OR s.status = 'paused') AS first_at,
        -- A pause in which the terms changed has several intervals; the first begins with it.
        count(*) FILTER (
            WHERE s.paused_since = s.valid_from AND s.valid_from >= :at - make_interval(hours => 24 * 180)
        ) AS pauses,
        bool_or(
            s.counted AND s.counted_before AND s.annualised_minor < s.annualised_before
            AND s.valid_from >= :at - make_interval(hours => 24 * 90)
        ) AS downgraded,
        bool_or(
            s.counted AND s.counted_before AND s.annualised_minor > s.annualised_before
            AND s.valid_from >= :at - make_interval(hours => 24 * 90)
        ) AS upgraded,
        max(s.valid_from) FILTER (WHERE s.status IN ('canceled', 'suspended') AND NOT s.is_last) AS left_at
    FROM steps AS s
    GROUP BY s.customer_id
),

-- A failure that we or Stripe caused says nothing about the customer.
payments AS (
    SELECT
        p.customer_id,
        max(p.occurred_at) FILTER (WHERE p.succeeded) AS paid_at,
        count(*) FILTER (
            WHERE NOT p.succeeded AND NOT p.ours AND p.occurred_at >= :at - make_interval(hours => 24 * 30)
        ) AS failed,
        count(*) FILTER (
            WHERE NOT p.succeeded AND NOT p.ours AND p.occurred_at < :at - make_interval(hours => 24 * 30)
                AND p.occurred_at >= :at - make_interval(hours => 24 * 90)
        ) AS failed_before
    FROM risk_payments AS p
    WHERE p.occurred_at < :at AND p.occurred_at >= :at - make_interval(hours => 24 * 400) AND p.known_at < :at
    GROUP BY p.customer_id
),

credits AS (
    SELECT
        r.customer_id,
        sum(r.effect_minor) > 0 AS has_credit
    FROM risk_credits AS r
    WHERE r.occurred_at < :at AND r.known_at < :at
    GROUP BY r.customer_id
),

judged AS (
    SELECT
        s.*,
        p.first_at,
        p.pauses,
        p.downgraded,
        p.upgraded,
        p.left_at,
        coalesce(f.failed, 0) AS failed,
        coalesce(f.failed_before, 0) AS failed_before,
        coalesce(c.has_credit, FALSE) AS has_credit,
        extract(EPOCH FROM :at - p.first_at) / 86400 AS tenure_days,
        extract(EPOCH FROM :at - f.paid_at) / 86400 AS unpaid_days,
        CASE s.frequency
            WHEN 'WEEKLY' THEN 7 WHEN 'BIWEEKLY' THEN 14 WHEN 'MONTHLY' THEN 31 WHEN 'QUARTERLY' THEN 92 WHEN 'YEARLY' THEN 366
        END AS cycle_days,
        s.annualised_minor / avg(s.annualised_minor) OVER (PARTITION BY s.currency) AS pays
    FROM standing AS s
    INNER JOIN past AS p ON s.customer_id = p.customer_id
    LEFT JOIN payments AS f ON s.customer_id = f.customer_id
    LEFT JOIN credits AS c ON s.customer_id = c.customer_id
)

SELECT
    cast(:day AS date) AS day,
    j.customer_id,
    j.plan,
    j.frequency,
    j.paused_days,
    j.tenure_days,
    j.failed,
    j.pauses,
    j.unpaid_days,
    j.past_due,
    j.failed >= 1 AS failed_1,
    j.failed >= 2 AS failed_2,
    j.failed >= 3 AS failed_3,
    j.failed_before >= 1 AS failed_before,
    j.paused_days IS NOT NULL AS is_paused,
    coalesce(j.paused_days >= 30, FALSE) AS paused_30,
    coalesce(j.paused_days >= cast(:paused_churn_days AS integer) - :horizon_days, FALSE) AS ages_out,
    j.pauses >= 1 AS pauses_1,
    j.pauses >= 2 AS pauses_2,
    coalesce(j.downgraded, FALSE) AS downgraded,
    coalesce(j.upgraded, FALSE) AS upgraded,
    j.tenure_days < 30 AS new_30,
    j.tenure_days < 90 AS new_90,
    j.tenure_days < 180 AS new_180,
    coalesce(j.paused_days IS NULL AND j.unpaid_days > 1.25 * j.cycle_days + 3, FALSE) AS overdue,
    j.cycle_days > 90 AND coalesce(j.unpaid_days, j.tenure_days) > j.cycle_days - :horizon_days AS renews,
    coalesce(j.left_at > j.first_at, FALSE) AS came_back,
    j.subscriptions > 1 AS several,
    j.pays < 0.5 AS pays_little,
    j.pays > 2 AS pays_much,
    j.has_credit
FROM judged AS j;

-- name: mark_churned(day, at, paused_churn_days)!
-- description: Who of the customers of a day is not with us at a later instant, as far as we know today.
UPDATE risk_features AS f
SET churned = NOT EXISTS (
    SELECT 1
    FROM risk_truth AS i
    WHERE i.customer_id = f.customer_id AND i.valid_from < :at AND (i.valid_to IS NULL OR i.valid_to >= :at)
        AND i.annualised_minor > 0
        AND (
            i.status IN ('active', 'past_due')
            OR (
                i.status = 'paused'
                AND coalesce(i.paused_since + make_interval(hours => 24 * cast(:paused_churn_days AS integer)), 'infinity') >= :at
            )
        )
)
WHERE f.day = :day;
