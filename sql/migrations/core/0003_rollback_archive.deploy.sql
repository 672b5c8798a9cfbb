-- What each rollback found and what it left, subject by subject, so that it can be finished after a crash and undone later.
-- squawk-ignore renaming-table
ALTER TABLE IF EXISTS archive.rollback_entries_set_aside RENAME TO rollback_entries;
CREATE TABLE IF NOT EXISTS archive.rollback_entries (
    rollback_id bigint NOT NULL,
    component text NOT NULL CHECK (component IN ('frequencies', 'pauses', 'rewards')),
    subject text NOT NULL CHECK (subject IN ('feature', 'subscription', 'frequency_change', 'pause', 'reward_balance')),
    subject_id bigint NOT NULL,
    before jsonb NOT NULL,
    after jsonb NOT NULL,
    archived_at timestamptz NOT NULL,
    settled_at timestamptz,
    outcome text CHECK (outcome IN ('restored', 'left_alone')),
    left_because text,
    CONSTRAINT rollback_entries_pkey PRIMARY KEY (rollback_id, component, subject, subject_id),
    CONSTRAINT rollback_entries_settled CHECK ((settled_at IS NULL) = (outcome IS NULL)),
    CONSTRAINT rollback_entries_reason CHECK (left_because IS NULL OR outcome = 'left_alone')
);
COMMENT ON TABLE archive.rollback_entries IS 'What a rollback changed, before and after: its undo reads it';
COMMENT ON COLUMN archive.rollback_entries.rollback_id IS 'ops.rollbacks in the control database';
COMMENT ON COLUMN archive.rollback_entries.subject_id IS 'Key of the row that was changed; 0 for the component''s feature flag';
COMMENT ON COLUMN archive.rollback_entries.settled_at IS 'When an undo restored the subject, or decided to leave it alone';
CREATE INDEX IF NOT EXISTS rollback_entries_open
ON archive.rollback_entries (rollback_id, component, subject, subject_id) WHERE settled_at IS NULL;
