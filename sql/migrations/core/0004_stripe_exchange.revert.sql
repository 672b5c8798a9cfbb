-- Cursors, and who was told of what, are set aside for the day they return.
CREATE TABLE archive.stripe_command_alerts (
    command_id bigint PRIMARY KEY,
    alert text NOT NULL,
    alerted_at timestamptz
);
INSERT INTO archive.stripe_command_alerts (command_id, alert, alerted_at)
SELECT command_id, alert, alerted_at FROM billing.stripe_commands WHERE alert IS NOT NULL;
-- squawk-ignore require-concurrent-index-deletion
DROP INDEX billing.stripe_events_subject;
-- squawk-ignore require-concurrent-index-deletion
DROP INDEX billing.stripe_commands_parked;
-- squawk-ignore require-concurrent-index-deletion
DROP INDEX billing.stripe_commands_queue;
-- squawk-ignore ban-drop-column
ALTER TABLE billing.stripe_commands DROP COLUMN alerted_at;
-- squawk-ignore ban-drop-column
ALTER TABLE billing.stripe_commands DROP COLUMN alert;
ALTER TABLE billing.stripe_cursors SET SCHEMA archive;
