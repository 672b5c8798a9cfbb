-- name: undo_terms(rollback_id, reason, now, after, batch_size)^
-- Subscriptions whose terms are still those that the rollback gave them get back those that they had; the others are left
-- alone. A changed quantity, status or payment date stays as it is.
WITH batch AS MATERIALIZED (
    SELECT
        e.subject_id,
        e.before,
        e.after
    FROM archive.rollback_entries AS e
    WHERE e.rollback_id = :rollback_id AND e.component = 'frequencies' AND e.subject = 'subscription' AND e.settled_at IS NULL
        AND e.subject_id > :after
    ORDER BY e.subject_id
    LIMIT :batch_size
    FOR UPDATE
),

held AS MATERIALIZED (
    SELECT
        s.subscription_id,
        s.plan,
        s.status,
        s.payment_frequency,
        s.amount_minor,
        s.stripe_subscription_id IS NOT NULL AS at_stripe
    FROM billing.subscriptions AS s
    WHERE s.subscription_id IN (SELECT batch.subject_id FROM batch)
    ORDER BY s.subscription_id
    FOR UPDATE
),

judged AS (
    SELECT
        batch.subject_id,
        batch.before,
        held.at_stripe,
        CASE
            WHEN held.subscription_id IS NULL THEN 'it is gone'
            WHEN held.status = 'canceled' THEN 'it was canceled since'
            WHEN
                held.plan <> batch.after ->> 'plan'
                OR held.payment_frequency <> batch.after ->> 'payment_frequency'
                OR held.amount_minor <> (batch.after ->> 'amount_minor')::bigint THEN 'its terms were changed since'
        END AS left_because
    FROM batch
    LEFT JOIN held ON batch.subject_id = held.subscription_id
),

restored AS (
    UPDATE billing.subscriptions AS s
    SET
        payment_frequency = judged.before ->> 'payment_frequency',
        amount_minor = (judged.before ->> 'amount_minor')::bigint,
        version = s.version + 1,
        changed_at = :now,
        change_reason = :reason,
        billing_anchor = CASE
            WHEN s.next_payment_at <= :now THEN (
                SELECT billing.next_payment_at(s.billing_anchor, s.payment_frequency, s.next_payment_at, c.time_zone)
                FROM billing.customers AS c
                WHERE c.customer_id = s.customer_id
            )
            ELSE coalesce(s.next_payment_at, s.billing_anchor)
        END
    FROM judged
    WHERE s.subscription_id = judged.subject_id AND judged.left_because IS NULL
    RETURNING s.subscription_id, s.plan, s.currency, s.payment_frequency, s.amount_minor, s.version, judged.at_stripe
),

recorded AS (
    INSERT INTO billing.frequency_changes
    (subscription_id, from_frequency, to_frequency, amount_minor, requested_at, effective_at, currency, state)
    SELECT
        restored.subscription_id,
        'MONTHLY',
        restored.payment_frequency,
        restored.amount_minor,
        :now,
        :now,
        restored.currency,
        'applied'
    FROM restored
),

commanded AS (
    INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
    SELECT
        restored.subscription_id || ':change_price:' || restored.version,
        restored.subscription_id,
        'change_price',
        jsonb_build_object(
            'plan', restored.plan, 'payment_frequency', restored.payment_frequency, 'currency', restored.currency,
            'amount_minor', restored.amount_minor, 'proration', 'none'
        )
    FROM restored
    WHERE restored.at_stripe
    ORDER BY restored.subscription_id
    ON CONFLICT (idempotency_key) DO NOTHING
),

settled AS (
    UPDATE archive.rollback_entries AS e
    SET
        settled_at = :now,
        outcome = CASE WHEN judged.left_because IS NULL THEN 'restored' ELSE 'left_alone' END,
        left_because = judged.left_because
    FROM judged
    WHERE
        e.rollback_id = :rollback_id AND e.component = 'frequencies' AND e.subject = 'subscription'
        AND e.subject_id = judged.subject_id AND e.settled_at IS NULL
    RETURNING e.subject_id
)

SELECT
    count(*) AS changed,
    max(subject_id) AS last_id
FROM settled;

-- name: undo_frequency_changes(rollback_id, now, after, batch_size)^
-- Changes that the rollback canceled wait for the end of the period again, where they still fit their subscription, and Stripe
-- is told of them again.
WITH batch AS MATERIALIZED (
    SELECT e.subject_id FROM archive.rollback_entries AS e
    WHERE
        e.rollback_id = :rollback_id AND e.component = 'frequencies' AND e.subject = 'frequency_change'
        AND e.settled_at IS NULL
        AND e.subject_id > :after
    ORDER BY e.subject_id
    LIMIT :batch_size
    FOR UPDATE
),

