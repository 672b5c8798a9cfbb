-- name: ledger_extent()^
-- description: How far the ledger goes: the largest event_id and the number of events up to it.
SELECT
    coalesce(max(event_id), 0) AS event_high_water,
    count(*) AS events
FROM billing.subscription_events;

-- name: interval_progress()^
-- description: How much of the ledger the stored intervals hold, and how many events there are now up to that mark.
SELECT
    p.event_high_water,
    p.events,
    (SELECT count(*) FROM billing.subscription_events AS e WHERE e.event_id <= p.event_high_water) AS events_now
FROM analytics.interval_progress AS p;

-- name: touch_new_events(event_high_water)!
-- description: The subscriptions that have events above the high-water mark, and since when they may differ.
INSERT INTO metric_subscriptions (subscription_id, touched_from)
SELECT
    subscription_id,
    min(occurred_at) AS touched_from
FROM billing.subscription_events
WHERE event_id > :event_high_water
GROUP BY subscription_id;

-- name: touch_every_subscription()!
-- description: All subscriptions, when nothing is stored yet or an event with a smaller id was committed late.
INSERT INTO metric_subscriptions (subscription_id, touched_from)
SELECT
    subscription_id,
    min(occurred_at) AS touched_from
FROM billing.subscription_events
GROUP BY subscription_id;

-- name: touch_moved_customers()!
-- description: Subscriptions of customers whose country has changed since: all their history moves to the new segment.
INSERT INTO metric_subscriptions (subscription_id, touched_from)
SELECT
    i.subscription_id,
    min(i.valid_from) AS touched_from
FROM analytics.run_rate_intervals AS i
INNER JOIN billing.customers AS c ON i.customer_id = c.customer_id
WHERE c.country IS DISTINCT FROM i.country
GROUP BY i.subscription_id
ON CONFLICT (subscription_id) DO UPDATE SET touched_from = least(metric_subscriptions.touched_from, excluded.touched_from);

-- name: forget_touched_intervals()!
-- description: Makes room for the intervals that are computed again.
DELETE FROM analytics.run_rate_intervals AS i
USING metric_subscriptions AS t
WHERE i.subscription_id = t.subscription_id;

-- name: insert_intervals()!
-- description: Replays metric_events into metric_intervals: one sort, then window functions in the same order.
INSERT INTO metric_intervals (
    subscription_id, valid_from, valid_to, customer_id, status, paused_since, annualised_minor, plan, payment_frequency,
    currency, country, event_id
)
WITH arrivals AS (
    SELECT
        e.*,
        row_number() OVER w AS position,
        -- Only a third event at one instant can repeat one that something else has followed since.
        lag(e.occurred_at, 2) OVER w = e.occurred_at AND lag(e.recorded_at, 2) OVER w = e.recorded_at AS crowded
    FROM metric_events AS e
    WINDOW w AS (PARTITION BY e.subscription_id ORDER BY e.occurred_at, e.recorded_at, e.event_id)
),

once AS (
    SELECT a.*
    FROM arrivals AS a
    WHERE CASE
        WHEN a.crowded THEN NOT EXISTS (
            SELECT 1 FROM metric_events AS e
            WHERE e.subscription_id = a.subscription_id AND e.occurred_at = a.occurred_at AND e.recorded_at = a.recorded_at
                AND e.event_id < a.event_id AND e.event = a.event AND e.customer_id = a.customer_id
                AND e.plan = a.plan AND e.payment_frequency = a.payment_frequency AND e.amount_minor = a.amount_minor
                AND e.quantity = a.quantity AND e.currency = a.currency
        )
        ELSE TRUE
    END
),

-- The newest event of each rank decides: first whether the subscription was started, then whether it is suspended,
-- then whether it is paused. Position and meaning travel in one number, so that the largest is the newest.
ranked AS (
    SELECT
        o.*,
        max(o.position * 4 + CASE o.event WHEN 'started' THEN 1 WHEN 'trial_started' THEN 2 WHEN 'canceled' THEN 3 END)
            FILTER (WHERE o.event IN ('started', 'trial_started', 'canceled')) OVER w AS life,
        max(o.position * 4 + CASE o.event WHEN 'suspended' THEN 1 ELSE 0 END)
            FILTER (WHERE o.event IN ('started', 'recovered', 'suspended')) OVER w AS suspension,
        max(o.position * 4 + CASE o.event WHEN 'past_due' THEN 1 WHEN 'paused' THEN 2 ELSE 0 END)
            FILTER (WHERE o.event IN ('started', 'recovered', 'resumed', 'past_due', 'paused')) OVER w AS payment
    FROM once AS o
    WINDOW w AS (
        PARTITION BY o.subscription_id ORDER BY o.occurred_at, o.recorded_at, o.event_id
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    )
),

