-- name: deployed_components()^
-- Which components are there to be rolled back, and whether the archive is.
SELECT
    to_regclass('billing.frequency_changes') IS NOT NULL AS frequencies,
    to_regclass('billing.subscription_pauses') IS NOT NULL AS pauses,
    to_regclass('billing.reward_entries') IS NOT NULL AS rewards,
    to_regclass('archive.rollback_entries') IS NOT NULL AS archive;

-- name: feature_state(component)^
-- The component's kill switch.
SELECT
    enabled,
    reason
FROM billing.feature_flags WHERE feature = :component;

-- name: plan_frequencies()^
-- What a rollback of the frequencies would change.
SELECT
    count(*) FILTER (WHERE s.payment_frequency <> 'MONTHLY') AS subscriptions_moved_to_monthly,
    count(s.stripe_subscription_id) FILTER (
        WHERE s.payment_frequency <> 'MONTHLY' OR s.subscription_id IN (
            SELECT c.subscription_id FROM billing.frequency_changes AS c WHERE c.state = 'scheduled'
        )
    ) AS stripe_commands,
    count(*) FILTER (WHERE s.payment_frequency <> 'MONTHLY' AND m.plan IS NULL) AS without_monthly_price,
    count(*) FILTER (WHERE s.payment_frequency IN ('QUARTERLY', 'YEARLY')) AS paid_ahead,
    (SELECT count(*) FROM billing.frequency_changes AS c WHERE c.state = 'scheduled') AS frequency_changes_canceled
FROM billing.subscriptions AS s
LEFT JOIN billing.plan_prices AS m
    ON s.plan = m.plan AND s.currency = m.currency AND m.payment_frequency = 'MONTHLY'
WHERE s.status <> 'canceled';

-- name: plan_pauses()^
-- What a rollback of the pauses would change. Who owes is told as end_due_pauses, which ends them, does.
SELECT
    count(*) FILTER (WHERE p.state = 'active' AND p.kind <> 'payment_failure') AS pauses_ended,
    count(*) FILTER (WHERE p.state = 'scheduled' AND p.kind <> 'payment_failure') AS pauses_canceled,
    count(DISTINCT s.subscription_id) FILTER (
        WHERE p.state = 'active' AND p.kind <> 'payment_failure' AND s.status = 'paused'
    ) AS subscriptions_resumed,
    count(DISTINCT s.stripe_subscription_id) FILTER (
        WHERE p.state = 'active' AND p.kind <> 'payment_failure' AND s.status = 'paused'
    ) AS stripe_commands,
    count(DISTINCT s.subscription_id) FILTER (
        WHERE newest.outcome = 'failed' AND (newest.occurred_at >= p.starts_at OR coalesce((
            SELECT e.event FROM billing.subscription_events AS e
            WHERE e.subscription_id = s.subscription_id AND e.event NOT IN ('paused', 'changed')
            ORDER BY e.occurred_at DESC, e.recorded_at DESC, e.event_id DESC
            LIMIT 1
        ) = 'past_due', FALSE))
    ) AS paused_who_owe,
    count(*) FILTER (WHERE p.kind = 'payment_failure') AS grace_periods,
    (
        SELECT count(*) FROM billing.subscriptions AS lone
        WHERE lone.status = 'paused' AND NOT EXISTS (
            SELECT 1 FROM billing.subscription_pauses AS q
            WHERE q.subscription_id = lone.subscription_id AND q.state = 'active'
        )
    ) AS paused_without_pause
FROM billing.subscription_pauses AS p
INNER JOIN billing.subscriptions AS s ON p.subscription_id = s.subscription_id
LEFT JOIN LATERAL (
    SELECT
        y.occurred_at,
        y.outcome
    FROM billing.payments AS y
    WHERE y.subscription_id = p.subscription_id
        AND p.state = 'active' AND p.kind <> 'payment_failure' AND s.status = 'paused'
    ORDER BY y.occurred_at DESC, y.outcome DESC, y.attempt DESC, y.payment_ref DESC
    LIMIT 1
) AS newest ON TRUE
WHERE p.state IN ('scheduled', 'active');

