-- What an earlier revert set aside comes back; what was never there is made.
-- Customers, plans, subscriptions, payments, the append-only ledger of subscription events, and the Stripe in- and outbox.
CREATE SCHEMA IF NOT EXISTS billing;
CREATE SCHEMA IF NOT EXISTS archive;
COMMENT ON SCHEMA billing IS 'What is true today, and the ledger that it is the projection of';
COMMENT ON SCHEMA archive IS 'What rollbacks set aside';

ALTER TABLE IF EXISTS archive.customers SET SCHEMA billing;
CREATE TABLE IF NOT EXISTS billing.customers (
    customer_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_ref text NOT NULL UNIQUE CHECK (customer_ref <> ''),
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    country text CHECK (country ~ '^[A-Z]{2}$'),
    email text,
    time_zone text NOT NULL DEFAULT 'UTC',
    stripe_customer_id text UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (customer_id, currency)
);
COMMENT ON COLUMN billing.customers.customer_ref IS 'The customer id that the outside world uses';

ALTER TABLE IF EXISTS archive.plans SET SCHEMA billing;
CREATE TABLE IF NOT EXISTS billing.plans (
    plan text PRIMARY KEY CHECK (plan <> ''),
    name text NOT NULL
);

ALTER TABLE IF EXISTS archive.plan_prices SET SCHEMA billing;
CREATE TABLE IF NOT EXISTS billing.plan_prices (
    plan text NOT NULL REFERENCES billing.plans,
    payment_frequency text NOT NULL CHECK (payment_frequency IN ('WEEKLY', 'BIWEEKLY', 'MONTHLY', 'QUARTERLY', 'YEARLY')),
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    amount_minor bigint NOT NULL CHECK (amount_minor >= 0),
    stripe_price_id text UNIQUE,
    PRIMARY KEY (plan, payment_frequency, currency)
);

ALTER TABLE IF EXISTS archive.subscriptions SET SCHEMA billing;
CREATE TABLE IF NOT EXISTS billing.subscriptions (
    subscription_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription_ref text NOT NULL UNIQUE CHECK (subscription_ref <> ''),
    customer_id bigint NOT NULL,
    plan text NOT NULL REFERENCES billing.plans,
    status text NOT NULL CHECK (status IN ('trialing', 'active', 'paused', 'past_due', 'suspended', 'canceled')),
    amount_minor bigint NOT NULL CHECK (amount_minor >= 0),
    quantity integer NOT NULL DEFAULT 1 CHECK (quantity > 0),
    currency text NOT NULL,
    started_at timestamptz NOT NULL,
    billing_anchor timestamptz NOT NULL,
    next_payment_at timestamptz,
    canceled_at timestamptz,
    stripe_subscription_id text UNIQUE,
    stripe_event_at timestamptz,
    version bigint NOT NULL DEFAULT 1,
    changed_at timestamptz NOT NULL DEFAULT now(),
    change_reason text,
    FOREIGN KEY (customer_id, currency) REFERENCES billing.customers (customer_id, currency)
);
COMMENT ON COLUMN billing.subscriptions.amount_minor IS 'Price of one unit for one period of the payment frequency, minor units';
COMMENT ON COLUMN billing.subscriptions.billing_anchor IS 'The instant whose day of the month every payment date is derived from';
COMMENT ON COLUMN billing.subscriptions.stripe_event_at IS 'created of the newest Stripe event applied; an older one changes nothing';
COMMENT ON COLUMN billing.subscriptions.version IS 'Rises by one with each change; part of a Stripe command''s idempotency key';
COMMENT ON COLUMN billing.subscriptions.changed_at IS 'When the last change was due or true in the world; becomes occurred_at in the ledger';
COMMENT ON COLUMN billing.subscriptions.change_reason IS 'Why the last change was made; becomes reason in the ledger';
CREATE INDEX IF NOT EXISTS subscriptions_customer ON billing.subscriptions (customer_id);
CREATE INDEX IF NOT EXISTS subscriptions_plan ON billing.subscriptions (plan);

