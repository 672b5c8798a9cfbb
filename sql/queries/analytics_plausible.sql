-- What must hold between figures and what they were made of: months and days, intervals and events, payments and run rate.

-- name: month_breaks()
-- description: Months in metric_summary that do not add up, or whose ends are not those of their stored days; no row is good.
WITH sums AS (
    SELECT
        m.*,
        m.run_start + m.new + m.reactivation + m.expansion + m.contraction + m.churn + m.paused + m.resumed + m.transfer
            AS reached,
        cast(m.period + interval '1 month' AS date) - 1 AS last_day
    FROM metric_summary AS m
),

figures AS (
    SELECT
        s.period,
        s.kind,
        s.segment,
        s.currency,
        s.last_day,
        f.figure,
        f.amount
    FROM sums AS s
    CROSS JOIN LATERAL (
        VALUES
        ('start', s.run_start), ('new', s.new), ('reactivation', s.reactivation), ('expansion', s.expansion),
        ('contraction', s.contraction), ('churn', s.churn), ('paused', s.paused), ('resumed', s.resumed),
        ('transfer', s.transfer), ('end', s.run_end), ('customers', s.customers), ('paying_customers', s.paying_customers),
        ('subscriptions', s.subscriptions), ('paused_subscriptions', s.paused_subscriptions)
    ) AS f (figure, amount)
),

stored AS (
    SELECT
        d.day,
        d.segment_kind,
        d.segment,
        d.currency,
        f.figure,
        f.amount
    FROM analytics.mrr_summary AS d
    CROSS JOIN LATERAL (
        VALUES
        ('end', d.end_minor), ('customers', d.customers), ('paying_customers', d.paying_customers),
        ('subscriptions', d.subscriptions), ('paused_subscriptions', d.paused_subscriptions)
    ) AS f (figure, amount)
    WHERE d.day IN (SELECT DISTINCT s.last_day FROM sums AS s)
),

ends AS (
    SELECT f.*
    FROM figures AS f
    WHERE f.figure IN ('end', 'customers', 'paying_customers', 'subscriptions', 'paused_subscriptions')
),

totals AS (
    SELECT f.* FROM figures AS f WHERE f.kind = 'total'
),

parts AS (
    SELECT
        f.period,
        f.kind,
        f.currency,
        f.figure,
        sum(f.amount) AS amount
    FROM figures AS f
    WHERE f.kind <> 'total' AND f.figure NOT IN ('customers', 'paying_customers')
    GROUP BY f.period, f.kind, f.currency, f.figure
)

SELECT
    to_char(s.period, 'YYYY-MM') AS period,
    'end is not start plus movements' AS problem,
    s.kind AS segment_kind,
    s.segment,
    s.currency,
    'end' AS figure,
    cast(s.reached AS numeric) AS expected,
    cast(s.run_end AS numeric) AS found
FROM sums AS s
WHERE s.reached <> s.run_end
UNION ALL
SELECT
    to_char(p.period, 'YYYY-MM') AS period,
    'segments do not sum to the total' AS problem,
    p.kind AS segment_kind,
    'all' AS segment,
    p.currency,
    p.figure,
    coalesce(t.amount, 0) AS expected,
    p.amount AS found
FROM parts AS p
LEFT JOIN totals AS t ON p.period = t.period AND p.currency = t.currency AND p.figure = t.figure
WHERE p.amount <> coalesce(t.amount, 0)
UNION ALL
SELECT
    to_char(date_trunc('month', coalesce(e.last_day, d.day)), 'YYYY-MM') AS period,
    'the month does not end as its last day does' AS problem,
    coalesce(e.kind, d.segment_kind) AS segment_kind,
    coalesce(e.segment, d.segment) AS segment,
    coalesce(e.currency, d.currency) AS currency,
    coalesce(e.figure, d.figure) AS figure,
    coalesce(d.amount, 0) AS expected,
    coalesce(e.amount, 0) AS found
FROM ends AS e
FULL JOIN stored AS d
    ON e.last_day = d.day AND e.kind = d.segment_kind AND e.segment = d.segment AND e.currency = d.currency
        AND e.figure = d.figure
WHERE coalesce(e.amount, 0) <> coalesce(d.amount, 0)
ORDER BY period, problem, segment_kind, segment, currency, figure;

