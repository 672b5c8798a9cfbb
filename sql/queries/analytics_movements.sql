-- name: choose_customers(since, until, paused_churn_days)!
-- description: Customers with a boundary in [since, until): an interval that begins there, or a pause that ages out.
INSERT INTO metric_customers (customer_id)
SELECT i.customer_id
FROM metric_intervals AS i
WHERE i.valid_from >= :since AND i.valid_from < :until
UNION
SELECT i.customer_id
FROM metric_intervals AS i
WHERE i.status = 'paused'
    AND i.paused_since >= :since - make_interval(hours => 24 * cast(:paused_churn_days AS integer))
    AND i.paused_since < :until - make_interval(hours => 24 * cast(:paused_churn_days AS integer));

-- name: choose_every_customer()!
-- description: All customers that have intervals.
INSERT INTO metric_customers (customer_id)
SELECT DISTINCT customer_id FROM metric_intervals;

-- name: insert_changes(grain, included, paused_churn_days, until)!
-- description: For the chosen customers, each period at whose end a subscription stands otherwise than at the end before.
INSERT INTO metric_changes (
    subscription_id, customer_id, currency, country, period, kind_before, kind_after, run_before, run_after, paused_before,
    paused_after, plan_before, plan_after, frequency_before, frequency_after
)
WITH moments AS (
    SELECT
        i.subscription_id,
        i.customer_id,
        i.currency,
        i.country,
        i.plan,
        i.payment_frequency,
        m.at,
        m.kind,
        CASE WHEN m.kind = 'counted' THEN i.annualised_minor ELSE 0 END AS run,
        CASE WHEN m.kind = 'paused' THEN i.annualised_minor ELSE 0 END AS paused,
        cast(date_trunc(:grain, m.at AT TIME ZONE 'UTC') AS date) AS period
    FROM metric_intervals AS i
    CROSS JOIN LATERAL
        (
            VALUES (coalesce(i.paused_since + make_interval(hours => 24 * cast(:paused_churn_days AS integer)), 'infinity'))
        ) AS l (ages_out_at)
    CROSS JOIN LATERAL (
        VALUES
        (
            i.valid_from,
            CASE
                WHEN i.status IN ('active', 'past_due') THEN 'counted'
                WHEN i.status <> 'paused' OR l.ages_out_at <= i.valid_from THEN 'out'
                WHEN :included THEN 'counted'
                ELSE 'paused'
            END
        ),
        (
            CASE WHEN i.status = 'paused' AND l.ages_out_at > i.valid_from AND l.ages_out_at < coalesce(i.valid_to, 'infinity')
                    THEN l.ages_out_at
            END,
            'out'
        )
    ) AS m (at, kind)
    WHERE m.at < :until AND i.customer_id IN (SELECT c.customer_id FROM metric_customers AS c)
),

followed AS (
    SELECT
        m.*,
        lead(m.period) OVER (PARTITION BY m.subscription_id ORDER BY m.at) AS next_period
    FROM moments AS m
),

steps AS (
    SELECT
        f.*,
        coalesce(lag(f.kind) OVER w, 'out') AS kind_before,
        coalesce(lag(f.run) OVER w, 0) AS run_before,
        coalesce(lag(f.paused) OVER w, 0) AS paused_before,
        lag(f.plan) OVER w AS plan_before,
        lag(f.payment_frequency) OVER w AS frequency_before
    FROM followed AS f
    WHERE f.next_period IS NULL OR f.next_period > f.period
    WINDOW w AS (PARTITION BY f.subscription_id ORDER BY f.at)
)

SELECT
    s.subscription_id,
    s.customer_id,
    s.currency,
    s.country,
    s.period,
    s.kind_before,
    s.kind,
    s.run_before,
    s.run,
    s.paused_before,
    s.paused,
    s.plan_before,
    s.plan,
    s.frequency_before,
    s.payment_frequency
FROM steps AS s
WHERE (s.kind <> 'out' OR s.kind_before <> 'out')
    AND (s.kind, s.run, s.paused, s.plan, s.payment_frequency)
    IS DISTINCT FROM (s.kind_before, s.run_before, s.paused_before, s.plan_before, s.frequency_before);

