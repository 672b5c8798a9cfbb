-- squawk-ignore-file ban-drop-column
-- The ledger keeps every entry; what only the new columns tell is set aside for the day they return.
DROP FUNCTION billing.reward_credits(bigint []);
ALTER TABLE billing.reward_programmes SET SCHEMA archive;

CREATE TABLE archive.reward_entry_links (
    reward_entry_id bigint PRIMARY KEY,
    source text,
    referred_customer_id bigint,
    milestone_months integer,
    credit_id bigint
);
INSERT INTO archive.reward_entry_links (reward_entry_id, source, referred_customer_id, milestone_months, credit_id)
SELECT reward_entry_id, source, referred_customer_id, milestone_months, credit_id
FROM billing.reward_entries
WHERE source IS NOT NULL OR credit_id IS NOT NULL;

-- Their constraints and indexes go with the columns.
ALTER TABLE billing.reward_entries
DROP COLUMN source,
DROP COLUMN referred_customer_id,
DROP COLUMN milestone_months,
DROP COLUMN credit_id;
