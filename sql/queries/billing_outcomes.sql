-- What payment attempts do to their subscriptions.

-- name: apply_failed_payments(payment_ids)^
-- Subscriptions whose latest attempt failed become past due. One that the ledger already calls past due since then is done.
WITH latest AS MATERIALIZED (
    SELECT
        s.subscription_id,
        newest.payment_id,
        newest.outcome,
        newest.occurred_at
    FROM billing.subscriptions AS s
    CROSS JOIN
        LATERAL (
            SELECT
                p.payment_id,
                p.outcome,
                p.occurred_at
            FROM billing.payments AS p
            WHERE p.subscription_id = s.subscription_id
            ORDER BY p.occurred_at DESC, p.attempt DESC, p.payment_id DESC
            LIMIT 1
        ) AS newest
    WHERE
        s.subscription_id IN (
            SELECT p.subscription_id FROM billing.payments AS p WHERE p.payment_id = any(cast(:payment_ids AS bigint[]))
        )
    ORDER BY s.subscription_id
    FOR NO KEY UPDATE OF s
),

changed AS (
    UPDATE billing.subscriptions AS s
    SET
        status = 'past_due', version = s.version + 1, changed_at = greatest(latest.occurred_at, s.changed_at),
        change_reason = 'payment failed'
    FROM latest
    WHERE
        s.subscription_id = latest.subscription_id AND latest.outcome = 'failed' AND s.status IN ('active', 'trialing')
        AND NOT EXISTS (
            SELECT 1 FROM billing.subscription_events AS e
            WHERE e.subscription_id = s.subscription_id AND e.event = 'past_due' AND e.occurred_at >= latest.occurred_at
        )
    RETURNING latest.payment_id
)

SELECT
    count(*) AS failed,
    coalesce(array_agg(payment_id), '{}') AS payment_ids
FROM changed;

-- name: open_grace_periods(payment_ids, grace_days, now)!
-- A grace period for each failed payment that made a subscription past due. A pause that is on the calendar in that time stands.
INSERT INTO billing.subscription_pauses
(pause_ref, subscription_id, starts_at, ends_at, kind, reason, state, changed_at)
SELECT
    'grace-' || p.payment_ref AS pause_ref,
    p.subscription_id,
    p.occurred_at AS starts_at,
    p.occurred_at + make_interval(days => :grace_days) AS ends_at,
    'payment_failure' AS kind,
    coalesce(p.failure_code, p.failure_class, 'payment failed') AS reason,
    'active' AS state,
    :now AS changed_at
FROM billing.payments AS p
WHERE p.payment_id = any(cast(:payment_ids AS bigint[]))
ON CONFLICT DO NOTHING;

-- name: apply_succeeded_payments(payment_ids, pause_mode)^
-- Subscriptions whose latest attempt succeeded: past due, suspended or on trial become active, the next payment date advances.
-- What was suspended was paused at Stripe, so that is told to resume it.
WITH latest AS MATERIALIZED (
    SELECT
        s.subscription_id,
        s.status,
        s.next_payment_at,
        newest.outcome,
        newest.amount_minor,
        newest.occurred_at,
        billing.next_payment_at(
            s.billing_anchor, coalesce(to_jsonb(s) ->> 'payment_frequency', 'MONTHLY'), newest.occurred_at, c.time_zone
        ) AS advanced
    FROM billing.subscriptions AS s
    INNER JOIN billing.customers AS c ON s.customer_id = c.customer_id
    CROSS JOIN
        LATERAL (
            SELECT
                p.outcome,
                p.amount_minor,
                p.occurred_at
            FROM billing.payments AS p
            WHERE p.subscription_id = s.subscription_id
            ORDER BY p.occurred_at DESC, p.attempt DESC, p.payment_id DESC
            LIMIT 1
        ) AS newest
    WHERE
        s.subscription_id IN (
            SELECT p.subscription_id FROM billing.payments AS p WHERE p.payment_id = any(cast(:payment_ids AS bigint[]))
        )
    ORDER BY s.subscription_id
    FOR NO KEY UPDATE OF s
),

planned AS (
    SELECT
        *,
        -- The free invoice at the start of a trial is paid, too: only money ends a trial.
        status IN ('past_due', 'suspended') OR (status = 'trialing' AND amount_minor > 0) AS activates
    FROM latest
    WHERE outcome = 'succeeded' AND status <> 'canceled'
),

changed AS (
    UPDATE billing.subscriptions AS s
    SET
        status = CASE WHEN planned.activates THEN 'active' ELSE s.status END,
        next_payment_at = greatest(s.next_payment_at, planned.advanced),
        version = s.version + 1, changed_at = greatest(planned.occurred_at, s.changed_at), change_reason = 'payment succeeded'
    FROM planned
    WHERE
        s.subscription_id = planned.subscription_id AND s.status = planned.status
        AND (planned.activates OR planned.advanced > s.next_payment_at OR s.next_payment_at IS NULL)
    RETURNING s.subscription_id, s.version, s.stripe_subscription_id, planned.status AS was
),

told AS (
    INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
    SELECT
        changed.subscription_id || ':resume:' || changed.version AS idempotency_key,
        changed.subscription_id,
        'resume' AS operation,
        jsonb_build_object('mode', coalesce((
            SELECT (array_agg(c.parameters ->> 'mode' ORDER BY c.command_id DESC))[1]
            FROM billing.stripe_commands AS c
            WHERE c.subscription_id = changed.subscription_id AND c.operation = 'pause'
        ), cast(:pause_mode AS text))) AS parameters
    FROM changed
    WHERE changed.was = 'suspended' AND changed.stripe_subscription_id IS NOT NULL
)

SELECT
    (SELECT count(*) FROM changed WHERE was IN ('past_due', 'suspended')) AS recovered,
    (SELECT coalesce(array_agg(subscription_id), '{}') FROM planned) AS subscription_ids;

-- name: close_grace_periods(subscription_ids, now)!
-- A payment came in: what is left of the grace period is void. The latest attempt says when.
UPDATE billing.subscription_pauses AS g
SET
    state = 'completed', version = g.version + 1, changed_at = :now,
    ends_at = greatest(least(g.ends_at, paid.occurred_at), g.starts_at + interval '1 microsecond')
FROM (
    SELECT
        p.subscription_id,
        max(p.occurred_at) AS occurred_at
    FROM billing.payments AS p
    WHERE p.subscription_id = any(cast(:subscription_ids AS bigint[])) AND p.outcome = 'succeeded'
    GROUP BY p.subscription_id
) AS paid
WHERE
    g.subscription_id = paid.subscription_id AND g.kind = 'payment_failure' AND g.state IN ('scheduled', 'active')
    AND g.starts_at <= paid.occurred_at;
