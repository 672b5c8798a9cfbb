-- Stripe: links, outbox, events, reconciliation, and what the sandbox account is filled with.

-- name: seed_prices()
-- Every price in use or on the list. One that is not on the list has no lookup key.
-- The row is read as JSON where the column comes with a component that may not be deployed.
SELECT
    used.plan,
    used.payment_frequency,
    used.currency,
    used.amount_minor,
    CASE WHEN p.plan IS NOT NULL THEN used.plan || ':' || used.payment_frequency || ':' || used.currency END AS lookup_key
FROM (
    SELECT
        s.plan,
        coalesce(to_jsonb(s) ->> 'payment_frequency', 'MONTHLY') AS payment_frequency,
        s.currency,
        s.amount_minor
    FROM billing.subscriptions AS s
    WHERE s.status <> 'canceled'
    UNION
    SELECT
        plan,
        payment_frequency,
        currency,
        amount_minor
    FROM billing.plan_prices
) AS used
LEFT JOIN billing.plan_prices AS p USING (plan, payment_frequency, currency, amount_minor)
ORDER BY used.plan, used.payment_frequency, used.currency, used.amount_minor;

-- name: seed_customers()
-- Customers who have a subscription that is not canceled, in the order in which they came.
SELECT
    c.customer_ref,
    c.email,
    c.currency,
    extract(EPOCH FROM c.created_at)::bigint AS created
FROM billing.customers AS c
WHERE EXISTS (SELECT 1 FROM billing.subscriptions AS s WHERE s.customer_id = c.customer_id AND s.status <> 'canceled')
ORDER BY c.customer_id;

-- name: seed_subscriptions()
-- Every subscription that is not canceled, times in epoch seconds.
SELECT
    s.subscription_id,
    s.subscription_ref,
    c.customer_ref,
    s.plan,
    coalesce(to_jsonb(s) ->> 'payment_frequency', 'MONTHLY') AS payment_frequency,
    s.currency,
    s.amount_minor,
    s.quantity,
    s.status,
    extract(EPOCH FROM s.started_at)::bigint AS started,
    extract(EPOCH FROM s.billing_anchor)::bigint AS anchor,
    extract(EPOCH FROM s.next_payment_at)::bigint AS next_payment
FROM billing.subscriptions AS s
INNER JOIN billing.customers AS c USING (customer_id)
WHERE s.status <> 'canceled'
ORDER BY s.subscription_id;

-- name: pauses_deployed()$
-- Whether the pauses component is there.
SELECT to_regclass('billing.subscription_pauses') IS NOT NULL AS deployed;

-- name: seed_pause_ends()
-- When the pauses that are on now end, in epoch seconds; null: when somebody resumes.
SELECT
    subscription_id,
    extract(EPOCH FROM ends_at)::bigint AS ends
FROM billing.subscription_pauses
WHERE state = 'active' AND kind <> 'payment_failure';

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

-- name: link_customers()!
-- Customers get the ids under which Stripe knows them.
UPDATE billing.customers AS c
SET stripe_customer_id = found.stripe_id
FROM (SELECT
ref,
min(stripe_id) AS stripe_id
FROM stripe_links WHERE kind = 'customer' GROUP BY ref) AS found
WHERE c.customer_ref = found.ref AND c.stripe_customer_id IS DISTINCT FROM found.stripe_id;

-- name: link_prices()!
-- Prices of the list get the ids of the Stripe prices with their lookup key.
UPDATE billing.plan_prices AS p
SET stripe_price_id = found.stripe_id
FROM stripe_links AS found
WHERE
    found.kind = 'price'
    AND found.ref = p.plan || ':' || p.payment_frequency || ':' || p.currency
    AND p.stripe_price_id IS DISTINCT FROM found.stripe_id;

-- name: link_subscriptions()!
-- Subscriptions get the id of the newest Stripe subscription with their reference; a living one before a canceled one.
-- The version is raised here, so that the trigger leaves changed_at and its reason alone.
UPDATE billing.subscriptions AS s
SET stripe_subscription_id = found.stripe_id, version = s.version + 1
FROM (
    SELECT DISTINCT ON (ref)
        ref,
        stripe_id
    FROM stripe_links
    WHERE kind = 'subscription'
    ORDER BY ref ASC, alive DESC, position ASC, stripe_id ASC
) AS found
WHERE s.subscription_ref = found.ref AND s.stripe_subscription_id IS DISTINCT FROM found.stripe_id;

-- name: newest_event()$
-- Up to where events are known: epoch seconds, or null.
SELECT extract(EPOCH FROM max(created))::bigint FROM billing.stripe_events;