-- name: whole_months(first, last)
-- description: Months of these days that have all their days stored, by the first of the month, newest first.
SELECT cast(date_trunc('month', s.day) AS date) AS month
FROM analytics.snapshots AS s
WHERE s.day BETWEEN :first AND :last
GROUP BY date_trunc('month', s.day)
HAVING count(*) = extract(DAY FROM date_trunc('month', s.day) + interval '1 month - 1 day')
ORDER BY month DESC;

-- name: event_breaks(named)
-- description: Events that no interval shows, that open two, or intervals that no event opens; `total` counts all of them.
-- The last event of an instant decides: the interval that holds the instant has its terms.
WITH deciding AS (
    SELECT DISTINCT ON (e.subscription_id, e.occurred_at) e.*
    FROM billing.subscription_events AS e
    WHERE e.event_id <= (SELECT p.event_high_water FROM analytics.interval_progress AS p)
    ORDER BY e.subscription_id ASC, e.occurred_at ASC, e.recorded_at DESC, e.event_id DESC
),

problems AS (
    SELECT
        d.subscription_id,
        d.customer_id,
        d.event_id,
        d.occurred_at,
        'the event is not used' AS problem,
        concat_ws(' ', d.event, d.plan, d.payment_frequency, d.amount_minor * d.quantity) AS detail
    FROM deciding AS d
    LEFT JOIN analytics.run_rate_intervals AS i
        ON d.subscription_id = i.subscription_id AND d.occurred_at >= i.valid_from
            AND (i.valid_to IS NULL OR d.occurred_at < i.valid_to)
    WHERE i.subscription_id IS NULL
        OR (i.plan, i.payment_frequency, i.customer_id, i.annualised_minor) <> (
            d.plan, d.payment_frequency, d.customer_id, d.amount_minor * d.quantity * CASE d.payment_frequency
                WHEN 'WEEKLY' THEN 52 WHEN 'BIWEEKLY' THEN 26 WHEN 'MONTHLY' THEN 12 WHEN 'QUARTERLY' THEN 4 ELSE 1
            END
        )
    UNION ALL
    SELECT
        min(i.subscription_id) AS subscription_id,
        min(i.customer_id) AS customer_id,
        i.event_id,
        min(i.valid_from) AS occurred_at,
        'the event is used more than once' AS problem,
        'opens ' || count(*) || ' intervals' AS detail
    FROM analytics.run_rate_intervals AS i
    GROUP BY i.event_id
    HAVING count(*) > 1
    UNION ALL
    SELECT
        i.subscription_id,
        i.customer_id,
        i.event_id,
        i.valid_from AS occurred_at,
        'the interval is opened by no event of its own' AS problem,
        concat_ws(' ', i.status, i.plan, i.payment_frequency, i.annualised_minor) AS detail
    FROM analytics.run_rate_intervals AS i
    LEFT JOIN billing.subscription_events AS e
        ON i.event_id = e.event_id AND i.subscription_id = e.subscription_id AND i.valid_from = e.occurred_at
    WHERE e.event_id IS NULL
)

SELECT
    s.subscription_ref AS subscription_id,
    c.customer_ref AS customer_id,
    p.event_id,
    p.occurred_at,
    p.problem,
    p.detail,
    count(*) OVER () AS total
FROM problems AS p
LEFT JOIN billing.subscriptions AS s ON p.subscription_id = s.subscription_id
LEFT JOIN billing.customers AS c ON p.customer_id = c.customer_id
ORDER BY p.problem, s.subscription_ref, p.occurred_at
LIMIT :named;

-- name: payment_breaks(until, grace_days, factor, named)
-- description: Subscriptions whose payments and run rate contradict each other at an instant; `total` counts all of them.
-- Compared are those of whom payments are known, that counted on the same terms for a whole period and the grace.
WITH standing AS (
    SELECT
        i.*,
        :until - make_interval(days => cast(:grace_days AS integer) + CASE i.payment_frequency
            WHEN 'WEEKLY' THEN 7 WHEN 'BIWEEKLY' THEN 14 WHEN 'MONTHLY' THEN 31 WHEN 'QUARTERLY' THEN 92 ELSE 366
        END) AS since
    FROM analytics.run_rate_intervals AS i
    WHERE i.valid_from < :until AND (i.valid_to IS NULL OR i.valid_to >= :until)
),