judged AS MATERIALIZED (
    SELECT
        batch.subject_id,
        s.next_payment_at,
        CASE
            WHEN c.frequency_change_id IS NULL THEN 'it is gone'
            WHEN c.state <> 'canceled' THEN 'it was changed since'
            WHEN s.status = 'canceled' THEN 'its subscription was canceled since'
            WHEN s.payment_frequency <> c.from_frequency THEN 'its subscription pays by another frequency now'
            WHEN s.plan <> c.from_plan THEN 'its subscription is on another plan now'
            WHEN EXISTS (
                SELECT 1 FROM billing.frequency_changes AS other
                WHERE other.subscription_id = c.subscription_id AND other.state = 'scheduled'
            ) THEN 'another change was scheduled since'
        END AS left_because
    FROM batch
    LEFT JOIN billing.frequency_changes AS c ON batch.subject_id = c.frequency_change_id
    LEFT JOIN billing.subscriptions AS s ON c.subscription_id = s.subscription_id
),

restored AS (
    UPDATE billing.frequency_changes AS c
    SET state = 'scheduled', effective_at = coalesce(judged.next_payment_at, c.effective_at)
    FROM judged
    WHERE c.frequency_change_id = judged.subject_id AND judged.left_because IS NULL AND c.state = 'canceled'
    RETURNING c.subscription_id, c.to_plan, c.from_frequency, c.to_frequency, c.amount_minor
),

raised AS (
    UPDATE billing.subscriptions AS s
    SET version = s.version + 1
    FROM restored
    WHERE s.subscription_id = restored.subscription_id AND s.stripe_subscription_id IS NOT NULL
    RETURNING
        s.subscription_id, s.version, s.currency, coalesce(restored.to_plan, s.plan) AS plan,
        restored.to_frequency AS payment_frequency, restored.amount_minor,
        CASE WHEN restored.from_frequency <> restored.to_frequency THEN s.next_payment_at END AS next_payment_at
),

commanded AS (
    INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
    SELECT
        raised.subscription_id || ':change_price:' || raised.version,
        raised.subscription_id,
        'change_price',
        jsonb_strip_nulls(jsonb_build_object(
            'plan', raised.plan, 'payment_frequency', raised.payment_frequency, 'currency', raised.currency,
            'amount_minor', raised.amount_minor, 'proration', 'none', 'next_payment_at', raised.next_payment_at
        ))
    FROM raised
    ORDER BY raised.subscription_id
    ON CONFLICT (idempotency_key) DO NOTHING
),

settled AS (
    UPDATE archive.rollback_entries AS e
    SET
        settled_at = :now,
        outcome = CASE WHEN judged.left_because IS NULL THEN 'restored' ELSE 'left_alone' END,
        left_because = judged.left_because
    FROM judged
    WHERE
        e.rollback_id = :rollback_id AND e.component = 'frequencies' AND e.subject = 'frequency_change'
        AND e.subject_id = judged.subject_id AND e.settled_at IS NULL
    RETURNING e.subject_id
)

SELECT
    count(*) AS changed,
    max(subject_id) AS last_id
FROM settled;

-- name: undo_pauses(rollback_id, reason, now, after, batch_size, pause_mode)^
-- Pauses that are still as the rollback left them, and not over by now, go on; their subscriptions are paused again, with the
-- payment date that they had, and Stripe is told. A grace period that the rollback began is over with that.
WITH batch AS MATERIALIZED (
    SELECT
        e.subject_id,
        e.before,
        e.after,
        (e.before ->> 'subscription_id')::bigint AS subscription_id,
        (e.before ->> 'starts_at')::timestamptz AS starts_at,
        (e.before ->> 'ends_at')::timestamptz AS ends_at
    FROM archive.rollback_entries AS e
    WHERE e.rollback_id = :rollback_id AND e.component = 'pauses' AND e.subject = 'pause' AND e.settled_at IS NULL
        AND e.subject_id > :after
    ORDER BY e.subject_id
    LIMIT :batch_size
    FOR UPDATE
),

resumed AS MATERIALIZED (
    SELECT
        e.subject_id AS subscription_id,
        e.before,
        e.after
    FROM archive.rollback_entries AS e
    WHERE
        e.rollback_id = :rollback_id AND e.component = 'pauses' AND e.subject = 'subscription' AND e.settled_at IS NULL
        AND e.subject_id IN (SELECT batch.subscription_id FROM batch WHERE batch.before ->> 'state' = 'active')
    FOR UPDATE
),

held AS MATERIALIZED (
    SELECT
        s.subscription_id,
        s.status,
        s.next_payment_at,
        s.stripe_subscription_id IS NOT NULL AS at_stripe
    FROM billing.subscriptions AS s
    WHERE s.subscription_id IN (SELECT batch.subscription_id FROM batch)
    ORDER BY s.subscription_id
    FOR UPDATE
),

