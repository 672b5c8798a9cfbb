-- name: choose_customers(since, until, paused_churn_days)!
-- description: Looks up customers with a boundary in [since, until): an interval that begins there, or a pause that ages out.
-- Events open intervals and pauses: those that open no interval choose somebody of whom nothing changes. In order, what is
-- looked up lies side by side.
WITH chosen AS (
    INSERT INTO metric_customers (customer_id)
    (
        SELECT e.customer_id
        FROM billing.subscription_events AS e
        WHERE e.occurred_at >= :since AND e.occurred_at < :until
        UNION ALL
        SELECT p.customer_id
        FROM (
            SELECT
                e.customer_id,
                e.subscription_id,
                e.occurred_at
            FROM billing.subscription_events AS e
            WHERE e.event = 'paused'
                AND e.occurred_at >= :since - make_interval(hours => 24 * cast(:paused_churn_days AS integer))
                AND e.occurred_at < :until - make_interval(hours => 24 * cast(:paused_churn_days AS integer))
            ORDER BY e.subscription_id
        ) AS p
        WHERE EXISTS (
                SELECT 1 FROM metric_intervals AS i
                WHERE i.subscription_id = p.subscription_id AND i.valid_from >= p.occurred_at AND i.paused_since = p.occurred_at
                    AND (
                        i.valid_to IS NULL
                        OR i.valid_to > p.occurred_at + make_interval(hours => 24 * cast(:paused_churn_days AS integer))
                    )
            )
    )
    EXCEPT
    SELECT m.customer_id FROM metric_customers AS m
    RETURNING customer_id
)

INSERT INTO metric_looked_up
SELECT i.*
FROM chosen AS c
INNER JOIN metric_intervals AS i ON c.customer_id = i.customer_id;

-- name: choose_touched_customers()!
-- description: Looks up the customers of the touched subscriptions.
WITH chosen AS (
    INSERT INTO metric_customers (customer_id)
    SELECT DISTINCT t.customer_id FROM metric_subscriptions AS t
    ORDER BY t.customer_id
    RETURNING customer_id
)

INSERT INTO metric_looked_up
SELECT i.*
FROM chosen AS c
INNER JOIN metric_intervals AS i ON c.customer_id = i.customer_id;

-- name: look_up_fresh()!
-- description: Adds the touched subscriptions' intervals as they are now, where those that were affected have been set apart.
INSERT INTO metric_looked_up SELECT * FROM metric_fresh;

-- name: see_chosen_customers#
-- description: The view metric_chosen: the intervals of the chosen customers, which are looked up once.
CREATE OR REPLACE TEMP VIEW metric_chosen AS
SELECT * FROM metric_looked_up;

-- name: see_every_customer#
-- description: The same where every customer is chosen: read in the order in which they are stored.
CREATE OR REPLACE TEMP VIEW metric_chosen AS
SELECT * FROM metric_intervals;

-- name: insert_plural()!
-- description: The chosen customers with several subscriptions; those of the others are the customer's changes.
-- Every subscription has one interval that has not ended.
INSERT INTO metric_plural (customer_id)
SELECT customer_id
FROM metric_chosen
WHERE valid_to IS NULL
GROUP BY customer_id
HAVING count(*) > 1;

-- name: insert_paid_before(included, paused_churn_days, back_to)!
-- description: The chosen customers' subscriptions that paid more than nothing at the end of a day before their history begins.
INSERT INTO metric_paid_before (subscription_id, customer_id)
SELECT DISTINCT
    i.subscription_id,
    i.customer_id
FROM metric_chosen AS i
WHERE i.valid_to < :back_to AND i.annualised_minor > 0
    AND (i.status IN ('active', 'past_due') OR (i.status = 'paused' AND :included))
    AND (
        (i.status <> 'paused' AND i.valid_to - i.valid_from > interval '2 days')
        OR cast(least(i.valid_to, i.paused_since + make_interval(hours => 24 * cast(:paused_churn_days AS integer))) AS date)
        > cast(i.valid_from AS date)
    );

