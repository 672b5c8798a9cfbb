-- name: first_month()$
-- description: The month in which the first interval begins; null where there is none.
SELECT cast(date_trunc('month', min(valid_from)) AS date) AS month FROM metric_intervals;

-- name: insert_cohorts(first, last)!
-- description: For each month in which customers were new, what is left of them at the end of each month from first to last.
INSERT INTO metric_cohorts (
    cohort, period, currency, customers_start, customers, paying_customers, run_start, run_end
)
WITH cohorts AS (
    SELECT
        customer_id,
        period AS cohort
    FROM metric_customer_periods
    WHERE movement = 'new'
),

steps AS (
    SELECT
        k.cohort,
        c.currency,
        c.period,
        sum(c.run_after - c.run_before) AS run,
        sum(cast(c.with_after AS integer) - cast(c.with_before AND c.period > k.cohort AS integer)) AS customers,
        sum(cast(c.run_after > 0 AS integer) - cast(c.run_before > 0 AS integer)) AS paying_customers
    FROM cohorts AS k
    INNER JOIN metric_customer_periods AS c ON k.customer_id = c.customer_id AND k.cohort <= c.period
    WHERE c.period >= :first
    GROUP BY k.cohort, c.currency, c.period
),

lines AS (
    SELECT
        cohort,
        currency
    FROM steps
    UNION
    SELECT
        cohort,
        currency
    FROM metric_cohort_base
),

