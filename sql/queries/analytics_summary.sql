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
        SELECT
'total' AS kind,
'total' AS segment
        UNION ALL
        SELECT
'plan' AS kind,
v.plan AS segment
        UNION ALL
        SELECT
'payment_frequency' AS kind,
v.payment_frequency AS segment
        UNION ALL
        SELECT
'country' AS kind,
coalesce(v.country, 'unknown') AS segment
        UNION ALL
        SELECT
'currency' AS kind,
v.currency AS segment
        UNION ALL
        SELECT
'customer' AS kind,
cast(v.customer_id AS text) AS segment
    ) AS k
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
-- The baseline is a change before the first period; a segment has a row for each period, changed or not.
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

changes AS (
    SELECT
        cast('-infinity' AS date) AS period,
        kind,
        segment,
        currency,
        run AS run_change,
        0 AS new,
        0 AS reactivation,
        0 AS expansion,
        0 AS contraction,
        0 AS churn,
        0 AS paused,
        0 AS resumed,
        0 AS transfer,
        customers,
        paying_customers,
        subscriptions,
        paused_subscriptions
    FROM metric_baseline
    UNION ALL
    SELECT
        period,
        kind,
        segment,
        currency,
        run_change,
        new,
        reactivation,
        expansion,
        contraction,
        churn,
        paused,
        resumed,
        transfer,
        customers,
        paying_customers,
        subscriptions,
        paused_subscriptions
    FROM metric_segment_changes
    UNION ALL
    SELECT
        p.period,
        s.kind,
        s.segment,
        s.currency,
        0 AS run_change,
        0 AS new,
        0 AS reactivation,
        0 AS expansion,
        0 AS contraction,
        0 AS churn,
        0 AS paused,
        0 AS resumed,
        0 AS transfer,
        0 AS customers,
        0 AS paying_customers,
        0 AS subscriptions,
        0 AS paused_subscriptions
    FROM metric_periods AS p
    CROSS JOIN segments AS s
),

added AS (
    SELECT
        c.period,
        c.kind,
        c.segment,
        c.currency,
        cast(sum(c.run_change) AS bigint) AS run_change,
        cast(sum(c.new) AS bigint) AS new,
        cast(sum(c.reactivation) AS bigint) AS reactivation,
        cast(sum(c.expansion) AS bigint) AS expansion,
        cast(sum(c.contraction) AS bigint) AS contraction,
        cast(sum(c.churn) AS bigint) AS churn,
        cast(sum(c.paused) AS bigint) AS paused,
        cast(sum(c.resumed) AS bigint) AS resumed,
        cast(sum(c.transfer) AS bigint) AS transfer,
        cast(sum(c.customers) AS bigint) AS customers,
        cast(sum(c.paying_customers) AS bigint) AS paying_customers,
        cast(sum(c.subscriptions) AS bigint) AS subscriptions,
        cast(sum(c.paused_subscriptions) AS bigint) AS paused_subscriptions
    FROM changes AS c
    GROUP BY c.period, c.kind, c.segment, c.currency
),

levels AS (
    SELECT
        a.period,
        a.kind,
        a.segment,
        a.currency,
        a.run_change,
        a.new,
        a.reactivation,
        a.expansion,
        a.contraction,
        a.churn,
        a.paused,
        a.resumed,
        a.transfer,
        cast(sum(a.run_change) OVER w AS bigint) AS run_end,
        cast(sum(a.customers) OVER w AS bigint) AS customers,
        cast(sum(a.paying_customers) OVER w AS bigint) AS paying_customers,
        cast(sum(a.subscriptions) OVER w AS bigint) AS subscriptions,
        cast(sum(a.paused_subscriptions) OVER w AS bigint) AS paused_subscriptions
    FROM added AS a
    WINDOW w AS (
        PARTITION BY a.kind, a.segment, a.currency ORDER BY a.period ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
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
FROM levels
WHERE period > cast('-infinity' AS date)
    AND (
        run_end <> 0 OR run_change <> 0 OR new <> 0 OR reactivation <> 0 OR expansion <> 0 OR contraction <> 0 OR churn <> 0
        OR paused <> 0 OR resumed <> 0 OR transfer <> 0 OR customers <> 0 OR subscriptions <> 0 OR paused_subscriptions <> 0
    );

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

-- name: load_stored(first, last, kinds)!
-- description: The stored summaries of these days by these kinds of segments.
INSERT INTO metric_summary (
    period, kind, segment, currency, run_start, new, reactivation, expansion, contraction, churn, paused, resumed, transfer,
    run_end, customers, paying_customers, subscriptions, paused_subscriptions
)
SELECT
    day,
    segment_kind,
    segment,
    currency,
    start_minor,
    new_minor,
    reactivation_minor,
    expansion_minor,
    contraction_minor,
    churn_minor,
    paused_minor,
    resumed_minor,
    transfer_minor,
    end_minor,
    customers,
    paying_customers,
    subscriptions,
    paused_subscriptions
FROM analytics.mrr_summary
WHERE day BETWEEN :first AND :last AND segment_kind = any(cast(:kinds AS text []));
