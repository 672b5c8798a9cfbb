-- name: payment_health_rows(grain, by, since, until, known_at)
-- description: Payment attempts by period and segment; plan and frequency are those that the ledger gives for their instant.
WITH attempts AS (
    SELECT
        p.outcome,
        p.failure_class,
        p.attempt,
        date_trunc(:grain, p.occurred_at) AS begins,
        CASE :by
            WHEN 'attempt' THEN cast(p.attempt AS text)
            WHEN 'failure_class' THEN coalesce(p.failure_class, CASE p.outcome WHEN 'failed' THEN 'unknown' ELSE 'none' END)
            WHEN 'plan' THEN coalesce(t.plan, 'unknown')
            ELSE coalesce(t.payment_frequency, 'unknown')
        END AS segment
    FROM billing.payments AS p
    LEFT JOIN LATERAL (
        SELECT
            e.plan,
            e.payment_frequency
        FROM billing.subscription_events AS e
        WHERE :by IN ('plan', 'payment_frequency')
            AND e.subscription_id = p.subscription_id AND e.occurred_at <= p.occurred_at
            AND e.recorded_at <= coalesce(cast(:known_at AS timestamptz), 'infinity')
        ORDER BY e.occurred_at DESC, e.recorded_at DESC, e.event_id DESC
        LIMIT 1
    ) AS t ON TRUE
    WHERE p.occurred_at >= :since AND p.occurred_at < :until
        AND p.recorded_at <= coalesce(cast(:known_at AS timestamptz), 'infinity')
)

SELECT
    to_char(a.begins, CASE :grain WHEN 'day' THEN 'YYYY-MM-DD' ELSE 'YYYY-MM' END) AS period,
    a.segment,
    count(*) AS attempts,
    count(*) FILTER (WHERE a.outcome = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE a.outcome = 'failed') AS failed,
    round(cast(count(*) FILTER (WHERE a.outcome = 'succeeded') AS numeric) / count(*), 6) AS success_rate,
    count(*) FILTER (WHERE a.failure_class = 'issuer_decline') AS issuer_decline,
    count(*) FILTER (WHERE a.failure_class = 'block') AS block,
    count(*) FILTER (WHERE a.failure_class = 'integration_error') AS integration_error,
    count(*) FILTER (WHERE a.failure_class = 'provider_error') AS provider_error,
    count(*) FILTER (
        WHERE a.outcome = 'failed'
            AND coalesce(a.failure_class, '') NOT IN ('issuer_decline', 'block', 'integration_error', 'provider_error')
    ) AS other_failure,
    count(*) FILTER (WHERE a.outcome = 'succeeded' AND a.attempt > 1) AS recovered
FROM attempts AS a
GROUP BY a.begins, a.segment
ORDER BY a.begins, CASE :by WHEN 'attempt' THEN cast(a.segment AS integer) END, a.segment;

-- name: dunning_rows(grain, by, since, until, known_at, patience_days)
-- description: Dunning episodes by the period in which they began (grain all: as one): how many were won, how soon.
-- A subscription's attempts in a row: an episode begins with a failure after a success, or after a silence longer than the
-- patience; it is won by the next attempt that succeeds, if no silence lies between.
WITH failing AS (
    SELECT DISTINCT p.subscription_id
    FROM billing.payments AS p
    WHERE p.outcome = 'failed' AND p.occurred_at >= :since AND p.occurred_at < :until
        AND p.recorded_at <= coalesce(cast(:known_at AS timestamptz), 'infinity')
),

attempts AS (
    SELECT
        p.subscription_id,
        p.occurred_at,
        p.outcome,
        p.failure_class,
        lag(p.outcome) OVER in_time AS outcome_before,
        p.occurred_at - lag(p.occurred_at) OVER in_time > make_interval(days => :patience_days) AS after_silence,
        row_number() OVER in_time AS place
    FROM billing.payments AS p
    INNER JOIN failing AS f ON p.subscription_id = f.subscription_id
    WHERE p.occurred_at >= cast(:since AS timestamptz) - make_interval(days => :patience_days)
        AND p.recorded_at <= coalesce(cast(:known_at AS timestamptz), 'infinity')
    WINDOW in_time AS (
        PARTITION BY p.subscription_id ORDER BY p.occurred_at, p.outcome, p.attempt, p.payment_ref
    )
),

marked AS (
    SELECT
        a.*,
        (coalesce(a.after_silence, FALSE) OR coalesce(a.outcome_before, 'none') <> 'failed') AS opens
    FROM attempts AS a
),

numbered AS (
    SELECT
        m.*,
        count(*) FILTER (WHERE m.opens) OVER (PARTITION BY m.subscription_id ORDER BY m.place) AS episode
    FROM marked AS m
),

episodes AS (
    SELECT
        n.subscription_id,
        min(n.occurred_at) AS began_at,
        (array_agg(n.failure_class ORDER BY n.place))[1] AS failure_class,
        min(n.occurred_at) FILTER (WHERE n.outcome = 'succeeded') AS won_at
    FROM numbered AS n
    GROUP BY n.subscription_id, n.episode
    HAVING (array_agg(n.outcome ORDER BY n.place))[1] = 'failed'
),

placed AS (
    SELECT
        e.won_at - e.began_at AS took,
        e.won_at,
        CASE :grain
            WHEN 'all' THEN cast(:since AS timestamptz)
            ELSE date_trunc(:grain, e.began_at)
        END AS begins,
        CASE :by
            WHEN 'total' THEN 'total'
            WHEN 'failure_class' THEN coalesce(e.failure_class, 'unknown')
            WHEN 'plan' THEN coalesce(t.plan, 'unknown')
            ELSE coalesce(t.payment_frequency, 'unknown')
        END AS segment
    FROM episodes AS e
    LEFT JOIN LATERAL (
        SELECT
            v.plan,
            v.payment_frequency
        FROM billing.subscription_events AS v
        WHERE :by IN ('plan', 'payment_frequency')
            AND v.subscription_id = e.subscription_id AND v.occurred_at <= e.began_at
            AND v.recorded_at <= coalesce(cast(:known_at AS timestamptz), 'infinity')
        ORDER BY v.occurred_at DESC, v.recorded_at DESC, v.event_id DESC
        LIMIT 1
    ) AS t ON TRUE
    WHERE e.began_at >= :since AND e.began_at < :until
)

SELECT
    to_char(p.begins, CASE :grain WHEN 'month' THEN 'YYYY-MM' ELSE 'YYYY-MM-DD' END) AS period,
    p.segment,
    count(*) AS episodes,
    count(p.won_at) AS recovered,
    round(cast(count(p.won_at) AS numeric) / count(*), 6) AS recovery_rate,
    round(extract(EPOCH FROM percentile_disc(0.5) WITHIN GROUP (ORDER BY p.took)) / 86400, 6) AS median_days,
    round(extract(EPOCH FROM percentile_disc(0.9) WITHIN GROUP (ORDER BY p.took)) / 86400, 6) AS p90_days
FROM placed AS p
GROUP BY p.begins, p.segment
ORDER BY p.begins, p.segment;
