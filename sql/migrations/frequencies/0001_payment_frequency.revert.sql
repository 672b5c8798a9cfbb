-- The trigger goes back to the ledger without frequencies; each row's frequency is set aside for the day it returns.
CREATE OR REPLACE FUNCTION billing.record_new_subscriptions() RETURNS trigger LANGUAGE plpgsql AS $$
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

-- A plan is kept for the session: one made for a single row, a nested loop, would be quadratic for a sweep's batch.
CREATE OR REPLACE FUNCTION billing.record_changed_subscriptions() RETURNS trigger LANGUAGE plpgsql
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

CREATE TABLE archive.subscription_frequencies (
    subscription_id bigint PRIMARY KEY,
    payment_frequency text NOT NULL
);
INSERT INTO archive.subscription_frequencies (subscription_id, payment_frequency)
SELECT subscription_id, payment_frequency FROM billing.subscriptions;
-- squawk-ignore ban-drop-column
ALTER TABLE billing.subscriptions DROP COLUMN payment_frequency;
ALTER TABLE billing.frequency_changes SET SCHEMA archive;
UPDATE billing.feature_flags SET enabled = false, reason = 'schema reverted', changed_at = now() WHERE feature = 'frequencies';
