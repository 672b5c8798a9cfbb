SELECT payment_frequency FROM billing.subscriptions WHERE false;
SELECT frequency_change_id, subscription_id, from_frequency, to_frequency, amount_minor, requested_at, effective_at, credit_minor,
       debit_minor, currency, state
FROM billing.frequency_changes WHERE false;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM unnest(ARRAY['frequency_changes_one_scheduled', 'frequency_changes_subscription', 'frequency_changes_due'])
        AS wanted (name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('billing.' || wanted.name) AND indisvalid AND indisready
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'frequencies: index missing or invalid: %', missing;
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM pg_constraint
        WHERE conrelid = 'billing.subscriptions'::regclass AND conname = 'subscriptions_payment_frequency' AND convalidated
    ) THEN
        RAISE EXCEPTION 'frequencies: subscriptions.payment_frequency accepts anything';
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM pg_attribute
        WHERE attrelid = 'billing.subscriptions'::regclass AND attname = 'payment_frequency' AND attnotnull AND atthasdef
    ) THEN
        RAISE EXCEPTION 'frequencies: subscriptions.payment_frequency may be null or has no default';
    END IF;
    SELECT string_agg(proname, ', ') INTO missing
    FROM pg_proc
    WHERE pronamespace = 'billing'::regnamespace
        AND proname IN ('record_new_subscriptions', 'record_changed_subscriptions')
        AND position('n.payment_frequency' IN prosrc) = 0;
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'frequencies: the ledger does not record the frequency: %', missing;
    END IF;
    IF NOT EXISTS (SELECT 1 FROM billing.feature_flags WHERE feature = 'frequencies') THEN
        RAISE EXCEPTION 'frequencies: the kill switch is missing';
    END IF;
END
$$;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM (VALUES
        ('billing.frequency_changes', 'frequency_changes_amount_minor_check'),
        ('billing.frequency_changes', 'frequency_changes_check'),
        ('billing.frequency_changes', 'frequency_changes_credit_minor_check'),
        ('billing.frequency_changes', 'frequency_changes_currency_check'),
        ('billing.frequency_changes', 'frequency_changes_debit_minor_check'),
        ('billing.frequency_changes', 'frequency_changes_from_frequency_check'),
        ('billing.frequency_changes', 'frequency_changes_pkey'),
        ('billing.frequency_changes', 'frequency_changes_state_check'),
        ('billing.frequency_changes', 'frequency_changes_subscription_id_fkey'),
        ('billing.frequency_changes', 'frequency_changes_to_frequency_check')
    ) AS wanted (tab, name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_constraint
        WHERE conrelid = to_regclass(wanted.tab) AND conname = wanted.name AND convalidated
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'frequencies: constraint missing or not validated: %', missing;
    END IF;
END
$$;
