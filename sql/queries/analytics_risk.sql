-- name: drop_scores(day)!
-- description: Makes room for the scores of a day.
DELETE FROM analytics.churn_risk WHERE day = :day;

-- name: keep_scores(day, model, now, logistic, intercept, least, weights, base, plans, frequencies)!
-- description: Scores each row of terms by a scorecard: weights by term, summed; logistic, or at most 1. Reasons are the groups
-- of terms that lift the sum by `least` or more above `base`, what they add on average, the strongest first.
INSERT INTO analytics.churn_risk (day, customer_id, score, reasons, model, computed_at)
SELECT
    :day,
    f.customer_id,
    CASE
        WHEN :logistic THEN 1 / (1 + exp(-least(greatest(:intercept + t.points, -30), 30)))
        ELSE least(greatest(:intercept + t.points, 0), 1)
    END AS score,
    coalesce(t.reasons[1 : 5], '{}') AS reasons,
    :model,
    :now AS computed_at
FROM risk_features AS f
CROSS JOIN jsonb_to_record(:weights::jsonb) AS w (
    past_due float8, failed_1 float8, failed_2 float8, failed_3 float8, failed_before float8, is_paused float8,
    paused_30 float8, ages_out float8, pauses_1 float8, pauses_2 float8, downgraded float8, upgraded float8, new_30 float8,
    new_90 float8, new_180 float8, overdue float8, renews float8, came_back float8, several float8, pays_little float8,
    pays_much float8, has_credit float8
)
CROSS JOIN jsonb_to_record(:base::jsonb) AS b (
    past_due float8, failed float8, failed_before float8, pause float8, pauses float8, downgraded float8, upgraded float8,
    tenure float8, overdue float8, renewal float8, came_back float8, several float8, pays float8, credit float8, plan float8,
    frequency float8
)
CROSS JOIN LATERAL (
    SELECT
        sum(g.points) AS points,
        array_agg(g.reason ORDER BY round((g.points - g.base)::numeric, 6) DESC, g.reason ASC)
            FILTER (WHERE g.points - g.base >= :least) AS reasons
    FROM (
        VALUES
        (
            w.past_due * f.past_due::integer, b.past_due,
            CASE WHEN f.past_due THEN 'payment past due' ELSE 'no payment past due' END
        ),
        (
            w.failed_1 * f.failed_1::integer + w.failed_2 * f.failed_2::integer + w.failed_3 * f.failed_3::integer, b.failed,
            f.failed || CASE WHEN f.failed = 1 THEN ' failed payment in 30 days' ELSE ' failed payments in 30 days' END
        ),
        (
            w.failed_before * f.failed_before::integer, b.failed_before,
            CASE WHEN f.failed_before THEN 'a failed payment 30 to 90 days ago' ELSE 'no failed payment 30 to 90 days ago' END
        ),
        (
            w.is_paused * f.is_paused::integer + w.paused_30 * f.paused_30::integer + w.ages_out * f.ages_out::integer, b.pause,
            CASE WHEN f.is_paused THEN 'paused for ' || floor(f.paused_days) || ' days' ELSE 'not paused' END
        ),
        (
            w.pauses_1 * f.pauses_1::integer + w.pauses_2 * f.pauses_2::integer, b.pauses,
            f.pauses || CASE WHEN f.pauses = 1 THEN ' pause in 180 days' ELSE ' pauses in 180 days' END
        ),
        (
            w.downgraded * f.downgraded::integer, b.downgraded,
            CASE WHEN f.downgraded THEN 'downgraded in the last 90 days' ELSE 'not downgraded in 90 days' END
        ),
        (
            w.upgraded * f.upgraded::integer, b.upgraded,
            CASE WHEN f.upgraded THEN 'upgraded in the last 90 days' ELSE 'not upgraded in 90 days' END
        ),
        (
            w.new_30 * f.new_30::integer + w.new_90 * f.new_90::integer + w.new_180 * f.new_180::integer, b.tenure,
            'with us for ' || floor(f.tenure_days) || ' days'
        ),
        (
            w.overdue * f.overdue::integer, b.overdue,
            CASE WHEN f.overdue THEN 'last paid ' || floor(f.unpaid_days) || ' days ago' ELSE 'pays in time' END
        ),
        (
            w.renews * f.renews::integer, b.renewal,
            CASE WHEN f.renews THEN 'renewal within 30 days' ELSE 'no renewal within 30 days' END
        ),
        (
            w.came_back * f.came_back::integer, b.came_back,
            CASE WHEN f.came_back THEN 'left before and came back' ELSE 'never left before' END
        ),
        (
            w.several * f.several::integer, b.several,
            CASE WHEN f.several THEN 'several subscriptions' ELSE 'one subscription' END
        ),
        (
            w.pays_little * f.pays_little::integer + w.pays_much * f.pays_much::integer, b.pays,
            CASE
                WHEN f.pays_little THEN 'pays less than half the average'
                WHEN f.pays_much THEN 'pays more than twice the average'
                ELSE 'pays about the average'
            END
        ),
        (
            w.has_credit * f.has_credit::integer, b.credit,
            CASE WHEN f.has_credit THEN 'has reward credit' ELSE 'no reward credit' END
        ),
        (
            coalesce((:plans::jsonb ->> f.plan)::float8, 0), b.plan,
            'plan ' || f.plan
        ),
        (
            coalesce((:frequencies::jsonb ->> f.frequency)::float8, 0), b.frequency,
            'pays ' || lower(f.frequency)
        )
    ) AS g (points, base, reason)
) AS t;

