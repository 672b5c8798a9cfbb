-- The outbox: what Stripe must be told.

-- name: pending_commands()$
-- How many commands Stripe has not been told yet.
SELECT count(*) FROM billing.stripe_commands WHERE state = 'pending';

-- name: supersede_commands()!
-- A canceled subscription has nothing left to be told but that it is canceled.
UPDATE billing.stripe_commands AS c
SET state = 'superseded', last_error = 'the subscription is canceled'
FROM billing.subscriptions AS s
WHERE s.subscription_id = c.subscription_id AND s.status = 'canceled' AND c.state = 'pending' AND c.operation <> 'cancel';

-- name: walk_the_queue()^
-- For this transaction: the queue is walked from its head, also where statistics do not know yet how long it has become.
SELECT
    set_config('enable_sort', 'off', TRUE) AS enable_sort,
    set_config('enable_hashjoin', 'off', TRUE) AS enable_hashjoin,
    set_config('enable_mergejoin', 'off', TRUE) AS enable_mergejoin,
    set_config('enable_bitmapscan', 'off', TRUE) AS enable_bitmapscan;

-- name: next_commands(now, in_flight, most)
-- The oldest pending command of each subscription that has none in flight, where it may be sent by now.
SELECT
    c.command_id,
    c.subscription_id,
    c.idempotency_key,
    c.operation,
    c.parameters,
    c.attempts,
    c.created_at,
    s.subscription_ref,
    s.stripe_subscription_id,
    s.next_payment_at,
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
    AND NOT c.subscription_id = any(cast(:in_flight AS bigint[]))
    AND NOT EXISTS (
        SELECT 1
        FROM billing.stripe_commands AS earlier
        WHERE
            earlier.subscription_id = c.subscription_id
            AND earlier.state = 'pending'
            AND earlier.command_id < c.command_id
    )
ORDER BY c.command_id
LIMIT :most;

-- name: mark_commands(outcomes)!
-- What became of commands, as a JSON array of objects, all at once.
UPDATE billing.stripe_commands AS c
SET
    state = o.state,
    attempts = c.attempts + o.tries,
    not_before = coalesce(o.not_before, c.not_before),
    delivered_at = o.delivered_at,
    last_error = o.error,
    alert = NULL,
    alerted_at = NULL,
    parameters = c.parameters || coalesce(o.remember, '{}')
FROM jsonb_to_recordset(cast(:outcomes AS jsonb)) AS o (
    command_id bigint, state text, tries integer, not_before timestamptz, delivered_at timestamptz, error text, remember jsonb
)
WHERE c.command_id = o.command_id AND c.state = 'pending';

-- name: parked_commands()
-- What Stripe refused for good, oldest first.
SELECT
    c.command_id,
    s.subscription_ref,
    c.operation,
    c.attempts,
    c.created_at,
    c.last_error AS reason,
    c.alerted_at
FROM billing.stripe_commands AS c
INNER JOIN billing.subscriptions AS s USING (subscription_id)
WHERE c.state = 'parked'
ORDER BY c.command_id;

-- name: retry_parked(command_ids)^
-- Parked commands (null: all) become pending, with a key that has no answer yet. One that a later command of the same kind
-- has overtaken must not undo it: that one is over.
WITH chosen AS MATERIALIZED (
    SELECT
        c.command_id,
        (
            SELECT count(*) > 0 FROM billing.stripe_commands AS later
            WHERE
                later.subscription_id = c.subscription_id AND later.command_id > c.command_id
                AND later.state IN ('pending', 'delivered')
                AND (
                    later.operation IN (c.operation, 'cancel')
                    OR (later.operation IN ('pause', 'resume') AND c.operation IN ('pause', 'resume', 'move_payment'))
                )
        ) AS overtaken
    FROM billing.stripe_commands AS c
    WHERE c.state = 'parked' AND (cast(:command_ids AS bigint[]) IS NULL OR c.command_id = any(cast(:command_ids AS bigint[])))
    ORDER BY c.command_id
    FOR UPDATE OF c
),

changed AS (
    UPDATE billing.stripe_commands AS c
    SET
        state = CASE WHEN chosen.overtaken THEN 'superseded' ELSE 'pending' END,
        last_error = CASE WHEN chosen.overtaken THEN 'a later command has taken its place' END,
        not_before = '-infinity', alert = NULL, alerted_at = NULL,
        parameters = c.parameters
        || jsonb_build_object('key_generation', coalesce((c.parameters ->> 'key_generation')::integer, 0) + 1)
    FROM chosen
    WHERE c.command_id = chosen.command_id AND c.state = 'parked'
    RETURNING chosen.overtaken
)

SELECT
    count(*) FILTER (WHERE NOT overtaken) AS retried,
    count(*) FILTER (WHERE overtaken) AS superseded
FROM changed;

-- name: assign_alert()!
-- Commands that were parked since the last alert get the next one, named after the first of them.
UPDATE billing.stripe_commands AS c
SET alert = named.alert
FROM (
    SELECT 'stripe-parked:' || first.command_id || ':' || first.attempts AS alert
    FROM billing.stripe_commands AS first
    WHERE first.state = 'parked' AND first.alert IS NULL
    ORDER BY first.command_id
    LIMIT 1
) AS named
WHERE c.state = 'parked' AND c.alert IS NULL;

-- name: untold_alerts()
-- Alerts of parked commands that may not be raised yet: their commands, and the reasons, the most frequent first.
SELECT
    alert,
    sum(commands)::bigint AS commands,
    jsonb_agg(
        jsonb_build_object('operation', operation, 'reason', reason, 'commands', commands) ORDER BY commands DESC
    ) AS reasons
FROM (
    SELECT
        alert,
        operation,
        left(last_error, 200) AS reason,
        count(*) AS commands
    FROM billing.stripe_commands
    WHERE state = 'parked' AND alert IS NOT NULL AND alerted_at IS NULL
    GROUP BY alert, operation, left(last_error, 200)
) AS counted
GROUP BY alert
ORDER BY alert;

-- name: mark_alerted(alert, now)!
-- The alert stands in the control database.
UPDATE billing.stripe_commands SET alerted_at = :now WHERE alert = :alert AND state = 'parked' AND alerted_at IS NULL;
