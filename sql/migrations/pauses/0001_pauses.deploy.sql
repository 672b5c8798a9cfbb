-- Pauses: half-open intervals in which a subscription is not billed, never two at once for one subscription.
-- depends_on: core
ALTER TABLE IF EXISTS archive.subscription_pauses SET SCHEMA billing;
CREATE TABLE IF NOT EXISTS billing.subscription_pauses (
    pause_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pause_ref text NOT NULL UNIQUE CHECK (pause_ref <> ''),
    subscription_id bigint NOT NULL REFERENCES billing.subscriptions,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz,
    kind text NOT NULL CHECK (kind IN ('customer', 'payment_failure', 'admin')),
    reason text,
    state text NOT NULL DEFAULT 'scheduled' CHECK (state IN ('scheduled', 'active', 'completed', 'canceled')),
    version bigint NOT NULL DEFAULT 1,
    changed_at timestamptz NOT NULL DEFAULT now(),
    CHECK (ends_at > starts_at),
    CHECK (kind <> 'payment_failure' OR ends_at IS NOT NULL),
    CONSTRAINT subscription_pauses_no_overlap EXCLUDE USING gist (
        int8range(subscription_id, subscription_id, '[]') WITH &&,
        tstzrange(starts_at, ends_at) WITH &&
    ) WHERE (state IN ('scheduled', 'active'))
);
COMMENT ON TABLE billing.subscription_pauses IS 'Half-open [starts_at, ends_at); no end: until somebody resumes it';
COMMENT ON COLUMN billing.subscription_pauses.kind IS
'customer or admin: not billed. payment_failure: the grace period after a failed payment; suspended when it ends';
CREATE INDEX IF NOT EXISTS subscription_pauses_subscription ON billing.subscription_pauses (subscription_id, starts_at);
CREATE INDEX IF NOT EXISTS subscription_pauses_due_start ON billing.subscription_pauses (starts_at, pause_id)
WHERE state = 'scheduled';
CREATE INDEX IF NOT EXISTS subscription_pauses_due_end ON billing.subscription_pauses (ends_at, pause_id) WHERE state = 'active';

INSERT INTO billing.feature_flags (feature, enabled, reason) VALUES ('pauses', true, 'deployed')
ON CONFLICT (feature) DO UPDATE SET enabled = true, reason = 'deployed', changed_at = now();