-- name: plan_rewards()^
-- What a rollback of the rewards would set aside.
SELECT count(*) AS reward_balances_archived FROM billing.reward_balances WHERE balance_minor <> 0;

-- name: turn_feature_off(rollback_id, component, reason, now)!
-- The kill switch goes off; how it stood is kept.
WITH flag AS MATERIALIZED (
    SELECT
        f.enabled,
        f.reason
    FROM billing.feature_flags AS f WHERE f.feature = :component FOR UPDATE
),

archived AS (
    INSERT INTO archive.rollback_entries (rollback_id, component, subject, subject_id, before, after, archived_at)
    SELECT
        :rollback_id,
        :component,
        'feature',
        0,
        jsonb_build_object('enabled', flag.enabled, 'reason', flag.reason),
        jsonb_build_object('enabled', FALSE, 'reason', :reason::text),
        :now
    FROM flag
    ON CONFLICT ON CONSTRAINT rollback_entries_pkey DO NOTHING
)

UPDATE billing.feature_flags AS f SET enabled = FALSE, reason = :reason, changed_at = :now
FROM flag
WHERE f.feature = :component AND f.reason IS DISTINCT FROM :reason;

-- name: cancel_frequency_changes(rollback_id, now, after, batch_size)^
-- Changes that wait for their day are canceled, and Stripe, which knows of them, is told the present terms; of those who pay by
-- another frequency it hears with their move to monthly. Stripe counts from the date that is named: so do we.
WITH batch AS MATERIALIZED (
    SELECT c.frequency_change_id FROM billing.frequency_changes AS c
    WHERE c.state = 'scheduled' AND c.frequency_change_id > :after
    ORDER BY c.frequency_change_id
    LIMIT :batch_size
    FOR UPDATE
),

canceled AS (
    UPDATE billing.frequency_changes AS c SET state = 'canceled'
    FROM batch
    WHERE c.frequency_change_id = batch.frequency_change_id AND c.state = 'scheduled'
    RETURNING c.frequency_change_id, c.subscription_id, c.from_frequency <> c.to_frequency AS crosses
),

raised AS (
    UPDATE billing.subscriptions AS s
    SET
        version = s.version + 1,
        billing_anchor = CASE WHEN canceled.crosses THEN coalesce(s.next_payment_at, s.billing_anchor) ELSE s.billing_anchor END
    FROM canceled
    WHERE
        s.subscription_id = canceled.subscription_id AND s.payment_frequency = 'MONTHLY' AND s.status <> 'canceled'
        AND s.stripe_subscription_id IS NOT NULL
    RETURNING
        s.subscription_id, s.plan, s.currency, s.amount_minor,
        s.subscription_id || ':change_price:' || s.version AS command,
        CASE WHEN canceled.crosses THEN s.next_payment_at END AS next_payment_at
),

commanded AS (
    INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
    SELECT
        raised.command,
        raised.subscription_id,
        'change_price',
        jsonb_strip_nulls(jsonb_build_object(
            'plan', raised.plan, 'payment_frequency', 'MONTHLY', 'currency', raised.currency,
            'amount_minor', raised.amount_minor, 'proration', 'none', 'next_payment_at', raised.next_payment_at
        ))
    FROM raised
    ORDER BY raised.subscription_id
    ON CONFLICT (idempotency_key) DO NOTHING
),

archived AS (
    INSERT INTO archive.rollback_entries (rollback_id, component, subject, subject_id, before, after, archived_at)
    SELECT
        :rollback_id,
        'frequencies',
        'frequency_change',
        canceled.frequency_change_id,
        jsonb_build_object('state', 'scheduled', 'subscription_id', canceled.subscription_id),
        jsonb_build_object('state', 'canceled', 'command', raised.command),
        :now
    FROM canceled
    LEFT JOIN raised ON canceled.subscription_id = raised.subscription_id
    ON CONFLICT ON CONSTRAINT rollback_entries_pkey DO NOTHING
)

SELECT
    count(*) AS changed,
    max(frequency_change_id) AS last_id
FROM canceled;

