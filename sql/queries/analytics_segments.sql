-- name: insert_customer_changes()!
-- description: The changes of each period by customer.
INSERT INTO metric_segment_changes (
    period, kind, segment, currency, run_change, new, reactivation, expansion, contraction, churn, paused, resumed, transfer,
    customers, paying_customers, subscriptions, paused_subscriptions
)
SELECT
    c.period,
    'customer' AS kind,
    cast(c.customer_id AS text) AS segment,
    c.currency,
    c.run_after - c.run_before AS run_change,
    CASE WHEN c.movement = 'new' THEN c.rest ELSE 0 END AS new,
    CASE WHEN c.movement = 'reactivation' THEN c.rest ELSE 0 END AS reactivation,
    CASE WHEN c.movement = 'expansion' THEN c.rest ELSE 0 END AS expansion,
    CASE WHEN c.movement = 'contraction' THEN c.rest ELSE 0 END AS contraction,
    CASE WHEN c.movement = 'churn' THEN c.rest ELSE 0 END AS churn,
    c.paused,
    c.resumed,
    0 AS transfer,
    cast(c.with_after AS integer) - cast(c.with_before AS integer) AS customers,
    cast(c.run_after > 0 AS integer) - cast(c.run_before > 0 AS integer) AS paying_customers,
    c.subscriptions,
    c.paused_subscriptions
FROM metric_customer_periods AS c
INNER JOIN metric_periods AS p ON c.period = p.period;

-- name: insert_whole_changes(kinds)!
-- description: The changes of customers with several subscriptions by what they never leave: country, currency, the total.
INSERT INTO metric_segment_changes (
    period, kind, segment, currency, run_change, new, reactivation, expansion, contraction, churn, paused, resumed, transfer,
    customers, paying_customers, subscriptions, paused_subscriptions
)
WITH countries AS (
    SELECT
        c.period,
        c.currency,
        c.country,
        sum(c.run_after - c.run_before) AS run_change,
        sum(c.rest) FILTER (WHERE c.movement = 'new') AS new,
        sum(c.rest) FILTER (WHERE c.movement = 'reactivation') AS reactivation,
        sum(c.rest) FILTER (WHERE c.movement = 'expansion') AS expansion,
        sum(c.rest) FILTER (WHERE c.movement = 'contraction') AS contraction,
        sum(c.rest) FILTER (WHERE c.movement = 'churn') AS churn,
        sum(c.paused) AS paused,
        sum(c.resumed) AS resumed,
        sum(cast(c.with_after AS integer) - cast(c.with_before AS integer)) AS customers,
        sum(cast(c.run_after > 0 AS integer) - cast(c.run_before > 0 AS integer)) AS paying_customers,
        sum(c.subscriptions) AS subscriptions,
        sum(c.paused_subscriptions) AS paused_subscriptions
    FROM metric_several AS c
    INNER JOIN metric_periods AS p ON c.period = p.period
    GROUP BY c.period, c.currency, c.country
)

SELECT
    c.period,
    k.kind,
    k.segment,
    c.currency,
    sum(c.run_change) AS run_change,
    coalesce(sum(c.new), 0) AS new,
    coalesce(sum(c.reactivation), 0) AS reactivation,
    coalesce(sum(c.expansion), 0) AS expansion,
    coalesce(sum(c.contraction), 0) AS contraction,
    coalesce(sum(c.churn), 0) AS churn,
    sum(c.paused) AS paused,
    sum(c.resumed) AS resumed,
    0 AS transfer,
    sum(c.customers) AS customers,
    sum(c.paying_customers) AS paying_customers,
    sum(c.subscriptions) AS subscriptions,
    sum(c.paused_subscriptions) AS paused_subscriptions
FROM countries AS c
CROSS JOIN LATERAL (
    VALUES
    ('total', 'total'),
    ('country', coalesce(c.country, 'unknown')),
    ('currency', c.currency)
) AS k (kind, segment)
WHERE k.kind = any(cast(:kinds AS text []))
GROUP BY c.period, k.kind, k.segment, c.currency;

