SELECT reward_entry_id, customer_id, occurred_at, recorded_at, kind, amount_minor, effect_minor, expires_at, reason
FROM billing.reward_entries WHERE false;
SELECT customer_id, balance_minor FROM billing.reward_balances WHERE false;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM unnest(ARRAY['reward_entries_customer', 'reward_entries_expiry']) AS wanted (name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('billing.' || wanted.name) AND indisvalid AND indisready
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'rewards: index missing or invalid: %', missing;
    END IF;
    SELECT string_agg(wanted.trig, ', ') INTO missing
    FROM (VALUES
        ('reward_entries_balance', 'billing.guard_reward_balance()'),
        ('reward_entries_append_only', 'billing.refuse_history_change()')
    ) AS wanted (trig, func)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_trigger
        WHERE tgrelid = 'billing.reward_entries'::regclass AND tgname = wanted.trig AND tgenabled IN ('O', 'A')
            AND tgfoid = to_regprocedure(wanted.func)
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'rewards: trigger missing, disabled or bound to another function: %', missing;
    END IF;
    IF (
        SELECT count(*) FROM pg_constraint
        WHERE conrelid = 'billing.reward_entries'::regclass AND contype = 'c' AND convalidated
    ) < 4 THEN
        RAISE EXCEPTION 'rewards: a check constraint is missing';
    END IF;
    IF NOT EXISTS (SELECT 1 FROM billing.feature_flags WHERE feature = 'rewards') THEN
        RAISE EXCEPTION 'rewards: the kill switch is missing';
    END IF;
END
$$;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM (VALUES
        ('billing.reward_entries', 'reward_entries_customer_id_fkey'), ('billing.reward_entries', 'reward_entries_pkey')
    ) AS wanted (tab, name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_constraint
        WHERE conrelid = to_regclass(wanted.tab) AND conname = wanted.name AND convalidated
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'rewards: constraint missing or not validated: %', missing;
    END IF;
END
$$;
