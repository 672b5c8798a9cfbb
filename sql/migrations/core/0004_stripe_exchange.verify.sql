SELECT stream, created_through, updated_at FROM billing.stripe_cursors WHERE false;
SELECT alert, alerted_at FROM billing.stripe_commands WHERE false;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM (VALUES
        ('billing.stripe_commands_queue', 'billing.stripe_commands'),
        ('billing.stripe_commands_parked', 'billing.stripe_commands'),
        ('billing.stripe_events_subject', 'billing.stripe_events'),
        ('billing.stripe_cursors_pkey', 'billing.stripe_cursors')
    ) AS wanted (name, tab)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_index
        WHERE indexrelid = to_regclass(wanted.name) AND indrelid = to_regclass(wanted.tab) AND indisvalid AND indisready
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'core: index of the exchange with Stripe missing or invalid: %', missing;
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM pg_constraint
        WHERE conrelid = 'billing.stripe_cursors'::regclass AND conname = 'stripe_cursors_stream_check' AND convalidated
    ) THEN
        RAISE EXCEPTION 'core: a cursor may be without a name';
    END IF;
END
$$;
