-- squawk-ignore-file constraint-missing-not-valid
-- A change may also be one of plan or of price at the same frequency: what held before is kept in full with each.
ALTER TABLE billing.frequency_changes
ADD COLUMN from_plan text,
ADD COLUMN to_plan text,
ADD COLUMN from_amount_minor bigint;
COMMENT ON TABLE billing.frequency_changes IS 'Each change of plan, payment frequency or price, with the proration that it caused';
COMMENT ON COLUMN billing.frequency_changes.from_plan IS 'Null where the plan stayed (older changes, rollbacks)';
COMMENT ON COLUMN billing.frequency_changes.to_plan IS 'Null where the plan stayed (older changes, rollbacks)';
COMMENT ON COLUMN billing.frequency_changes.from_amount_minor IS 'Null where nobody kept it (older changes, rollbacks)';

-- squawk-ignore ban-drop-constraint
ALTER TABLE billing.frequency_changes DROP CONSTRAINT frequency_changes_check;
ALTER TABLE billing.frequency_changes
ADD CONSTRAINT frequency_changes_check CHECK (
    from_frequency <> to_frequency OR coalesce(from_plan <> to_plan, FALSE) OR coalesce(from_amount_minor <> amount_minor, FALSE)
) NOT VALID,
ADD CONSTRAINT frequency_changes_plans CHECK ((from_plan IS NULL) = (to_plan IS NULL)) NOT VALID,
ADD CONSTRAINT frequency_changes_from_amount_minor_check CHECK (from_amount_minor >= 0) NOT VALID,
ADD CONSTRAINT frequency_changes_to_plan_fkey FOREIGN KEY (to_plan) REFERENCES billing.plans NOT VALID;

-- What an earlier revert set aside comes back: the new columns, and the changes that were nothing but these.
CREATE TABLE IF NOT EXISTS archive.frequency_change_terms (
    LIKE billing.frequency_changes
);
UPDATE billing.frequency_changes AS f
SET from_plan = kept.from_plan, to_plan = kept.to_plan, from_amount_minor = kept.from_amount_minor
FROM archive.frequency_change_terms AS kept
WHERE f.frequency_change_id = kept.frequency_change_id;
INSERT INTO billing.frequency_changes (
    frequency_change_id, subscription_id, from_frequency, to_frequency, amount_minor, requested_at, effective_at, credit_minor,
    debit_minor, currency, state, from_plan, to_plan, from_amount_minor
)
OVERRIDING SYSTEM VALUE
SELECT
    frequency_change_id, subscription_id, from_frequency, to_frequency, amount_minor, requested_at, effective_at, credit_minor,
    debit_minor, currency, state, from_plan, to_plan, from_amount_minor
FROM archive.frequency_change_terms
WHERE from_frequency = to_frequency
ON CONFLICT DO NOTHING;
-- squawk-ignore ban-drop-table
DROP TABLE archive.frequency_change_terms;

ALTER TABLE billing.frequency_changes
VALIDATE CONSTRAINT frequency_changes_check,
VALIDATE CONSTRAINT frequency_changes_plans,
VALIDATE CONSTRAINT frequency_changes_from_amount_minor_check,
VALIDATE CONSTRAINT frequency_changes_to_plan_fkey;
