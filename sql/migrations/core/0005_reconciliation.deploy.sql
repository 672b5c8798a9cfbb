-- Each comparison with Stripe and the differences that are open; commands that a mend needs beside those of billing.
-- squawk-ignore ban-drop-constraint
ALTER TABLE billing.stripe_commands DROP CONSTRAINT stripe_commands_operation_check;
ALTER TABLE billing.stripe_commands ADD CONSTRAINT stripe_commands_operation_check CHECK (
    operation IN ('pause', 'resume', 'change_price', 'change_quantity', 'move_payment', 'cancel')
) NOT VALID;
-- squawk-ignore constraint-missing-not-valid
ALTER TABLE billing.stripe_commands VALIDATE CONSTRAINT stripe_commands_operation_check;

-- The commands that an earlier revert set aside come back.
CREATE TABLE IF NOT EXISTS archive.stripe_commands_of_mends (LIKE billing.stripe_commands);
INSERT INTO billing.stripe_commands OVERRIDING SYSTEM VALUE SELECT * FROM archive.stripe_commands_of_mends;
-- squawk-ignore ban-drop-table
DROP TABLE archive.stripe_commands_of_mends;

ALTER TABLE IF EXISTS archive.reconciliations SET SCHEMA billing;
CREATE TABLE IF NOT EXISTS billing.reconciliations (
    reconciliation_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope text NOT NULL CHECK (scope IN ('full', 'incremental')),
    started_at timestamptz NOT NULL,
    read_at timestamptz NOT NULL,
    compared bigint NOT NULL CHECK (compared >= 0),
    in_flight bigint NOT NULL CHECK (in_flight >= 0),
    differences jsonb NOT NULL
);
COMMENT ON TABLE billing.reconciliations IS 'Each comparison of the database with Stripe';
COMMENT ON COLUMN billing.reconciliations.read_at IS 'The database''s own clock when the reading began: the next pass looks at what changed since';
COMMENT ON COLUMN billing.reconciliations.compared IS 'How many subscriptions Stripe was asked for';
COMMENT ON COLUMN billing.reconciliations.in_flight IS 'Subscriptions left out, because a change of theirs was on its way';
COMMENT ON COLUMN billing.reconciliations.differences IS 'How many differences of each kind';

ALTER TABLE IF EXISTS archive.reconciliation_differences SET SCHEMA billing;
CREATE TABLE IF NOT EXISTS billing.reconciliation_differences (
    subscription_ref text NOT NULL,
    kind text NOT NULL CHECK (kind IN (
        'status', 'pause', 'price', 'quantity', 'next_payment', 'missing_in_stripe', 'missing_in_database'
    )),
    in_database text,
    in_stripe text,
    mend text NOT NULL,
    parked text,
    subscription_id bigint,
    stripe_id text,
    first_seen bigint NOT NULL REFERENCES billing.reconciliations,
    last_seen bigint NOT NULL REFERENCES billing.reconciliations,
    alerted_at timestamptz,
    PRIMARY KEY (subscription_ref, kind)
);
COMMENT ON TABLE billing.reconciliation_differences IS 'What the last comparison found different; gone when one finds it no more';
COMMENT ON COLUMN billing.reconciliation_differences.mend IS 'What would make the two agree, as the code of payments.reconciliation.MENDS';
COMMENT ON COLUMN billing.reconciliation_differences.parked IS 'The command that Stripe refused, where one is the reason';
CREATE INDEX IF NOT EXISTS reconciliation_differences_first_seen ON billing.reconciliation_differences (first_seen);
CREATE INDEX IF NOT EXISTS reconciliation_differences_last_seen ON billing.reconciliation_differences (last_seen);

-- What came or was told since the last pass is found without reading the whole table. Both grow in the order of time, so
-- that a block range index is small and built in one quick pass; the engine runs every file in one transaction.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX IF NOT EXISTS stripe_events_received ON billing.stripe_events USING brin (received_at);
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX IF NOT EXISTS stripe_commands_told ON billing.stripe_commands USING brin (created_at, delivered_at);
