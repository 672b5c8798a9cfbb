-- Each statement fails when what it looks for is missing or wrong.
SELECT analytics.follow(leaves, enters) FROM (VALUES ('u', 'a')) AS inputs (leaves, enters);
SELECT gaps, writers FROM analytics.interval_progress WHERE false;
SELECT move_id, customer_id FROM analytics.moved_customers WHERE false;
SELECT day, currency, customers_churned, joined, joined_churned, new_minor, reactivation_minor, expansion_minor,
       contraction_minor, churn_minor, lost_minor
FROM analytics.churn_amounts WHERE false;

DO $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM pg_trigger
        WHERE tgrelid = 'billing.customers'::regclass AND tgname = 'customers_moved' AND tgenabled = 'O'
    ) THEN
        RAISE EXCEPTION 'analytics: the trigger customers_moved is missing or disabled';
    END IF;
    IF to_regclass('analytics.churn_amounts_pkey') IS NULL OR to_regclass('analytics.moved_customers_pkey') IS NULL THEN
        RAISE EXCEPTION 'analytics: index missing or invalid: churn_amounts_pkey or moved_customers_pkey';
    END IF;
END
$$;
