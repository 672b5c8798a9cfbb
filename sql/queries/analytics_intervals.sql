-- name: interval_progress()^
-- description: How much of the ledger the stored intervals hold.
SELECT
    event_high_water,
    events,
    gaps,
    writers
FROM analytics.interval_progress;

-- name: ledger_writers()$
-- description: The transactions, by virtual id, that are writing to the ledger.
SELECT coalesce(array_agg(DISTINCT virtualtransaction), '{}') AS writers
FROM pg_locks
WHERE locktype = 'relation' AND relation = cast('billing.subscription_events' AS regclass) AND mode = 'RowExclusiveLock'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid();

-- name: ledger_extent(event_high_water, gaps)^
-- description: How far the ledger goes beyond the mark, how many events are new, and which smaller ids nobody has committed.
WITH arrived AS (
    SELECT
        event_id,
        lag(event_id, 1, :event_high_water) OVER (ORDER BY event_id) AS previous_id
    FROM billing.subscription_events
    WHERE event_id > :event_high_water
),

late AS (
    SELECT e.event_id
    FROM unnest(cast(:gaps AS int8multirange)) AS g (ids)
    INNER JOIN billing.subscription_events AS e ON e.event_id >= lower(g.ids) AND e.event_id < upper(g.ids)
),

late_ids AS (
    SELECT
        count(*) AS events,
        coalesce(range_agg(int8range(event_id, event_id, '[]')), '{}') AS late
    FROM late
)

SELECT
    coalesce(max(a.event_id), :event_high_water) AS event_high_water,
    count(a.event_id) + l.events AS events,
    coalesce(
        range_agg(int8range(a.previous_id + 1, a.event_id)) FILTER (WHERE a.event_id > a.previous_id + 1), '{}'
    ) AS gaps,
    l.late,
    cast(:gaps AS int8multirange) - l.late AS still_missing
FROM late_ids AS l
LEFT JOIN arrived AS a ON TRUE
GROUP BY l.late, l.events;

-- name: ledger_end()$
-- description: The largest event_id.
SELECT coalesce(max(event_id), 0) AS event_id FROM billing.subscription_events;

-- name: touch_new_events(event_high_water, late)!
-- description: The subscriptions that have events above the mark or committed late below it, and since when they may differ.
INSERT INTO metric_subscriptions (subscription_id, touched_from)
WITH unseen AS (
    SELECT
        e.subscription_id,
        e.occurred_at
    FROM billing.subscription_events AS e
    WHERE e.event_id > :event_high_water
    UNION ALL
    SELECT
        e.subscription_id,
        e.occurred_at
    FROM unnest(cast(:late AS int8multirange)) AS g (ids)
    INNER JOIN billing.subscription_events AS e ON e.event_id >= lower(g.ids) AND e.event_id < upper(g.ids)
)

SELECT
    subscription_id,
    min(occurred_at) AS touched_from
FROM unseen
GROUP BY subscription_id;

-- name: touch_moved_customers()!
-- description: Subscriptions of customers whose country has changed since: all their history moves to the new segment.
WITH moved AS (
    DELETE FROM analytics.moved_customers RETURNING customer_id
)

INSERT INTO metric_subscriptions (subscription_id, touched_from)
SELECT
    i.subscription_id,
    min(i.valid_from) AS touched_from
FROM moved AS m
INNER JOIN analytics.run_rate_intervals AS i ON m.customer_id = i.customer_id
INNER JOIN billing.customers AS c ON i.customer_id = c.customer_id
WHERE c.country IS DISTINCT FROM i.country
GROUP BY i.subscription_id
ON CONFLICT (subscription_id) DO UPDATE SET touched_from = least(metric_subscriptions.touched_from, excluded.touched_from);

-- name: touched()^
-- description: How many subscriptions are replayed, and the first instant from which any figure may differ.
SELECT
    count(*) AS subscriptions,
    min(touched_from) AS since
FROM metric_subscriptions;

-- name: whole_ledger()^
-- description: The same when all of them are.
SELECT
    count(*) AS subscriptions,
    (SELECT min(e.occurred_at) FROM billing.subscription_events AS e) AS since
FROM billing.subscriptions AS s
WHERE EXISTS (SELECT 1 FROM billing.subscription_events AS e WHERE e.subscription_id = s.subscription_id);