stated AS (
    SELECT
        r.*,
        CASE
            WHEN r.life IS NULL THEN 'unstarted'
            WHEN mod(r.life, 4) = 2 THEN 'trialing'
            WHEN mod(r.life, 4) = 3 THEN 'canceled'
            WHEN mod(r.suspension, 4) = 1 THEN 'suspended'
            WHEN mod(r.payment, 4) = 1 THEN 'past_due'
            WHEN mod(r.payment, 4) = 2 THEN 'paused'
            ELSE 'active'
        END AS status
    FROM ranked AS r
),

followed AS (
    SELECT
        s.*,
        lag(s.status) OVER w AS status_before,
        lead(s.occurred_at) OVER w AS next_at
    FROM stated AS s
    WINDOW w AS (PARTITION BY s.subscription_id ORDER BY s.occurred_at, s.recorded_at, s.event_id)
),

paused AS (
    SELECT
        f.*,
        CASE WHEN f.status = 'paused' THEN max(f.occurred_at)
            FILTER (WHERE f.status = 'paused' AND f.status_before IS DISTINCT FROM 'paused') OVER w
        END AS paused_since
    FROM followed AS f
    WINDOW w AS (
        PARTITION BY f.subscription_id ORDER BY f.occurred_at, f.recorded_at, f.event_id
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    )
),

-- What lasted no time is no interval.
lasting AS (
    SELECT
        p.*,
        p.amount_minor * p.quantity
        * CASE p.payment_frequency
            WHEN 'WEEKLY' THEN 52 WHEN 'BIWEEKLY' THEN 26 WHEN 'MONTHLY' THEN 12 WHEN 'QUARTERLY' THEN 4 WHEN 'YEARLY' THEN 1
        END AS annualised_minor
    FROM paused AS p
    WHERE p.next_at IS NULL OR p.next_at > p.occurred_at
),

marked AS (
    SELECT
        l.*,
        lag(l.status) OVER w AS last_status,
        lag(l.paused_since) OVER w AS last_paused_since,
        lag(l.annualised_minor) OVER w AS last_annualised_minor,
        lag(l.plan) OVER w AS last_plan,
        lag(l.payment_frequency) OVER w AS last_payment_frequency
    FROM lasting AS l
    WINDOW w AS (PARTITION BY l.subscription_id ORDER BY l.occurred_at)
),

bounded AS (
    SELECT
        m.*,
        lead(m.occurred_at) OVER (PARTITION BY m.subscription_id ORDER BY m.occurred_at) AS valid_to
    FROM marked AS m
    WHERE (m.status, m.paused_since, m.annualised_minor, m.plan, m.payment_frequency)
        IS DISTINCT FROM (
            m.last_status, m.last_paused_since, m.last_annualised_minor, m.last_plan, m.last_payment_frequency
        )
)

SELECT
    b.subscription_id,
    b.occurred_at,
    b.valid_to,
    b.customer_id,
    b.status,
    b.paused_since,
    b.annualised_minor,
    b.plan,
    b.payment_frequency,
    c.currency,
    c.country,
    b.event_id
FROM bounded AS b
INNER JOIN billing.customers AS c ON b.customer_id = c.customer_id;

-- name: keep_progress(event_high_water, events)!
-- description: Records how much of the ledger the intervals hold now.
INSERT INTO analytics.interval_progress (event_high_water, events)
VALUES (:event_high_water, :events)
ON CONFLICT (only_row) DO UPDATE SET event_high_water = excluded.event_high_water, events = excluded.events;

-- name: touched_from()$
-- description: The first instant from which any figure may differ; null when nothing was touched.
SELECT min(touched_from) AS touched_from FROM metric_subscriptions;