ALTER TABLE IF EXISTS archive.subscription_events SET SCHEMA billing;
CREATE TABLE IF NOT EXISTS billing.subscription_events (
    event_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription_id bigint NOT NULL REFERENCES billing.subscriptions,
    customer_id bigint NOT NULL REFERENCES billing.customers,
    event text NOT NULL CHECK (event IN (
        'started', 'trial_started', 'changed', 'paused', 'resumed', 'past_due', 'recovered', 'suspended', 'canceled'
    )),
    occurred_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    plan text NOT NULL REFERENCES billing.plans,
    payment_frequency text NOT NULL CHECK (payment_frequency IN ('WEEKLY', 'BIWEEKLY', 'MONTHLY', 'QUARTERLY', 'YEARLY')),
    amount_minor bigint NOT NULL CHECK (amount_minor >= 0),
    quantity integer NOT NULL CHECK (quantity > 0),
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    source text NOT NULL DEFAULT 'database' CHECK (source IN ('database', 'import')),
    reason text
);
COMMENT ON TABLE billing.subscription_events IS 'Append-only history: occurred_at is when it was true, recorded_at when we knew';
CREATE INDEX IF NOT EXISTS subscription_events_subscription ON billing.subscription_events (subscription_id, occurred_at, recorded_at, event_id);
CREATE INDEX IF NOT EXISTS subscription_events_customer ON billing.subscription_events (customer_id);
CREATE INDEX IF NOT EXISTS subscription_events_recorded ON billing.subscription_events (recorded_at);
CREATE INDEX IF NOT EXISTS subscription_events_occurred ON billing.subscription_events (occurred_at);

ALTER TABLE IF EXISTS archive.payments SET SCHEMA billing;
CREATE TABLE IF NOT EXISTS billing.payments (
    payment_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payment_ref text NOT NULL UNIQUE CHECK (payment_ref <> ''),
    subscription_id bigint NOT NULL REFERENCES billing.subscriptions,
    occurred_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    amount_minor bigint NOT NULL CHECK (amount_minor >= 0),
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    outcome text NOT NULL CHECK (outcome IN ('succeeded', 'failed')),
    failure_class text,
    failure_code text,
    attempt integer NOT NULL DEFAULT 1 CHECK (attempt > 0),
    CHECK (outcome = 'failed' OR (failure_class IS NULL AND failure_code IS NULL))
);
COMMENT ON TABLE billing.payments IS 'Every attempt to collect a payment';
COMMENT ON COLUMN billing.payments.failure_class IS 'issuer_decline, block, integration_error (ours) or provider_error (Stripe''s)';
CREATE INDEX IF NOT EXISTS payments_subscription ON billing.payments (subscription_id, occurred_at);
CREATE INDEX IF NOT EXISTS payments_occurred ON billing.payments (occurred_at);

ALTER TABLE IF EXISTS archive.stripe_events SET SCHEMA billing;
CREATE TABLE IF NOT EXISTS billing.stripe_events (
    stripe_event_id text PRIMARY KEY,
    type text NOT NULL,
    created timestamptz NOT NULL,
    subject_id text,
    object jsonb NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    applied_at timestamptz,
    outcome text
);
COMMENT ON TABLE billing.stripe_events IS 'What Stripe told us, by polling or webhook, once each; no payment method details are kept';
CREATE INDEX IF NOT EXISTS stripe_events_created ON billing.stripe_events (created);
CREATE INDEX IF NOT EXISTS stripe_events_unapplied ON billing.stripe_events (created, stripe_event_id) WHERE applied_at IS NULL;

ALTER TABLE IF EXISTS archive.stripe_commands SET SCHEMA billing;
CREATE TABLE IF NOT EXISTS billing.stripe_commands (
    command_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    idempotency_key text NOT NULL UNIQUE,
    subscription_id bigint NOT NULL REFERENCES billing.subscriptions,
    operation text NOT NULL CHECK (operation IN ('pause', 'resume', 'change_price', 'cancel')),
    parameters jsonb NOT NULL DEFAULT '{}',
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'superseded', 'parked')),
    attempts integer NOT NULL DEFAULT 0,
    not_before timestamptz NOT NULL DEFAULT '-infinity',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    delivered_at timestamptz,
    last_error text
);
COMMENT ON TABLE billing.stripe_commands IS 'Outbox: what Stripe must be told, committed with the change that asks for it';
CREATE INDEX IF NOT EXISTS stripe_commands_pending ON billing.stripe_commands (subscription_id, command_id) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS stripe_commands_subscription ON billing.stripe_commands (subscription_id);

