-- Reward credits: an append-only ledger whose balance is derived and never below zero.
-- depends_on: core
ALTER TABLE IF EXISTS archive.reward_entries SET SCHEMA billing;
CREATE TABLE IF NOT EXISTS billing.reward_entries (
    reward_entry_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES billing.customers,
    occurred_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind text NOT NULL CHECK (kind IN ('earned', 'spent', 'expired', 'reversed')),
    amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    effect_minor bigint NOT NULL GENERATED ALWAYS AS (CASE WHEN kind = 'earned' THEN amount_minor ELSE -amount_minor END) STORED,
    expires_at timestamptz,
    reason text,
    CHECK (kind = 'earned' OR expires_at IS NULL),
    CHECK (expires_at > occurred_at)
);
COMMENT ON TABLE billing.reward_entries IS 'Append-only; amounts in minor units of the customer''s currency, always positive';
COMMENT ON COLUMN billing.reward_entries.effect_minor IS 'The amount as it changes the balance';
CREATE INDEX IF NOT EXISTS reward_entries_customer ON billing.reward_entries (customer_id, occurred_at) INCLUDE (effect_minor);
CREATE INDEX IF NOT EXISTS reward_entries_expiry ON billing.reward_entries (expires_at) WHERE kind = 'earned';

CREATE VIEW billing.reward_balances AS
SELECT customer_id, sum(effect_minor)::bigint AS balance_minor FROM billing.reward_entries GROUP BY customer_id;
COMMENT ON VIEW billing.reward_balances IS 'Credit that each customer has left, minor units of the customer''s currency';

-- Two spenders at once: the customer's row is locked first, so that the second sees what the first has spent.
CREATE FUNCTION billing.guard_reward_balance() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    overdrawn text;
BEGIN
    PERFORM 1 FROM billing.customers
    WHERE customer_id IN (SELECT customer_id FROM new_rows WHERE effect_minor < 0)
    ORDER BY customer_id FOR NO KEY UPDATE;
    SELECT string_agg(c.customer_ref, ', ' ORDER BY c.customer_ref) INTO overdrawn
    FROM (SELECT DISTINCT customer_id FROM new_rows WHERE effect_minor < 0) AS touched
    JOIN billing.customers AS c USING (customer_id)
    CROSS JOIN LATERAL (
        SELECT sum(effect_minor) AS balance FROM billing.reward_entries AS r WHERE r.customer_id = touched.customer_id
    ) AS b
    WHERE b.balance < 0;
    IF overdrawn IS NOT NULL THEN
        RAISE EXCEPTION 'reward balance would fall below zero: %', overdrawn USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER reward_entries_balance AFTER INSERT ON billing.reward_entries
REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION billing.guard_reward_balance();
CREATE TRIGGER reward_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON billing.reward_entries
FOR EACH STATEMENT EXECUTE FUNCTION billing.refuse_history_change();

INSERT INTO billing.feature_flags (feature, enabled, reason) VALUES ('rewards', true, 'deployed')
ON CONFLICT (feature) DO UPDATE SET enabled = true, reason = 'deployed', changed_at = now();
