-- The outbox: what Stripe must be told.

-- name: pending_commands()$
-- How many commands Stripe has not been told yet.
SELECT count(*) FROM billing.stripe_commands WHERE state = 'pending';

-- name: supersede_commands()!
-- A canceled subscription has nothing left to be told but that it is canceled. Rows that a deliverer holds are left to it.
WITH moot AS (
    SELECT c.command_id
    FROM billing.stripe_commands AS c
    INNER JOIN billing.subscriptions AS s USING (subscription_id)
    WHERE c.state = 'pending' AND c.operation <> 'cancel' AND s.status = 'canceled'
    ORDER BY c.command_id
    FOR UPDATE OF c SKIP LOCKED
)

UPDATE billing.stripe_commands AS c
SET state = 'superseded', last_error = 'the subscription is canceled'
FROM moot
WHERE c.command_id = moot.command_id AND c.state = 'pending';

-- name: claim_commands(now, most)
-- The oldest pending command of each subscription, where it may be sent by now; locked until the transaction ends.
SELECT
    c.command_id,
    c.idempotency_key,
    c.operation,
    c.parameters,
    c.attempts,
    c.created_at,
    s.subscription_ref,
    s.stripe_subscription_id,
    p.stripe_price_id
FROM billing.stripe_commands AS c
INNER JOIN billing.subscriptions AS s USING (subscription_id)
LEFT JOIN billing.plan_prices AS p
    ON
        c.operation = 'change_price'
        AND p.plan = c.parameters ->> 'plan'
        AND p.payment_frequency = c.parameters ->> 'payment_frequency'
        AND p.currency = c.parameters ->> 'currency'
        AND p.amount_minor::text = c.parameters ->> 'amount_minor'
WHERE
    c.state = 'pending'
    AND c.not_before <= :now
    AND NOT EXISTS (
        SELECT 1
        FROM billing.stripe_commands AS earlier
        WHERE
            earlier.subscription_id = c.subscription_id
            AND earlier.state = 'pending'
            AND earlier.command_id < c.command_id
    )
ORDER BY c.command_id
LIMIT :most
FOR UPDATE OF c SKIP LOCKED;

-- name: mark_commands(outcomes)!
-- What became of the claimed commands, as a JSON array of objects, all at once.
UPDATE billing.stripe_commands AS c
SET
    state = o.state,
    attempts = c.attempts + o.tries,
    not_before = coalesce(o.not_before, c.not_before),
    delivered_at = o.delivered_at,
    last_error = o.error,
    parameters = c.parameters || coalesce(o.remember, '{}')
FROM jsonb_to_recordset(cast(:outcomes AS jsonb)) AS o (
    command_id bigint, state text, tries integer, not_before timestamptz, delivered_at timestamptz, error text, remember jsonb
)
WHERE c.command_id = o.command_id AND c.state = 'pending';
