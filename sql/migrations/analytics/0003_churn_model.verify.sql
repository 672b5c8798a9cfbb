-- Each statement fails when what it looks for is missing or wrong.
SELECT day, model, trained_at, reason, scorecard, snapshots, evaluation, stability FROM analytics.churn_models WHERE false;

DO $$
DECLARE
    missing text;
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM pg_constraint
        WHERE conrelid = to_regclass('analytics.churn_models') AND conname = 'churn_models_model_check' AND convalidated
    ) THEN
        RAISE EXCEPTION 'analytics: constraint missing or not validated: churn_models_model_check';
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('analytics.churn_models_pkey') AND indisvalid AND indisready
    ) THEN
        RAISE EXCEPTION 'analytics: index missing or invalid: churn_models_pkey';
    END IF;
    SELECT string_agg(a.attname, ', ') INTO missing
    FROM pg_attribute AS a
    WHERE a.attrelid = 'analytics.churn_models'::regclass AND a.attnum > 0 AND NOT a.attisdropped
        AND col_description(a.attrelid, a.attnum) IS NULL;
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'analytics: nothing says what this means: churn_models.%', missing;
    END IF;
END
$$;
