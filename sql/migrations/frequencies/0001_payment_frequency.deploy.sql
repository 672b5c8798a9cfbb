-- Payment frequencies: what a subscription pays by, how that changed, and the ledger's trigger that records it.
-- depends_on: core
ALTER TABLE IF EXISTS archive.frequency_changes SET SCHEMA billing;
CREATE TABLE IF NOT EXISTS billing.frequency_changes (
    frequency_change_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription_id bigint NOT NULL REFERENCES billing.subscriptions,
    from_frequency text NOT NULL CHECK (from_frequency IN ('WEEKLY', 'BIWEEKLY', 'MONTHLY', 'QUARTERLY', 'YEARLY')),
    to_frequency text NOT NULL CHECK (to_frequency IN ('WEEKLY', 'BIWEEKLY', 'MONTHLY', 'QUARTERLY', 'YEARLY')),
    amount_minor bigint NOT NULL CHECK (amount_minor >= 0),
    requested_at timestamptz NOT NULL,
    effective_at timestamptz NOT NULL,
    credit_minor bigint NOT NULL DEFAULT 0 CHECK (credit_minor >= 0),
    debit_minor bigint NOT NULL DEFAULT 0 CHECK (debit_minor >= 0),
    currency text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    state text NOT NULL CHECK (state IN ('scheduled', 'applied', 'canceled')),
    CHECK (from_frequency <> to_frequency)
);
COMMENT ON TABLE billing.frequency_changes IS 'Each change of a payment frequency, with the proration that it caused';
CREATE UNIQUE INDEX IF NOT EXISTS frequency_changes_one_scheduled
ON billing.frequency_changes (subscription_id) WHERE state = 'scheduled';
CREATE INDEX IF NOT EXISTS frequency_changes_subscription ON billing.frequency_changes (subscription_id);
CREATE INDEX IF NOT EXISTS frequency_changes_due ON billing.frequency_changes (effective_at) WHERE state = 'scheduled';

-- A constant default fills existing rows without rewriting the table.
ALTER TABLE billing.subscriptions ADD COLUMN payment_frequency text NOT NULL DEFAULT 'MONTHLY';
ALTER TABLE billing.subscriptions ADD CONSTRAINT subscriptions_payment_frequency
CHECK (payment_frequency IN ('WEEKLY', 'BIWEEKLY', 'MONTHLY', 'QUARTERLY', 'YEARLY')) NOT VALID;
-- squawk-ignore constraint-missing-not-valid
ALTER TABLE billing.subscriptions VALIDATE CONSTRAINT subscriptions_payment_frequency;
COMMENT ON COLUMN billing.subscriptions.payment_frequency IS 'How often the customer pays';

-- Rows that paid by another frequency before: what an earlier revert set aside, else what the ledger last said.
CREATE TABLE IF NOT EXISTS archive.subscription_frequencies (
    subscription_id bigint PRIMARY KEY,
    payment_frequency text NOT NULL
);
SELECT set_config('flexpay.ledger', 'import', true);
UPDATE billing.subscriptions AS s
SET payment_frequency = known.payment_frequency, version = s.version + 1
FROM (
    SELECT DISTINCT ON (subscription_id) subscription_id, payment_frequency
    FROM (
        SELECT subscription_id, payment_frequency, 0 AS rank, 0::bigint AS event_id, NULL::timestamptz AS occurred_at
        FROM archive.subscription_frequencies
        UNION ALL
        SELECT subscription_id, payment_frequency, 1, event_id, occurred_at FROM billing.subscription_events
    ) AS candidates
    ORDER BY subscription_id, rank, occurred_at DESC, event_id DESC
) AS known
WHERE known.subscription_id = s.subscription_id AND known.payment_frequency <> 'MONTHLY';
SELECT set_config('flexpay.ledger', '', true);
-- squawk-ignore ban-drop-table
DROP TABLE archive.subscription_frequencies;

CREATE OR REPLACE FUNCTION billing.record_new_subscriptions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('flexpay.ledger', true) = 'import' THEN
        RETURN NULL;
    END IF;
    INSERT INTO billing.subscription_events
        (subscription_id, customer_id, event, occurred_at, plan, payment_frequency, amount_minor, quantity, currency, reason)
    SELECT n.subscription_id, n.customer_id, e.event, e.occurred_at, n.plan, n.payment_frequency, n.amount_minor, n.quantity,
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

-- A plan is kept for the session: one made for a single row, a nested loop, would be quadratic for a sweep's batch.
CREATE OR REPLACE FUNCTION billing.record_changed_subscriptions() RETURNS trigger LANGUAGE plpgsql
SET enable_nestloop = off AS $$
BEGIN
    IF current_setting('flexpay.ledger', true) = 'import' THEN
        RETURN NULL;
    END IF;
    INSERT INTO billing.subscription_events
        (subscription_id, customer_id, event, occurred_at, plan, payment_frequency, amount_minor, quantity, currency, reason)
    SELECT n.subscription_id, n.customer_id, e.event, n.changed_at, n.plan, n.payment_frequency, n.amount_minor, n.quantity,
           n.currency, n.change_reason
    FROM new_rows AS n
    JOIN old_rows AS o USING (subscription_id)
    CROSS JOIN LATERAL billing.subscription_event(
        o.status, n.status,
        (n.plan, n.payment_frequency, n.amount_minor, n.quantity)
        IS DISTINCT FROM (o.plan, o.payment_frequency, o.amount_minor, o.quantity)
    ) AS e (event)
    WHERE e.event IS NOT NULL;
    RETURN NULL;
END
$$;

INSERT INTO billing.feature_flags (feature, enabled, reason) VALUES ('frequencies', true, 'deployed')
ON CONFLICT (feature) DO UPDATE SET enabled = true, reason = 'deployed', changed_at = now();