ALTER TABLE IF EXISTS archive.feature_flags SET SCHEMA billing;
CREATE TABLE IF NOT EXISTS billing.feature_flags (
    feature text PRIMARY KEY,
    enabled boolean NOT NULL,
    reason text,
    changed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE billing.feature_flags IS 'The kill switch of each component';

ALTER TABLE IF EXISTS archive.fx_rates SET SCHEMA billing;
CREATE TABLE IF NOT EXISTS billing.fx_rates (
    date date NOT NULL,
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    reporting_currency text NOT NULL CHECK (reporting_currency ~ '^[A-Z]{3}$'),
    rate numeric(20, 10) NOT NULL CHECK (rate > 0),
    PRIMARY KEY (date, currency, reporting_currency)
);
COMMENT ON COLUMN billing.fx_rates.rate IS 'Units of the reporting currency for one unit of the currency';

CREATE FUNCTION billing.refuse_history_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: add a correcting row instead of % it', TG_TABLE_NAME, lower(TG_OP)
        USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER subscription_events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON billing.subscription_events
FOR EACH STATEMENT EXECUTE FUNCTION billing.refuse_history_change();

-- The event that a change of a subscription amounts to; null where nothing that history keeps has changed.
CREATE FUNCTION billing.subscription_event(old_status text, new_status text, terms_changed boolean) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN CASE
    WHEN new_status IS NOT DISTINCT FROM old_status THEN CASE WHEN terms_changed THEN 'changed' END
    WHEN new_status = 'trialing' THEN 'trial_started'
    WHEN new_status = 'canceled' THEN 'canceled'
    WHEN new_status = 'suspended' THEN 'suspended'
    WHEN new_status = 'past_due' THEN 'past_due'
    WHEN new_status = 'paused' THEN 'paused'
    WHEN old_status = 'paused' THEN 'resumed'
    WHEN old_status IN ('past_due', 'suspended') THEN 'recovered'
    ELSE 'started'
END;

-- Before the write: a change that does not say when it was true is true now; the version rises.
CREATE FUNCTION billing.stamp_subscription_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    new.version := old.version + 1;
    IF new.changed_at = old.changed_at THEN
        new.changed_at := clock_timestamp();
        IF new.change_reason IS NOT DISTINCT FROM old.change_reason THEN
            new.change_reason := NULL;
        END IF;
    END IF;
    RETURN new;
END
$$;
CREATE TRIGGER subscriptions_stamp BEFORE UPDATE ON billing.subscriptions
FOR EACH ROW WHEN (new.version = old.version AND new.* IS DISTINCT FROM old.*)
EXECUTE FUNCTION billing.stamp_subscription_change();

-- After the write: history. One statement for all rows changed; an import brings its own history and is left out.
CREATE FUNCTION billing.record_new_subscriptions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('flexpay.ledger', true) = 'import' THEN
        RETURN NULL;
    END IF;
    INSERT INTO billing.subscription_events
        (subscription_id, customer_id, event, occurred_at, plan, payment_frequency, amount_minor, quantity, currency, reason)
    SELECT n.subscription_id, n.customer_id, e.event, e.occurred_at, n.plan, 'MONTHLY', n.amount_minor, n.quantity,
           n.currency, n.change_reason
    FROM new_rows AS n
    CROSS JOIN LATERAL (
        VALUES (1, CASE WHEN n.status = 'trialing' THEN 'trial_started' ELSE 'started' END, n.started_at),
               (2, CASE WHEN n.status NOT IN ('trialing', 'active')
                        THEN billing.subscription_event('active', n.status, false) END, n.changed_at)
    ) AS e (position, event, occurred_at)
    WHERE e.event IS NOT NULL
    ORDER BY n.subscription_id, e.position;
    RETURN NULL;
END
$$;
CREATE TRIGGER subscriptions_history_insert AFTER INSERT ON billing.subscriptions
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION billing.record_new_subscriptions();

-- A plan is kept for the session: one made for a single row, a nested loop, would be quadratic for a sweep's batch.
CREATE FUNCTION billing.record_changed_subscriptions() RETURNS trigger LANGUAGE plpgsql
SET enable_nestloop = off AS $$
BEGIN
    IF current_setting('flexpay.ledger', true) = 'import' THEN
        RETURN NULL;
    END IF;
    INSERT INTO billing.subscription_events
        (subscription_id, customer_id, event, occurred_at, plan, payment_frequency, amount_minor, quantity, currency, reason)
    SELECT n.subscription_id, n.customer_id, e.event, n.changed_at, n.plan, 'MONTHLY', n.amount_minor, n.quantity,
           n.currency, n.change_reason
    FROM new_rows AS n
    JOIN old_rows AS o USING (subscription_id)
    CROSS JOIN LATERAL billing.subscription_event(
        o.status, n.status, (n.plan, n.amount_minor, n.quantity) IS DISTINCT FROM (o.plan, o.amount_minor, o.quantity)
    ) AS e (event)
    WHERE e.event IS NOT NULL;
    RETURN NULL;
END
$$;
CREATE TRIGGER subscriptions_history_update AFTER UPDATE ON billing.subscriptions
REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
FOR EACH STATEMENT EXECUTE FUNCTION billing.record_changed_subscriptions();
