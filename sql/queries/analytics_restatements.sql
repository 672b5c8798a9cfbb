-- What a refresh changes in days that were stored already: the figures before and after, and what was new to it.

-- name: remember_moves()!
-- description: The customers whose country has changed since the last refresh, before it takes note of them.
CREATE TEMP TABLE metric_moves ON COMMIT DROP AS
SELECT DISTINCT customer_id FROM analytics.moved_customers;

-- name: stored_among(days)
-- description: Which of these days are stored.
SELECT s.day FROM analytics.snapshots AS s WHERE s.day = any(cast(:days AS date[])) ORDER BY s.day;

-- name: create_causes()!
-- description: The table of what was new to this refresh.
CREATE TEMP TABLE metric_causes (
    cause varchar(7),
    customer_id bigint,
    subscription_id bigint,
    event_id bigint,
    event varchar(13),
    occurred_at timestamptz,
    recorded_at timestamptz
) ON COMMIT DROP;

-- name: insert_new_events(last)!
-- description: Events that the refresh before had not seen and that occurred up to the end of a day.
INSERT INTO metric_causes (cause, customer_id, subscription_id, event_id, event, occurred_at, recorded_at)
SELECT
    'event' AS cause,
    customer_id,
    subscription_id,
    event_id,
    event,
    occurred_at,
    recorded_at
FROM metric_unseen
WHERE occurred_at < cast(cast(:last AS date) + 1 AS timestamptz);

-- name: insert_moves()!
-- description: The customers who have another country than their intervals were stored with.
INSERT INTO metric_causes (cause, customer_id)
SELECT
    'country' AS cause,
    m.customer_id
FROM metric_moves AS m;

-- name: keep_earlier_summary(days)!
-- description: The stored summaries of these days before they are written again.
CREATE TEMP TABLE metric_earlier_summary ON COMMIT DROP AS
SELECT * FROM analytics.mrr_summary WHERE day = any(cast(:days AS date[]));

-- name: keep_earlier_movements(days)!
-- description: The stored movements of the customers concerned, on these days.
CREATE TEMP TABLE metric_earlier_movements ON COMMIT DROP AS
SELECT m.*
FROM analytics.mrr_movements AS m
WHERE m.customer_id IN (SELECT c.customer_id FROM metric_causes AS c) AND m.day = any(cast(:days AS date[]));

-- name: drop_later_causes(last)!
-- description: What occurred after the last day that changed has changed nothing that was stored.
DELETE FROM metric_causes WHERE occurred_at >= cast(cast(:last AS date) + 1 AS timestamptz);

-- name: insert_restatement(restated_at, days, anew)$
-- description: Records that days were restated; anew: the whole ledger was read, and no event is named.
INSERT INTO analytics.restatements (restated_at, days, time_zone, events, moved_customers)
SELECT
    :restated_at,
    cast(:days AS date[]) AS days,
    current_setting('TimeZone') AS time_zone,
    CASE WHEN NOT :anew THEN count(*) FILTER (WHERE c.cause = 'event') END AS events,
    count(*) FILTER (WHERE c.cause = 'country') AS moved_customers
FROM metric_causes AS c
RETURNING restatement_id;

-- name: insert_restatement_causes(restatement_id)!
-- description: Records what was new to the refresh.
INSERT INTO analytics.restatement_causes (
    restatement_id, cause_no, cause, customer_id, subscription_id, event_id, event, occurred_at, recorded_at
)
SELECT
    :restatement_id,
    row_number() OVER (ORDER BY c.occurred_at, c.event_id, c.customer_id) AS cause_no,
    c.cause,
    c.customer_id,
    c.subscription_id,
    c.event_id,
    c.event,
    c.occurred_at,
    c.recorded_at
FROM metric_causes AS c;

-- name: insert_restated_figures(restatement_id, days)!
-- description: Records every figure of these days that is not what it was.
INSERT INTO analytics.restated_figures (
    restatement_id, day, segment_kind, segment, currency, figure, before_amount, after_amount
)
WITH before AS (
    SELECT * FROM metric_earlier_summary WHERE day = any(cast(:days AS date[]))
),

after AS (
    SELECT * FROM analytics.mrr_summary WHERE day = any(cast(:days AS date[]))
),

moved_before AS (
    SELECT * FROM metric_earlier_movements WHERE day = any(cast(:days AS date[]))
),

moved_after AS (
    SELECT m.*
    FROM analytics.mrr_movements AS m
    WHERE m.customer_id IN (SELECT c.customer_id FROM metric_causes AS c) AND m.day = any(cast(:days AS date[]))
)

SELECT
    :restatement_id,
    day,
    segment_kind,
    segment,
    currency,
    f.figure,
    coalesce(f.before_amount, 0) AS before_amount,
    coalesce(f.after_amount, 0) AS after_amount
FROM before AS b
FULL JOIN after AS a USING (day, segment_kind, segment, currency)
CROSS JOIN LATERAL (
    VALUES
    ('start', b.start_minor, a.start_minor), ('new', b.new_minor, a.new_minor),
    ('reactivation', b.reactivation_minor, a.reactivation_minor), ('expansion', b.expansion_minor, a.expansion_minor),
    ('contraction', b.contraction_minor, a.contraction_minor), ('churn', b.churn_minor, a.churn_minor),
    ('paused', b.paused_minor, a.paused_minor), ('resumed', b.resumed_minor, a.resumed_minor),
    ('transfer', b.transfer_minor, a.transfer_minor), ('end', b.end_minor, a.end_minor),
    ('customers', b.customers, a.customers), ('paying_customers', b.paying_customers, a.paying_customers),
    ('subscriptions', b.subscriptions, a.subscriptions),
    ('paused_subscriptions', b.paused_subscriptions, a.paused_subscriptions)
) AS f (figure, before_amount, after_amount)
WHERE coalesce(f.before_amount, 0) <> coalesce(f.after_amount, 0)
UNION ALL
SELECT
    :restatement_id,
    day,
    'customer' AS segment_kind,
    cast(customer_id AS text) AS segment,
    currency,
    movement AS figure,
    coalesce(b.annualised_minor, 0) AS before_amount,
    coalesce(a.annualised_minor, 0) AS after_amount
