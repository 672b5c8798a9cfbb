SELECT reward_entry_id, source, referred_customer_id, milestone_months, credit_id FROM billing.reward_entries WHERE false;
SELECT programme, starts_at FROM billing.reward_programmes WHERE false;
SELECT customer_id, reward_entry_id, source, occurred_at, expires_at, amount_minor, written_off_minor, spent_minor, left_minor
FROM billing.reward_credits('{}');

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM (VALUES
        ('reward_entries_milestone_once', true), ('reward_entries_referral_once', true), ('reward_entries_taken_from', false)
    ) AS wanted (name, once)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_index
        WHERE indexrelid = to_regclass('billing.' || wanted.name) AND indrelid = 'billing.reward_entries'::regclass
            AND indisvalid AND indisready AND indisunique = wanted.once
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'rewards: index missing, invalid or not unique: %', missing;
    END IF;
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM unnest(ARRAY[
        'reward_entries_source', 'reward_entries_referral', 'reward_entries_milestone', 'reward_entries_credit',
        'reward_entries_referred_customer_fkey', 'reward_entries_credit_fkey',
        -- Those of 0001, whose own file counts no further than it knew.
        'reward_entries_kind_check', 'reward_entries_amount_minor_check', 'reward_entries_check', 'reward_entries_check1'
    ]) AS wanted (name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_constraint
        WHERE conrelid = 'billing.reward_entries'::regclass AND conname = wanted.name AND convalidated
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'rewards: constraint missing or not validated: %', missing;
    END IF;
    IF (
        SELECT count(*) FROM pg_constraint
        WHERE conrelid = 'billing.reward_programmes'::regclass AND contype IN ('p', 'c') AND convalidated
    ) <> 2 THEN
        RAISE EXCEPTION 'rewards: a programme may stand twice, or be anything';
    END IF;
    IF NOT EXISTS (SELECT 1 FROM billing.reward_programmes WHERE programme = 'loyalty') THEN
        RAISE EXCEPTION 'rewards: nobody knows since when loyalty is rewarded';
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM pg_trigger
        WHERE tgrelid = 'billing.reward_entries'::regclass AND tgname = 'reward_entries_append_only'
            AND tgenabled IN ('O', 'A')
    ) THEN
        RAISE EXCEPTION 'rewards: the ledger was left open to changes';
    END IF;
END
$$;
