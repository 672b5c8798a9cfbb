-- name: insert_customer_changes(first, last)!
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
WHERE c.period BETWEEN :first AND :last;

-- name: insert_whole_changes(kinds, first, last)!
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
    WHERE c.period BETWEEN :first AND :last
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
    SELECT
'total' AS kind,
'total' AS segment
    UNION ALL
    SELECT
'country' AS kind,
coalesce(c.country, 'unknown') AS segment
    UNION ALL
    SELECT
'currency' AS kind,
c.currency AS segment
) AS k
WHERE k.kind = any(cast(:kinds AS text []))
GROUP BY c.period, k.kind, k.segment, c.currency;

-- name: insert_placed_changes(kinds, first, last)!
-- description: The changes of customers with one subscription: they are in one segment of each kind, or move to another.
INSERT INTO metric_segment_changes (
    period, kind, segment, currency, run_change, new, reactivation, expansion, contraction, churn, paused, resumed, transfer,
    customers, paying_customers, subscriptions, paused_subscriptions
)
-- Who moves leaves one segment and enters another: the class goes to the one that moved its way, the rest is transfer.
WITH placed AS (
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
    FROM metric_alone AS c
    WHERE NOT c.moves AND c.period BETWEEN :first AND :last
    UNION ALL
    SELECT
        c.period,
        c.currency,
        c.country,
        s.plan,
        s.payment_frequency,
        c.class,
        s.amount,
        s.transfer,
        s.sign * cast(s.with_us AS integer) AS customers,
        s.sign * cast(s.run > 0 AS integer) AS paying_customers,
        s.sign * cast(s.kind = 'counted' AS integer) AS subscriptions,
        s.sign * cast(s.kind = 'paused' AS integer) AS paused_subscriptions
    FROM metric_alone AS c
    CROSS JOIN LATERAL (
        SELECT
            -1 AS sign,
            c.plan_before AS plan,
            c.frequency_before AS payment_frequency,
            c.kind_before AS kind,
            c.with_before AS with_us,
            c.run_before AS run,
            least(c.rest, 0) + c.paused AS amount,
            -c.run_before - c.paused - least(c.rest, 0) AS transfer
        UNION ALL
        SELECT
            1 AS sign,
            c.plan_after AS plan,
            c.frequency_after AS payment_frequency,
            c.kind_after AS kind,
            c.with_after AS with_us,
            c.run_after AS run,
            greatest(c.rest, 0) + c.resumed AS amount,
            c.run_after - c.resumed - greatest(c.rest, 0) AS transfer
    ) AS s
    WHERE c.moves AND c.period BETWEEN :first AND :last
),

-- Added up once by all three, there is less to add up by each.
cells AS (
    SELECT
        p.period,
        p.currency,
        p.class,
        p.plan,
        p.payment_frequency,
        p.country,
        cast(sum(p.amount) AS bigint) AS amount,
        cast(sum(p.transfer) AS bigint) AS transfer,
        cast(sum(p.customers) AS integer) AS customers,
        cast(sum(p.paying_customers) AS integer) AS paying_customers,
        cast(sum(p.subscriptions) AS integer) AS subscriptions,
        cast(sum(p.paused_subscriptions) AS integer) AS paused_subscriptions
    FROM placed AS p
    GROUP BY p.period, p.currency, p.class, p.plan, p.payment_frequency, p.country
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
    FROM cells AS p
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
    SELECT
'plan' AS kind,
a.plan AS segment WHERE a.absent = 3
    UNION ALL
    SELECT
'payment_frequency' AS kind,
a.payment_frequency AS segment WHERE a.absent = 5
    UNION ALL
    SELECT
'country' AS kind,
coalesce(a.country, 'unknown') AS segment WHERE a.absent = 6
    UNION ALL
    SELECT
'currency' AS kind,
a.currency AS segment WHERE a.absent = 6
    UNION ALL
    SELECT
'total' AS kind,
'total' AS segment WHERE a.absent = 6
) AS k
WHERE k.kind = any(cast(:kinds AS text []))
GROUP BY a.period, k.kind, k.segment, a.currency;