FROM moved_before AS b
FULL JOIN moved_after AS a USING (day, customer_id, currency, movement)
WHERE coalesce(b.annualised_minor, 0) <> coalesce(a.annualised_minor, 0);

-- name: forget_earlier()!
-- description: Drops what was kept for the comparison.
DROP TABLE IF EXISTS pg_temp.metric_moves, pg_temp.metric_causes, pg_temp.metric_earlier_summary,
pg_temp.metric_earlier_movements;

-- name: restatement_rows(first, last, known_at)
-- description: Every restated figure of these days with what caused it, the newest restatement last.
WITH named AS (
    SELECT
        r.restatement_id,
        d.day,
        count(*) FILTER (WHERE c.cause = 'event') AS events,
        count(*) FILTER (WHERE c.cause = 'country') AS moved_customers,
        string_agg(cast(c.event_id AS text), ' ' ORDER BY c.cause_no) FILTER (WHERE c.cause_no <= 20) AS first_events
    FROM analytics.restatements AS r
    CROSS JOIN LATERAL unnest(r.days) AS d (day)
    LEFT JOIN analytics.restatement_causes AS c
        ON r.restatement_id = c.restatement_id
            AND (c.cause = 'country' OR c.occurred_at < cast(d.day + 1 AS timestamp) AT TIME ZONE r.time_zone)
    WHERE d.day BETWEEN :first AND :last AND r.restated_at <= coalesce(cast(:known_at AS timestamptz), 'infinity')
    GROUP BY r.restatement_id, d.day
)

SELECT
    to_char(f.day, 'YYYY-MM-DD') AS period,
    to_char(r.restated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS restated_at,
    f.segment_kind,
    CASE WHEN f.segment_kind = 'customer' THEN c.customer_ref ELSE f.segment END AS segment,
    f.currency,
    f.figure,
    f.before_amount AS before,
    f.after_amount AS after,
    CASE WHEN r.events IS NOT NULL THEN n.events END AS events,
    n.moved_customers,
    n.first_events
FROM analytics.restated_figures AS f
INNER JOIN analytics.restatements AS r ON f.restatement_id = r.restatement_id
INNER JOIN named AS n ON f.restatement_id = n.restatement_id AND f.day = n.day
LEFT JOIN billing.customers AS c ON f.segment_kind = 'customer' AND f.segment = cast(c.customer_id AS text)
ORDER BY f.restatement_id, f.day, f.segment_kind, f.segment, f.currency, f.figure;

-- name: restatements(first, last, newest)
-- description: The newest refreshes that restated any of these days, by day range, with the run rate of the last of them.
SELECT
    r.restatement_id,
    r.restated_at,
    cardinality(r.days) AS days,
    r.days [1] AS first_day,
    r.days [cardinality(r.days)] AS last_day,
    r.events,
    r.moved_customers,
    (
        SELECT string_agg(cast(c.event_id AS text), ', ' ORDER BY c.cause_no)
        FROM analytics.restatement_causes AS c
        WHERE c.restatement_id = r.restatement_id AND c.cause = 'event' AND c.cause_no <= 5
    ) AS first_events,
    count(*) OVER () AS total
FROM analytics.restatements AS r
WHERE EXISTS (SELECT 1 FROM unnest(r.days) AS d (day) WHERE d.day BETWEEN :first AND :last)
ORDER BY r.restatement_id DESC
LIMIT :newest;

-- name: restated_totals(restatement_id, named)
-- description: What a restatement did to the totals, day by day: run rate and customers at the end, before and after.
SELECT
    f.day,
    f.currency,
    max(f.before_amount) FILTER (WHERE f.figure = 'end') AS end_before,
    max(f.after_amount) FILTER (WHERE f.figure = 'end') AS end_after,
    string_agg(f.figure || ' ' || to_char(f.after_amount - f.before_amount, 'FMSG999999999999990'), ', ' ORDER BY f.figure)
        FILTER (WHERE f.figure NOT IN ('start', 'end')) AS changes,
    count(*) OVER () AS total
FROM analytics.restated_figures AS f
WHERE f.restatement_id = :restatement_id AND f.segment_kind = 'total'
GROUP BY f.day, f.currency
ORDER BY f.day, f.currency
LIMIT :named;

-- name: restatement_causes(restatement_id, named)
-- description: The first events and moves behind a restatement; `total` counts all of them.
SELECT
    k.cause,
    c.customer_ref AS customer_id,
    s.subscription_ref AS subscription_id,
    k.event_id,
    k.event,
    k.occurred_at,
    k.recorded_at,
    count(*) OVER () AS total
FROM analytics.restatement_causes AS k
LEFT JOIN billing.customers AS c ON k.customer_id = c.customer_id
LEFT JOIN billing.subscriptions AS s ON k.subscription_id = s.subscription_id
WHERE k.restatement_id = :restatement_id
ORDER BY k.cause_no
LIMIT :named;