problems AS (
    SELECT
        s.subscription_id,
        s.customer_id,
        s.event_id,
        'counted and not paid' AS problem,
        'nothing received since ' || to_char(s.since, 'YYYY-MM-DD') AS detail
    FROM standing AS s
    WHERE s.status = 'active' AND s.annualised_minor > 0 AND s.valid_from < s.since
        AND EXISTS (
            SELECT 1 FROM billing.payments AS p WHERE p.subscription_id = s.subscription_id AND p.occurred_at < s.since
        )
        AND NOT EXISTS (
            SELECT 1 FROM billing.payments AS p
            WHERE p.subscription_id = s.subscription_id AND p.outcome = 'succeeded' AND p.occurred_at >= s.since
                AND p.occurred_at < :until
        )
    UNION ALL
    SELECT
        s.subscription_id,
        s.customer_id,
        s.event_id,
        'paid and not counted' AS problem,
        'payment ' || p.payment_ref || ' came after the subscription was over' AS detail
    FROM standing AS s
    INNER JOIN billing.payments AS p ON s.subscription_id = p.subscription_id
    WHERE s.status = 'canceled' AND p.outcome = 'succeeded' AND p.amount_minor > 0
        AND p.occurred_at >= s.valid_from + make_interval(days => :grace_days)
        AND p.occurred_at >= :until - interval '30 days' AND p.occurred_at < :until
    UNION ALL
    SELECT
        s.subscription_id,
        s.customer_id,
        s.event_id,
        'amount out of proportion' AS problem,
        'payment ' || p.payment_ref || ' is ' || p.amount_minor || ' at a run rate of ' || s.annualised_minor || ' a year'
            AS detail
    FROM standing AS s
    INNER JOIN billing.payments AS p ON s.subscription_id = p.subscription_id
    WHERE s.status IN ('active', 'past_due') AND s.annualised_minor > 0 AND p.outcome = 'succeeded'
        AND p.occurred_at >= greatest(:until - interval '30 days', s.valid_from) AND p.occurred_at < :until
        AND p.amount_minor > :factor * s.annualised_minor
)

SELECT
    r.subscription_ref AS subscription_id,
    c.customer_ref AS customer_id,
    p.event_id,
    p.problem,
    p.detail,
    count(*) OVER () AS total,
    (SELECT count(*) FROM standing AS s WHERE s.status IN ('active', 'past_due') AND s.annualised_minor > 0) AS compared
FROM problems AS p
LEFT JOIN billing.subscriptions AS r ON p.subscription_id = r.subscription_id
LEFT JOIN billing.customers AS c ON p.customer_id = c.customer_id
ORDER BY p.problem, r.subscription_ref
LIMIT :named;

-- name: events_behind(days, named)
-- description: Customers and events of these days, the newest first: where to look when the figures of a day do not add up.
SELECT
    c.customer_ref AS customer_id,
    s.subscription_ref AS subscription_id,
    e.event_id,
    e.event,
    e.occurred_at,
    e.recorded_at,
    count(*) OVER () AS total
FROM billing.subscription_events AS e
INNER JOIN billing.subscriptions AS s ON e.subscription_id = s.subscription_id
INNER JOIN billing.customers AS c ON e.customer_id = c.customer_id
INNER JOIN unnest(cast(:days AS date [])) AS d (day)
    ON e.occurred_at >= cast(d.day AS timestamptz) AND e.occurred_at < cast(d.day + 1 AS timestamptz)
ORDER BY e.recorded_at DESC, e.event_id DESC
LIMIT :named;

-- name: ledger_state()^
-- description: How much of the ledger the figures hold: events that were overlooked, and the newest stored day.
SELECT
    (SELECT max(s.day) FROM analytics.snapshots AS s) AS newest_day,
    (SELECT max(s.computed_at) FROM analytics.snapshots AS s) AS computed_at,
    (SELECT count(*) FROM billing.subscription_events AS e WHERE e.event_id > p.event_high_water) AS unseen_events,
    (
        SELECT count(*) FROM billing.subscription_events AS e
        WHERE e.event_id > p.event_high_water
            AND e.recorded_at < (SELECT max(s.computed_at) FROM analytics.snapshots AS s) - interval '1 hour'
    ) AS overlooked_events
FROM analytics.interval_progress AS p;
