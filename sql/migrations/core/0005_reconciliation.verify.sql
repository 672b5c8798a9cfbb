SELECT reconciliation_id, scope, started_at, read_at, compared, in_flight, differences FROM billing.reconciliations WHERE false;
SELECT subscription_ref, kind, in_database, in_stripe, mend, parked, subscription_id, stripe_id, first_seen, last_seen, alerted_at
FROM billing.reconciliation_differences WHERE false;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM unnest(ARRAY[
        'reconciliations_pkey', 'reconciliation_differences_pkey', 'reconciliation_differences_first_seen',
        'reconciliation_differences_last_seen', 'stripe_events_received', 'stripe_commands_told'
    ]) AS wanted (name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('billing.' || wanted.name) AND indisvalid AND indisready
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'core: index of the reconciliation missing or invalid: %', missing;
    END IF;
    IF (
        SELECT count(*) FROM pg_constraint
        WHERE conrelid IN ('billing.reconciliations'::regclass, 'billing.reconciliation_differences'::regclass)
            AND contype IN ('c', 'f') AND convalidated
    ) <> 6 THEN
        RAISE EXCEPTION 'core: a check or a reference of the reconciliation is missing';
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM pg_constraint
        WHERE conrelid = 'billing.stripe_commands'::regclass AND conname = 'stripe_commands_operation_check' AND convalidated
            AND pg_get_constraintdef(oid) LIKE '%change_quantity%' AND pg_get_constraintdef(oid) LIKE '%move_payment%'
    ) THEN
        RAISE EXCEPTION 'core: the outbox does not take the commands of a mend';
    END IF;
END
$$;
