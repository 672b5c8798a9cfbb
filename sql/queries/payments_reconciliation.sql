-- The database against Stripe.

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