-- name: move_to_monthly(rollback_id, reason, now, after, batch_size)^
-- Subscriptions behind a key that pay by another frequency go to the monthly price, or, where their plan has none, to what
-- their run rate makes a month (half up). Terms kept, history, change and Stripe command in one statement.
WITH batch AS MATERIALIZED (
    SELECT
        s.subscription_id,
        s.plan,
        s.currency,
        s.payment_frequency,
        s.amount_minor,
        s.status,
        s.next_payment_at,
        s.version,
        s.stripe_subscription_id IS NOT NULL AS at_stripe
    FROM billing.subscriptions AS s
    WHERE s.payment_frequency <> 'MONTHLY' AND s.status <> 'canceled' AND s.subscription_id > :after
    ORDER BY s.subscription_id
    LIMIT :batch_size
    FOR UPDATE
),

terms AS (
    SELECT
        batch.subscription_id,
        batch.payment_frequency,
        batch.amount_minor,
        batch.status,
        batch.next_payment_at,
        batch.version,
        batch.at_stripe,
        m.amount_minor IS NULL AS derived,
        coalesce(m.amount_minor, (2 * batch.amount_minor * CASE batch.payment_frequency
            WHEN 'WEEKLY' THEN 52 WHEN 'BIWEEKLY' THEN 26 WHEN 'QUARTERLY' THEN 4 ELSE 1
        END + 12) / 24) AS monthly_minor
    FROM batch
    LEFT JOIN billing.plan_prices AS m
        ON batch.plan = m.plan AND batch.currency = m.currency AND m.payment_frequency = 'MONTHLY'
),

changed AS (
    UPDATE billing.subscriptions AS s
    SET
        payment_frequency = 'MONTHLY', amount_minor = terms.monthly_minor, version = s.version + 1, changed_at = :now,
        change_reason = :reason,
        -- The end of the period that was billed is kept, and later dates follow from it: so Stripe does it too. A date
        -- that has passed was billed already, whether or not it is paid.
        billing_anchor = CASE
            WHEN s.next_payment_at <= :now THEN (
                SELECT billing.next_payment_at(s.billing_anchor, s.payment_frequency, s.next_payment_at, c.time_zone)
                FROM billing.customers AS c
                WHERE c.customer_id = s.customer_id
            )
            ELSE coalesce(s.next_payment_at, s.billing_anchor)
        END
    FROM terms
    WHERE s.subscription_id = terms.subscription_id AND s.payment_frequency <> 'MONTHLY' AND s.status <> 'canceled'
    RETURNING
        s.subscription_id, s.plan, s.currency, s.amount_minor, s.version, terms.payment_frequency AS frequency_before,
        terms.amount_minor AS amount_before, terms.status, terms.next_payment_at, terms.version AS version_before,
        terms.derived, terms.at_stripe,
        CASE WHEN terms.at_stripe THEN s.subscription_id || ':change_price:' || s.version END AS command
),

archived AS (
    INSERT INTO archive.rollback_entries (rollback_id, component, subject, subject_id, before, after, archived_at)
    SELECT
        :rollback_id,
        'frequencies',
        'subscription',
        changed.subscription_id,
        jsonb_build_object(
            'plan', changed.plan, 'currency', changed.currency, 'payment_frequency', changed.frequency_before,
            'amount_minor', changed.amount_before, 'status', changed.status, 'next_payment_at', changed.next_payment_at,
            'version', changed.version_before
        ),
        jsonb_build_object(
            'plan', changed.plan, 'currency', changed.currency, 'payment_frequency', 'MONTHLY',
            'amount_minor', changed.amount_minor, 'version', changed.version, 'derived', changed.derived,
            'command', changed.command
        ),
        :now
    FROM changed
    ON CONFLICT ON CONSTRAINT rollback_entries_pkey DO UPDATE SET after = excluded.after
),

recorded AS (
    INSERT INTO billing.frequency_changes
    (subscription_id, from_frequency, to_frequency, amount_minor, requested_at, effective_at, currency, state)
    SELECT
        changed.subscription_id,
        changed.frequency_before,
        'MONTHLY',
        changed.amount_minor,
        :now,
        :now,
        changed.currency,
        'applied'
    FROM changed
),