judged AS MATERIALIZED (
    SELECT
        batch.subject_id,
        batch.subscription_id,
        batch.starts_at,
        batch.ends_at,
        batch.before ->> 'state' AS state_before,
        held.at_stripe,
        resumed.subscription_id IS NOT NULL AS was_resumed,
        (resumed.before ->> 'next_payment_at')::timestamptz AS next_before,
        (resumed.after ->> 'next_payment_at')::timestamptz AS next_after,
        (resumed.before ->> 'billing_anchor')::timestamptz AS anchor_before,
        (resumed.after ->> 'billing_anchor')::timestamptz AS anchor_after,
        (resumed.after ->> 'grace')::bigint AS grace_id,
        resumed.after ->> 'status' AS status_after,
        CASE
            WHEN p.pause_id IS NULL OR held.subscription_id IS NULL THEN 'it is gone'
            WHEN p.version <> (batch.after ->> 'version')::bigint THEN 'it was changed since'
            WHEN held.status IN ('canceled', 'suspended') THEN 'its subscription is ' || held.status || ' now'
            WHEN batch.ends_at <= :now THEN 'it would be over by now'
            -- Left past due by the rollback, it may have paid since.
            WHEN resumed.subscription_id IS NOT NULL AND held.status NOT IN ('active', resumed.after ->> 'status')
                THEN 'its subscription is ' || held.status || ' now'
            WHEN EXISTS (
                SELECT 1 FROM billing.subscription_pauses AS other
                WHERE
                    other.subscription_id = batch.subscription_id AND other.state IN ('scheduled', 'active')
                    AND other.pause_id IS DISTINCT FROM (resumed.after ->> 'grace')::bigint
                    AND other.starts_at < coalesce(batch.ends_at, 'infinity')
                    AND coalesce(other.ends_at, 'infinity') > batch.starts_at
            ) THEN 'another pause was made since'
        END AS left_because
    FROM batch
    LEFT JOIN billing.subscription_pauses AS p ON batch.subject_id = p.pause_id
    LEFT JOIN held ON batch.subscription_id = held.subscription_id
    LEFT JOIN resumed ON batch.subscription_id = resumed.subscription_id AND batch.before ->> 'state' = 'active'
),

graces_over AS (
    UPDATE billing.subscription_pauses AS g
    SET state = 'canceled', version = g.version + 1, changed_at = :now
    FROM judged
    WHERE g.pause_id = judged.grace_id AND judged.left_because IS NULL AND g.state = 'active'
    RETURNING g.pause_id
),

going_on AS (
    UPDATE billing.subscription_pauses AS p
    SET state = judged.state_before, ends_at = judged.ends_at, version = p.version + 1, changed_at = :now
    FROM judged
    WHERE
        p.pause_id = judged.subject_id AND judged.left_because IS NULL
        -- Only after those: no pause may overlap with a grace period, not even within one statement.
        AND (SELECT count(*) FROM graces_over) >= 0
),

paused_again AS MATERIALIZED (
    SELECT
        judged.subscription_id,
        count(*) FILTER (WHERE judged.left_because IS NULL) AS pauses,
        nullif(
            max(coalesce(judged.ends_at, 'infinity'::timestamptz)) FILTER (WHERE judged.left_because IS NULL),
            'infinity'::timestamptz
        ) AS ends_at,
        bool_or(judged.at_stripe) AS at_stripe,
        max(judged.next_before) AS next_before,
        max(judged.next_after) AS next_after,
        max(judged.anchor_before) AS anchor_before,
        max(judged.status_after) AS status_after,
        max(judged.anchor_after) AS anchor_after
    FROM judged
    WHERE judged.was_resumed
    GROUP BY judged.subscription_id
),

paused AS (
    UPDATE billing.subscriptions AS s
    SET
        status = 'paused',
        next_payment_at = CASE
            WHEN s.next_payment_at = paused_again.next_after AND s.status = paused_again.status_after
                THEN paused_again.next_before
            -- What it owed then it has paid since: the next payment is the one after the invoice of that, as in the sweep.
            WHEN s.next_payment_at = paused_again.next_after THEN greatest(
                paused_again.next_before,
                billing.payment_after_invoice(
                    paused_again.anchor_before, coalesce(to_jsonb(s) ->> 'payment_frequency', 'MONTHLY'),
                    billing.failed_invoice_made_at(s.subscription_id),
                    (SELECT c.time_zone FROM billing.customers AS c WHERE c.customer_id = s.customer_id)
                )
            )
            ELSE s.next_payment_at
        END,
        billing_anchor = CASE
            WHEN s.billing_anchor = paused_again.anchor_after THEN paused_again.anchor_before
            ELSE s.billing_anchor
        END,
        version = s.version + 1,
        changed_at = :now,
        change_reason = :reason
    FROM paused_again
    WHERE
        s.subscription_id = paused_again.subscription_id AND paused_again.pauses > 0
        AND s.status IN ('active', paused_again.status_after)
    RETURNING s.subscription_id, s.version, paused_again.ends_at, paused_again.at_stripe
),