-- name: insert_placed_changes(kinds)!
-- description: The changes of customers with one subscription: they are in one segment of each kind, or move to another.
INSERT INTO metric_segment_changes (
    period, kind, segment, currency, run_change, new, reactivation, expansion, contraction, churn, paused, resumed, transfer,
    customers, paying_customers, subscriptions, paused_subscriptions
)
WITH changes AS (
    SELECT
        a.*,
        -- Of the rest, paused and resumed only one is not 0.
        CASE WHEN a.paused <> 0 THEN 'paused' WHEN a.resumed <> 0 THEN 'resumed' ELSE a.movement END AS class,
        a.kind_before <> 'out' AND a.kind_after <> 'out'
        AND (a.plan_before <> a.plan_after OR a.frequency_before <> a.frequency_after) AS moves
    FROM metric_alone AS a
    INNER JOIN metric_periods AS p ON a.period = p.period
),

-- Who moves leaves one segment and enters another: the class goes to the one that moved its way, the rest is transfer.
placed AS (
    SELECT
        c.period,
        c.currency,
        c.country,
        CASE WHEN c.kind_after = 'out' THEN c.plan_before ELSE c.plan_after END AS plan,
        CASE WHEN c.kind_after = 'out' THEN c.frequency_before ELSE c.frequency_after END AS payment_frequency,
        c.class,
        c.run_after - c.run_before AS amount,
        0 AS transfer,
        cast(c.with_after AS integer) - cast(c.with_before AS integer) AS customers,
        cast(c.run_after > 0 AS integer) - cast(c.run_before > 0 AS integer) AS paying_customers,
        cast(c.kind_after = 'counted' AS integer) - cast(c.kind_before = 'counted' AS integer) AS subscriptions,
        cast(c.kind_after = 'paused' AS integer) - cast(c.kind_before = 'paused' AS integer) AS paused_subscriptions
    FROM changes AS c
    WHERE NOT c.moves
    UNION ALL
    SELECT
        c.period,
        c.currency,
        c.country,
        c.plan_before AS plan,
        c.frequency_before AS payment_frequency,
        c.class,
        least(c.rest, 0) + c.paused AS amount,
        -c.run_before - c.paused - least(c.rest, 0) AS transfer,
        -cast(c.with_before AS integer) AS customers,
        -cast(c.run_before > 0 AS integer) AS paying_customers,
        -cast(c.kind_before = 'counted' AS integer) AS subscriptions,
        -cast(c.kind_before = 'paused' AS integer) AS paused_subscriptions
    FROM changes AS c
    WHERE c.moves
    UNION ALL
    SELECT
        c.period,
        c.currency,
        c.country,
        c.plan_after AS plan,
        c.frequency_after AS payment_frequency,
        c.class,
        greatest(c.rest, 0) + c.resumed AS amount,
        c.run_after - c.resumed - greatest(c.rest, 0) AS transfer,
        cast(c.with_after AS integer) AS customers,
        cast(c.run_after > 0 AS integer) AS paying_customers,
        cast(c.kind_after = 'counted' AS integer) AS subscriptions,
        cast(c.kind_after = 'paused' AS integer) AS paused_subscriptions
    FROM changes AS c
    WHERE c.moves
),

added AS (
    SELECT
        p.period,
        p.currency,
        p.class,
        p.plan,
        p.payment_frequency,
        p.country,
        grouping(p.plan, p.payment_frequency, p.country) AS absent,
        sum(p.amount) AS amount,
        sum(p.transfer) AS transfer,
        sum(p.customers) AS customers,
        sum(p.paying_customers) AS paying_customers,
        sum(p.subscriptions) AS subscriptions,
        sum(p.paused_subscriptions) AS paused_subscriptions
    FROM placed AS p
    GROUP BY GROUPING SETS (
        (p.period, p.currency, p.class, p.plan),
        (p.period, p.currency, p.class, p.payment_frequency),
        (p.period, p.currency, p.class, p.country)
    )
)