-- name: insert_lone_changes(kinds, first, last)!
-- description: By plan and payment frequency, the changes of customers with several subscriptions of whom one changed and stayed.
-- That one takes all of the customer's change. How many customers are in the segment then: insert_present_customers.
INSERT INTO metric_segment_changes (
    period, kind, segment, currency, run_change, new, reactivation, expansion, contraction, churn, paused, resumed, transfer,
    customers, paying_customers, subscriptions, paused_subscriptions
)
SELECT
    c.period,
    k.kind,
    k.segment,
    c.currency,
    sum(c.run_after - c.run_before) AS run_change,
    coalesce(sum(c.rest) FILTER (WHERE c.movement = 'new'), 0) AS new,
    coalesce(sum(c.rest) FILTER (WHERE c.movement = 'reactivation'), 0) AS reactivation,
    coalesce(sum(c.rest) FILTER (WHERE c.movement = 'expansion'), 0) AS expansion,
    coalesce(sum(c.rest) FILTER (WHERE c.movement = 'contraction'), 0) AS contraction,
    coalesce(sum(c.rest) FILTER (WHERE c.movement = 'churn'), 0) AS churn,
    sum(c.paused) AS paused,
    sum(c.resumed) AS resumed,
    0 AS transfer,
    0 AS customers,
    0 AS paying_customers,
    sum(c.subscriptions) AS subscriptions,
    sum(c.paused_subscriptions) AS paused_subscriptions
FROM metric_several AS c
CROSS JOIN LATERAL (
    SELECT
'plan' AS kind,
c.plan AS segment
    UNION ALL
    SELECT
'payment_frequency' AS kind,
c.payment_frequency AS segment
) AS k
WHERE NOT c.spread AND c.period BETWEEN :first AND :last AND k.kind = any(cast(:kinds AS text []))
GROUP BY c.period, k.kind, k.segment, c.currency;

-- name: insert_present_customers(kinds, first, last)!
-- description: By plan and payment frequency, how many customers with several subscriptions come and go in each segment.
-- A customer is in a segment while a subscription is; what neither brings one there nor takes it away is left out.
INSERT INTO metric_segment_changes (
    period, kind, segment, currency, run_change, new, reactivation, expansion, contraction, churn, paused, resumed, transfer,
    customers, paying_customers, subscriptions, paused_subscriptions
)
WITH present AS (
    SELECT
        c.customer_id,
        c.period,
        c.currency,
        c.plan_before,
        c.plan_after,
        c.frequency_before,
        c.frequency_after,
        cast(c.run_before > 0 OR c.paused_before > 0 AS integer) AS with_before,
        cast(c.run_after > 0 OR c.paused_after > 0 AS integer) AS with_after,
        cast(c.run_before > 0 AS integer) AS paying_before,
        cast(c.run_after > 0 AS integer) AS paying_after
    FROM metric_changes AS c
    WHERE NOT c.alone
        AND c.customer_id IN (SELECT m.customer_id FROM metric_several AS m WHERE m.period BETWEEN :first AND :last)
),

sides AS (
    SELECT
        p.customer_id,
        p.period,
        p.currency,
        s.kind,
        s.segment,
        s.present,
        s.paying
    FROM present AS p
    CROSS JOIN LATERAL (
        SELECT
'plan' AS kind,
p.plan_before AS segment,
-p.with_before AS present,
-p.paying_before AS paying
        WHERE p.plan_before IS DISTINCT FROM p.plan_after
        UNION ALL
        SELECT
'plan' AS kind,
p.plan_after AS segment,
p.with_after - CASE WHEN p.plan_before = p.plan_after THEN p.with_before ELSE 0 END AS present,
p.paying_after - CASE WHEN p.plan_before = p.plan_after THEN p.paying_before ELSE 0 END AS paying
        UNION ALL
        SELECT
'payment_frequency' AS kind,
p.frequency_before AS segment,
-p.with_before AS present,
-p.paying_before AS paying
        WHERE p.frequency_before IS DISTINCT FROM p.frequency_after
        UNION ALL
        SELECT
'payment_frequency' AS kind,
p.frequency_after AS segment,
p.with_after - CASE WHEN p.frequency_before = p.frequency_after THEN p.with_before ELSE 0 END AS present,
p.paying_after - CASE WHEN p.frequency_before = p.frequency_after THEN p.paying_before ELSE 0 END AS paying
    ) AS s
    WHERE (s.present <> 0 OR s.paying <> 0) AND s.kind = any(cast(:kinds AS text []))
),

net AS (
    SELECT
        s.customer_id,
        s.kind,
        s.segment,
        s.period,
        min(s.currency) AS currency,
        cast(sum(s.present) AS integer) AS present,
        cast(sum(s.paying) AS integer) AS paying
    FROM sides AS s
    GROUP BY s.customer_id, s.kind, s.segment, s.period
),

levels AS (
    SELECT
        n.*,
        sum(n.present) OVER w AS present_after,
        sum(n.paying) OVER w AS paying_after
    FROM net AS n
    WINDOW w AS (
        PARTITION BY n.customer_id, n.kind, n.segment ORDER BY n.period ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    )
),