-- name: insert_customer_periods()!
-- description: For each customer and period with a change: where it stood, where it stands, and how the change is classed.
INSERT INTO metric_customer_periods (
    customer_id, currency, country, period, run_before, run_after, with_before, with_after, ever_before, splits, paused,
    resumed, rest, movement
)
WITH net AS (
    SELECT
        c.customer_id,
        c.currency,
        c.country,
        c.period,
        sum(c.run_after - c.run_before) AS run_change,
        sum(c.paused_after - c.paused_before) AS paused_change,
        coalesce(sum(-c.run_before) FILTER (WHERE c.kind_before = 'counted' AND c.kind_after = 'paused'), 0) AS paused,
        coalesce(sum(c.run_after) FILTER (WHERE c.kind_before = 'paused' AND c.kind_after = 'counted'), 0) AS resumed
    FROM metric_changes AS c
    GROUP BY c.customer_id, c.currency, c.country, c.period
),

levels AS (
    SELECT
        n.*,
        sum(n.run_change) OVER w AS run_after,
        sum(n.paused_change) OVER w AS paused_after
    FROM net AS n
    WINDOW w AS (PARTITION BY n.customer_id ORDER BY n.period ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
),

standing AS (
    SELECT
        l.*,
        l.run_after - l.run_change AS run_before,
        l.run_after - l.run_change > 0 OR l.paused_after - l.paused_change > 0 AS with_before,
        l.run_after > 0 OR l.paused_after > 0 AS with_after,
        coalesce(
            max(l.run_after) OVER (
                PARTITION BY l.customer_id ORDER BY l.period ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ),
            0
        ) > 0 AS ever_before
    FROM levels AS l
),

split AS (
    SELECT
        s.*,
        s.ever_before AND s.with_before AS splits,
        s.run_change - CASE WHEN s.ever_before AND s.with_before THEN s.paused + s.resumed ELSE 0 END AS rest
    FROM standing AS s
)

SELECT
    s.customer_id,
    s.currency,
    s.country,
    s.period,
    s.run_before,
    s.run_after,
    s.with_before,
    s.with_after,
    s.ever_before,
    s.splits,
    CASE WHEN s.splits THEN s.paused ELSE 0 END AS paused,
    CASE WHEN s.splits THEN s.resumed ELSE 0 END AS resumed,
    s.rest,
    CASE
        WHEN NOT s.ever_before THEN CASE WHEN s.run_after > 0 THEN 'new' END
        WHEN NOT s.with_before THEN CASE WHEN s.run_after > 0 THEN 'reactivation' END
        WHEN NOT s.with_after THEN 'churn'
        WHEN s.rest > 0 THEN 'expansion'
        WHEN s.rest < 0 THEN 'contraction'
    END AS movement
FROM split AS s;

-- name: movement_rows()
-- description: The movements of the wanted periods, in the currency wanted: a row for each of each customer, also churn of 0.
WITH levels AS (
    SELECT
        c.customer_id,
        c.currency,
        c.period,
        c.run_after AS run,
        lead(c.period) OVER (PARTITION BY c.customer_id ORDER BY c.period) AS next_period
    FROM metric_customer_periods AS c
)

SELECT
    w.label AS period,
    b.customer_ref AS customer_id,
    r.shown AS currency,
    m.movement,
    m.amount * r.rate_now AS annualised_minor,
    round(m.amount * r.rate_now / 12, 4) AS mrr
FROM metric_windows AS w
INNER JOIN metric_movements AS m ON w.last_period = m.period
INNER JOIN metric_rates AS r ON w.period = r.period AND m.currency = r.currency
INNER JOIN billing.customers AS b ON m.customer_id = b.customer_id
UNION ALL
SELECT
    w.label AS period,
    b.customer_ref AS customer_id,
    r.shown AS currency,
    'fx' AS movement,
    f.run * (r.rate_now - r.rate_before) AS annualised_minor,
    round(f.run * (r.rate_now - r.rate_before) / 12, 4) AS mrr
FROM levels AS f
INNER JOIN metric_windows AS w
    ON f.period < w.last_period AND (f.next_period IS NULL OR f.next_period >= w.last_period)
INNER JOIN metric_rates AS r ON w.period = r.period AND f.currency = r.currency
INNER JOIN billing.customers AS b ON f.customer_id = b.customer_id
WHERE f.run > 0 AND r.rate_now <> r.rate_before
ORDER BY period, customer_id, movement;

-- name: insert_movements()!
-- description: The classed changes as rows: one for each movement.
INSERT INTO metric_movements (period, customer_id, movement, currency, amount)
SELECT
    c.period,
    c.customer_id,
    m.movement,
    c.currency,
    m.amount
FROM metric_customer_periods AS c
CROSS JOIN LATERAL (
    VALUES (c.movement, c.rest), ('paused', c.paused), ('resumed', c.resumed)
) AS m (movement, amount)
WHERE m.amount <> 0 OR m.movement = 'churn';
