-- Fails where the table or its key is missing.
SELECT known_day, day, currency, customers_churned, joined, joined_churned, new_minor, reactivation_minor, expansion_minor,
       contraction_minor, churn_minor, lost_minor
FROM analytics.churn_steps WHERE false;

DO $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('analytics.churn_steps_pkey') AND indisvalid AND indisready
    ) THEN
        RAISE EXCEPTION 'analytics: index missing or invalid: churn_steps_pkey';
    END IF;
END
$$;