-- name: insert_changes(grain, included, paused_churn_days, until, back_to)!
-- description: For the chosen customers, each period at whose end a subscription stands otherwise than at the end before.
-- Where their history begins later than they do, the first one says how a subscription stood then, and when it came to that.
INSERT INTO metric_changes (
    subscription_id, customer_id, currency, country, alone, period, kind_before, kind_after, run_before, run_after, paused_before,
    paused_after, plan_before, plan_after, frequency_before, frequency_after, ever_before, class
)
WITH lives AS NOT MATERIALIZED (
    SELECT
        c.*,
        c.paused_since + make_interval(hours => 24 * cast(:paused_churn_days AS integer)) AS ages_out_at
    FROM metric_chosen AS c
    WHERE c.valid_to IS NULL OR c.valid_to >= :back_to
),

-- An interval in which a pause ages out holds two.
moments AS (
    SELECT
        i.subscription_id,
        i.customer_id,
        i.currency,
        i.country,
        i.plan,
        i.payment_frequency,
        i.annualised_minor,
        i.valid_from AS at,
        cast(
            CASE
                WHEN i.status IN ('active', 'past_due') THEN 'counted'
                WHEN i.status <> 'paused' OR i.ages_out_at <= i.valid_from THEN 'out'
                WHEN :included THEN 'counted'
                ELSE 'paused'
            END AS analytics.standing
        ) AS kind,
        CASE WHEN i.ages_out_at > i.valid_from THEN least(i.ages_out_at, i.valid_to) ELSE i.valid_to END AS next_at
    FROM lives AS i
    WHERE i.valid_from < :until
    UNION ALL
    SELECT
        i.subscription_id,
        i.customer_id,
        i.currency,
        i.country,
        i.plan,
        i.payment_frequency,
        i.annualised_minor,
        i.ages_out_at AS at,
        cast('out' AS analytics.standing) AS kind,
        i.valid_to AS next_at
    FROM lives AS i
    WHERE i.status = 'paused' AND i.ages_out_at > i.valid_from AND i.ages_out_at < :until
        AND (i.valid_to IS NULL OR i.valid_to > i.ages_out_at)
),

-- What does not last to the end of its period is not seen; days begin at midnight in the connection's time zone. What lasts
-- longer than any period is seen for sure: to name the day of an instant costs much more than to subtract.
ends AS (
    SELECT
        m.*,
        cast(CASE WHEN :grain = 'day' THEN m.at ELSE date_trunc('month', m.at) END AS date) AS period
    FROM moments AS m
    WHERE m.next_at IS NULL
        OR m.next_at - m.at > make_interval(days => CASE WHEN :grain = 'day' THEN 2 ELSE 32 END)
        OR CASE WHEN :grain = 'day' THEN cast(m.next_at AS date) > cast(m.at AS date)
            ELSE date_trunc('month', m.next_at) > date_trunc('month', m.at)
        END
),

