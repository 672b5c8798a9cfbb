-- name: insert_periods(grain, first, last)!
-- description: The periods from first to last, both included.
INSERT INTO metric_periods (period)
SELECT CAST(p.at AS date)
FROM generate_series(CAST(:first AS timestamp), CAST(:last AS timestamp), CAST('1 ' || :grain AS interval)) AS p (at);

-- name: insert_day_windows(first, last, span)!
-- description: For each day the window of so many days that ends with it.
INSERT INTO metric_windows (period, label, last_period, before_period, before_day, last_day)
SELECT
    d.day,
    to_char(d.day, 'YYYY-MM-DD'),
    d.day,
    d.day - CAST(:span AS integer),
    d.day - CAST(:span AS integer),
    d.day
FROM (
    SELECT CAST(s.at AS date) AS day FROM generate_series(CAST(:first AS timestamp), CAST(:last AS timestamp), '1 day') AS s (at)
) AS d;

-- name: insert_month_windows(first, last)!
-- description: For each month the month itself.
INSERT INTO metric_windows (period, label, last_period, before_period, before_day, last_day)
SELECT
    CAST(m.at AS date),
    to_char(m.at, 'YYYY-MM'),
    CAST(m.at AS date),
    CAST(m.at - interval '1 month' AS date),
    CAST(m.at AS date) - 1,
    CAST(m.at + interval '1 month' AS date) - 1
FROM generate_series(CAST(:first AS timestamp), CAST(:last AS timestamp), '1 month') AS m (at);

-- name: insert_month_end_windows(first, last, span)!
-- description: For each month the window of so many days that ends with its last.
INSERT INTO metric_windows (period, label, last_period, before_period, before_day, last_day)
SELECT
    m.month,
    to_char(m.month, 'YYYY-MM'),
    m.last_day,
    m.last_day - CAST(:span AS integer),
    m.last_day - CAST(:span AS integer),
    m.last_day
FROM (
    SELECT
        CAST(s.at AS date) AS month,
        CAST(s.at + interval '1 month' AS date) - 1 AS last_day
    FROM generate_series(CAST(:first AS timestamp), CAST(:last AS timestamp), '1 month') AS s (at)
) AS m;

-- name: insert_window_changes(span)!
-- description: Compares both ends of each window for the customers that changed within it, and classes them as one period.
INSERT INTO metric_window_changes (
    period, currency, customers_churned, joined, joined_churned, new, reactivation, expansion, contraction, churn, lost
)
WITH customers AS (
    SELECT
        w.period,
        c.customer_id,
        c.currency,
        (array_agg(c.run_before ORDER BY c.period))[1] AS run_before,
        (array_agg(c.run_after ORDER BY c.period DESC))[1] AS run_after,
        (array_agg(c.with_before ORDER BY c.period))[1] AS with_before,
        (array_agg(c.with_after ORDER BY c.period DESC))[1] AS with_after,
        (array_agg(c.ever_before ORDER BY c.period))[1] AS ever_before,
        bool_or(c.with_after) AS with_within
    FROM metric_customer_periods AS c
    CROSS JOIN generate_series(0, CAST(:span AS integer) - 1) AS g (days)
    INNER JOIN metric_windows AS w ON c.period + g.days = w.last_period
    GROUP BY w.period, c.customer_id, c.currency
),

subscriptions AS (
    SELECT
        w.period,
        c.customer_id,
        c.subscription_id,
        (array_agg(c.kind_before ORDER BY c.period))[1] AS kind_before,
        (array_agg(c.kind_after ORDER BY c.period DESC))[1] AS kind_after,
        (array_agg(c.run_before ORDER BY c.period))[1] AS run_before,
        (array_agg(c.run_after ORDER BY c.period DESC))[1] AS run_after
    FROM metric_changes AS c
    CROSS JOIN generate_series(0, CAST(:span AS integer) - 1) AS g (days)
    INNER JOIN metric_windows AS w ON c.period + g.days = w.last_period
    GROUP BY w.period, c.customer_id, c.subscription_id
    HAVING bool_or(c.kind_before = 'paused' OR c.kind_after = 'paused')
),

pauses AS (
    SELECT
        s.period,
        s.customer_id,
        coalesce(sum(-s.run_before) FILTER (WHERE s.kind_before = 'counted' AND s.kind_after = 'paused'), 0)
        + coalesce(sum(s.run_after) FILTER (WHERE s.kind_before = 'paused' AND s.kind_after = 'counted'), 0) AS amount
    FROM subscriptions AS s
    GROUP BY s.period, s.customer_id
),

split AS (
    SELECT
        c.*,
        c.run_after - c.run_before
        - CASE WHEN c.ever_before AND c.with_before THEN coalesce(p.amount, 0) ELSE 0 END AS rest
    FROM customers AS c
    LEFT JOIN pauses AS p ON c.period = p.period AND c.customer_id = p.customer_id
)