-- name: term_shares()^
-- description: Of the rows of terms, how many there are, and the share that each term is true of.
SELECT
    count(*) AS customers,
    avg(past_due::integer)::float8 AS past_due,
    avg(failed_1::integer)::float8 AS failed_1,
    avg(failed_2::integer)::float8 AS failed_2,
    avg(failed_3::integer)::float8 AS failed_3,
    avg(failed_before::integer)::float8 AS failed_before,
    avg(is_paused::integer)::float8 AS is_paused,
    avg(paused_30::integer)::float8 AS paused_30,
    avg(ages_out::integer)::float8 AS ages_out,
    avg(pauses_1::integer)::float8 AS pauses_1,
    avg(pauses_2::integer)::float8 AS pauses_2,
    avg(downgraded::integer)::float8 AS downgraded,
    avg(upgraded::integer)::float8 AS upgraded,
    avg(new_30::integer)::float8 AS new_30,
    avg(new_90::integer)::float8 AS new_90,
    avg(new_180::integer)::float8 AS new_180,
    avg(overdue::integer)::float8 AS overdue,
    avg(renews::integer)::float8 AS renews,
    avg(came_back::integer)::float8 AS came_back,
    avg(several::integer)::float8 AS several,
    avg(pays_little::integer)::float8 AS pays_little,
    avg(pays_much::integer)::float8 AS pays_much,
    avg(has_credit::integer)::float8 AS has_credit
FROM risk_features;

-- name: plan_and_frequency_shares()
-- description: The share of the rows of terms that is on each plan, and on each payment frequency.
SELECT
    CASE WHEN grouping(f.plan) = 0 THEN 'plan' ELSE 'frequency' END AS kind,
    coalesce(f.plan, f.frequency) AS name,
    count(*)::float8 / (SELECT count(*) FROM risk_features) AS share
FROM risk_features AS f
GROUP BY GROUPING SETS ((f.plan), (f.frequency))
ORDER BY kind, name;

-- name: score_shares(day, edges)
-- description: The share of a day's scores between each two edges; band 0 lies below the first edge.
SELECT
    width_bucket(r.score::float8, :edges::float8 []) AS band,
    count(*)::float8 / sum(count(*)) OVER () AS share
FROM analytics.churn_risk AS r
WHERE r.day = :day
GROUP BY band
ORDER BY band;

