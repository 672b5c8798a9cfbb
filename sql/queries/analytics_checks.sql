-- name: identity_breaks(first, last, named)
-- description: Stored figures of these days that do not add up; no row is the good answer; `total` counts all of them.
WITH rows AS (
    SELECT s.*
    FROM analytics.mrr_summary AS s
    WHERE s.day BETWEEN :first AND :last
),

sums AS (
    SELECT
        r.*,
        r.start_minor + r.new_minor + r.reactivation_minor + r.expansion_minor + r.contraction_minor + r.churn_minor
        + r.paused_minor + r.resumed_minor + r.transfer_minor AS reached_minor
    FROM rows AS r
),

followers AS (
    SELECT r.* FROM rows AS r INNER JOIN analytics.snapshots AS d ON r.day - 1 = d.day
),

leaders AS (
    SELECT s.*
    FROM analytics.mrr_summary AS s
    INNER JOIN analytics.snapshots AS d ON s.day + 1 = d.day
    WHERE s.day + 1 BETWEEN :first AND :last
),

-- What a segment ended the day before with, where that day is stored; a segment without a row stood at 0.
chained AS (
    SELECT
        coalesce(r.day, p.day + 1) AS day,
        coalesce(r.segment_kind, p.segment_kind) AS segment_kind,
        coalesce(r.segment, p.segment) AS segment,
        coalesce(r.currency, p.currency) AS currency,
        coalesce(r.start_minor, 0) AS start_minor,
        coalesce(p.end_minor, 0) AS before_minor
    FROM followers AS r
    FULL JOIN leaders AS p
        ON r.day = p.day + 1 AND r.segment_kind = p.segment_kind AND r.segment = p.segment AND r.currency = p.currency
),

unpivoted AS (
    SELECT
        r.day,
        r.segment_kind,
        r.segment,
        r.currency,
        f.figure,
        f.amount
    FROM rows AS r
    CROSS JOIN LATERAL (
        VALUES
        ('start', r.start_minor), ('new', r.new_minor), ('reactivation', r.reactivation_minor),
        ('expansion', r.expansion_minor), ('contraction', r.contraction_minor), ('churn', r.churn_minor),
        ('paused', r.paused_minor), ('resumed', r.resumed_minor), ('transfer', r.transfer_minor), ('end', r.end_minor)
    ) AS f (figure, amount)
),

totals AS (
    SELECT
        u.day,
        u.currency,
        u.figure,
        sum(u.amount) AS amount
    FROM unpivoted AS u
    WHERE u.segment_kind = 'total'
    GROUP BY u.day, u.currency, u.figure
),

parts AS (
    SELECT
        u.day,
        k.kind AS segment_kind,
        u.currency,
        u.figure,
        coalesce(sum(u.amount) FILTER (WHERE u.segment_kind = k.kind), 0) AS amount
    FROM unpivoted AS u
    CROSS JOIN (VALUES ('plan'), ('payment_frequency'), ('country'), ('currency')) AS k (kind)
    GROUP BY u.day, k.kind, u.currency, u.figure
),

classes AS (
    SELECT t.* FROM totals AS t WHERE t.figure NOT IN ('start', 'end', 'transfer')
),

moved AS (
    SELECT
        m.day,
        m.currency,
        m.movement AS figure,
        sum(m.annualised_minor) AS amount
    FROM analytics.mrr_movements AS m
    WHERE m.day BETWEEN :first AND :last
    GROUP BY m.day, m.currency, m.movement
),

