-- Fails where the table, its key, its check or the column is missing, or the trigger does not tell that a rate has ended.
SELECT valued FROM analytics.known_rates WHERE false;
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
    IF NOT EXISTS (
        SELECT 1 FROM pg_constraint
        WHERE conrelid = to_regclass('analytics.churn_steps') AND conname = 'churn_steps_check' AND convalidated
    ) THEN
        RAISE EXCEPTION 'analytics: constraint missing or not validated: churn_steps_check';
    END IF;
    IF position('valued = false' IN (SELECT prosrc FROM pg_proc WHERE oid = 'analytics.note_rates()'::regprocedure)) = 0 THEN
        RAISE EXCEPTION 'analytics: note_rates() is of another release';
    END IF;
END
$$;
