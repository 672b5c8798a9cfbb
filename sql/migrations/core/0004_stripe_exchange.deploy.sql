-- How far polling has read at Stripe, apart from what webhooks bring; of which parked commands somebody was told; and the
-- outbox in its order.
ALTER TABLE IF EXISTS archive.stripe_cursors SET SCHEMA billing;
CREATE TABLE IF NOT EXISTS billing.stripe_cursors (
    stream text PRIMARY KEY CHECK (stream <> ''),
    created_through timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
COMMENT ON TABLE billing.stripe_cursors IS 'Up to where each of Stripe''s lists has been read to its end';
COMMENT ON COLUMN billing.stripe_cursors.created_through IS 'created of the newest object read; reading begins some time before';

ALTER TABLE billing.stripe_commands ADD COLUMN IF NOT EXISTS alert text;
ALTER TABLE billing.stripe_commands ADD COLUMN IF NOT EXISTS alerted_at timestamptz;
COMMENT ON COLUMN billing.stripe_commands.alert IS 'Parked: fingerprint of the alert that tells of it, chosen before it is raised';
COMMENT ON COLUMN billing.stripe_commands.alerted_at IS 'Parked: when that alert stood in the control database';
-- A partial index over the few rows that wait is made in a moment.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX IF NOT EXISTS stripe_commands_queue ON billing.stripe_commands (command_id) WHERE state = 'pending';
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX IF NOT EXISTS stripe_commands_parked ON billing.stripe_commands (command_id) WHERE state = 'parked';

-- What is known of one subscription or payment intent.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX IF NOT EXISTS stripe_events_subject ON billing.stripe_events (subject_id, created);

-- What an earlier revert set aside comes back.
DO $$
BEGIN
    IF to_regclass('archive.stripe_command_alerts') IS NOT NULL THEN
        UPDATE billing.stripe_commands AS c SET alert = a.alert, alerted_at = a.alerted_at
        FROM archive.stripe_command_alerts AS a WHERE a.command_id = c.command_id;
        DROP TABLE archive.stripe_command_alerts;
    END IF;
END
$$;