SELECT
    a.period,
    k.kind,
    k.segment,
    a.currency,
    sum(a.amount + a.transfer) AS run_change,
    coalesce(sum(a.amount) FILTER (WHERE a.class = 'new'), 0) AS new,
    coalesce(sum(a.amount) FILTER (WHERE a.class = 'reactivation'), 0) AS reactivation,
    coalesce(sum(a.amount) FILTER (WHERE a.class = 'expansion'), 0) AS expansion,
    coalesce(sum(a.amount) FILTER (WHERE a.class = 'contraction'), 0) AS contraction,
    coalesce(sum(a.amount) FILTER (WHERE a.class = 'churn'), 0) AS churn,
    coalesce(sum(a.amount) FILTER (WHERE a.class = 'paused'), 0) AS paused,
    coalesce(sum(a.amount) FILTER (WHERE a.class = 'resumed'), 0) AS resumed,
    CASE WHEN k.kind IN ('plan', 'payment_frequency') THEN sum(a.transfer) ELSE 0 END AS transfer,
    sum(a.customers) AS customers,
    sum(a.paying_customers) AS paying_customers,
    sum(a.subscriptions) AS subscriptions,
    sum(a.paused_subscriptions) AS paused_subscriptions
FROM added AS a
CROSS JOIN LATERAL (
    VALUES
    (3, 'plan', a.plan),
    (5, 'payment_frequency', a.payment_frequency),
    (6, 'country', coalesce(a.country, 'unknown')),
    (6, 'currency', a.currency),
    (6, 'total', 'total')
) AS k (absent, kind, segment)
WHERE a.absent = k.absent AND k.kind = any(cast(:kinds AS text []))
GROUP BY a.period, k.kind, k.segment, a.currency;

-- name: insert_allotted_changes(kinds)!
-- description: The changes by plan and payment frequency of customers with several subscriptions, who may be in many at once.
INSERT INTO metric_segment_changes (
    period, kind, segment, currency, run_change, new, reactivation, expansion, contraction, churn, paused, resumed, transfer,
    customers, paying_customers, subscriptions, paused_subscriptions
)
WITH sides AS (
    SELECT
        c.customer_id,
        c.period,
        c.currency,
        s.*
    FROM metric_changes AS c
    CROSS JOIN LATERAL (
        VALUES
        (
            c.kind_before, c.plan_before, c.frequency_before, -c.run_before, -c.paused_before,
            CASE WHEN c.kind_before = 'counted' AND c.kind_after = 'paused' THEN -c.run_before ELSE 0 END, 0, -1
        ),
        (
            c.kind_after, c.plan_after, c.frequency_after, c.run_after, c.paused_after,
            0, CASE WHEN c.kind_before = 'paused' AND c.kind_after = 'counted' THEN c.run_after ELSE 0 END, 1
        )
    ) AS s (state, plan, payment_frequency, run, paused_run, paused, resumed, sign)
    WHERE NOT c.alone AND s.state <> 'out'
        AND c.customer_id IN (
            SELECT m.customer_id
            FROM metric_several AS m
            INNER JOIN metric_periods AS p ON m.period = p.period
        )
),

net AS (
    SELECT
        s.customer_id,
        s.period,
        s.currency,
        k.kind,
        k.segment,
        cast(sum(s.run) AS bigint) AS run,
        cast(sum(s.paused_run) AS bigint) AS paused_run,
        cast(sum(s.paused) AS bigint) AS paused,
        cast(sum(s.resumed) AS bigint) AS resumed,
        coalesce(sum(s.sign) FILTER (WHERE s.state = 'counted'), 0) AS subscriptions,
        coalesce(sum(s.sign) FILTER (WHERE s.state = 'paused'), 0) AS paused_subscriptions
    FROM sides AS s
    CROSS JOIN LATERAL (VALUES ('plan', s.plan), ('payment_frequency', s.payment_frequency)) AS k (kind, segment)
    WHERE k.kind = any(cast(:kinds AS text []))
    GROUP BY s.customer_id, s.period, s.currency, k.kind, k.segment
),

