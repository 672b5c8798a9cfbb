-- name: drop_scores(day)!
-- description: Makes room for the scores of a day.
DELETE FROM analytics.churn_risk WHERE day = :day;

-- name: keep_scores(day, at, model, now, paused_churn_days)!
-- description: Scores every customer who is with us at the end of the day by the rule of docs/metrics.md.
INSERT INTO analytics.churn_risk (day, customer_id, score, reasons, model, computed_at)
WITH standing AS (
    SELECT
        i.customer_id,
        bool_or(i.status = 'past_due') AS past_due,
        max(extract(EPOCH FROM :at - i.paused_since)) / 86400 AS paused_days
    FROM analytics.run_rate_intervals AS i
    WHERE i.valid_from < :at AND (i.valid_to IS NULL OR i.valid_to >= :at)
        AND (
            i.status IN ('active', 'past_due')
            OR (
                i.status = 'paused'
                AND coalesce(i.paused_since + make_interval(hours => 24 * cast(:paused_churn_days AS integer)), 'infinity') >= :at
            )
        )
    GROUP BY i.customer_id
    HAVING sum(i.annualised_minor) > 0
),

-- A failure that we or Stripe caused says nothing about the customer.
payments AS (
    SELECT
        s.customer_id,
        count(*) AS failed
    FROM billing.payments AS p
    INNER JOIN billing.subscriptions AS s ON p.subscription_id = s.subscription_id
    WHERE p.occurred_at >= :at - make_interval(hours => 24 * 30) AND p.occurred_at < :at AND p.outcome = 'failed'
        AND coalesce(p.failure_class, '') NOT IN ('integration_error', 'provider_error')
    GROUP BY s.customer_id
),

downgrades AS (
    SELECT
        i.customer_id,
        count(*) AS downgrades
    FROM analytics.run_rate_intervals AS i
    INNER JOIN analytics.run_rate_intervals AS p ON i.subscription_id = p.subscription_id AND i.valid_from = p.valid_to
    WHERE i.valid_from >= :at - make_interval(hours => 24 * 90) AND i.valid_from < :at
        AND i.status IN ('active', 'past_due') AND p.status IN ('active', 'past_due')
        AND i.annualised_minor < p.annualised_minor
    GROUP BY i.customer_id
),

pauses AS (
    SELECT
        i.customer_id,
        count(*) AS pauses
    FROM analytics.run_rate_intervals AS i
    -- A pause in which the terms changed has several intervals; the first begins with it.
    WHERE i.status = 'paused' AND i.paused_since = i.valid_from
        AND i.valid_from >= :at - make_interval(hours => 24 * 180) AND i.valid_from < :at
    GROUP BY i.customer_id
),

tenure AS (
    SELECT
        i.customer_id,
        extract(EPOCH FROM :at - min(i.valid_from)) / 86400 AS days
    FROM analytics.run_rate_intervals AS i
    WHERE i.status IN ('active', 'past_due', 'paused') AND i.valid_from < :at
    GROUP BY i.customer_id
),

points AS (
    SELECT
        s.customer_id,
        r.points,
        r.reason
    FROM standing AS s
    LEFT JOIN payments AS f ON s.customer_id = f.customer_id
    LEFT JOIN downgrades AS d ON s.customer_id = d.customer_id
    LEFT JOIN pauses AS u ON s.customer_id = u.customer_id
    LEFT JOIN tenure AS t ON s.customer_id = t.customer_id
    CROSS JOIN LATERAL (
        VALUES
        (CASE WHEN s.past_due THEN 0.35 END, 'payment past due'),
        (
            CASE WHEN f.failed >= 2 THEN 0.35 WHEN f.failed = 1 THEN 0.20 END,
            f.failed || CASE WHEN f.failed = 1 THEN ' failed payment' ELSE ' failed payments' END || ' in 30 days'
        ),
        (
            CASE WHEN s.paused_days >= 30 THEN 0.40 WHEN s.paused_days >= 0 THEN 0.25 END,
            'paused for ' || floor(s.paused_days) || ' days'
        ),
        (CASE WHEN u.pauses >= 2 THEN 0.15 END, u.pauses || ' pauses in 180 days'),
        (CASE WHEN d.downgrades > 0 THEN 0.20 END, 'downgraded in the last 90 days'),
        (CASE WHEN t.days < 90 THEN 0.15 END, 'with us for ' || floor(t.days) || ' days')
    ) AS r (points, reason)
)

SELECT
    :day,
    p.customer_id,
    least(coalesce(sum(p.points), 0), 1) AS score,
    coalesce(array_agg(p.reason ORDER BY p.points DESC, p.reason ASC) FILTER (WHERE p.points IS NOT NULL), '{}') AS reasons,
    :model,
    :now AS computed_at
FROM points AS p
GROUP BY p.customer_id;

-- name: score_counts(day)^
-- description: How many customers are scored for a day, and how many of them at high risk.
SELECT
    count(*) AS scored,
    count(*) FILTER (WHERE score >= 0.7) AS high
FROM analytics.churn_risk
WHERE day = :day;

-- name: risk_rows(day, at)
-- description: The scores of a day, highest first, with run rate and the masked address of the customer.
WITH standing AS (
    SELECT
        v.customer_id,
        sum(v.annualised_minor) AS annualised_minor
    FROM analytics.run_rate_intervals AS v
    WHERE v.status IN ('active', 'past_due', 'paused') AND v.valid_from < :at AND (v.valid_to IS NULL OR v.valid_to >= :at)
    GROUP BY v.customer_id
)

SELECT
    to_char(r.day, 'YYYY-MM-DD') AS period,
    c.customer_ref AS customer_id,
    r.score,
    array_to_string(r.reasons, '; ') AS reasons,
    c.currency,
    coalesce(i.annualised_minor, 0) AS annualised_minor,
    round(cast(coalesce(i.annualised_minor, 0) AS numeric) / 12, 4) AS mrr,
    CASE WHEN position('@' IN c.email) > 1 THEN left(c.email, 1) || '***' || substring(c.email FROM position('@' IN c.email)) END
        AS email_masked
FROM analytics.churn_risk AS r
INNER JOIN billing.customers AS c ON r.customer_id = c.customer_id
LEFT JOIN standing AS i ON r.customer_id = i.customer_id
WHERE r.day = :day
ORDER BY r.score DESC, annualised_minor DESC, c.customer_ref ASC;