commanded AS (
    INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
    SELECT
        changed.command,
        changed.subscription_id,
        'change_price',
        jsonb_build_object(
            'plan', changed.plan, 'payment_frequency', 'MONTHLY', 'currency', changed.currency,
            'amount_minor', changed.amount_minor, 'proration', 'none'
        )
    FROM changed
    WHERE changed.at_stripe
    ORDER BY changed.subscription_id
    ON CONFLICT (idempotency_key) DO NOTHING
)

SELECT
    (SELECT count(*) FROM changed) AS changed,
    (SELECT max(batch.subscription_id) FROM batch) AS last_id;

-- name: cancel_pauses(rollback_id, now, after, batch_size)^
-- Pauses that were to begin are canceled; the grace period after a failed payment is no feature of ours to take away.
WITH batch AS MATERIALIZED (
    SELECT p.pause_id FROM billing.subscription_pauses AS p
    WHERE p.state = 'scheduled' AND p.kind <> 'payment_failure' AND p.pause_id > :after
    ORDER BY p.pause_id
    LIMIT :batch_size
    FOR UPDATE
),

canceled AS (
    UPDATE billing.subscription_pauses AS p SET state = 'canceled', version = p.version + 1, changed_at = :now
    FROM batch
    WHERE p.pause_id = batch.pause_id AND p.state = 'scheduled' AND p.kind <> 'payment_failure'
    RETURNING p.pause_id, p.subscription_id, p.starts_at, p.ends_at, p.version
),

archived AS (
    INSERT INTO archive.rollback_entries (rollback_id, component, subject, subject_id, before, after, archived_at)
    SELECT
        :rollback_id,
        'pauses',
        'pause',
        canceled.pause_id,
        jsonb_build_object(
            'state', 'scheduled', 'subscription_id', canceled.subscription_id, 'starts_at', canceled.starts_at,
            'ends_at', canceled.ends_at
        ),
        jsonb_build_object('state', 'canceled', 'version', canceled.version),
        :now
    FROM canceled
    ON CONFLICT ON CONSTRAINT rollback_entries_pkey DO UPDATE SET after = excluded.after
)

SELECT
    count(*) AS changed,
    max(pause_id) AS last_id
FROM canceled;

-- name: cut_pauses(rollback_id, now, after, batch_size)^
-- Customers' and admins' pauses behind a key end now (or when they should have, if that is past), and what they and their
-- subscriptions held is archived. The sweep's own statement ends them, in the same transaction; the archive then takes down
-- what it left. Of several that hold one subscription the last comes first: it is the one that counts.
WITH batch AS MATERIALIZED (
    SELECT
        p.pause_id,
        p.subscription_id,
        p.starts_at,
        p.ends_at
    FROM billing.subscription_pauses AS p
    WHERE
        p.state = 'active' AND p.kind <> 'payment_failure' AND p.pause_id > :after
        AND NOT EXISTS (
            SELECT 1 FROM billing.subscription_pauses AS later
            WHERE
                later.subscription_id = p.subscription_id AND later.starts_at > p.starts_at
                AND later.state = 'active' AND later.kind <> 'payment_failure'
        )
    ORDER BY p.pause_id
    LIMIT :batch_size
    FOR UPDATE
),

held AS MATERIALIZED (
    -- Waited for: the statement that ends them leaves alone what somebody else holds.
    SELECT
        s.subscription_id,
        s.status,
        s.next_payment_at,
        s.billing_anchor,
        s.version
    FROM billing.subscriptions AS s
    WHERE s.subscription_id IN (SELECT batch.subscription_id FROM batch)
    ORDER BY s.subscription_id
    FOR UPDATE
),

cut AS (
    UPDATE billing.subscription_pauses AS p
    SET ends_at = least(p.ends_at, greatest(:now, p.starts_at + interval '1 microsecond')), changed_at = :now
    FROM batch
    WHERE p.pause_id = batch.pause_id AND p.state = 'active'
    RETURNING p.pause_id, p.ends_at
),

