-- What the sandbox account is filled with: the billing database as it stands.

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

-- name: seed_pause_ends()
-- When the pauses that are on now end, in epoch seconds; null: when somebody resumes.
SELECT
    subscription_id,
    extract(EPOCH FROM ends_at)::bigint AS ends
FROM billing.subscription_pauses
WHERE state = 'active' AND kind <> 'payment_failure';