SELECT
    s.period,
    s.currency,
    count(*) FILTER (WHERE s.with_before AND NOT s.with_after),
    count(*) FILTER (WHERE NOT s.with_before AND s.with_within),
    count(*) FILTER (WHERE NOT s.with_before AND s.with_within AND NOT s.with_after),
    coalesce(sum(s.rest) FILTER (WHERE NOT s.ever_before), 0),
    coalesce(sum(s.rest) FILTER (WHERE s.ever_before AND NOT s.with_before), 0),
    coalesce(sum(s.rest) FILTER (WHERE s.ever_before AND s.with_before AND s.with_after AND s.rest > 0), 0),
    coalesce(sum(-s.rest) FILTER (WHERE s.ever_before AND s.with_before AND s.with_after AND s.rest < 0), 0),
    coalesce(sum(-s.rest) FILTER (WHERE s.ever_before AND s.with_before AND NOT s.with_after), 0),
    sum(greatest(s.run_before - s.run_after, 0))
FROM split AS s
GROUP BY s.period, s.currency;

-- name: insert_rate_rows(definition)!
-- description: The rates of each window over all currencies; null where a denominator is 0 or an exchange rate is unknown.
INSERT INTO metric_rate_rows (
    period, definition, currency, customers_start, customers_churned, customer_churn_rate, gross_mrr_churn, net_mrr_churn, nrr,
    grr, quick_ratio, arpa, ltv, pause_rate
)
WITH amounts AS (
    SELECT
        w.period,
        w.label,
        max(r.shown) AS currency,
        sum(coalesce(b.customers, 0)) AS customers_start,
        sum(coalesce(c.customers_churned, 0)) AS customers_churned,
        sum(coalesce(b.run_end, 0) * r.rate_before) AS run_start,
        sum(coalesce(c.lost, 0) * r.rate_before) AS lost,
        sum(coalesce(c.new, 0) * r.rate_now) AS new,
        sum(coalesce(c.reactivation, 0) * r.rate_now) AS reactivation,
        sum(coalesce(c.expansion, 0) * r.rate_now) AS expansion,
        sum(coalesce(c.contraction, 0) * r.rate_now) AS contraction,
        sum(coalesce(c.churn, 0) * r.rate_now) AS churn,
        sum(coalesce(e.run_end, 0) * r.rate_now) AS run_end,
        sum(coalesce(e.paying_customers, 0)) AS paying_customers,
        sum(coalesce(e.subscriptions, 0)) AS subscriptions,
        sum(coalesce(e.paused_subscriptions, 0)) AS paused_subscriptions
    FROM metric_windows AS w
    INNER JOIN metric_rates AS r ON w.period = r.period
    LEFT JOIN metric_summary AS b ON w.before_period = b.period AND r.currency = b.currency AND b.kind = 'total'
    LEFT JOIN metric_summary AS e ON w.last_period = e.period AND r.currency = e.currency AND e.kind = 'total'
    LEFT JOIN metric_window_changes AS c ON w.period = c.period AND r.currency = c.currency
    GROUP BY w.period, w.label
),

rates AS (
    SELECT
        a.*,
        a.customers_churned / nullif(a.customers_start, 0) AS customer_churn_rate,
        a.run_end / 12 / nullif(a.paying_customers, 0) AS arpa
    FROM amounts AS a
)

SELECT
    r.label AS period,
    :definition AS definition,
    r.currency,
    CAST(r.customers_start AS bigint) AS customers_start,
    CAST(r.customers_churned AS bigint) AS customers_churned,
    round(r.customer_churn_rate, 6) AS customer_churn_rate,
    round((r.churn + r.contraction) / nullif(r.run_start, 0), 6) AS gross_mrr_churn,
    round((r.churn + r.contraction - r.expansion - r.reactivation) / nullif(r.run_start, 0), 6) AS net_mrr_churn,
    round((r.run_start + r.expansion - r.contraction - r.churn) / nullif(r.run_start, 0), 6) AS nrr,
    round((r.run_start - r.lost) / nullif(r.run_start, 0), 6) AS grr,
    round((r.new + r.expansion + r.reactivation) / nullif(r.contraction + r.churn, 0), 6) AS quick_ratio,
    round(r.arpa, 4) AS arpa,
    round(r.arpa / nullif(r.customer_churn_rate, 0), 4) AS ltv,
    round(r.paused_subscriptions / nullif(r.subscriptions + r.paused_subscriptions, 0), 6) AS pause_rate
FROM rates AS r;

