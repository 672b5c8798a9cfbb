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

-- name: see_all_arrived#
-- description: The view metric_arrived: the whole ledger is new.
CREATE TEMP VIEW metric_arrived AS
SELECT event_id FROM billing.subscription_events;

-- name: see_unseen_arrived#
-- description: The same where only what is in metric_unseen is.
CREATE TEMP VIEW metric_arrived AS
SELECT event_id FROM metric_unseen;

-- name: ledger_extent(event_high_water, gaps)^
-- description: How far what has arrived goes beyond the mark, how many events it is, and which smaller ids nobody has committed.
WITH beyond AS (
    SELECT
        coalesce(max(event_id), :event_high_water) AS event_high_water,
        count(*) AS events
    FROM metric_arrived
    WHERE event_id > :event_high_water
),

-- Ids without a gap, which is how most come, need not be put in order.
arrived AS (
    SELECT
        event_id,
        lag(event_id, 1, :event_high_water) OVER (ORDER BY event_id) AS previous_id
    FROM metric_arrived
    WHERE event_id > :event_high_water AND (SELECT b.event_high_water - :event_high_water <> b.events FROM beyond AS b)
),

skipped AS (
    SELECT coalesce(range_agg(int8range(a.previous_id + 1, a.event_id)), '{}') AS gaps
    FROM arrived AS a
    WHERE a.event_id > a.previous_id + 1
),

late AS (
    SELECT
        count(*) AS events,
        coalesce(range_agg(int8range(event_id, event_id, '[]')), '{}') AS ids
    FROM metric_arrived
    WHERE event_id <= :event_high_water
)

SELECT
    b.event_high_water,
    b.events + l.events AS events,
    k.gaps,
    cast(:gaps AS int8multirange) - l.ids AS still_missing
FROM beyond AS b
CROSS JOIN skipped AS k
CROSS JOIN late AS l;

-- name: ledger_end()$
-- description: The largest event_id.
SELECT coalesce(max(event_id), 0) AS event_id FROM billing.subscription_events;

-- name: insert_unseen(event_high_water, gaps)!
-- description: The events above the mark, and those whose ids were missing below it.
INSERT INTO metric_unseen (
    event_id, subscription_id, customer_id, event, occurred_at, recorded_at, plan, payment_frequency, amount_minor, quantity,
    currency
)
WITH beyond AS (
    SELECT *
    FROM billing.subscription_events AS e
    WHERE e.event_id > :event_high_water
    UNION ALL
    SELECT e.*
    FROM unnest(cast(:gaps AS int8multirange)) AS g (ids)
    INNER JOIN billing.subscription_events AS e ON e.event_id >= lower(g.ids) AND e.event_id < upper(g.ids)
)

SELECT
    event_id,
    subscription_id,
    customer_id,
    event,
    occurred_at,
    recorded_at,
    plan,
    payment_frequency,
    amount_minor,
    quantity,
    currency
FROM beyond;

-- name: touch_subscriptions()!
-- description: The subscriptions that have such events, and since when they may differ; those of customers whose country has
-- changed since, all of whose history moves to the new segment.
WITH moved AS (
    DELETE FROM analytics.moved_customers RETURNING customer_id
),

touched AS (
    SELECT
        u.subscription_id,
        u.customer_id,
        u.occurred_at AS touched_from
    FROM metric_unseen AS u
    UNION ALL
    SELECT
        i.subscription_id,
        i.customer_id,
        i.valid_from AS touched_from
    FROM moved AS m
    INNER JOIN analytics.run_rate_intervals AS i ON m.customer_id = i.customer_id
    INNER JOIN billing.customers AS c ON i.customer_id = c.customer_id
    WHERE c.country IS DISTINCT FROM i.country
)

INSERT INTO metric_subscriptions (subscription_id, customer_id, touched_from)
SELECT
    t.subscription_id,
    min(t.customer_id) AS customer_id,
    min(t.touched_from) AS touched_from
