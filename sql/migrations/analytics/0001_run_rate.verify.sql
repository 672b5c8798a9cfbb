-- Each statement fails when what it looks for is missing or wrong.
SELECT subscription_id, valid_from, valid_to, customer_id, status, paused_since, annualised_minor, plan, payment_frequency,
       currency, country, event_id
FROM analytics.run_rate_intervals WHERE false;
SELECT only_row, event_high_water, events FROM analytics.interval_progress WHERE false;
SELECT day, definition, paused, paused_churn_days, reporting_currency, computed_at, restated_at, event_high_water
FROM analytics.snapshots WHERE false;
SELECT day, customer_id, movement, currency, annualised_minor FROM analytics.mrr_movements WHERE false;
SELECT day, segment_kind, segment, currency, start_minor, new_minor, reactivation_minor, expansion_minor, contraction_minor,
       churn_minor, paused_minor, resumed_minor, transfer_minor, end_minor, customers, paying_customers, subscriptions,
       paused_subscriptions
FROM analytics.mrr_summary WHERE false;
SELECT day, definition, currency, customers_start, customers_churned, customer_churn_rate, gross_mrr_churn, net_mrr_churn, nrr,
       grr, quick_ratio, arpa, ltv, pause_rate
FROM analytics.churn WHERE false;
SELECT cohort, period, currency, customers_start, customers, paying_customers, start_minor, end_minor
FROM analytics.cohorts WHERE false;
SELECT day, customer_id, score, reasons, model, computed_at FROM analytics.churn_risk WHERE false;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM unnest(ARRAY[
        'run_rate_intervals_pkey', 'run_rate_intervals_customer', 'mrr_movements_pkey', 'mrr_summary_pkey', 'churn_pkey',
        'cohorts_pkey', 'snapshots_pkey', 'churn_risk_pkey', 'churn_risk_high', 'interval_progress_pkey'
    ]) AS wanted (name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('analytics.' || wanted.name) AND indisvalid AND indisready
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'analytics: index missing or invalid: %', missing;
    END IF;
    SELECT string_agg(c.relname || coalesce('.' || a.attname, ''), ', ') INTO missing
    FROM pg_class AS c
    LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relnamespace = 'analytics'::regnamespace AND c.relkind = 'r'
        AND (obj_description(c.oid, 'pg_class') IS NULL OR col_description(c.oid, a.attnum) IS NULL);
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'analytics: nothing says what this means: %', missing;
    END IF;
END
$$;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM (VALUES
        ('analytics.churn_risk', 'churn_risk_score_check'),
        ('analytics.interval_progress', 'interval_progress_only_row_check'),
        ('analytics.mrr_movements', 'mrr_movements_movement_check'),
        ('analytics.mrr_summary', 'mrr_summary_segment_kind_check'),
        ('analytics.run_rate_intervals', 'run_rate_intervals_annualised_minor_check'),
        ('analytics.run_rate_intervals', 'run_rate_intervals_check'),
        ('analytics.run_rate_intervals', 'run_rate_intervals_check1'),
        ('analytics.run_rate_intervals', 'run_rate_intervals_payment_frequency_check'),
        ('analytics.run_rate_intervals', 'run_rate_intervals_status_check'),
        ('analytics.snapshots', 'snapshots_paused_check'), ('analytics.snapshots', 'snapshots_paused_churn_days_check')
    ) AS wanted (tab, name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_constraint
        WHERE conrelid = to_regclass(wanted.tab) AND conname = wanted.name AND convalidated
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'analytics: constraint missing or not validated: %', missing;
    END IF;
END
$$;
