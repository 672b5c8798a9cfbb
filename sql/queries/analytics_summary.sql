-- name: insert_segment_changes(kinds)!
-- description: The changes of each period by segment: classes stay, what moves between segments of a customer is transfer.
INSERT INTO metric_segment_changes (
    period, kind, segment, currency, run_change, new, reactivation, expansion, contraction, churn, paused, resumed, transfer,
    customers, paying_customers, subscriptions, paused_subscriptions
)
WITH sides AS (
    SELECT
        c.customer_id,
        c.period,
        c.currency,
        c.country,
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
    WHERE s.state <> 'out'
),

net AS (
    SELECT
        s.customer_id,
        s.period,
        s.currency,
        k.kind,
        k.segment,
        sum(s.run) AS run,
        sum(s.paused_run) AS paused_run,
        sum(s.paused) AS paused,
        sum(s.resumed) AS resumed,
        coalesce(sum(s.sign) FILTER (WHERE s.state = 'counted'), 0) AS subscriptions,
        coalesce(sum(s.sign) FILTER (WHERE s.state = 'paused'), 0) AS paused_subscriptions
    FROM sides AS s
    CROSS JOIN LATERAL (
        VALUES
        ('total', 'total'),
        ('plan', s.plan),
        ('payment_frequency', s.payment_frequency),
        ('country', coalesce(s.country, 'unknown')),
        ('currency', s.currency),
        ('customer', cast(s.customer_id AS text))
    ) AS k (kind, segment)
    WHERE k.kind = any(cast(:kinds AS text []))
    GROUP BY s.customer_id, s.period, s.currency, k.kind, k.segment
),