-- name: store_events()!
-- Events that came in, once each.
INSERT INTO billing.stripe_events (stripe_event_id, type, created, subject_id, object)
SELECT DISTINCT ON (stripe_event_id)
    stripe_event_id,
    type,
    created,
    subject_id,
    object
FROM incoming_stripe_events
ORDER BY stripe_event_id
ON CONFLICT (stripe_event_id) DO NOTHING;

-- name: failures_without_reason()
-- Failed invoices, not applied yet, whose PaymentIntent is not known: Stripe must be asked which one it is, and why.
SELECT DISTINCT e.subject_id AS invoice
FROM billing.stripe_events AS e
WHERE
    e.applied_at IS NULL
    AND e.type = 'invoice.payment_failed'
    AND NOT e.object ? 'failure'
    AND EXISTS (
        SELECT 1
        FROM billing.subscriptions AS s
        WHERE s.stripe_subscription_id = e.object ->> 'subscription'
    )
ORDER BY e.subject_id;

-- name: store_failures(failures)!
-- What Stripe answered, kept with the events: invoice, payment_intent, type, code, decline_code, failure_class.
UPDATE billing.stripe_events AS e
SET object = e.object || jsonb_build_object('failure', f.failure)
FROM jsonb_to_recordset(cast(:failures AS jsonb)) AS f (invoice text, failure jsonb)
WHERE e.subject_id = f.invoice AND e.type = 'invoice.payment_failed' AND e.applied_at IS NULL;

-- name: lock_unapplied_events()
-- Events that nothing has been made of yet, locked so that two readers do not apply one twice.
-- An event about a subscription that is not linked waits until it is.
SELECT e.stripe_event_id
FROM billing.stripe_events AS e
LEFT JOIN billing.subscriptions AS s ON s.stripe_subscription_id = e.object ->> 'subscription'
WHERE
    e.applied_at IS NULL
    AND (
        s.subscription_id IS NOT NULL
        OR (NOT starts_with(e.type, 'invoice.') AND NOT starts_with(e.type, 'customer.subscription.'))
    )
    AND (e.type <> 'invoice.payment_failed' OR e.object ? 'failure')
ORDER BY e.stripe_event_id
FOR UPDATE OF e SKIP LOCKED;

