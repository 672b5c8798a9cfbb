-- Each statement fails when what it looks for is missing or wrong.
SELECT customer_id, customer_ref, currency, country, email, time_zone, stripe_customer_id, created_at
FROM billing.customers WHERE false;
SELECT plan, name FROM billing.plans WHERE false;
SELECT plan, payment_frequency, currency, amount_minor, stripe_price_id FROM billing.plan_prices WHERE false;
SELECT subscription_id, subscription_ref, customer_id, plan, status, amount_minor, quantity, currency, started_at, billing_anchor,
       next_payment_at, canceled_at, stripe_subscription_id, stripe_event_at, version, changed_at, change_reason
FROM billing.subscriptions WHERE false;
SELECT event_id, subscription_id, customer_id, event, occurred_at, recorded_at, plan, payment_frequency, amount_minor, quantity,
       currency, source, reason
FROM billing.subscription_events WHERE false;
SELECT payment_id, payment_ref, subscription_id, occurred_at, recorded_at, amount_minor, currency, outcome, failure_class,
       failure_code, attempt
FROM billing.payments WHERE false;
SELECT stripe_event_id, type, created, subject_id, object, received_at, applied_at, outcome FROM billing.stripe_events WHERE false;
SELECT command_id, idempotency_key, subscription_id, operation, parameters, state, attempts, not_before, created_at, delivered_at,
       last_error