-- name: first_instant()$
-- description: When the first interval begins.
SELECT min(valid_from) AS since FROM metric_intervals;

-- name: create_replay()!
-- description: The view metric_replayed: metric_events replayed into intervals, by one sort and window functions in its order.
CREATE TEMP VIEW metric_replayed AS
WITH arrivals AS (
    SELECT
        e.event_id,
        e.subscription_id,
        e.customer_id,
        e.event,
        e.occurred_at,
        e.recorded_at,
        e.plan,
        e.payment_frequency,
        e.amount_minor,
        e.quantity,
        e.currency,
        lag(e.occurred_at) OVER w = e.occurred_at AS tied,
        -- Only a third event at one instant can repeat one that something else has followed since.
        lag(e.occurred_at, 2) OVER w = e.occurred_at AND lag(e.recorded_at, 2) OVER w = e.recorded_at AS crowded
    FROM metric_events AS e
    WINDOW w AS (PARTITION BY e.subscription_id ORDER BY e.occurred_at, e.recorded_at, e.event_id)
),

-- A state is a letter, an event what it makes of each: unstarted, trial, active, due, newly paused, paused, suspended,
-- canceled. What is newly paused is so until another instant.
once AS (
    SELECT
        a.*,
        CASE a.event
            WHEN 'changed' THEN CASE WHEN a.tied THEN '' ELSE 'n' END
            WHEN 'started' THEN 'utdnpsc'
            WHEN 'canceled' THEN 'utadnps'
            WHEN 'paused' THEN CASE WHEN a.tied THEN 'ad' ELSE 'adn' END
            WHEN 'resumed' THEN 'dnp'
            WHEN 'past_due' THEN 'anp'
            WHEN 'recovered' THEN 'dnps'
            WHEN 'suspended' THEN 'adnp'
            WHEN 'trial_started' THEN 'uadnpsc'
        END AS leaves,
        CASE a.event
            WHEN 'changed' THEN CASE WHEN a.tied THEN '' ELSE 'p' END
            WHEN 'started' THEN 'aaaaaaa'
            WHEN 'canceled' THEN 'ccccccc'
            WHEN 'paused' THEN CASE WHEN a.tied THEN 'nn' ELSE 'nnp' END
            WHEN 'resumed' THEN 'aaa'
            WHEN 'past_due' THEN 'ddd'
            WHEN 'recovered' THEN 'aaaa'
            WHEN 'suspended' THEN 'ssss'
            WHEN 'trial_started' THEN 'ttttttt'
        END AS enters
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

stated AS (
    SELECT
        o.*,
        analytics.follow(o.leaves, o.enters) OVER w AS state,
        lead(o.occurred_at) OVER w AS next_at
    FROM once AS o
    WINDOW w AS (
        PARTITION BY o.subscription_id ORDER BY o.occurred_at, o.recorded_at, o.event_id
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    )
),

-- What lasted no time is no interval.
lasting AS (
    SELECT
        s.event_id,
        s.subscription_id,
        s.customer_id,
        s.occurred_at,
        s.plan,
        s.payment_frequency,
        s.state,
        s.amount_minor * s.quantity
        * CASE s.payment_frequency
            WHEN 'MONTHLY' THEN 12 WHEN 'WEEKLY' THEN 52 WHEN 'BIWEEKLY' THEN 26 WHEN 'QUARTERLY' THEN 4 WHEN 'YEARLY' THEN 1
        END AS annualised_minor
    FROM stated AS s
    WHERE s.next_at IS NULL OR s.next_at > s.occurred_at
),

marked AS (
    SELECT
        l.*,
        CASE WHEN l.state IN ('n', 'p') THEN max(CASE WHEN l.state = 'n' THEN l.occurred_at END) OVER w END AS paused_since,
        l.state <> 'n' AND translate(lag(l.state) OVER w, 'n', 'p') = l.state
        AND lag(l.annualised_minor) OVER w = l.annualised_minor
        AND lag(l.plan) OVER w = l.plan
        AND lag(l.payment_frequency) OVER w = l.payment_frequency AS unchanged
    FROM lasting AS l
    WINDOW w AS (PARTITION BY l.subscription_id ORDER BY l.occurred_at ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
),

bounded AS (
    SELECT
        m.*,
        lead(m.occurred_at) OVER (PARTITION BY m.subscription_id ORDER BY m.occurred_at) AS valid_to
    FROM marked AS m
    WHERE m.unchanged IS NOT TRUE
)

SELECT
    b.subscription_id,
    b.occurred_at AS valid_from,
    b.valid_to,
    b.customer_id,
    CASE b.state
        WHEN 'a' THEN 'active' WHEN 'n' THEN 'paused' WHEN 'p' THEN 'paused' WHEN 'c' THEN 'canceled' WHEN 'd' THEN 'past_due'
        WHEN 's' THEN 'suspended' WHEN 't' THEN 'trialing' WHEN 'u' THEN 'unstarted'
    END AS status,
    b.paused_since,
    b.annualised_minor,
    b.plan,
    b.payment_frequency,
    c.currency,
    c.country,
    b.event_id
FROM bounded AS b
INNER JOIN billing.customers AS c ON b.customer_id = c.customer_id;

-- name: allow_lookups(wanted)$
-- description: Whether rows may be looked up one by one: what reads whole tables would do so where it expects few rows.
SELECT
    set_config('enable_indexscan', :wanted, TRUE),
    set_config('enable_nestloop', :wanted, TRUE);

-- name: prefer_lookups()$
-- description: What is touched is a small part of tables whose pages are mostly in memory.
SELECT set_config('random_page_cost', '1.1', TRUE);

-- name: insert_intervals()!
-- description: Writes metric_replayed into metric_intervals.
INSERT INTO metric_intervals (
    subscription_id, valid_from, valid_to, customer_id, status, paused_since, annualised_minor, plan, payment_frequency,
    currency, country, event_id
)
SELECT
    subscription_id,
    valid_from,
    valid_to,
    customer_id,
    status,
    paused_since,
    annualised_minor,
    plan,
    payment_frequency,
    currency,
    country,
    event_id
FROM metric_replayed;

-- name: insert_fresh()!
-- description: The touched subscriptions replayed, beside what is stored of them.
INSERT INTO metric_fresh SELECT * FROM metric_replayed;

-- name: forget_stale_intervals()!
-- description: Drops the intervals of touched subscriptions that begin where none does any more.
DELETE FROM analytics.run_rate_intervals AS i
USING metric_subscriptions AS t
WHERE i.subscription_id = t.subscription_id
    AND NOT EXISTS (
        SELECT 1 FROM metric_fresh AS f WHERE f.subscription_id = i.subscription_id AND f.valid_from = i.valid_from
    );

-- name: keep_fresh_intervals()!
-- description: Writes the intervals that differ; for most subscriptions the last one ends and one begins.
INSERT INTO analytics.run_rate_intervals AS i (
    subscription_id, valid_from, valid_to, customer_id, status, paused_since, annualised_minor, plan, payment_frequency,
    currency, country, event_id
)
SELECT
    f.subscription_id,
    f.valid_from,
    f.valid_to,
    f.customer_id,
    f.status,
    f.paused_since,
    f.annualised_minor,
    f.plan,
    f.payment_frequency,
    f.currency,
    f.country,
    f.event_id
FROM metric_fresh AS f
LEFT JOIN analytics.run_rate_intervals AS s ON f.subscription_id = s.subscription_id AND f.valid_from = s.valid_from
WHERE f.* IS DISTINCT FROM s.*
ON CONFLICT (subscription_id, valid_from) DO UPDATE SET
    valid_to = excluded.valid_to,
    customer_id = excluded.customer_id,
    status = excluded.status,
    paused_since = excluded.paused_since,
    annualised_minor = excluded.annualised_minor,
    plan = excluded.plan,
    payment_frequency = excluded.payment_frequency,
    currency = excluded.currency,
    country = excluded.country,
    event_id = excluded.event_id;

-- name: keep_progress(event_high_water, events, gaps, writers)!
-- description: Records how much of the ledger the intervals hold now.
INSERT INTO analytics.interval_progress (event_high_water, events, gaps, writers)
VALUES (:event_high_water, :events, cast(:gaps AS int8multirange), :writers)
ON CONFLICT (only_row) DO UPDATE SET
    event_high_water = excluded.event_high_water,
    events = excluded.events,
    gaps = excluded.gaps,
    writers = excluded.writers;