levels AS (
    SELECT
        n.*,
        cast(sum(n.run) OVER w AS bigint) AS run_after,
        cast(sum(n.paused_run) OVER w AS bigint) AS paused_after
    FROM net AS n
    WINDOW w AS (
        PARTITION BY n.customer_id, n.kind, n.segment ORDER BY n.period ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    )
),

classed AS (
    SELECT
        l.customer_id,
        l.period,
        l.currency,
        l.kind,
        l.segment,
        l.run,
        l.subscriptions,
        l.paused_subscriptions,
        c.movement,
        c.spread,
        c.rest AS customer_rest,
        CASE WHEN c.splits THEN l.paused ELSE 0 END AS paused,
        CASE WHEN c.splits THEN l.resumed ELSE 0 END AS resumed,
        l.run - CASE WHEN c.splits THEN l.paused + l.resumed ELSE 0 END AS rest,
        cast(l.run_after > 0 OR l.paused_after > 0 AS integer)
        - cast(l.run_after - l.run > 0 OR l.paused_after - l.paused_run > 0 AS integer) AS customers,
        cast(l.run_after > 0 AS integer) - cast(l.run_after - l.run > 0 AS integer) AS paying_customers
    FROM levels AS l
    INNER JOIN metric_periods AS p ON l.period = p.period
    INNER JOIN metric_several AS c ON l.customer_id = c.customer_id AND l.period = c.period
),

-- The class goes to the segments that moved its way, the largest first; what is left has only changed segments. Where one
-- subscription changed and stayed in its segments, they take all of it.
queued AS (
    SELECT
        c.*,
        0 AS ahead
    FROM classed AS c
    WHERE NOT c.spread
    UNION ALL
    SELECT
        c.*,
        coalesce(
            sum(abs(c.rest)) OVER (
                PARTITION BY c.customer_id, c.period, c.kind, sign(c.rest) ORDER BY abs(c.rest) DESC, c.segment
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ),
            0
        ) AS ahead
    FROM classed AS c
    WHERE c.spread
),

allotted AS (
    SELECT
        q.*,
        CASE WHEN sign(q.rest) = sign(q.customer_rest)
                THEN sign(q.rest) * least(abs(q.rest), greatest(abs(q.customer_rest) - q.ahead, 0))
            ELSE 0
        END AS amount
    FROM queued AS q
)

SELECT
    a.period,
    a.kind,
    a.segment,
    a.currency,
    sum(a.run) AS run_change,
    coalesce(sum(a.amount) FILTER (WHERE a.movement = 'new'), 0) AS new,
    coalesce(sum(a.amount) FILTER (WHERE a.movement = 'reactivation'), 0) AS reactivation,
    coalesce(sum(a.amount) FILTER (WHERE a.movement = 'expansion'), 0) AS expansion,
    coalesce(sum(a.amount) FILTER (WHERE a.movement = 'contraction'), 0) AS contraction,
    coalesce(sum(a.amount) FILTER (WHERE a.movement = 'churn'), 0) AS churn,
    sum(a.paused) AS paused,
    sum(a.resumed) AS resumed,
    sum(a.rest - a.amount) AS transfer,
    sum(a.customers) AS customers,
    sum(a.paying_customers) AS paying_customers,
    sum(a.subscriptions) AS subscriptions,
    sum(a.paused_subscriptions) AS paused_subscriptions
FROM allotted AS a
GROUP BY a.period, a.kind, a.segment, a.currency;