problems AS (
    SELECT
        day,
        'end is not start plus movements' AS problem,
        segment_kind,
        segment,
        currency,
        'end' AS figure,
        cast(reached_minor AS numeric) AS expected,
        cast(end_minor AS numeric) AS found
    FROM sums
    WHERE end_minor <> reached_minor
    UNION ALL
    SELECT
        day,
        'start is not the end of the day before' AS problem,
        segment_kind,
        segment,
        currency,
        'start' AS figure,
        before_minor AS expected,
        start_minor AS found
    FROM chained
    WHERE start_minor <> before_minor
    UNION ALL
    SELECT
        p.day,
        'segments do not sum to the total' AS problem,
        p.segment_kind,
        'all' AS segment,
        p.currency,
        p.figure,
        coalesce(t.amount, 0) AS expected,
        p.amount AS found
    FROM parts AS p
    LEFT JOIN totals AS t ON p.day = t.day AND p.currency = t.currency AND p.figure = t.figure
    WHERE p.amount <> CASE WHEN p.figure = 'transfer' THEN 0 ELSE coalesce(t.amount, 0) END
    UNION ALL
    SELECT
        coalesce(m.day, t.day) AS day,
        'movements of customers do not sum to the total' AS problem,
        'total' AS segment_kind,
        'total' AS segment,
        coalesce(m.currency, t.currency) AS currency,
        coalesce(m.figure, t.figure) AS figure,
        coalesce(m.amount, 0) AS expected,
        coalesce(t.amount, 0) AS found
    FROM moved AS m
    FULL JOIN classes AS t ON m.day = t.day AND m.currency = t.currency AND m.figure = t.figure
    WHERE coalesce(m.amount, 0) <> coalesce(t.amount, 0)
)

SELECT
    p.*,
    count(*) OVER () AS total
FROM problems AS p
ORDER BY p.day, p.problem, p.segment_kind, p.segment, p.currency, p.figure
LIMIT :named;

-- name: interval_breaks(named)
-- description: Intervals with a gap, an overlap, a missing event or a last state unlike the subscription's; `total` counts all.
WITH heads AS MATERIALIZED (
    SELECT i.subscription_id
    FROM analytics.run_rate_intervals AS i
    WHERE NOT EXISTS (
        SELECT 1 FROM analytics.run_rate_intervals AS e
        WHERE e.subscription_id = i.subscription_id AND e.valid_to = i.valid_from
    )
),

-- No two intervals begin at once and none ends before it begins: where one ends at each beginning but one, and one has no
-- end, they are a chain. Only what is none is put in order.
broken AS MATERIALIZED (
    SELECT h.subscription_id
    FROM heads AS h
    GROUP BY h.subscription_id
    HAVING count(*) > 1
    UNION ALL
    SELECT h.subscription_id
    FROM heads AS h
    WHERE NOT EXISTS (
        SELECT 1 FROM analytics.run_rate_intervals AS o
        WHERE o.subscription_id = h.subscription_id AND o.valid_to IS NULL
    )
),

ordered AS (
    SELECT
        i.subscription_id,
        i.customer_id,
        i.event_id,
        i.valid_to,
        lead(i.valid_from) OVER (PARTITION BY i.subscription_id ORDER BY i.valid_from) AS next_from
    FROM analytics.run_rate_intervals AS i
    WHERE i.subscription_id IN (SELECT b.subscription_id FROM broken AS b)
),

known AS (
    SELECT event_high_water FROM analytics.interval_progress
),

-- A subscription with events that no refresh has seen yet is not compared.
unsettled AS MATERIALIZED (
    SELECT e.subscription_id
    FROM billing.subscription_events AS e
    WHERE e.event_id > (SELECT k.event_high_water FROM known AS k)
),

-- The column belongs to another component, which may be rolled back: then its name means the value beside it, and the ledger
-- is taken at its word.
today AS (
    SELECT t.*
    FROM (VALUES (cast(NULL AS text))) AS absent (payment_frequency)
    CROSS JOIN LATERAL ( -- noqa: ST05
        SELECT
            b.subscription_id,
            b.status,
            b.plan,
            b.amount_minor * b.quantity AS amount_minor,
            payment_frequency AS frequency -- noqa: RF02
        FROM billing.subscriptions AS b
    ) AS t
),

