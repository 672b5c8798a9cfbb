-- squawk-ignore-file constraint-missing-not-valid, adding-foreign-key-constraint, require-concurrent-index-creation
-- Where credit comes from, what each reversal and expiry took it from, and what is left of each credit.
-- A column without a default is added without touching a row.
ALTER TABLE billing.reward_entries
ADD COLUMN source text,
ADD COLUMN referred_customer_id bigint,
ADD COLUMN milestone_months integer,
ADD COLUMN credit_id bigint;
COMMENT ON COLUMN billing.reward_entries.source IS 'Why credit was earned; null where nobody told us (imports, older entries)';
COMMENT ON COLUMN billing.reward_entries.referred_customer_id IS 'Whom the customer brought, for a referral';
COMMENT ON COLUMN billing.reward_entries.milestone_months IS 'The months of tenure that a loyalty credit is for';
COMMENT ON COLUMN billing.reward_entries.credit_id IS
'The credit that a reversal or an expiry was taken from; null where nobody told us (imports, older expiries)';

-- What an earlier revert set aside comes back; an older reversal names its credit in its reason. Only these rows are touched,
-- in the one transaction in which the ledger is open, and no amount is.
CREATE TABLE IF NOT EXISTS archive.reward_entry_links (
    reward_entry_id bigint PRIMARY KEY,
    source text,
    referred_customer_id bigint,
    milestone_months integer,
    credit_id bigint
);
ALTER TABLE billing.reward_entries DISABLE TRIGGER reward_entries_append_only;
UPDATE billing.reward_entries AS e
SET
    source = kept.source,
    referred_customer_id = kept.referred_customer_id,
    milestone_months = kept.milestone_months,
    credit_id = kept.credit_id
FROM archive.reward_entry_links AS kept
WHERE e.reward_entry_id = kept.reward_entry_id;
UPDATE billing.reward_entries AS e
SET credit_id = credit.reward_entry_id
FROM billing.reward_entries AS credit
WHERE
    e.kind = 'reversed' AND e.credit_id IS NULL AND credit.kind = 'earned' AND credit.customer_id = e.customer_id
    AND credit.reward_entry_id = substring(e.reason FROM '^reversal of credit ([0-9]{1,18}):')::bigint;
ALTER TABLE billing.reward_entries ENABLE TRIGGER reward_entries_append_only;
-- squawk-ignore ban-drop-table
DROP TABLE archive.reward_entry_links;

-- Checked at once: the new columns lock the ledger until the end of this transaction anyway, and it is read in a moment.
ALTER TABLE billing.reward_entries
ADD CONSTRAINT reward_entries_source CHECK (
    source IS NULL OR (kind = 'earned' AND source IN ('referral', 'loyalty', 'bonus'))
),
ADD CONSTRAINT reward_entries_referral CHECK (
    (source IS NOT DISTINCT FROM 'referral') = (referred_customer_id IS NOT NULL)
    AND referred_customer_id IS DISTINCT FROM customer_id
),
ADD CONSTRAINT reward_entries_milestone CHECK (
    (source IS NOT DISTINCT FROM 'loyalty') = (milestone_months IS NOT NULL) AND milestone_months > 0
),
ADD CONSTRAINT reward_entries_credit CHECK (credit_id IS NULL OR kind IN ('expired', 'reversed')),
ADD CONSTRAINT reward_entries_referred_customer_fkey
FOREIGN KEY (referred_customer_id) REFERENCES billing.customers,
ADD CONSTRAINT reward_entries_credit_fkey FOREIGN KEY (credit_id) REFERENCES billing.reward_entries;
-- Small: they hold only rows that the columns above mark. A milestone is rewarded once, and so is bringing a customer.
CREATE UNIQUE INDEX reward_entries_milestone_once ON billing.reward_entries (customer_id, milestone_months)
WHERE source = 'loyalty';
CREATE UNIQUE INDEX reward_entries_referral_once ON billing.reward_entries (referred_customer_id) WHERE source = 'referral';
CREATE INDEX reward_entries_taken_from ON billing.reward_entries (credit_id) WHERE credit_id IS NOT NULL;

