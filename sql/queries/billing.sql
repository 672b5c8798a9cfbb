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
RETURNING pause_ref;

-- name: cancel_pause(pause_ref, now)!
-- Take a pause off the calendar before it has begun.
UPDATE billing.subscription_pauses
SET state = 'canceled', version = version + 1, changed_at = :now
WHERE pause_ref = :pause_ref AND state = 'scheduled';

-- name: pause_state(pause_ref)$
-- The state of a pause; null where there is none.
SELECT state FROM billing.subscription_pauses WHERE pause_ref = :pause_ref;

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