counts AS (
    SELECT
        l.period,
        l.kind,
        l.segment,
        l.currency,
        cast(l.present_after > 0 AS integer) - cast(l.present_after > l.present AS integer) AS customers,
        cast(l.paying_after > 0 AS integer) - cast(l.paying_after > l.paying AS integer) AS paying_customers
    FROM levels AS l
)

SELECT
    c.period,
    c.kind,
    c.segment,
    c.currency,
    0 AS run_change,
    0 AS new,
    0 AS reactivation,
    0 AS expansion,
    0 AS contraction,
    0 AS churn,
    0 AS paused,
    0 AS resumed,
    0 AS transfer,
    sum(c.customers) AS customers,
    sum(c.paying_customers) AS paying_customers,
    0 AS subscriptions,
    0 AS paused_subscriptions
FROM counts AS c
WHERE c.period BETWEEN :first AND :last AND (c.customers <> 0 OR c.paying_customers <> 0)
GROUP BY c.period, c.kind, c.segment, c.currency;

-- name: insert_allotted_changes(kinds, first, last)!
-- description: The other such changes: of several subscriptions at once, or from one segment to another.
INSERT INTO metric_segment_changes (
    period, kind, segment, currency, run_change, new, reactivation, expansion, contraction, churn, paused, resumed, transfer,
    customers, paying_customers, subscriptions, paused_subscriptions
)
WITH sides AS (
    SELECT
        m.customer_id,
        m.period,
        m.currency,
        m.movement,
        m.splits,
        m.rest AS customer_rest,
        s.state,
        s.plan,
        s.payment_frequency,
        s.run,
        s.paused,
        s.resumed,
        s.sign
    FROM metric_several AS m
    INNER JOIN metric_changes AS c ON m.customer_id = c.customer_id AND m.period = c.period AND NOT c.alone
    CROSS JOIN LATERAL (
        SELECT
            c.kind_before AS state,
            c.plan_before AS plan,
            c.frequency_before AS payment_frequency,
            -c.run_before AS run,
            CASE WHEN c.kind_before = 'counted' AND c.kind_after = 'paused' THEN -c.run_before ELSE 0 END AS paused,
            0 AS resumed,
            -1 AS sign
        UNION ALL
        SELECT
            c.kind_after AS state,
            c.plan_after AS plan,
            c.frequency_after AS payment_frequency,
            c.run_after AS run,
            0 AS paused,
            CASE WHEN c.kind_before = 'paused' AND c.kind_after = 'counted' THEN c.run_after ELSE 0 END AS resumed,
            1 AS sign
    ) AS s
    WHERE m.spread AND m.period BETWEEN :first AND :last AND s.state <> 'out'
),

net AS (
    SELECT
        s.customer_id,
        s.period,
        s.currency,
        s.movement,
        s.splits,
        s.customer_rest,
        k.kind,
        k.segment,
        cast(sum(s.run) AS bigint) AS run,
        cast(sum(s.paused) AS bigint) AS paused,
        cast(sum(s.resumed) AS bigint) AS resumed,
        coalesce(sum(s.sign) FILTER (WHERE s.state = 'counted'), 0) AS subscriptions,
        coalesce(sum(s.sign) FILTER (WHERE s.state = 'paused'), 0) AS paused_subscriptions
    FROM sides AS s
    CROSS JOIN LATERAL (
        SELECT
'plan' AS kind,
s.plan AS segment
        UNION ALL
        SELECT
'payment_frequency' AS kind,
s.payment_frequency AS segment
    ) AS k
    WHERE k.kind = any(cast(:kinds AS text []))
    GROUP BY s.customer_id, s.period, s.currency, s.movement, s.splits, s.customer_rest, k.kind, k.segment
),

classed AS (
    SELECT
        n.customer_id,
        n.period,
        n.currency,
        n.kind,
        n.segment,
        n.run,
        n.subscriptions,
        n.paused_subscriptions,
        n.movement,
        n.customer_rest,
        CASE WHEN n.splits THEN n.paused ELSE 0 END AS paused,
        CASE WHEN n.splits THEN n.resumed ELSE 0 END AS resumed,
        n.run - CASE WHEN n.splits THEN n.paused + n.resumed ELSE 0 END AS rest
    FROM net AS n
),

-- The class goes to the segments that moved its way, the largest first; what is left has only changed segments.
queued AS (
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
    0 AS customers,
    0 AS paying_customers,
    sum(a.subscriptions) AS subscriptions,
    sum(a.paused_subscriptions) AS paused_subscriptions
FROM allotted AS a
GROUP BY a.period, a.kind, a.segment, a.currency;