levels AS (
    SELECT
        s.cohort,
        s.currency,
        cast(m.at AS date) AS period,
        b.customers_start AS base_customers_start,
        b.run_start AS base_run_start,
        coalesce(b.run_end, 0) + coalesce(sum(t.run) OVER w, 0) AS run,
        coalesce(b.customers, 0) + coalesce(sum(t.customers) OVER w, 0) AS customers,
        coalesce(b.paying_customers, 0) + coalesce(sum(t.paying_customers) OVER w, 0) AS paying_customers
    FROM lines AS s
    CROSS JOIN LATERAL generate_series(
        greatest(cast(s.cohort AS timestamp), cast(:first AS timestamp)), cast(:last AS timestamp), '1 month'
    ) AS m (at)
    LEFT JOIN metric_cohort_base AS b ON s.cohort = b.cohort AND s.currency = b.currency
    LEFT JOIN steps AS t ON s.cohort = t.cohort AND s.currency = t.currency AND t.period = cast(m.at AS date)
    WINDOW w AS (PARTITION BY s.cohort, s.currency ORDER BY m.at ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
),

framed AS (
    SELECT
        l.*,
        coalesce(l.base_customers_start, first_value(l.customers) OVER w) AS customers_start,
        coalesce(l.base_run_start, first_value(l.run) OVER w) AS run_start
    FROM levels AS l
    WINDOW w AS (PARTITION BY l.cohort, l.currency ORDER BY l.period)
)

SELECT
    f.cohort,
    f.period,
    f.currency,
    f.customers_start,
    f.customers,
    f.paying_customers,
    f.run_start,
    f.run AS run_end
FROM framed AS f
INNER JOIN metric_periods AS p ON f.period = p.period;

-- name: missing_cohort_rate()^
-- description: The first cohort month for which no rate is known.
SELECT
    r.currency,
    w.last_day AS day
FROM metric_cohorts AS c
INNER JOIN metric_rates AS r ON c.cohort = r.period AND c.currency = r.currency
INNER JOIN metric_windows AS w ON r.period = w.period
WHERE r.rate_now IS NULL
ORDER BY day, r.currency
LIMIT 1;

-- name: cohort_rows()
-- description: Retention by cohort and month, at the rates of the cohort month, so that rates do not look like retention.
SELECT
    to_char(c.cohort, 'YYYY-MM') AS cohort,
    to_char(c.period, 'YYYY-MM') AS period,
    cast(
        extract(YEAR FROM age(c.period, c.cohort)) * 12 + extract(MONTH FROM age(c.period, c.cohort)) AS bigint
    ) AS months,
    r.shown AS currency,
    cast(sum(c.customers_start) AS bigint) AS customers_start,
    cast(sum(c.customers) AS bigint) AS customers,
    cast(sum(c.paying_customers) AS bigint) AS paying_customers,
    round(sum(c.customers) / sum(c.customers_start), 6) AS customer_retention,
    sum(c.run_start * r.rate_now) AS start,
    sum(c.run_end * r.rate_now) AS "end",
    round(sum(c.run_end * r.rate_now) / sum(c.run_start * r.rate_now), 6) AS run_rate_retention
FROM metric_cohorts AS c
INNER JOIN metric_rates AS r ON c.cohort = r.period AND c.currency = r.currency
GROUP BY c.cohort, c.period, r.shown
ORDER BY c.cohort, c.period, r.shown;

-- name: keep_cohorts()!
-- description: Replaces the cohorts of the months in metric_periods.
WITH dropped AS (
    DELETE FROM analytics.cohorts AS s
    USING metric_periods AS p
    WHERE s.period = p.period
        AND NOT EXISTS (
            SELECT 1 FROM metric_cohorts AS m
            WHERE m.cohort = s.cohort AND m.period = s.period AND m.currency = s.currency
        )
)

INSERT INTO analytics.cohorts (
    cohort, period, currency, customers_start, customers, paying_customers, start_minor, end_minor
)
SELECT
    cohort,
    period,
    currency,
    sum(customers_start) AS customers_start,
    sum(customers) AS customers,
    sum(paying_customers) AS paying_customers,
    sum(run_start) AS start_minor,
    sum(run_end) AS end_minor
FROM metric_cohorts
GROUP BY cohort, period, currency
ON CONFLICT (period, cohort, currency) DO UPDATE SET
    customers_start = excluded.customers_start,
    customers = excluded.customers,
    paying_customers = excluded.paying_customers,
    start_minor = excluded.start_minor,
    end_minor = excluded.end_minor;

-- name: cohort_base(before)$
-- description: The newest stored month before another: its cohorts stand, and later months are built on them.
SELECT max(period) AS period FROM analytics.cohorts WHERE period < :before;

-- name: load_cohort_base(period)!
-- description: The cohorts of that month.
INSERT INTO metric_cohort_base (cohort, currency, customers_start, customers, paying_customers, run_start, run_end)
SELECT
    cohort,
    currency,
    customers_start,
    customers,
    paying_customers,
    start_minor,
    end_minor
FROM analytics.cohorts
WHERE period = :period;

-- name: newest_month()$
-- description: The newest month whose cohorts are stored; null where none is.
SELECT max(period) AS period FROM analytics.cohorts;

-- name: insert_cohort_changes(month, month_end, included, paused_churn_days)!
-- description: By what the cohorts of a month differ now that the affected intervals of touched customers are the fresh ones.
INSERT INTO metric_cohort_changes (cohort, currency, customers, paying_customers, run)
WITH intervals AS (
    SELECT
        l.*,
        TRUE AS was_so,
        TRUE AS is_so
    FROM metric_looked_up AS l
    UNION ALL
    SELECT
        a.subscription_id,
        a.valid_from,
        a.valid_to,
        a.customer_id,
        a.status,
        a.paused_since,
        a.annualised_minor,
        a.plan,
        a.payment_frequency,
        a.currency,
        a.country,
        a.event_id,
        TRUE AS was_so,
        FALSE AS is_so
    FROM metric_affected AS a
    UNION ALL
    SELECT
        f.*,
        FALSE AS was_so,
        TRUE AS is_so
    FROM metric_fresh AS f
),

lives AS (
    SELECT
        i.customer_id,
        i.currency,
        i.annualised_minor,
        i.valid_from,
        i.was_so,
        i.is_so,
        i.status <> 'paused' OR :included AS counted,
        least(i.valid_to, i.paused_since + make_interval(hours => 24 * cast(:paused_churn_days AS integer))) AS ends_at
    FROM intervals AS i
    WHERE i.status IN ('active', 'past_due', 'paused') AND i.annualised_minor > 0
),

-- A run rate that outlasts the month in which it began stands at a month end; at no other can it stand first. What lasts
-- longer than any month does so for sure: to name the month of an instant costs much more than to subtract. Once for each.
judged AS MATERIALIZED (
    SELECT
        l.*,
        l.counted
        AND coalesce(
            l.ends_at - l.valid_from > interval '32 days'
            OR l.ends_at >= date_trunc('month', l.valid_from) + interval '1 month',
            TRUE
        ) AS is_seen,
        l.valid_from < :month_end AND coalesce(l.ends_at >= :month_end, TRUE) AS stands
    FROM lives AS l
),

customers AS (
    SELECT
        j.customer_id,
        j.currency,
        min(j.valid_from) FILTER (WHERE j.is_seen AND j.was_so) AS seen_before,
        min(j.valid_from) FILTER (WHERE j.is_seen AND j.is_so) AS seen_after,
        sum(j.annualised_minor) FILTER (WHERE j.stands AND j.counted AND j.was_so) AS run_before,
        sum(j.annualised_minor) FILTER (WHERE j.stands AND j.counted AND j.is_so) AS run_after,
        sum(j.annualised_minor) FILTER (WHERE j.stands AND j.was_so) AS standing_before,
        sum(j.annualised_minor) FILTER (WHERE j.stands AND j.is_so) AS standing_after
    FROM judged AS j
    GROUP BY j.customer_id, j.currency
),

sides AS (
    SELECT
        cast(date_trunc('month', s.seen_at) AS date) AS cohort,
        c.currency,
        s.sign,
        coalesce(s.run, 0) AS run,
        coalesce(s.standing, 0) AS standing
    FROM customers AS c
    CROSS JOIN LATERAL (
        SELECT
-1 AS sign,
c.seen_before AS seen_at,
c.run_before AS run,
c.standing_before AS standing
        UNION ALL
        SELECT
1 AS sign,
c.seen_after AS seen_at,
c.run_after AS run,
c.standing_after AS standing
    ) AS s
)

SELECT
    s.cohort,
    s.currency,
    coalesce(sum(s.sign) FILTER (WHERE s.standing > 0), 0) AS customers,
    coalesce(sum(s.sign) FILTER (WHERE s.run > 0), 0) AS paying_customers,
    sum(s.sign * s.run) AS run
FROM sides AS s
WHERE s.cohort <= :month
GROUP BY s.cohort, s.currency;

-- name: shift_cohorts(period)!
-- description: Applies what has changed to the stored cohorts of a month; in its own month a cohort starts as it stands.
INSERT INTO analytics.cohorts AS k (
    cohort, period, currency, customers_start, customers, paying_customers, start_minor, end_minor
)
SELECT
    c.cohort,
    :period,
    c.currency,
    c.customers AS customers_start,
    c.customers,
    c.paying_customers,
    c.run AS start_minor,
    c.run AS end_minor
FROM metric_cohort_changes AS c
WHERE (c.customers, c.paying_customers, c.run) IS DISTINCT FROM (0, 0, 0)
ON CONFLICT (period, cohort, currency) DO UPDATE SET
    customers_start = k.customers_start + CASE WHEN k.cohort = k.period THEN excluded.customers ELSE 0 END,
    customers = k.customers + excluded.customers,
    paying_customers = k.paying_customers + excluded.paying_customers,
    start_minor = k.start_minor + CASE WHEN k.cohort = k.period THEN excluded.end_minor ELSE 0 END,
    end_minor = k.end_minor + excluded.end_minor;

-- name: drop_empty_cohorts(period)!
-- description: A cohort that nobody belongs to any more is none.
DELETE FROM analytics.cohorts WHERE period = :period AND customers_start = 0;