-- name: keep_model(day, model, trained_at, reason, scorecard, snapshots, evaluation, stability)!
-- description: Records what scored a day and why, with what it was measured by.
INSERT INTO analytics.churn_models (day, model, trained_at, reason, scorecard, snapshots, evaluation, stability)
VALUES (:day, :model, :trained_at, :reason, :scorecard, :snapshots, :evaluation, :stability)
ON CONFLICT (day) DO UPDATE SET
    model = excluded.model,
    trained_at = excluded.trained_at,
    reason = excluded.reason,
    scorecard = excluded.scorecard,
    snapshots = excluded.snapshots,
    evaluation = excluded.evaluation,
    stability = excluded.stability;

-- name: stored_model(day)^
-- description: What scored a day.
SELECT
    day,
    model,
    trained_at,
    reason,
    scorecard,
    snapshots,
    evaluation,
    stability
FROM analytics.churn_models
WHERE day = :day;

-- name: score_counts(day)^
-- description: How many customers are scored for a day, how many of them at high risk, and the sum of the scores.
SELECT
    count(*) AS scored,
    count(*) FILTER (WHERE score >= 0.7) AS high,
    coalesce(sum(score), 0)::float8 AS total
FROM analytics.churn_risk
WHERE day = :day;

-- name: risk_rows(day, at, masked, named)
-- description: The highest scores of a day, with run rate and the address of the customer, masked or not.
-- All that share the last of the highest scores are looked at: the run rate decides between them.
WITH highest AS (
    SELECT *
    FROM analytics.churn_risk
    WHERE day = :day
    ORDER BY score DESC
    FETCH FIRST (:named) ROWS WITH TIES
),

standing AS (
    SELECT
        v.customer_id,
        sum(v.annualised_minor) AS annualised_minor
    FROM analytics.run_rate_intervals AS v
    WHERE v.status IN ('active', 'past_due', 'paused') AND v.valid_from < :at AND (v.valid_to IS NULL OR v.valid_to >= :at)
        AND v.customer_id IN (SELECT h.customer_id FROM highest AS h)
    GROUP BY v.customer_id
)

SELECT
    to_char(r.day, 'YYYY-MM-DD') AS period,
    c.customer_ref AS customer_id,
    r.score,
    array_to_string(r.reasons, '; ') AS reasons,
    r.model,
    c.currency,
    coalesce(i.annualised_minor, 0) AS annualised_minor,
    round(coalesce(i.annualised_minor, 0)::numeric / 12, 4) AS mrr,
    CASE
        WHEN NOT :masked THEN c.email
        WHEN position('@' IN c.email) > 1 THEN left(c.email, 1) || '***' || substring(c.email FROM position('@' IN c.email))
    END AS email
FROM highest AS r
INNER JOIN billing.customers AS c ON r.customer_id = c.customer_id
LEFT JOIN standing AS i ON r.customer_id = i.customer_id
ORDER BY r.score DESC, annualised_minor DESC, c.customer_ref ASC
LIMIT :named;

-- name: copy_scores(day, at)!
-- description: All scores of a day as CSV, highest first, without addresses.
COPY (
    WITH standing AS (
        SELECT
            v.customer_id,
            sum(v.annualised_minor)::bigint AS annualised_minor
        FROM analytics.run_rate_intervals AS v
        WHERE v.status IN ('active', 'past_due', 'paused') AND v.valid_from < :at AND (v.valid_to IS NULL OR v.valid_to >= :at)
        GROUP BY v.customer_id
    )

    SELECT
        r.day::text AS period,
        c.customer_ref AS customer_id,
        r.score,
        array_to_string(r.reasons, '; ') AS reasons,
        c.currency,
        coalesce(i.annualised_minor, 0) AS annualised_minor,
        round(coalesce(i.annualised_minor, 0)::numeric / 12, 4) AS mrr
    FROM analytics.churn_risk AS r
    INNER JOIN billing.customers AS c ON r.customer_id = c.customer_id
    LEFT JOIN standing AS i ON r.customer_id = i.customer_id
    WHERE r.day = :day
    ORDER BY r.score::double precision DESC, annualised_minor DESC, c.customer_ref COLLATE "C" ASC
) TO STDOUT (FORMAT csv, HEADER);
