-- name: copy_movements(first, last)!
-- description: The stored movements of these days as CSV.
COPY (
    SELECT
        m.day::text AS period,
        c.customer_ref AS customer_id,
        m.currency,
        m.movement,
        m.annualised_minor,
        round(m.annualised_minor::numeric / 12, 4) AS mrr
    FROM analytics.mrr_movements AS m
    INNER JOIN billing.customers AS c ON m.customer_id = c.customer_id
    WHERE m.day BETWEEN :first AND :last
    ORDER BY m.day ASC, c.customer_ref COLLATE "C" ASC, m.movement ASC
) TO STDOUT (FORMAT csv, HEADER);

-- name: load_cohorts(first, last)!
-- description: The stored cohorts of these months.
INSERT INTO metric_cohorts (
    cohort, period, currency, customers_start, customers, paying_customers, run_start, run_end
)
SELECT
    cohort,
    period,
    currency,
    customers_start,
    customers,
    paying_customers,
    start_minor,
    end_minor
FROM analytics.cohorts
WHERE period BETWEEN :first AND :last;

-- name: first_cohort()$
-- description: The first month in which customers were new, of those stored.
SELECT min(cohort) AS cohort FROM analytics.cohorts;

-- name: stored_churn_rows(first, last)
-- description: The stored rates of these days.
SELECT
    to_char(day, 'YYYY-MM-DD') AS period,
    definition,
    currency,
    customers_start,
    customers_churned,
    customer_churn_rate,
    gross_mrr_churn,
    net_mrr_churn,
    nrr,
    grr,
    quick_ratio,
    arpa,
    ltv,
    pause_rate
FROM analytics.churn
WHERE day BETWEEN :first AND :last
ORDER BY day, definition;

-- name: stored_snapshot(day)^
-- description: How the figures of a day were computed; none where they are not stored.
SELECT
    day,
    definition,
    paused,
    paused_churn_days,
    reporting_currency,
    computed_at,
    restated_at,
    event_high_water
FROM analytics.snapshots
WHERE day = :day;

-- name: first_stored_day(since)$
-- description: The first stored day from a day on.
SELECT min(day) AS day FROM analytics.snapshots WHERE day >= :since;

-- name: restated_days(first, last)$
-- description: How many of these days were restated by late events.
SELECT count(*) AS days FROM analytics.snapshots WHERE day BETWEEN :first AND :last AND restated_at IS NOT NULL;