problems AS (
    SELECT
        o.subscription_id,
        o.customer_id,
        o.event_id,
        CASE WHEN o.valid_to IS NULL OR o.valid_to > o.next_from THEN 'overlap' ELSE 'gap' END AS problem,
        'valid to ' || coalesce(cast(o.valid_to AS text), 'no end') || ', next from '
        || coalesce(cast(o.next_from AS text), 'none') AS detail
    FROM ordered AS o
    WHERE o.valid_to IS DISTINCT FROM o.next_from
    UNION ALL
    SELECT
        s.subscription_id,
        s.customer_id,
        max(e.event_id) AS event_id,
        'no interval' AS problem,
        'has events up to the high-water mark' AS detail
    FROM billing.subscriptions AS s
    INNER JOIN billing.subscription_events AS e ON s.subscription_id = e.subscription_id
    WHERE EXISTS (SELECT 1 FROM known)
        AND s.subscription_id NOT IN (SELECT u.subscription_id FROM unsettled AS u)
        AND s.subscription_id NOT IN (SELECT h.subscription_id FROM heads AS h)
    GROUP BY s.subscription_id, s.customer_id
    UNION ALL
    SELECT
        o.subscription_id,
        o.customer_id,
        o.event_id,
        'current state differs' AS problem,
        'ledger: ' || concat_ws(' ', o.status, o.plan, o.payment_frequency, o.annualised_minor)
        || ', subscription: ' || concat_ws(' ', s.status, s.plan, p.payment_frequency, p.annualised_minor) AS detail
    FROM analytics.run_rate_intervals AS o
    INNER JOIN today AS s ON o.subscription_id = s.subscription_id
    CROSS JOIN LATERAL (VALUES (coalesce(s.frequency, o.payment_frequency))) AS f (payment_frequency)
    CROSS JOIN LATERAL (
        VALUES (
            f.payment_frequency,
            s.amount_minor
            * CASE f.payment_frequency
                WHEN 'WEEKLY' THEN 52 WHEN 'BIWEEKLY' THEN 26 WHEN 'MONTHLY' THEN 12 WHEN 'QUARTERLY' THEN 4
                WHEN 'YEARLY' THEN 1
            END
        )
    ) AS p (payment_frequency, annualised_minor)
    WHERE o.valid_to IS NULL
        AND o.subscription_id NOT IN (SELECT u.subscription_id FROM unsettled AS u)
        AND (
            s.status <> o.status
            OR (
                o.status IN ('active', 'past_due', 'paused')
                AND (s.plan, p.payment_frequency, p.annualised_minor)
                IS DISTINCT FROM (o.plan, o.payment_frequency, o.annualised_minor)
            )
        )
    UNION ALL
    SELECT
        e.subscription_id,
        e.customer_id,
        max(e.event_id) AS event_id,
        'currency differs' AS problem,
        'events in ' || string_agg(DISTINCT e.currency, ', ') || ', customer pays in ' || c.currency AS detail
    FROM billing.subscription_events AS e
    INNER JOIN billing.customers AS c ON e.customer_id = c.customer_id AND e.currency <> c.currency
    GROUP BY e.subscription_id, e.customer_id, c.currency
)

SELECT
    s.subscription_ref AS subscription_id,
    c.customer_ref AS customer_id,
    p.event_id,
    p.problem,
    p.detail,
    count(*) OVER () AS total
FROM problems AS p
LEFT JOIN billing.subscriptions AS s ON p.subscription_id = s.subscription_id
LEFT JOIN billing.customers AS c ON p.customer_id = c.customer_id
ORDER BY s.subscription_ref, p.problem
LIMIT :named;

-- name: freshness()^
-- description: The newest stored day, when it was computed, how many events no refresh has seen, and how many days were restated.
SELECT
    (SELECT max(s.day) FROM analytics.snapshots AS s) AS newest_day,
    (SELECT max(s.computed_at) FROM analytics.snapshots AS s) AS computed_at,
    (SELECT count(*) FROM analytics.snapshots AS s WHERE s.restated_at IS NOT NULL) AS restated_days,
    (
        SELECT count(*) FROM billing.subscription_events AS e
        WHERE e.event_id > coalesce((SELECT p.event_high_water FROM analytics.interval_progress AS p), 0)
    ) AS unseen_events;
