SELECT pause_id, pause_ref, subscription_id, starts_at, ends_at, kind, reason, state, version, changed_at
FROM billing.subscription_pauses WHERE false;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM unnest(ARRAY['subscription_pauses_subscription', 'subscription_pauses_due_start', 'subscription_pauses_due_end'])
        AS wanted (name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('billing.' || wanted.name) AND indisvalid AND indisready
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'pauses: index missing or invalid: %', missing;
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM pg_constraint
        WHERE conrelid = 'billing.subscription_pauses'::regclass AND conname = 'subscription_pauses_no_overlap'
            AND contype = 'x'
    ) THEN
        RAISE EXCEPTION 'pauses: two pauses of one subscription may overlap';
    END IF;
    IF (
        SELECT count(*) FROM pg_constraint
        WHERE conrelid = 'billing.subscription_pauses'::regclass AND contype = 'c' AND convalidated
    ) < 5 THEN
        RAISE EXCEPTION 'pauses: a check constraint is missing';
    END IF;
    IF NOT EXISTS (SELECT 1 FROM billing.feature_flags WHERE feature = 'pauses') THEN
        RAISE EXCEPTION 'pauses: the kill switch is missing';
    END IF;
END
$$;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM (VALUES
        ('billing.subscription_pauses', 'subscription_pauses_pause_ref_key'),
        ('billing.subscription_pauses', 'subscription_pauses_pkey'),
        ('billing.subscription_pauses', 'subscription_pauses_subscription_id_fkey')
    ) AS wanted (tab, name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_constraint
        WHERE conrelid = to_regclass(wanted.tab) AND conname = wanted.name AND convalidated
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'pauses: constraint missing or not validated: %', missing;
    END IF;
END
$$;