-- name: insert_stripe_rate_rows(definition)!
-- description: Churn as Stripe defines it: of those with us 30 days ago and those who joined since, who is not with us now.
INSERT INTO metric_rate_rows (period, definition, customers_start, customers_churned, customer_churn_rate)
SELECT
    w.label,
    :definition,
    sum(coalesce(b.customers, 0) + coalesce(c.joined, 0)),
    sum(coalesce(c.customers_churned, 0) + coalesce(c.joined_churned, 0)),
    round(
        sum(coalesce(c.customers_churned, 0) + coalesce(c.joined_churned, 0))
        / nullif(sum(coalesce(b.customers, 0) + coalesce(c.joined, 0)), 0),
        6
    )
FROM metric_windows AS w
CROSS JOIN (SELECT DISTINCT currency FROM billing.customers) AS r
LEFT JOIN metric_summary AS b ON w.before_period = b.period AND r.currency = b.currency AND b.kind = 'total'
LEFT JOIN metric_window_changes AS c ON w.period = c.period AND r.currency = c.currency
GROUP BY w.label;

-- name: rate_rows()
-- description: The rates computed, by period and definition.
SELECT
    period,
    definition,
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
FROM metric_rate_rows
ORDER BY period, definition;

-- name: first_month()$
-- description: The month in which the first interval begins; null where there is none.
SELECT CAST(date_trunc('month', min(valid_from) AT TIME ZONE 'UTC') AS date) AS month FROM metric_intervals;

-- name: insert_cohorts(last)!
-- description: For each month in which customers were new, what is left of them at the end of each wanted month.
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
        sum(CAST(c.with_after AS integer) - CAST(c.with_before AND c.period > k.cohort AS integer)) AS customers,
        sum(CAST(c.run_after > 0 AS integer) - CAST(c.run_before > 0 AS integer)) AS paying_customers
    FROM cohorts AS k
    INNER JOIN metric_customer_periods AS c ON k.customer_id = c.customer_id AND k.cohort <= c.period
    GROUP BY k.cohort, c.currency, c.period
),

levels AS (
    SELECT
        s.cohort,
        s.currency,
        CAST(m.at AS date) AS period,
        sum(t.run) OVER w AS run,
        sum(t.customers) OVER w AS customers,
        sum(t.paying_customers) OVER w AS paying_customers
    FROM (SELECT DISTINCT
        cohort,
        currency
    FROM steps) AS s
    CROSS JOIN LATERAL generate_series(CAST(s.cohort AS timestamp), CAST(:last AS timestamp), '1 month') AS m (at)
    LEFT JOIN steps AS t ON s.cohort = t.cohort AND s.currency = t.currency AND t.period = CAST(m.at AS date)
    WINDOW w AS (PARTITION BY s.cohort, s.currency ORDER BY m.at ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
),

framed AS (
    SELECT
        l.*,
        first_value(l.customers) OVER w AS customers_start,
        first_value(l.run) OVER w AS run_start
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
    f.run
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
-- description: Retention by cohort and month, converted at the rates of the cohort month so that rates do not look like retention.
SELECT
    to_char(c.cohort, 'YYYY-MM') AS cohort,
    to_char(c.period, 'YYYY-MM') AS period,
    CAST(
        extract(YEAR FROM age(c.period, c.cohort)) * 12 + extract(MONTH FROM age(c.period, c.cohort)) AS bigint
    ) AS months,
    r.shown AS currency,
    CAST(sum(c.customers_start) AS bigint) AS customers_start,
    CAST(sum(c.customers) AS bigint) AS customers,
    CAST(sum(c.paying_customers) AS bigint) AS paying_customers,
    round(sum(c.customers) / sum(c.customers_start), 6) AS customer_retention,
    sum(c.run_start * r.rate_now) AS start,
    sum(c.run_end * r.rate_now) AS "end",
    round(sum(c.run_end * r.rate_now) / sum(c.run_start * r.rate_now), 6) AS run_rate_retention
FROM metric_cohorts AS c
INNER JOIN metric_rates AS r ON c.cohort = r.period AND c.currency = r.currency
GROUP BY c.cohort, c.period, r.shown
ORDER BY c.cohort, c.period, r.shown;

-- name: keep_rates(days)!
-- description: Stores the rates shown in metric_rate_rows for these days.
INSERT INTO analytics.churn (
    day, definition, currency, customers_start, customers_churned, customer_churn_rate, gross_mrr_churn, net_mrr_churn, nrr, grr,
    quick_ratio, arpa, ltv, pause_rate
)
SELECT
    CAST(r.period AS date),
    r.definition,
    r.currency,
    r.customers_start,
    r.customers_churned,
    r.customer_churn_rate,
    r.gross_mrr_churn,
    r.net_mrr_churn,
    r.nrr,
    r.grr,
    r.quick_ratio,
    r.arpa,
    r.ltv,
    r.pause_rate
FROM metric_rate_rows AS r
WHERE CAST(r.period AS date) = any(CAST(:days AS date []));
