-- Each statement fails when what it looks for is missing or wrong.
SELECT restatement_id, restated_at, days, time_zone, events, moved_customers FROM analytics.restatements WHERE false;
SELECT restatement_id, day, segment_kind, segment, currency, figure, before_amount, after_amount
FROM analytics.restated_figures WHERE false;
SELECT restatement_id, cause_no, cause, customer_id, subscription_id, event_id, event, occurred_at, recorded_at
FROM analytics.restatement_causes WHERE false;
SELECT known_rate_id, date, currency, reporting_currency, rate, known_from, known_until FROM analytics.known_rates WHERE false;
SELECT move_id, customer_id, country, known_until FROM analytics.former_countries WHERE false;
SELECT time_zone FROM analytics.snapshots WHERE false;
SELECT time_zone FROM analytics.balance_days WHERE false;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM (
        VALUES
        ('billing.fx_rates', 'rates_came'), ('billing.fx_rates', 'rates_corrected'), ('billing.fx_rates', 'rates_removed'),
        ('billing.customers', 'customers_former_country')
    ) AS wanted (relation, name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_trigger AS t
        WHERE t.tgrelid = to_regclass(wanted.relation) AND t.tgname = wanted.name AND t.tgenabled = 'O'
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'analytics: trigger missing or disabled: %', missing;
    END IF;
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM unnest(ARRAY[
        'restatements_pkey', 'restated_figures_pkey', 'restated_figures_day', 'restatement_causes_pkey', 'known_rates_pkey',
        'known_rates_pair', 'former_countries_pkey', 'former_countries_until'
    ]) AS wanted (name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('analytics.' || wanted.name) AND indisvalid AND indisready
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'analytics: index missing or invalid: %', missing;
    END IF;
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM (
        VALUES
        ('analytics.restatements', 'restatements_days_check'),
        ('analytics.restatements', 'restatements_events_check'),
        ('analytics.restatements', 'restatements_moved_customers_check'),
        ('analytics.restated_figures', 'restated_figures_check'),
        ('analytics.restatement_causes', 'restatement_causes_cause_check'),
        ('analytics.restatement_causes', 'restatement_causes_check')
    ) AS wanted (relation, name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_constraint AS k
        WHERE k.conrelid = to_regclass(wanted.relation) AND k.conname = wanted.name AND k.convalidated
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'analytics: constraint missing or not validated: %', missing;
    END IF;
    SELECT string_agg(c.relname || coalesce('.' || a.attname, ''), ', ') INTO missing
    FROM pg_class AS c
    LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relnamespace = 'analytics'::regnamespace
        AND c.relname IN ('restatements', 'restated_figures', 'restatement_causes', 'known_rates', 'former_countries', 'snapshots', 'balance_days')
        AND (obj_description(c.oid, 'pg_class') IS NULL OR col_description(c.oid, a.attnum) IS NULL);
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'analytics: nothing says what this means: %', missing;
    END IF;
END
$$;
