-- Which of Stripe's objects belongs to which of ours.

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
