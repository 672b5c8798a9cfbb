-- Billing: kill switches, and pauses of one subscription.

-- name: has_table(relation)$
-- Whether a table exists: a component that is not deployed has none.
SELECT to_regclass(:relation) IS NOT NULL AS present;

-- name: feature_enabled(feature)$
-- Whether the kill switch of a component is on; null where the component was never deployed.
SELECT enabled FROM billing.feature_flags WHERE feature = :feature;

-- name: set_feature(feature, enabled, reason, now)!
-- Turn a kill switch on or off and say why.
UPDATE billing.feature_flags SET enabled = :enabled, reason = :reason, changed_at = :now WHERE feature = :feature;

-- name: lock_subscription(subscription_ref)^
-- One subscription with its customer's zone, locked until the transaction ends; a component's column may be absent.
SELECT
    s.subscription_id,
    s.subscription_ref,
    s.customer_id,
    s.status,
    s.plan,
    s.amount_minor,
    s.quantity,
    s.currency,
    s.billing_anchor,
    s.next_payment_at,
    s.stripe_subscription_id,
    s.version,
    s.changed_at,
    to_jsonb(s) ->> 'payment_frequency' AS payment_frequency,
    (SELECT c.time_zone FROM billing.customers AS c WHERE c.customer_id = s.customer_id) AS time_zone
FROM billing.subscriptions AS s
WHERE s.subscription_ref = :subscription_ref
FOR NO KEY UPDATE;

-- name: start_of_day(day, zone)$
-- The instant at which a day begins on a zone's clock.
SELECT cast(cast(:day AS date) AS timestamp) AT TIME ZONE :zone AS begins_at;

-- name: days_after(instant, days, zone)$
-- So many days later at the same time of day on a zone's clock.
SELECT ((cast(:instant AS timestamptz) AT TIME ZONE :zone) + make_interval(days => :days)) AT TIME ZONE :zone AS later;

-- name: local_length(starts_at, ends_at, zone)$
-- How long a time lasts, by a zone's clock or by the hours that pass, whichever is less: a clock change takes nobody's day.
SELECT
    least(
        (cast(:ends_at AS timestamptz) AT TIME ZONE :zone) - (cast(:starts_at AS timestamptz) AT TIME ZONE :zone),
        cast(:ends_at AS timestamptz) - cast(:starts_at AS timestamptz)
    ) AS length;

-- name: pauses_within_a_year(subscription_id, starts_at)$
-- The most pauses that any of the two years which begin or end with the new pause already holds.
SELECT
    greatest(
        count(*) FILTER (WHERE starts_at > cast(:starts_at AS timestamptz) - interval '365 days' AND starts_at <= :starts_at),
        count(*) FILTER (WHERE starts_at >= :starts_at AND starts_at < cast(:starts_at AS timestamptz) + interval '365 days')
    ) AS pauses
FROM billing.subscription_pauses
WHERE subscription_id = :subscription_id AND kind = 'customer' AND state <> 'canceled';

-- name: insert_pause(subscription_id, starts_at, ends_at, kind, reason, now)$
-- Put a pause on the calendar; the sweep starts it.
INSERT INTO billing.subscription_pauses (pause_ref, subscription_id, starts_at, ends_at, kind, reason, changed_at)
VALUES ('pause-' || gen_random_uuid(), :subscription_id, :starts_at, :ends_at, :kind, :reason, :now)
RETURNING pause_id;

-- name: pause_in_the_way(subscription_id, starts_at, ends_at)^
-- The first pause that overlaps with an interval.
SELECT
    pause_ref,
    kind,
    ends_at
FROM billing.subscription_pauses
WHERE
    subscription_id = :subscription_id AND state IN ('scheduled', 'active')
    AND tstzrange(starts_at, ends_at) && tstzrange(:starts_at, :ends_at)
ORDER BY starts_at
LIMIT 1;

-- name: cancel_pause(pause_ref, now)$
-- Take a pause off the calendar before it has begun; which one it was.
UPDATE billing.subscription_pauses
SET state = 'canceled', version = version + 1, changed_at = :now
WHERE pause_ref = :pause_ref AND state = 'scheduled'
RETURNING pause_id;

-- name: pause_state(pause_ref)$
-- The state of a pause; null where there is none.
SELECT state FROM billing.subscription_pauses WHERE pause_ref = :pause_ref;