-- Milestones reached before a programme began are not rewarded: customers of old would all get theirs on the first day.
ALTER TABLE IF EXISTS archive.reward_programmes SET SCHEMA billing;
CREATE TABLE IF NOT EXISTS billing.reward_programmes (
    programme text PRIMARY KEY CHECK (programme IN ('loyalty')),
    starts_at timestamptz NOT NULL
);
COMMENT ON TABLE billing.reward_programmes IS 'Since when credit is given by rule; FLEXPAY_LOYALTY_SINCE overrules it';
INSERT INTO billing.reward_programmes (programme, starts_at) VALUES ('loyalty', now()) ON CONFLICT (programme) DO NOTHING;

-- What is left of each credit, in the order in which credit is spent: as it came into the ledger, within one import as it was
-- earned. What a spending took never changes afterwards, also when credit of an older date comes in later.
-- An expiry that names no credit belongs to those that ran out last before it, the newest first. What no credit explains
-- (a reversal of nobody knows what) counts as spent: the parts always sum up to the balance.
CREATE FUNCTION billing.reward_credits(customer_ids bigint [])
RETURNS TABLE (
    customer_id bigint,
    reward_entry_id bigint,
    source text,
    occurred_at timestamptz,
    expires_at timestamptz,
    amount_minor bigint,
    written_off_minor bigint,
    spent_minor bigint,
    left_minor bigint
) LANGUAGE sql STABLE AS $$
    WITH entries AS (
        SELECT
            e.*,
            coalesce(sum(e.amount_minor) FILTER (WHERE e.credit_id IS NOT NULL) OVER credit, 0) AS linked,
            CASE
                WHEN e.expires_at IS NOT NULL OR (e.kind = 'expired' AND e.credit_id IS NULL) THEN max(e.expires_at) OVER by_expiry
            END AS ran_out_at
        FROM billing.reward_entries AS e
        WHERE e.customer_id = ANY(reward_credits.customer_ids)
        WINDOW
            credit AS (PARTITION BY e.customer_id, coalesce(e.credit_id, e.reward_entry_id)),
            by_expiry AS (PARTITION BY e.customer_id ORDER BY coalesce(e.expires_at, e.occurred_at))
    ), together AS (
        SELECT
            e.*,
            CASE WHEN e.kind = 'earned' THEN e.amount_minor - e.linked ELSE 0 END AS kept,
            coalesce(sum(e.amount_minor) FILTER (WHERE e.kind = 'expired' AND e.credit_id IS NULL) OVER ran_out, 0) AS unnamed,
            coalesce(sum(e.amount_minor - e.linked) FILTER (WHERE e.kind = 'earned') OVER newer, 0) AS kept_newer
        FROM entries AS e
        WINDOW
            ran_out AS (PARTITION BY e.customer_id, e.ran_out_at),
            newer AS (
                PARTITION BY e.customer_id, e.ran_out_at ORDER BY e.recorded_at DESC, e.occurred_at DESC, e.reward_entry_id DESC
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            )
    ), attributed AS (
        SELECT
            t.*,
            CASE
                WHEN t.kind = 'earned' AND t.ran_out_at IS NOT NULL THEN least(t.kept, greatest(t.unnamed - t.kept_newer, 0))
                ELSE 0
            END AS taken
        FROM together AS t
    ), queue AS (
        SELECT
            a.*,
            coalesce(sum(a.amount_minor) FILTER (WHERE a.kind <> 'earned' AND a.credit_id IS NULL) OVER customer, 0)
            - sum(a.taken) OVER customer AS spent,
            coalesce(sum(a.kept - a.taken) OVER before, 0) AS ahead
        FROM attributed AS a
        WINDOW
            customer AS (PARTITION BY a.customer_id),
            before AS (
                PARTITION BY a.customer_id ORDER BY a.recorded_at, a.occurred_at, a.reward_entry_id
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            )
    )
    SELECT
        q.customer_id,
        q.reward_entry_id,
        q.source,
        q.occurred_at,
        q.expires_at,
        q.amount_minor,
        (q.linked + q.taken)::bigint,
        least(q.kept - q.taken, greatest(q.spent - q.ahead, 0))::bigint,
        (q.kept - q.taken - least(q.kept - q.taken, greatest(q.spent - q.ahead, 0)))::bigint
    FROM queue AS q
    WHERE q.kind = 'earned'
$$;
COMMENT ON FUNCTION billing.reward_credits(bigint []) IS
'Every credit of these customers: earned, written off (expired, reversed), spent, left; minor units';