archived_pauses AS (
    INSERT INTO archive.rollback_entries (rollback_id, component, subject, subject_id, before, after, archived_at)
    SELECT
        :rollback_id,
        'pauses',
        'pause',
        batch.pause_id,
        jsonb_build_object(
            'state', 'active', 'subscription_id', batch.subscription_id, 'starts_at', batch.starts_at, 'ends_at', batch.ends_at
        ),
        '{}',
        :now
    FROM batch
    ON CONFLICT ON CONSTRAINT rollback_entries_pkey DO UPDATE SET after = excluded.after
),

archived_subscriptions AS (
    INSERT INTO archive.rollback_entries (rollback_id, component, subject, subject_id, before, after, archived_at)
    SELECT
        :rollback_id,
        'pauses',
        'subscription',
        held.subscription_id,
        jsonb_build_object(
            'status', held.status, 'next_payment_at', held.next_payment_at, 'billing_anchor', held.billing_anchor,
            'version', held.version
        ),
        '{}',
        :now
    FROM held
    WHERE held.status = 'paused'
    ON CONFLICT ON CONSTRAINT rollback_entries_pkey DO UPDATE SET after = excluded.after
)

SELECT
    (SELECT coalesce(array_agg(cut.pause_id), '{}') FROM cut) AS pause_ids,
    (SELECT max(cut.ends_at) FROM cut) AS up_to,
    (SELECT max(batch.pause_id) FROM batch) AS last_id;

-- name: archive_ended_pauses(rollback_id, pause_ids)!
-- What the end of these pauses left: of them, of their subscriptions, and the grace periods of those who owe a payment.
WITH ended AS MATERIALIZED (
    SELECT
        p.pause_id,
        p.subscription_id,
        p.state,
        p.ends_at,
        p.version
    FROM billing.subscription_pauses AS p
    WHERE p.pause_id = any(cast(:pause_ids AS bigint[]))
),

pauses AS (
    UPDATE archive.rollback_entries AS e
    SET after = jsonb_build_object('state', ended.state, 'ends_at', ended.ends_at, 'version', ended.version)
    FROM ended
    WHERE
        e.rollback_id = :rollback_id AND e.component = 'pauses' AND e.subject = 'pause' AND e.subject_id = ended.pause_id
        AND e.after = '{}'
)

UPDATE archive.rollback_entries AS e
SET
    after = jsonb_build_object(
        'status', s.status, 'next_payment_at', s.next_payment_at, 'billing_anchor', s.billing_anchor, 'version', s.version,
        'command', c.idempotency_key, 'grace', g.pause_id
    )
FROM ended
INNER JOIN billing.subscriptions AS s ON ended.subscription_id = s.subscription_id
LEFT JOIN billing.stripe_commands AS c ON s.subscription_id || ':resume:' || s.version = c.idempotency_key
LEFT JOIN billing.subscription_pauses AS g ON 'grace:' || ended.pause_id || ':' || s.version = g.pause_ref
WHERE
    e.rollback_id = :rollback_id AND e.component = 'pauses' AND e.subject = 'subscription' AND e.subject_id = s.subscription_id
    AND e.after = '{}';

-- name: archive_reward_balances(rollback_id, now, after, batch_size)^
-- The balances of customers behind a key, as they stand: nothing is taken from anybody.
WITH balances AS (
    SELECT
        r.customer_id,
        sum(r.effect_minor)::bigint AS balance_minor
    FROM billing.reward_entries AS r
    WHERE r.customer_id > :after
    GROUP BY r.customer_id
    HAVING sum(r.effect_minor) <> 0
    ORDER BY r.customer_id
    LIMIT :batch_size
),

archived AS (
    INSERT INTO archive.rollback_entries (rollback_id, component, subject, subject_id, before, after, archived_at)
    SELECT
        :rollback_id,
        'rewards',
        'reward_balance',
        balances.customer_id,
        jsonb_build_object('balance_minor', balances.balance_minor),
        jsonb_build_object('balance_minor', balances.balance_minor),
        :now
    FROM balances
    ON CONFLICT ON CONSTRAINT rollback_entries_pkey DO NOTHING
)

SELECT
    count(*) AS changed,
    max(customer_id) AS last_id
FROM balances;

-- name: analyze_archive()!
-- What was just written is told to the planner, which would else guess that a batch holds one row.
ANALYZE archive.rollback_entries;