-- name: subscription_known(subscription_ref)$
-- Whether there is such a subscription.
SELECT count(*) > 0 AS known FROM billing.subscriptions WHERE subscription_ref = :subscription_ref;

-- name: pause_as_it_is(pause_id)^
-- One pause with its subscription.
SELECT
    p.pause_ref,
    s.subscription_ref,
    p.kind,
    p.state,
    p.starts_at,
    p.ends_at,
    p.reason,
    c.time_zone,
    s.status AS subscription_status,
    s.next_payment_at
FROM billing.subscription_pauses AS p
INNER JOIN billing.subscriptions AS s ON p.subscription_id = s.subscription_id
INNER JOIN billing.customers AS c ON s.customer_id = c.customer_id
WHERE p.pause_id = :pause_id;

-- name: pauses_of(subscription_ref, at_most)
-- The pauses of a subscription, newest first.
SELECT
    p.pause_ref,
    s.subscription_ref,
    p.kind,
    p.state,
    p.starts_at,
    p.ends_at,
    p.reason,
    c.time_zone,
    s.status AS subscription_status,
    s.next_payment_at
FROM billing.subscription_pauses AS p
INNER JOIN billing.subscriptions AS s ON p.subscription_id = s.subscription_id
INNER JOIN billing.customers AS c ON s.customer_id = c.customer_id
WHERE s.subscription_ref = :subscription_ref
ORDER BY p.starts_at DESC, p.pause_id DESC
LIMIT :at_most;

-- name: open_pauses(at_most)
-- Pauses that hold a subscription or are to come, by the instant of their next transition.
SELECT
    p.pause_ref,
    s.subscription_ref,
    p.kind,
    p.state,
    p.starts_at,
    p.ends_at,
    p.reason,
    c.time_zone,
    s.status AS subscription_status,
    s.next_payment_at
FROM billing.subscription_pauses AS p
INNER JOIN billing.subscriptions AS s ON p.subscription_id = s.subscription_id
INNER JOIN billing.customers AS c ON s.customer_id = c.customer_id
WHERE p.state IN ('scheduled', 'active')
ORDER BY CASE WHEN p.state = 'scheduled' THEN p.starts_at ELSE p.ends_at END, p.pause_id
LIMIT :at_most;

-- name: cut_active_pause(subscription_id, now)$
-- Let the customer or admin pause that holds a subscription end now; which one it was.
UPDATE billing.subscription_pauses
SET ends_at = least(ends_at, greatest(:now, starts_at + interval '1 microsecond')), version = version + 1, changed_at = :now
WHERE subscription_id = :subscription_id AND state = 'active' AND kind <> 'payment_failure'
RETURNING pause_id;

-- name: history_breaks()
-- Subscriptions whose terms are not those of their newest event. The frequency is read as JSON: its column need not be deployed.
WITH newest AS (
    SELECT DISTINCT ON (subscription_id)
        subscription_id,
        plan,
        payment_frequency,
        amount_minor,
        currency,
        quantity
    FROM billing.subscription_events
    ORDER BY subscription_id ASC, occurred_at DESC, recorded_at DESC, event_id DESC
),

current_terms AS (
    SELECT
        subscription_id,
        subscription_ref,
        plan,
        coalesce(to_jsonb(s) ->> 'payment_frequency', 'MONTHLY') AS payment_frequency,
        amount_minor,
        currency,
        quantity
    FROM billing.subscriptions AS s
)

SELECT
    t.subscription_ref,
    concat_ws(' ', t.plan, t.payment_frequency, t.amount_minor, t.currency, 'x', t.quantity) AS in_database,
    CASE
        WHEN n.subscription_id IS NOT NULL
            THEN concat_ws(' ', n.plan, n.payment_frequency, n.amount_minor, n.currency, 'x', n.quantity)
    END AS in_ledger
FROM current_terms AS t
LEFT JOIN newest AS n ON t.subscription_id = n.subscription_id
WHERE (t.plan, t.payment_frequency, t.amount_minor, t.currency, t.quantity)
    IS DISTINCT FROM (n.plan, n.payment_frequency, n.amount_minor, n.currency, n.quantity)
ORDER BY t.subscription_ref;
