-- squawk-ignore-file ban-drop-column
-- Changes at the same frequency, which the release before does not know, are set aside, and so is what the columns tell.
CREATE TABLE archive.frequency_change_terms (
    LIKE billing.frequency_changes
);
INSERT INTO archive.frequency_change_terms
SELECT * FROM billing.frequency_changes WHERE to_plan IS NOT NULL OR from_amount_minor IS NOT NULL;
DELETE FROM billing.frequency_changes WHERE from_frequency = to_frequency;

-- squawk-ignore ban-drop-constraint
ALTER TABLE billing.frequency_changes DROP CONSTRAINT frequency_changes_check;
ALTER TABLE billing.frequency_changes
ADD CONSTRAINT frequency_changes_check CHECK (from_frequency <> to_frequency) NOT VALID;
-- squawk-ignore constraint-missing-not-valid
ALTER TABLE billing.frequency_changes VALIDATE CONSTRAINT frequency_changes_check;
-- Their other constraints go with the columns.
ALTER TABLE billing.frequency_changes
DROP COLUMN from_plan,
DROP COLUMN to_plan,
DROP COLUMN from_amount_minor;
COMMENT ON TABLE billing.frequency_changes IS 'Each change of a payment frequency, with the proration that it caused';