levels AS (
    SELECT
        n.*,
        sum(n.run) OVER w AS run_after,
        sum(n.paused_run) OVER w AS paused_after
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
        c.rest AS customer_rest,
        CASE WHEN c.splits THEN l.paused ELSE 0 END AS paused,
        CASE WHEN c.splits THEN l.resumed ELSE 0 END AS resumed,
        l.run - CASE WHEN c.splits THEN l.paused + l.resumed ELSE 0 END AS rest,
        cast(l.run_after > 0 OR l.paused_after > 0 AS integer)
        - cast(l.run_after - l.run > 0 OR l.paused_after - l.paused_run > 0 AS integer) AS customers,
        cast(l.run_after > 0 AS integer) - cast(l.run_after - l.run > 0 AS integer) AS paying_customers
    FROM levels AS l
    INNER JOIN metric_periods AS p ON l.period = p.period
    INNER JOIN metric_customer_periods AS c ON l.customer_id = c.customer_id AND l.period = c.period
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
    sum(a.customers) AS customers,
    sum(a.paying_customers) AS paying_customers,
    sum(a.subscriptions) AS subscriptions,
    sum(a.paused_subscriptions) AS paused_subscriptions
FROM allotted AS a
GROUP BY a.period, a.kind, a.segment, a.currency;

-- name: insert_baseline(kinds, at, included, paused_churn_days)!
-- description: Where each segment stands at the end of the period before the first, from the intervals valid then.
INSERT INTO metric_baseline (kind, segment, currency, run, customers, paying_customers, subscriptions, paused_subscriptions)
WITH valid AS (
    SELECT
        i.*,
        i.status <> 'paused' OR :included AS counted
    FROM metric_intervals AS i
    WHERE i.valid_from < :at AND (i.valid_to IS NULL OR i.valid_to >= :at)
        AND (
            i.status IN ('active', 'past_due')
            OR (
                i.status = 'paused'
                AND coalesce(i.paused_since + make_interval(hours => 24 * cast(:paused_churn_days AS integer)), 'infinity') >= :at
            )
        )
),

customers AS (
    SELECT
        v.customer_id,
        v.currency,
        k.kind,
        k.segment,
        coalesce(sum(v.annualised_minor) FILTER (WHERE v.counted), 0) AS run,
        coalesce(sum(v.annualised_minor) FILTER (WHERE NOT v.counted), 0) AS paused_run,
        count(*) FILTER (WHERE v.counted) AS subscriptions,
        count(*) FILTER (WHERE NOT v.counted) AS paused_subscriptions
    FROM valid AS v
    CROSS JOIN LATERAL (
        VALUES
        ('total', 'total'),
        ('plan', v.plan),
        ('payment_frequency', v.payment_frequency),
        ('country', coalesce(v.country, 'unknown')),
        ('currency', v.currency),
        ('customer', cast(v.customer_id AS text))
    ) AS k (kind, segment)
    WHERE k.kind = any(cast(:kinds AS text []))
    GROUP BY v.customer_id, v.currency, k.kind, k.segment
)

SELECT
    c.kind,
    c.segment,
    c.currency,
    sum(c.run) AS run,
    count(*) FILTER (WHERE c.run > 0 OR c.paused_run > 0) AS customers,
    count(*) FILTER (WHERE c.run > 0) AS paying_customers,
    sum(c.subscriptions) AS subscriptions,
    sum(c.paused_subscriptions) AS paused_subscriptions
FROM customers AS c
GROUP BY c.kind, c.segment, c.currency;

-- name: insert_stored_baseline(kinds, day)!
-- description: The same from the stored figures of a day that nothing has touched since.
INSERT INTO metric_baseline (kind, segment, currency, run, customers, paying_customers, subscriptions, paused_subscriptions)
SELECT
    segment_kind,
    segment,
    currency,
    end_minor,
    customers,
    paying_customers,
    subscriptions,
    paused_subscriptions
FROM analytics.mrr_summary
WHERE day = :day AND segment_kind = any(cast(:kinds AS text []));

-- name: insert_summary()!
-- description: Start, movements and end of each segment in each period: the baseline and the running sum of the changes.
INSERT INTO metric_summary (
    period, kind, segment, currency, run_start, new, reactivation, expansion, contraction, churn, paused, resumed, transfer,
    run_end, customers, paying_customers, subscriptions, paused_subscriptions
)
WITH segments AS (
    SELECT
        kind,
        segment,
        currency
    FROM metric_baseline
    UNION
    SELECT
        kind,
        segment,
        currency
    FROM metric_segment_changes
),

spine AS (
    SELECT
        p.period,
        s.kind,
        s.segment,
        s.currency,
        coalesce(c.run_change, 0) AS run_change,
        coalesce(c.new, 0) AS new,
        coalesce(c.reactivation, 0) AS reactivation,
        coalesce(c.expansion, 0) AS expansion,
        coalesce(c.contraction, 0) AS contraction,
        coalesce(c.churn, 0) AS churn,
        coalesce(c.paused, 0) AS paused,
        coalesce(c.resumed, 0) AS resumed,
        coalesce(c.transfer, 0) AS transfer,
        coalesce(b.run, 0) + coalesce(sum(c.run_change) OVER w, 0) AS run_end,
        coalesce(b.customers, 0) + coalesce(sum(c.customers) OVER w, 0) AS customers,
        coalesce(b.paying_customers, 0) + coalesce(sum(c.paying_customers) OVER w, 0) AS paying_customers,
        coalesce(b.subscriptions, 0) + coalesce(sum(c.subscriptions) OVER w, 0) AS subscriptions,
        coalesce(b.paused_subscriptions, 0) + coalesce(sum(c.paused_subscriptions) OVER w, 0) AS paused_subscriptions
    FROM segments AS s
    CROSS JOIN metric_periods AS p
    LEFT JOIN metric_baseline AS b ON s.kind = b.kind AND s.segment = b.segment AND s.currency = b.currency
    LEFT JOIN metric_segment_changes AS c
        ON p.period = c.period AND s.kind = c.kind AND s.segment = c.segment AND s.currency = c.currency
    WINDOW w AS (
        PARTITION BY s.kind, s.segment, s.currency ORDER BY p.period ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    )
)

SELECT
    period,
    kind,
    segment,
    currency,
    run_end - run_change AS run_start,
    new,
    reactivation,
    expansion,
    contraction,
    churn,
    paused,
    resumed,
    transfer,
    run_end,
    customers,
    paying_customers,
    subscriptions,
    paused_subscriptions
FROM spine
WHERE run_end <> 0 OR run_change <> 0 OR new <> 0 OR reactivation <> 0 OR expansion <> 0 OR contraction <> 0 OR churn <> 0
    OR paused <> 0 OR resumed <> 0 OR transfer <> 0 OR customers <> 0 OR subscriptions <> 0 OR paused_subscriptions <> 0;

-- name: summary_rows(kind)
-- description: The summary of the wanted periods by one kind of segment, in the currency wanted.
SELECT
    w.label AS period,
    coalesce(b.customer_ref, s.segment) AS segment,
    r.shown AS currency,
    sum(CASE WHEN s.run_start = 0 THEN 0 ELSE s.run_start * r.rate_before END) AS start,
    sum(s.new * r.rate_now) AS new,
    sum(s.reactivation * r.rate_now) AS reactivation,
    sum(s.expansion * r.rate_now) AS expansion,
    sum(s.contraction * r.rate_now) AS contraction,
    sum(s.churn * r.rate_now) AS churn,
    sum(s.paused * r.rate_now) AS paused,
    sum(s.resumed * r.rate_now) AS resumed,
    sum(s.transfer * r.rate_now) AS transfer,
    sum(CASE WHEN s.run_start = 0 THEN 0 ELSE s.run_start * (r.rate_now - r.rate_before) END) AS fx,
    sum(s.run_end * r.rate_now) AS "end",
    cast(sum(s.customers) AS bigint) AS customers,
    cast(sum(s.paying_customers) AS bigint) AS paying_customers,
    cast(sum(s.subscriptions) AS bigint) AS subscriptions,
    cast(sum(s.paused_subscriptions) AS bigint) AS paused_subscriptions
FROM metric_windows AS w
INNER JOIN metric_summary AS s ON w.last_period = s.period AND s.kind = :kind
INNER JOIN metric_rates AS r ON w.period = r.period AND s.currency = r.currency
LEFT JOIN billing.customers AS b ON s.kind = 'customer' AND s.segment = cast(b.customer_id AS text)
GROUP BY w.label, coalesce(b.customer_ref, s.segment), r.shown
ORDER BY w.label, segment, r.shown;
