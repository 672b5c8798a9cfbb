-- Comparisons and open differences are set aside; so are commands that the release before cannot send.
-- squawk-ignore require-concurrent-index-deletion
DROP INDEX billing.stripe_commands_told;
-- squawk-ignore require-concurrent-index-deletion
DROP INDEX billing.stripe_events_received;
ALTER TABLE billing.reconciliation_differences SET SCHEMA archive;
ALTER TABLE billing.reconciliations SET SCHEMA archive;

CREATE TABLE archive.stripe_commands_of_mends (LIKE billing.stripe_commands);
INSERT INTO archive.stripe_commands_of_mends
SELECT * FROM billing.stripe_commands WHERE operation IN ('change_quantity', 'move_payment');
DELETE FROM billing.stripe_commands WHERE operation IN ('change_quantity', 'move_payment');
-- squawk-ignore ban-drop-constraint
ALTER TABLE billing.stripe_commands DROP CONSTRAINT stripe_commands_operation_check;
ALTER TABLE billing.stripe_commands ADD CONSTRAINT stripe_commands_operation_check CHECK (
    operation IN ('pause', 'resume', 'change_price', 'cancel')
) NOT VALID;
-- squawk-ignore constraint-missing-not-valid
ALTER TABLE billing.stripe_commands VALIDATE CONSTRAINT stripe_commands_operation_check;