-- name: record_payments(events)
-- Each attempt to collect is a payment. The reason of a failure is that of the PaymentIntent event of the same instant;
-- where that has not come, what Stripe answered when asked.
INSERT INTO billing.payments
(payment_ref, subscription_id, occurred_at, amount_minor, currency, outcome, failure_class, failure_code, attempt)
SELECT
    (e.object ->> 'id') || ':' || tried.attempt AS payment_ref,
    s.subscription_id,
    e.created,
    CASE WHEN tried.failed THEN (e.object ->> 'amount_due')::bigint ELSE (e.object ->> 'amount_paid')::bigint END AS amount_minor,
    upper(e.object ->> 'currency') AS currency,
    CASE WHEN tried.failed THEN 'failed' ELSE 'succeeded' END AS outcome,
    CASE WHEN tried.failed THEN coalesce(i.object ->> 'failure_class', e.object #>> '{failure,failure_class}') END
        AS failure_class,
    CASE
        WHEN i.object IS NOT NULL THEN coalesce(i.object ->> 'decline_code', i.object ->> 'code')
        WHEN tried.failed THEN coalesce(e.object #>> '{failure,decline_code}', e.object #>> '{failure,code}')
    END AS failure_code,
    tried.attempt
FROM billing.stripe_events AS e
INNER JOIN billing.subscriptions AS s ON s.stripe_subscription_id = e.object ->> 'subscription'
CROSS JOIN LATERAL (
    VALUES (e.type = 'invoice.payment_failed', greatest((e.object ->> 'attempt_count')::integer, 1))
) AS tried (failed, attempt)
LEFT JOIN LATERAL (
    SELECT near.object
    FROM billing.stripe_events AS near
    WHERE
        tried.failed
        AND near.type = 'payment_intent.payment_failed'
        AND near.subject_id = e.object #>> '{failure,payment_intent}'
        AND near.created BETWEEN e.created - interval '2 minutes' AND e.created + interval '2 minutes'
    ORDER BY abs(extract(EPOCH FROM near.created - e.created)), near.stripe_event_id
    LIMIT 1
) AS i ON TRUE
WHERE
    e.stripe_event_id = any(:events)
    AND e.type IN ('invoice.paid', 'invoice.payment_failed')
    AND (e.object ->> 'amount_due')::bigint > 0
ORDER BY e.created, e.stripe_event_id
ON CONFLICT (payment_ref) DO NOTHING
RETURNING payment_id;

-- name: correct_reasons(events)!
-- A PaymentIntent event that came after its invoice event tells the reason of that attempt: what was answered when Stripe
-- was asked may have been the reason of a later one.
UPDATE billing.payments AS p
SET
    failure_class = reason.object ->> 'failure_class',
    failure_code = coalesce(reason.object ->> 'decline_code', reason.object ->> 'code')
FROM billing.stripe_events AS e
INNER JOIN billing.stripe_events AS reason
    ON
        e.object #>> '{failure,payment_intent}' = reason.subject_id
        AND reason.created BETWEEN e.created - interval '2 minutes' AND e.created + interval '2 minutes'
WHERE
    reason.stripe_event_id = any(:events)
    AND reason.type = 'payment_intent.payment_failed'
    AND e.type = 'invoice.payment_failed'
    AND e.applied_at IS NOT NULL
    AND p.payment_ref = (e.object ->> 'id') || ':' || greatest((e.object ->> 'attempt_count')::integer, 1)
    AND p.outcome = 'failed';

-- name: apply_cancellations(events)!
-- What was canceled at Stripe is canceled here, as of then; an event older than one that was applied changes nothing.
UPDATE billing.subscriptions AS s
SET
    status = 'canceled',
    canceled_at = gone.ended_at,
    next_payment_at = NULL,
    stripe_event_at = gone.created,
    version = s.version + 1,
    changed_at = gone.ended_at,
    change_reason = 'canceled at Stripe'
FROM (
    SELECT DISTINCT ON (e.subject_id)
        e.subject_id,
        e.created,
        coalesce(to_timestamp((e.object ->> 'ended_at')::bigint), e.created) AS ended_at
    FROM billing.stripe_events AS e
    WHERE e.stripe_event_id = any(:events) AND e.type = 'customer.subscription.deleted'
    ORDER BY e.subject_id ASC, e.created DESC
) AS gone
WHERE
    s.stripe_subscription_id = gone.subject_id
    AND s.status <> 'canceled'
    AND (s.stripe_event_at IS NULL OR s.stripe_event_at < gone.created);

-- name: mark_events(events, now)$
-- The events are dealt with. Returns how many said something older than what was known of the same subscription.
WITH marked AS (
    UPDATE billing.stripe_events AS e
    SET
        applied_at = :now,
        outcome = CASE
            WHEN starts_with(e.type, 'customer.subscription.') AND EXISTS (
                SELECT 1
                FROM billing.stripe_events AS newer
                WHERE
                    newer.subject_id = e.subject_id
                    AND newer.created > e.created
                    AND newer.applied_at IS NOT NULL
                    AND starts_with(newer.type, 'customer.subscription.')
            ) THEN 'stale'
            WHEN e.type IN ('invoice.paid', 'invoice.payment_failed') AND (e.object ->> 'amount_due')::bigint > 0 THEN 'payment'
            WHEN e.type = 'customer.subscription.deleted' THEN 'canceled'
            ELSE 'noted'
        END
    WHERE e.stripe_event_id = any(:events) AND e.applied_at IS NULL
    RETURNING e.outcome
)

SELECT count(*) FILTER (WHERE outcome = 'stale') FROM marked;

-- name: collect_untold()!
-- Subscriptions of which Stripe has not been told everything yet.
INSERT INTO on_their_way
SELECT DISTINCT subscription_id FROM billing.stripe_commands WHERE state = 'pending';

-- name: collect_due_pauses(now)!
-- Subscriptions whose pause begins or ends by now and has not been swept: Stripe ends a pause by itself, and may be ahead.
INSERT INTO on_their_way
SELECT subscription_id
FROM billing.subscription_pauses
WHERE (state = 'scheduled' AND starts_at <= :now) OR (state = 'active' AND ends_at <= :now);

-- name: subscriptions_in_flight()$
-- How many subscriptions are on their way.
SELECT count(DISTINCT subscription_id) AS number FROM on_their_way;

-- name: stripe_differences(tolerance)
-- The database against what Stripe has just listed, one row a difference; what is on its way is left out.
WITH ours AS (
    SELECT
        s.subscription_id,
        s.subscription_ref,
        s.stripe_subscription_id,
        s.status,
        s.amount_minor,
        s.quantity,
        lower(s.currency) AS currency,
        coalesce(to_jsonb(s) ->> 'payment_frequency', 'MONTHLY') AS frequency,
        s.next_payment_at
    FROM billing.subscriptions AS s
    WHERE
        NOT EXISTS (SELECT 1 FROM on_their_way AS w WHERE w.subscription_id = s.subscription_id)
),

pairs AS (
    SELECT
        coalesce(o.subscription_ref, t.subscription_ref, t.stripe_id) AS subscription_ref,
        o.status,
        t.status AS there,
        o.status IN ('paused', 'suspended') AS paused,
        t.paused AS there_paused,
        o.amount_minor,
        o.quantity,
        o.currency,
        o.frequency,
        o.next_payment_at,
        t.unit_amount,
        t.quantity AS there_quantity,
        t.currency AS there_currency,
        t.frequency AS there_frequency,
        t.period_end,
        o.subscription_id IS NOT NULL AS is_ours,
        t.stripe_id IS NOT NULL AS is_theirs,
        -- A trial that only keeps a payment date is none.
        t.status = 'trialing' AND NOT t.keeps_date AS there_trialing,
        t.status = 'trialing' AND t.keeps_date AS there_keeps_date
    FROM ours AS o
    FULL JOIN stripe_now AS t ON o.stripe_subscription_id = t.stripe_id
    WHERE
        -- What is gone on both sides is no matter, nor what another subscription is waiting to be told.
        coalesce(o.status, 'canceled') <> 'canceled' OR (
            coalesce(t.status, 'canceled') <> 'canceled'
            AND NOT EXISTS (
                SELECT 1
                FROM on_their_way AS w
                INNER JOIN billing.subscriptions AS s ON w.subscription_id = s.subscription_id
                WHERE s.stripe_subscription_id = t.stripe_id
            )
        )
)

SELECT
    p.subscription_ref,
    d.kind,
    d.in_database,
    d.in_stripe,
    d.mend
FROM pairs AS p
CROSS JOIN LATERAL (
    VALUES
    (
        p.is_ours AND NOT p.is_theirs, 'missing_in_stripe', p.status, NULL,
        'link the subscription, or create it at Stripe'
    ),
    (
        p.is_theirs AND NOT p.is_ours, 'missing_in_database', NULL, p.there,
        'import the subscription, or cancel it at Stripe'
    ),
    (
        p.is_ours AND p.is_theirs AND CASE p.status
            WHEN 'canceled' THEN p.there <> 'canceled'
            WHEN 'trialing' THEN NOT (p.there_trialing OR p.there_keeps_date)
            WHEN 'active' THEN p.there IN ('canceled', 'past_due', 'unpaid') OR p.there_trialing
            WHEN 'past_due' THEN p.there NOT IN ('past_due', 'unpaid') AND NOT p.there_keeps_date
            ELSE p.there = 'canceled'
        END,
        'status', p.status, p.there,
        CASE
            WHEN p.status = 'canceled' THEN 'cancel at Stripe'
            WHEN p.there = 'canceled' THEN 'cancel in the database'
            ELSE 'poll the events of the invoices, then compare again'
        END
    ),
    (
        p.is_ours AND p.is_theirs AND p.status <> 'canceled' AND p.there <> 'canceled' AND p.paused <> p.there_paused,
        'pause',
        CASE WHEN p.paused THEN 'paused' ELSE 'not paused' END,
        CASE WHEN p.there_paused THEN 'paused' ELSE 'not paused' END,
        CASE WHEN p.paused THEN 'pause at Stripe' ELSE 'resume at Stripe' END
    ),
    (
        p.is_ours AND p.is_theirs AND p.status <> 'canceled' AND p.there <> 'canceled'
        AND (p.amount_minor, p.currency, p.frequency) IS DISTINCT FROM (p.unit_amount, p.there_currency, p.there_frequency),
        'price',
        concat_ws(' ', p.amount_minor, p.currency, p.frequency),
        concat_ws(' ', p.unit_amount, p.there_currency, p.there_frequency),
        'change the price at Stripe'
    ),
    (
        p.is_ours AND p.is_theirs AND p.status <> 'canceled' AND p.there <> 'canceled' AND p.quantity <> p.there_quantity,
        'quantity', p.quantity::text, p.there_quantity::text, 'change the quantity at Stripe'
    ),
    (
        p.is_ours AND p.is_theirs AND p.status IN ('active', 'trialing')
        AND p.there IN ('active', 'trialing') AND NOT p.there_paused
        AND abs(extract(EPOCH FROM p.next_payment_at - p.period_end)) > extract(EPOCH FROM cast(:tolerance AS interval)),
        'next_payment', p.next_payment_at::text, p.period_end::text, 'poll the events of the invoices, then compare again'
    )
) AS d (differs, kind, in_database, in_stripe, mend)
WHERE d.differs
ORDER BY p.subscription_ref, d.kind;
