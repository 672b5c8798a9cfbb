-- Each statement fails when what it looks for is missing or wrong.
SELECT day, currency, opening_minor, earned_minor, spent_minor, expired_minor, reversed_minor, closing_minor, customers,
       overdue_minor, within_30_days_minor, within_90_days_minor, within_365_days_minor, later_minor, never_minor, computed_at
FROM analytics.rewards_liability WHERE false;
SELECT day, currency, opening_minor, received_minor, recognised_minor, closing_minor, closing_paused_minor, computed_at
FROM analytics.deferred_revenue WHERE false;
SELECT day, currency, subscriptions, annualised_minor, up_to_30_days_minor, up_to_90_days_minor, longer_minor, computed_at
FROM analytics.paused_revenue WHERE false;
SELECT day, computed_at FROM analytics.balance_days WHERE false;
SELECT customer_id, customer_ref, currency, country, created_at FROM analytics.customers WHERE false;
SELECT subscription_id, subscription_ref, customer_id, customer_ref, status, paused_since, plan, payment_frequency, currency,
       country, annualised_minor, mrr, counts, since
FROM analytics.current_subscriptions WHERE false;
SELECT currency, plan, payment_frequency, country, subscriptions, customers, annualised_minor, mrr
FROM analytics.current_mrr WHERE false;
SELECT payment_id, subscription_id, customer_id, occurred_at, recorded_at, amount_minor, currency, outcome, failure_class,
       failure_code, attempt, plan, payment_frequency
FROM analytics.payment_attempts WHERE false;
SELECT subscription_id, customer_id, currency, began_at, recovered_at, failed_attempts, failure_class, days_to_recovery
FROM analytics.dunning_episodes WHERE false;
SELECT day, segment_kind, segment, currency, start_mrr, end_mrr, customers FROM analytics.mrr_by_day WHERE false;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM unnest(ARRAY['rewards_liability_pkey', 'deferred_revenue_pkey', 'paused_revenue_pkey', 'balance_days_pkey'])
        AS wanted (name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('analytics.' || wanted.name) AND indisvalid AND indisready
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'analytics: index missing or invalid: %', missing;
    END IF;
    SELECT string_agg(c.relname || coalesce('.' || a.attname, ''), ', ') INTO missing
    FROM pg_class AS c
    LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relnamespace = 'analytics'::regnamespace
        AND c.relname IN (
            'rewards_liability', 'deferred_revenue', 'paused_revenue', 'balance_days', 'customers', 'current_subscriptions',
            'current_mrr', 'payment_attempts', 'dunning_episodes', 'mrr_by_day'
        )
        AND (obj_description(c.oid, 'pg_class') IS NULL OR col_description(c.oid, a.attnum) IS NULL);
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'analytics: nothing says what this means: %', missing;
    END IF;
    IF to_regprocedure('analytics.admit_analysts()') IS NULL THEN
        RAISE EXCEPTION 'analytics: nothing lets analysts in';
    END IF;
END
$$;