FROM touched AS t
GROUP BY t.subscription_id;

-- name: touched()^
-- description: How many subscriptions are replayed, and the first instant from which any figure may differ.
SELECT
    count(*) AS subscriptions,
    min(touched_from) AS since
FROM metric_subscriptions;

-- name: whole_ledger()^
-- description: The same when all of them are.
SELECT
    (SELECT count(*) FROM billing.subscriptions) AS subscriptions,
    (SELECT min(occurred_at) FROM billing.subscription_events) AS since;

-- name: first_instant()$
-- description: When the first event occurred; no interval begins before it.
SELECT min(occurred_at) AS since FROM billing.subscription_events;

-- name: insert_repeated()!
-- description: The events that repeat an earlier one exactly, where something else happened at the same instant in between.
-- What repeats the event just before it changes nothing by itself.
INSERT INTO metric_repeated (event_id)
WITH crowds AS (
    SELECT
        subscription_id,
        occurred_at
    FROM metric_ledger
    GROUP BY subscription_id, occurred_at
    HAVING count(*) > 2
)

SELECT e.event_id
FROM crowds AS c
INNER JOIN metric_ledger AS e ON c.subscription_id = e.subscription_id AND c.occurred_at = e.occurred_at
WHERE EXISTS (
    SELECT 1 FROM metric_ledger AS f
    WHERE f.subscription_id = e.subscription_id AND f.occurred_at = e.occurred_at AND f.recorded_at = e.recorded_at
        AND f.event_id < e.event_id AND f.event = e.event AND f.customer_id = e.customer_id AND f.plan = e.plan
        AND f.payment_frequency = e.payment_frequency AND f.amount_minor = e.amount_minor AND f.quantity = e.quantity
        AND f.currency = e.currency
);

-- name: insert_affected()!
-- description: Sets apart from what was looked up the intervals that may change: the one in which a touched subscription stood
-- before, and those after.
WITH affected AS (
    DELETE FROM metric_looked_up AS l
    USING metric_subscriptions AS t
    WHERE l.subscription_id = t.subscription_id AND (l.valid_to IS NULL OR l.valid_to >= t.touched_from)
    RETURNING l.*, l.valid_from < t.touched_from AS stood_before
)

INSERT INTO metric_affected SELECT * FROM affected;

-- name: see_ledger_since_touched#
-- description: The view metric_ledger: events of touched subscriptions since then, after the interval in which each stood before.
-- All that matters of earlier events is in that interval: it comes as an event that makes a subscription what it was. A customer
-- has the country that he had then, as whoever has moved is touched from the beginning.
CREATE OR REPLACE TEMP VIEW metric_ledger AS
SELECT
    b.event_id,
    b.subscription_id,
    b.customer_id,
    'was ' || b.status AS event,
    b.valid_from AS occurred_at,
    b.valid_from AS recorded_at,
    b.plan,
    b.payment_frequency,
    b.annualised_minor
    / CASE b.payment_frequency
        WHEN 'MONTHLY' THEN 12 WHEN 'WEEKLY' THEN 52 WHEN 'BIWEEKLY' THEN 26 WHEN 'QUARTERLY' THEN 4 WHEN 'YEARLY' THEN 1
    END AS amount_minor,
    1 AS quantity,
    b.currency,
    b.paused_since
FROM metric_affected AS b
WHERE b.stood_before
UNION ALL
SELECT
    u.*,
    cast(NULL AS timestamptz) AS paused_since
FROM metric_unseen AS u
UNION ALL
-- For most subscriptions all is new since they were touched: no interval begins then or later.
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
    cast(NULL AS timestamptz) AS paused_since
FROM metric_subscriptions AS t
INNER JOIN billing.subscription_events AS e ON t.subscription_id = e.subscription_id AND t.touched_from <= e.occurred_at
WHERE t.subscription_id IN (SELECT a.subscription_id FROM metric_affected AS a WHERE NOT a.stood_before)
    AND e.event_id NOT IN (SELECT u.event_id FROM metric_unseen AS u);