commanded AS (
    INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
    SELECT
        paused.subscription_id || ':pause:' || paused.version,
        paused.subscription_id,
        'pause',
        jsonb_build_object('mode', :pause_mode::text, 'resumes_at', paused.ends_at)
    FROM paused
    WHERE paused.at_stripe
    ORDER BY paused.subscription_id
    ON CONFLICT (idempotency_key) DO NOTHING
),

settled_subscriptions AS (
    UPDATE archive.rollback_entries AS e
    SET
        settled_at = :now,
        outcome = CASE WHEN paused_again.pauses = 0 THEN 'left_alone' ELSE 'restored' END,
        left_because = CASE WHEN paused_again.pauses = 0 THEN 'its pause was left alone' END
    FROM paused_again
    WHERE
        e.rollback_id = :rollback_id AND e.component = 'pauses' AND e.subject = 'subscription'
        AND e.subject_id = paused_again.subscription_id AND e.settled_at IS NULL
),

settled AS (
    UPDATE archive.rollback_entries AS e
    SET
        settled_at = :now,
        outcome = CASE WHEN judged.left_because IS NULL THEN 'restored' ELSE 'left_alone' END,
        left_because = judged.left_because
    FROM judged
    WHERE
        e.rollback_id = :rollback_id AND e.component = 'pauses' AND e.subject = 'pause'
        AND e.subject_id = judged.subject_id AND e.settled_at IS NULL
    RETURNING e.subject_id
)

SELECT
    count(*) AS changed,
    max(subject_id) AS last_id
FROM settled;

-- name: undo_reward_balances(rollback_id, now, after, batch_size)^
-- Balances were never touched: the undo says which are still what they were.
WITH batch AS MATERIALIZED (
    SELECT
        e.subject_id,
        (e.before ->> 'balance_minor')::bigint AS balance_minor
    FROM archive.rollback_entries AS e
    WHERE e.rollback_id = :rollback_id AND e.component = 'rewards' AND e.subject = 'reward_balance' AND e.settled_at IS NULL
        AND e.subject_id > :after
    ORDER BY e.subject_id
    LIMIT :batch_size
    FOR UPDATE
),

judged AS (
    SELECT
        batch.subject_id,
        CASE WHEN batch.balance_minor <> coalesce(sum(r.effect_minor), 0) THEN 'the balance has moved since' END AS left_because
    FROM batch
    LEFT JOIN billing.reward_entries AS r ON batch.subject_id = r.customer_id
    GROUP BY batch.subject_id, batch.balance_minor
),

settled AS (
    UPDATE archive.rollback_entries AS e
    SET
        settled_at = :now,
        outcome = CASE WHEN judged.left_because IS NULL THEN 'restored' ELSE 'left_alone' END,
        left_because = judged.left_because
    FROM judged
    WHERE
        e.rollback_id = :rollback_id AND e.component = 'rewards' AND e.subject = 'reward_balance'
        AND e.subject_id = judged.subject_id AND e.settled_at IS NULL
    RETURNING e.subject_id
)

SELECT
    count(*) AS changed,
    max(subject_id) AS last_id
FROM settled;

-- name: undo_feature(rollback_id, component, now)!
-- The kill switch goes back to how it stood, for the reason for which it did, unless somebody has set it since.
WITH entry AS MATERIALIZED (
    SELECT
        (e.before ->> 'enabled')::boolean AS enabled,
        e.before ->> 'reason' AS reason_before,
        f.enabled OR coalesce(f.reason, '') <> e.after ->> 'reason' AS set_since
    FROM archive.rollback_entries AS e
    INNER JOIN billing.feature_flags AS f ON e.component = f.feature
    WHERE e.rollback_id = :rollback_id AND e.component = :component AND e.subject = 'feature' AND e.settled_at IS NULL
    FOR UPDATE
),

switched AS (
    UPDATE billing.feature_flags AS f SET enabled = entry.enabled, reason = entry.reason_before, changed_at = :now
    FROM entry
    WHERE f.feature = :component AND NOT entry.set_since
)

UPDATE archive.rollback_entries AS e
SET
    settled_at = :now,
    outcome = CASE WHEN entry.set_since THEN 'left_alone' ELSE 'restored' END,
    left_because = CASE WHEN entry.set_since THEN 'the switch was set since' END
FROM entry
WHERE e.rollback_id = :rollback_id AND e.component = :component AND e.subject = 'feature' AND e.settled_at IS NULL;