FROM billing.stripe_commands WHERE false;
SELECT feature, enabled, reason, changed_at FROM billing.feature_flags WHERE false;
SELECT date, currency, reporting_currency, rate FROM billing.fx_rates WHERE false;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM unnest(ARRAY[
        'subscriptions_customer', 'subscriptions_plan', 'subscription_events_subscription', 'subscription_events_customer',
        'subscription_events_recorded', 'subscription_events_occurred', 'payments_subscription', 'payments_occurred',
        'stripe_events_created', 'stripe_events_unapplied', 'stripe_commands_pending', 'stripe_commands_subscription'
    ]) AS wanted (name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('billing.' || wanted.name) AND indisvalid AND indisready
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'core: index missing or invalid: %', missing;
    END IF;

    SELECT string_agg(wanted.tab || '.' || wanted.trig, ', ') INTO missing
    FROM (VALUES
        ('subscriptions', 'subscriptions_stamp', 'billing.stamp_subscription_change()'),
        ('subscriptions', 'subscriptions_history_insert', 'billing.record_new_subscriptions()'),
        ('subscriptions', 'subscriptions_history_update', 'billing.record_changed_subscriptions()'),
        ('subscription_events', 'subscription_events_append_only', 'billing.refuse_history_change()')
    ) AS wanted (tab, trig, func)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_trigger
        WHERE tgrelid = to_regclass('billing.' || wanted.tab) AND tgname = wanted.trig AND tgenabled IN ('O', 'A')
            AND tgfoid = to_regprocedure(wanted.func)
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'core: trigger missing, disabled or bound to another function: %', missing;
    END IF;

    IF NOT EXISTS (
        SELECT 1 FROM pg_constraint
        WHERE conrelid = 'billing.subscriptions'::regclass AND contype = 'f'
            AND confrelid = 'billing.customers'::regclass AND cardinality(conkey) = 2 AND convalidated
    ) THEN
        RAISE EXCEPTION 'core: subscriptions are not bound to the currency of their customer';
    END IF;

    SELECT string_agg(wanted.definition, ', ') INTO missing
    FROM (VALUES
        ('subscriptions', 'status'), ('subscriptions', 'quantity'), ('subscription_events', 'event'),
        ('payments', 'outcome'), ('stripe_commands', 'state'), ('stripe_commands', 'operation')
    ) AS wanted (tab, definition)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_constraint AS c
        JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
        WHERE c.conrelid = to_regclass('billing.' || wanted.tab) AND c.contype = 'c' AND c.convalidated
            AND a.attname = wanted.definition
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'core: check constraint missing on: %', missing;
    END IF;

    IF billing.subscription_event('active', 'paused', false) IS DISTINCT FROM 'paused'
        OR billing.subscription_event('paused', 'active', false) IS DISTINCT FROM 'resumed'
        OR billing.subscription_event('past_due', 'active', true) IS DISTINCT FROM 'recovered'
        OR billing.subscription_event('active', 'active', true) IS DISTINCT FROM 'changed'
        OR billing.subscription_event('active', 'active', false) IS NOT NULL THEN
        RAISE EXCEPTION 'core: subscription_event() names a change wrongly';
    END IF;
END
$$;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM (VALUES
        ('billing.customers', 'customers_country_check'), ('billing.customers', 'customers_currency_check'),
        ('billing.customers', 'customers_customer_ref_check'), ('billing.customers', 'customers_customer_ref_key'),
        ('billing.customers', 'customers_pkey'), ('billing.customers', 'customers_stripe_customer_id_key'),
        ('billing.feature_flags', 'feature_flags_pkey'), ('billing.fx_rates', 'fx_rates_currency_check'),
        ('billing.fx_rates', 'fx_rates_pkey'), ('billing.fx_rates', 'fx_rates_rate_check'),
        ('billing.fx_rates', 'fx_rates_reporting_currency_check'), ('billing.payments', 'payments_amount_minor_check'),
        ('billing.payments', 'payments_attempt_check'), ('billing.payments', 'payments_check'),
        ('billing.payments', 'payments_currency_check'), ('billing.payments', 'payments_outcome_check'),
        ('billing.payments', 'payments_payment_ref_check'), ('billing.payments', 'payments_payment_ref_key'),
        ('billing.payments', 'payments_pkey'), ('billing.payments', 'payments_subscription_id_fkey'),
        ('billing.plan_prices', 'plan_prices_amount_minor_check'), ('billing.plan_prices', 'plan_prices_currency_check'),
        ('billing.plan_prices', 'plan_prices_payment_frequency_check'), ('billing.plan_prices', 'plan_prices_pkey'),
        ('billing.plan_prices', 'plan_prices_plan_fkey'), ('billing.plan_prices', 'plan_prices_stripe_price_id_key'),
        ('billing.plans', 'plans_pkey'), ('billing.plans', 'plans_plan_check'),
        ('billing.stripe_commands', 'stripe_commands_idempotency_key_key'),
        ('billing.stripe_commands', 'stripe_commands_pkey'),
        ('billing.stripe_commands', 'stripe_commands_subscription_id_fkey'), ('billing.stripe_events', 'stripe_events_pkey'),
        ('billing.subscription_events', 'subscription_events_amount_minor_check'),
        ('billing.subscription_events', 'subscription_events_currency_check'),
        ('billing.subscription_events', 'subscription_events_customer_id_fkey'),
        ('billing.subscription_events', 'subscription_events_payment_frequency_check'),
        ('billing.subscription_events', 'subscription_events_pkey'),
        ('billing.subscription_events', 'subscription_events_plan_fkey'),
        ('billing.subscription_events', 'subscription_events_quantity_check'),
        ('billing.subscription_events', 'subscription_events_source_check'),
        ('billing.subscription_events', 'subscription_events_subscription_id_fkey'),
        ('billing.subscriptions', 'subscriptions_amount_minor_check'), ('billing.subscriptions', 'subscriptions_pkey'),
        ('billing.subscriptions', 'subscriptions_plan_fkey'),
        ('billing.subscriptions', 'subscriptions_stripe_subscription_id_key'),
        ('billing.subscriptions', 'subscriptions_subscription_ref_check'),
        ('billing.subscriptions', 'subscriptions_subscription_ref_key')
    ) AS wanted (tab, name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_constraint
        WHERE conrelid = to_regclass(wanted.tab) AND conname = wanted.name AND convalidated
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'core: constraint missing or not validated: %', missing;
    END IF;
END
$$;
