-- Events in: what Stripe told us, and what follows from it.

-- name: read_through(stream)$
-- Up to where a list of Stripe's has been read: epoch seconds, or null.
SELECT extract(EPOCH FROM created_through)::bigint FROM billing.stripe_cursors WHERE stream = :stream;

-- name: advance_cursor(stream, now)!
-- A list was read to its end: the next time it is read from its newest event on. Webhooks move no cursor.
INSERT INTO billing.stripe_cursors AS c (stream, created_through, updated_at)
SELECT
    :stream,
    max(created) AS created_through,
    :now AS updated_at
FROM incoming_stripe_events
HAVING max(created) IS NOT NULL
ON CONFLICT (stream) DO UPDATE
SET created_through = greatest(c.created_through, excluded.created_through), updated_at = excluded.updated_at;

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

-- name: store_event(stripe_event_id, type, created, subject_id, object)!
-- One event, once.
INSERT INTO billing.stripe_events (stripe_event_id, type, created, subject_id, object)
VALUES (:stripe_event_id, :type, :created, :subject_id, cast(:object AS jsonb))
ON CONFLICT (stripe_event_id) DO NOTHING;

-- name: limit_statements(milliseconds)$
-- A statement of this session that takes longer fails.
SELECT set_config('statement_timeout', :milliseconds, FALSE);

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

-- name: lock_applying()$
-- One reader at a time: what follows from an event depends on the others. A statement of its own, so that the next one sees
-- what the last holder has committed.
SELECT pg_advisory_xact_lock(hashtextextended('flexpay stripe events', 0));

-- name: unapplied_events()
-- Events that nothing has been made of yet.
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
ORDER BY e.stripe_event_id;

-- name: record_payments(events)
-- Each attempt to collect is a payment, and an invoice is paid once. (An attempt that somebody asks for has the number of the
-- one before it: the number alone does not tell them apart.) The reason of a failure is that of the PaymentIntent event of
-- the same instant; where that has not come, what Stripe answered when asked.
INSERT INTO billing.payments
(payment_ref, subscription_id, occurred_at, amount_minor, currency, outcome, failure_class, failure_code, attempt)
SELECT
    (e.object ->> 'id')
    || CASE WHEN tried.failed THEN ':' || tried.attempt || ':' || extract(EPOCH FROM e.created)::bigint ELSE ':paid' END
        AS payment_ref,
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

-- name: correct_reasons(events)
-- A PaymentIntent event that came after its invoice event tells the reason of that attempt: what was answered when Stripe
-- was asked may have been the reason of a later one. The nearest of them counts, in whatever order they come.
WITH affected AS (
    SELECT DISTINCT
        e.created,
        e.object #>> '{failure,payment_intent}' AS intent,
        (e.object ->> 'id') || ':' || greatest((e.object ->> 'attempt_count')::integer, 1)
        || ':' || extract(EPOCH FROM e.created)::bigint AS payment_ref
    FROM billing.stripe_events AS reason
    INNER JOIN billing.stripe_events AS e
        ON
            e.object #>> '{failure,payment_intent}' = reason.subject_id
            AND e.created BETWEEN reason.created - interval '2 minutes' AND reason.created + interval '2 minutes'
    WHERE
        reason.stripe_event_id = any(:events)
        AND reason.type = 'payment_intent.payment_failed'
        AND e.type = 'invoice.payment_failed'
        AND e.applied_at IS NOT NULL
)

UPDATE billing.payments AS p
SET failure_class = reason.failure_class, failure_code = reason.failure_code
FROM affected
CROSS JOIN LATERAL (
    SELECT
        near.object ->> 'failure_class' AS failure_class,
        coalesce(near.object ->> 'decline_code', near.object ->> 'code') AS failure_code
    FROM billing.stripe_events AS near
    WHERE
        near.type = 'payment_intent.payment_failed'
        AND near.subject_id = affected.intent
        AND near.created BETWEEN affected.created - interval '2 minutes' AND affected.created + interval '2 minutes'
    ORDER BY abs(extract(EPOCH FROM near.created - affected.created)), near.stripe_event_id
    LIMIT 1
) AS reason
WHERE
    p.payment_ref = affected.payment_ref
    AND (p.failure_class, p.failure_code) IS DISTINCT FROM (reason.failure_class, reason.failure_code)
RETURNING p.payment_id;

-- name: apply_cancellations(events)
-- What was canceled at Stripe is canceled here, as of then; an event older than one that was applied changes nothing.
-- The ledger is read by occurred_at: where it knows something later already (an open invoice was tried after the end), the
-- cancellation is dated after that, or the subscription would look alive.
UPDATE billing.subscriptions AS s
SET
    status = 'canceled',
    canceled_at = gone.ended_at,
    next_payment_at = NULL,
    stripe_event_at = gone.created,
    version = s.version + 1,
    changed_at = greatest(gone.ended_at, (
        SELECT max(e.occurred_at) FROM billing.subscription_events AS e WHERE e.subscription_id = s.subscription_id
    )),
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
    AND (s.stripe_event_at IS NULL OR s.stripe_event_at < gone.created)
RETURNING s.subscription_id;

-- name: subscriptions_of_free_periods(events)$
-- Subscriptions that have begun a period for which credit left nothing to pay.
SELECT coalesce(array_agg(DISTINCT s.subscription_id), '{}')
FROM billing.stripe_events AS e
INNER JOIN billing.subscriptions AS s ON s.stripe_subscription_id = e.object ->> 'subscription'
WHERE
    e.stripe_event_id = any(:events) AND e.type = 'invoice.paid' AND (e.object ->> 'amount_due')::bigint = 0
    AND e.object ->> 'billing_reason' = 'subscription_cycle';

-- name: advance_free_periods(events)!
-- A period for which credit left nothing to pay begins all the same: the next payment is the one after it.
UPDATE billing.subscriptions AS s
SET
    next_payment_at = free.next_payment_at,
    version = s.version + 1,
    changed_at = greatest(free.billed_at, s.changed_at),
    change_reason = 'credit paid for the period'
FROM (
    SELECT
        s.subscription_id,
        max(b.billed_at) AS billed_at,
        max(billing.payment_after_invoice(
            s.billing_anchor, coalesce(to_jsonb(s) ->> 'payment_frequency', 'MONTHLY'), b.billed_at, c.time_zone
        )) AS next_payment_at
    FROM billing.stripe_events AS e
    INNER JOIN billing.subscriptions AS s ON s.stripe_subscription_id = e.object ->> 'subscription'
    INNER JOIN billing.customers AS c ON s.customer_id = c.customer_id
    CROSS JOIN LATERAL (VALUES (to_timestamp((e.object ->> 'created')::bigint))) AS b (billed_at)
    WHERE
        e.stripe_event_id = any(:events) AND e.type = 'invoice.paid' AND (e.object ->> 'amount_due')::bigint = 0
        -- Not the free invoice with which a trial, or a date that is kept by one, begins.
        AND e.object ->> 'billing_reason' = 'subscription_cycle'
    GROUP BY s.subscription_id
) AS free
WHERE
    s.subscription_id = free.subscription_id AND s.status NOT IN ('trialing', 'canceled')
    AND s.next_payment_at < free.next_payment_at;

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
