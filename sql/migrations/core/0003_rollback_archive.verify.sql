SELECT rollback_id, component, subject, subject_id, before, after, archived_at, settled_at, outcome, left_because
FROM archive.rollback_entries WHERE false;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM unnest(ARRAY['rollback_entries_pkey', 'rollback_entries_open']) AS wanted (name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_index
        WHERE indexrelid = to_regclass('archive.' || wanted.name) AND indrelid = 'archive.rollback_entries'::regclass
            AND indisvalid AND indisready
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'core: index of the rollback archive missing or invalid: %', missing;
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM pg_constraint
        WHERE conrelid = 'archive.rollback_entries'::regclass AND contype = 'p' AND cardinality(conkey) = 4
    ) THEN
        RAISE EXCEPTION 'core: a rollback may archive the same subject twice';
    END IF;
    IF (
        SELECT count(*) FROM pg_constraint
        WHERE conrelid = 'archive.rollback_entries'::regclass AND contype = 'c' AND convalidated
    ) <> 5 THEN
        RAISE EXCEPTION 'core: a check constraint of the rollback archive is missing';
    END IF;
END
$$;