CREATE OR REPLACE TEMP VIEW metric_payers AS
SELECT DISTINCT
    customer_id,
    currency,
    country
FROM metric_affected
WHERE stood_before
UNION ALL
SELECT
    c.customer_id,
    c.currency,
    c.country
FROM metric_customers AS m
INNER JOIN billing.customers AS c ON m.customer_id = c.customer_id
WHERE m.customer_id NOT IN (SELECT b.customer_id FROM metric_affected AS b WHERE b.stood_before);

-- name: see_payers#
-- description: The view metric_payers: what every customer is.
CREATE OR REPLACE TEMP VIEW metric_payers AS
SELECT
    customer_id,
    currency,
    country
FROM billing.customers;

-- name: create_replay#
-- description: The view metric_replayed: the events of metric_ledger as intervals of their customers, who are in metric_payers.
-- One sort, one pass. A state is a letter, an event what it makes of each: unstarted, trial, active, due, paused, suspended,
-- canceled. A pause lasts since the first request after whatever neither pauses nor changes: all else ends it. Crowded: three
-- events or more at once.
CREATE TEMP TABLE metric_repeated (event_id bigint PRIMARY KEY) ON COMMIT DROP;
CREATE TEMP VIEW metric_events AS
SELECT * FROM metric_ledger WHERE event_id NOT IN (SELECT event_id FROM metric_repeated);
CREATE TEMP VIEW metric_replayed AS
WITH stated AS (
    SELECT
        e.event_id,
        e.subscription_id,
        e.customer_id,
        e.occurred_at,
        e.plan,
        e.payment_frequency,
        e.amount_minor,
        e.quantity,
        analytics.follow(
            CASE e.event
                WHEN 'started' THEN 'utdpsc'
                WHEN 'canceled' THEN 'utadps'
                WHEN 'paused' THEN 'ad'
                WHEN 'resumed' THEN 'dp'
                WHEN 'past_due' THEN 'ap'
                WHEN 'recovered' THEN 'dps'
                WHEN 'suspended' THEN 'adp'
                WHEN 'trial_started' THEN 'uadpsc'
                WHEN 'changed' THEN NULL
                ELSE 'u'
            END,
            CASE e.event
                WHEN 'started' THEN 'aaaaaa'
                WHEN 'canceled' THEN 'cccccc'
                WHEN 'paused' THEN 'pp'
                WHEN 'resumed' THEN 'aa'
                WHEN 'past_due' THEN 'dd'
                WHEN 'recovered' THEN 'aaa'
                WHEN 'suspended' THEN 'sss'
                WHEN 'trial_started' THEN 'tttttt'
                WHEN 'was active' THEN 'a'
                WHEN 'was paused' THEN 'p'
                WHEN 'was canceled' THEN 'c'
                WHEN 'was past_due' THEN 'd'
                WHEN 'was suspended' THEN 's'
                WHEN 'was trialing' THEN 't'
            END
        ) OVER w AS state,
        analytics.first_since(
            CASE e.event WHEN 'changed' THEN NULL WHEN 'paused' THEN 26 WHEN 'was paused' THEN 26 ELSE 0 END,
            CASE
                WHEN e.event IN ('paused', 'was paused')
                    THEN to_char(coalesce(e.paused_since, e.occurred_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')
                ELSE ''
            END
        ) OVER w AS requested_at,
        lead(e.occurred_at) OVER w AS next_at,
        lag(e.occurred_at, 2) OVER w AS last_but_one_at
    FROM metric_events AS e
    WINDOW w AS (
        PARTITION BY e.subscription_id ORDER BY e.occurred_at, e.recorded_at, e.event_id
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    )
)

SELECT
    s.subscription_id,
    s.occurred_at AS valid_from,
    s.next_at AS valid_to,
    s.customer_id,
    CASE s.state
        WHEN 'a' THEN 'active' WHEN 'p' THEN 'paused' WHEN 'c' THEN 'canceled' WHEN 'd' THEN 'past_due'
        WHEN 's' THEN 'suspended' WHEN 't' THEN 'trialing' WHEN 'u' THEN 'unstarted'
    END AS status,
    CASE WHEN s.state = 'p' THEN cast(s.requested_at AS timestamp) AT TIME ZONE 'UTC' END AS paused_since,
    s.amount_minor * s.quantity
    * CASE s.payment_frequency
        WHEN 'MONTHLY' THEN 12 WHEN 'WEEKLY' THEN 52 WHEN 'BIWEEKLY' THEN 26 WHEN 'QUARTERLY' THEN 4 WHEN 'YEARLY' THEN 1
    END AS annualised_minor,
    s.plan,
    s.payment_frequency,
    c.currency,
    c.country,
    s.event_id,
    coalesce(s.last_but_one_at = s.occurred_at, FALSE) AS crowded
FROM stated AS s
INNER JOIN metric_payers AS c ON s.customer_id = c.customer_id
-- What lasted no time is no interval.
WHERE s.next_at IS NULL OR s.next_at > s.occurred_at;

-- name: allow_lookups(wanted)$
-- description: Whether rows may be looked up one by one: what reads whole tables would do so where it expects few rows.
SELECT
    set_config('enable_indexscan', :wanted, TRUE),
    set_config('enable_nestloop', :wanted, TRUE);

-- name: prefer_lookups()$
-- description: What is touched is a small part of tables whose pages are mostly in memory.
SELECT
    set_config('seq_page_cost', '0.1', TRUE),
    set_config('random_page_cost', '0.1', TRUE);

-- name: insert_intervals(marked)!
-- description: Writes metric_replayed into metric_intervals; marked: with a negative event_id where it is crowded.
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
    CASE WHEN :marked AND crowded THEN -event_id ELSE event_id END AS event_id
FROM metric_replayed;

-- name: touch_crowded()!
-- description: The subscriptions with a marked interval: only there can an event repeat one that was not the last before it.
INSERT INTO metric_subscriptions (subscription_id, customer_id, touched_from)
SELECT
    subscription_id,
    min(customer_id) AS customer_id,
    min(valid_from) AS touched_from
FROM metric_intervals
WHERE event_id < 0
GROUP BY subscription_id;

-- name: forget_touched()!
-- description: Drops the intervals of the touched subscriptions.
DELETE FROM metric_intervals WHERE subscription_id IN (SELECT s.subscription_id FROM metric_subscriptions AS s);

-- name: insert_fresh()$
-- description: The touched subscriptions replayed, beside what is stored of them; gives whether an event may repeat one that was
-- not the last before it.
WITH replayed AS (
    SELECT * FROM metric_replayed
),

written AS (
    INSERT INTO metric_fresh
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
    FROM replayed
)

SELECT coalesce(bool_or(r.crowded), FALSE) AS crowded FROM replayed AS r;

-- name: forget_stale_intervals()!
-- description: Drops the intervals of touched subscriptions that begin where none does any more.
DELETE FROM analytics.run_rate_intervals AS i
USING metric_affected AS a
WHERE i.subscription_id = a.subscription_id AND i.valid_from = a.valid_from AND NOT a.stood_before
    AND NOT EXISTS (
        SELECT 1 FROM metric_fresh AS f WHERE f.subscription_id = a.subscription_id AND f.valid_from = a.valid_from
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
LEFT JOIN metric_affected AS a ON f.subscription_id = a.subscription_id AND f.valid_from = a.valid_from
WHERE a.subscription_id IS NULL
    OR (
        f.valid_to, f.customer_id, f.status, f.paused_since, f.annualised_minor, f.plan, f.payment_frequency, f.currency,
        f.country, f.event_id
    ) IS DISTINCT FROM (
        a.valid_to, a.customer_id, a.status, a.paused_since, a.annualised_minor, a.plan, a.payment_frequency, a.currency,
        a.country, a.event_id
    )
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
