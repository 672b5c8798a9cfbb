SELECT from_plan, to_plan, from_amount_minor FROM billing.frequency_changes WHERE false;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM unnest(ARRAY[
        'frequency_changes_check', 'frequency_changes_plans', 'frequency_changes_from_amount_minor_check',
        'frequency_changes_to_plan_fkey'
    ]) AS wanted (name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_constraint
        WHERE conrelid = 'billing.frequency_changes'::regclass AND conname = wanted.name AND convalidated
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'frequencies: constraint missing or not validated: %', missing;
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM pg_constraint
        WHERE conrelid = 'billing.frequency_changes'::regclass AND conname = 'frequency_changes_check'
            AND pg_get_constraintdef(oid) LIKE '%from_plan%'
    ) THEN
        RAISE EXCEPTION 'frequencies: a change of plan at the same frequency is refused';
    END IF;
END
$$;