steps AS (
    SELECT
        e.*,
        lag(e.kind, 1, cast('out' AS analytics.standing)) OVER w AS kind_before,
        lag(e.annualised_minor) OVER w AS annualised_before,
        lag(e.plan) OVER w AS plan_before,
        lag(e.payment_frequency) OVER w AS frequency_before,
        coalesce(bool_or(e.kind = 'counted' AND e.annualised_minor > 0) OVER w, FALSE)
        OR e.subscription_id IN (SELECT p.subscription_id FROM metric_paid_before AS p) AS ever_before
    FROM ends AS e
    WINDOW w AS (PARTITION BY e.subscription_id ORDER BY e.at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
)

SELECT
    s.subscription_id,
    s.customer_id,
    s.currency,
    s.country,
    s.customer_id NOT IN (SELECT p.customer_id FROM metric_plural AS p) AS alone,
    s.period,
    s.kind_before,
    s.kind,
    CASE WHEN s.kind_before = 'counted' THEN s.annualised_before ELSE 0 END AS run_before,
    CASE WHEN s.kind = 'counted' THEN s.annualised_minor ELSE 0 END AS run_after,
    CASE WHEN s.kind_before = 'paused' THEN s.annualised_before ELSE 0 END AS paused_before,
    CASE WHEN s.kind = 'paused' THEN s.annualised_minor ELSE 0 END AS paused_after,
    s.plan_before,
    s.plan,
    s.frequency_before,
    s.payment_frequency,
    s.ever_before,
    -- What the change is if it is its customer's only one. With us, counted or paused, is who would pay more than nothing.
    CASE
        WHEN s.kind = 'counted' AND s.annualised_minor > 0 THEN
            CASE
                WHEN NOT s.ever_before THEN 'new'
                WHEN s.kind_before = 'out' OR s.annualised_before = 0 THEN 'reactivation'
                WHEN s.kind_before = 'paused' THEN 'resumed'
                WHEN s.annualised_minor > s.annualised_before THEN 'expansion'
                WHEN s.annualised_minor < s.annualised_before THEN 'contraction'
            END
        WHEN NOT s.ever_before OR s.kind_before = 'out' OR s.annualised_before = 0 THEN NULL
        WHEN s.kind_before = 'counted' AND s.kind = 'paused' THEN 'paused'
        WHEN s.kind = 'out' OR s.annualised_minor = 0 THEN 'churn'
    END AS class
FROM steps AS s
WHERE s.kind <> s.kind_before
    OR (
        s.kind <> 'out'
        AND (
            s.annualised_minor <> s.annualised_before OR s.plan <> s.plan_before
            OR s.payment_frequency <> s.frequency_before
        )
    );

-- name: create_alone()!
-- description: The view metric_alone: changes of customers with one subscription; nothing needs adding up for them.
-- Of the rest, paused and resumed only one is not 0: class says which, movement what becomes of the customer: a pause may take
-- the price to nothing, too, and the customer has left then.
CREATE TEMP VIEW metric_alone AS
SELECT
    c.*,
    c.run_before > 0 OR c.paused_before > 0 AS with_before,
    c.run_after > 0 OR c.paused_after > 0 AS with_after,
    c.ever_before AND (c.run_before > 0 OR c.paused_before > 0) AS splits,
    CASE WHEN c.class = 'paused' THEN -c.run_before ELSE 0 END AS paused,
    CASE WHEN c.class = 'resumed' THEN c.run_after ELSE 0 END AS resumed,
    CASE WHEN c.class IN ('paused', 'resumed') THEN 0 ELSE c.run_after - c.run_before END AS rest,
    CASE
        WHEN c.class = 'paused' THEN CASE WHEN c.paused_after = 0 THEN 'churn' END
        WHEN c.class <> 'resumed' THEN c.class
    END AS movement,
    c.kind_before <> 'out' AND c.kind_after <> 'out'
    AND (c.plan_before <> c.plan_after OR c.frequency_before <> c.frequency_after) AS moves
FROM metric_changes AS c
WHERE c.alone;

-- name: create_classed()!
-- description: The view metric_classed: the classed changes as a row for each movement, also churn of 0.
CREATE TEMP VIEW metric_classed AS
SELECT
    a.period,
    a.customer_id,
    a.currency,
    a.class AS movement,
    a.run_after - a.run_before AS amount
FROM metric_alone AS a
WHERE a.class IS NOT NULL
UNION ALL
SELECT
    a.period,
    a.customer_id,
    a.currency,
    a.movement,
    0 AS amount
FROM metric_alone AS a
WHERE a.class = 'paused' AND a.movement = 'churn'
UNION ALL
SELECT
    s.period,
    s.customer_id,
    s.currency,
    m.movement,
    m.amount
FROM metric_several AS s
CROSS JOIN LATERAL (
    SELECT
s.movement,
s.rest AS amount
    UNION ALL
    SELECT
'paused' AS movement,
s.paused AS amount
    UNION ALL
    SELECT
'resumed' AS movement,
s.resumed AS amount
) AS m
WHERE m.amount <> 0 OR m.movement = 'churn';

-- name: create_customer_periods()!
-- description: The view metric_customer_periods: each customer's change of each period, where it stood and stands, and its class.
CREATE TEMP VIEW metric_customer_periods AS
SELECT
    a.customer_id,
    a.currency,
    a.country,
    a.period,
    a.run_before,
    a.run_after,
    a.with_before,
    a.with_after,
    a.ever_before,
    a.splits,
    a.paused,
    a.resumed,
    a.rest,
    a.movement,
    cast(a.kind_after = 'counted' AS integer) - cast(a.kind_before = 'counted' AS integer) AS subscriptions,
    cast(a.kind_after = 'paused' AS integer) - cast(a.kind_before = 'paused' AS integer) AS paused_subscriptions
FROM metric_alone AS a
UNION ALL
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
    s.paused,
    s.resumed,
    s.rest,
    s.movement,
    s.subscriptions,
    s.paused_subscriptions
FROM metric_several AS s;

-- name: insert_several()!
-- description: The changes of customers with several subscriptions, added up by customer and period, and classed.
INSERT INTO metric_several (
    customer_id, currency, country, period, run_before, run_after, with_before, with_after, ever_before, splits, paused,
    resumed, rest, movement, subscriptions, paused_subscriptions, spread, plan, payment_frequency
)
WITH net AS (
    SELECT
        c.customer_id,
        min(c.currency) AS currency,
        min(c.country) AS country,
        c.period,
        cast(sum(c.run_after - c.run_before) AS bigint) AS run_change,
        cast(sum(c.paused_after - c.paused_before) AS bigint) AS paused_change,
        cast(coalesce(sum(-c.run_before) FILTER (WHERE c.kind_before = 'counted' AND c.kind_after = 'paused'), 0) AS bigint)
            AS paused,
        cast(coalesce(sum(c.run_after) FILTER (WHERE c.kind_before = 'paused' AND c.kind_after = 'counted'), 0) AS bigint)
            AS resumed,
        sum(cast(c.kind_after = 'counted' AS integer) - cast(c.kind_before = 'counted' AS integer)) AS subscriptions,
        sum(cast(c.kind_after = 'paused' AS integer) - cast(c.kind_before = 'paused' AS integer)) AS paused_subscriptions,
        bool_or(c.run_after > 0) AS pays,
        count(*) > 1 OR bool_or(c.plan_before <> c.plan_after OR c.frequency_before <> c.frequency_after) AS spread,
        min(c.plan_after) AS plan,
        min(c.frequency_after) AS payment_frequency
    FROM metric_changes AS c
    WHERE NOT c.alone
    GROUP BY c.customer_id, c.period
),

levels AS (
    SELECT
        n.*,
        cast(sum(n.run_change) OVER w AS bigint) AS run_after,
        cast(sum(n.paused_change) OVER w AS bigint) AS paused_after,
        -- Who has ever paid did so with the change of some subscription.
        count(*) FILTER (WHERE n.pays) OVER w > cast(n.pays AS integer)
        OR n.customer_id IN (SELECT p.customer_id FROM metric_paid_before AS p) AS ever_before
    FROM net AS n
    WINDOW w AS (PARTITION BY n.customer_id ORDER BY n.period ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
),

standing AS (
    SELECT
        l.*,
        l.run_after - l.run_change AS run_before,
        l.run_after - l.run_change > 0 OR l.paused_after - l.paused_change > 0 AS with_before,
        l.run_after > 0 OR l.paused_after > 0 AS with_after
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
    END AS movement,
    s.subscriptions,
    s.paused_subscriptions,
    s.spread IS TRUE AS spread,
    s.plan,
    s.payment_frequency
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
    period,
    customer_id,
    movement,
    currency,
    amount
FROM metric_classed;
