-- The control plane's own memory: it survives the restore of what it controls.
CREATE SCHEMA IF NOT EXISTS ops;
COMMENT ON SCHEMA ops IS 'Audit trail, deploys, incidents, rollbacks, alerts and the backup catalog';

CREATE TABLE ops.audit_log (
    audit_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    occurred_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor text NOT NULL,
    action text NOT NULL,
    subject text NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('planned', 'done', 'failed', 'refused')),
    run_id text,
    details jsonb NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE ops.audit_log IS 'Who did what to what, and how it ended; append-only';
CREATE INDEX audit_log_occurred ON ops.audit_log (occurred_at);
CREATE INDEX audit_log_subject ON ops.audit_log (subject, occurred_at);

CREATE TABLE ops.deploys (
    deploy_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    release text NOT NULL,
    deployed_at timestamptz NOT NULL,
    run_id text,
    actor text NOT NULL,
    revisions jsonb NOT NULL
);
COMMENT ON TABLE ops.deploys IS 'Each completed deploy; sensors judge what happened since the newest';
CREATE INDEX deploys_deployed ON ops.deploys (deployed_at);

CREATE TABLE ops.incidents (
    incident_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    trigger text NOT NULL,
    deploy_id bigint REFERENCES ops.deploys,
    component text,
    opened_at timestamptz NOT NULL,
    detected_at timestamptz NOT NULL,
    closed_at timestamptz,
    evidence jsonb NOT NULL DEFAULT '{}',
    UNIQUE (deploy_id, trigger)
);
COMMENT ON TABLE ops.incidents IS 'What a sensor found wrong with a deploy, once per deploy and trigger';

CREATE TABLE ops.decisions (
    decision_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    trigger text NOT NULL,
    deploy_id bigint REFERENCES ops.deploys,
    tick_at timestamptz NOT NULL,
    verdict text NOT NULL CHECK (verdict IN ('healthy', 'watching', 'roll_back', 'inconclusive', 'held')),
    failures bigint,
    attempts bigint,
    evidence jsonb NOT NULL DEFAULT '{}',
    decided_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE NULLS NOT DISTINCT (trigger, deploy_id, tick_at)
);
COMMENT ON TABLE ops.decisions IS 'What each sensor concluded at each five-minute tick, with the numbers it had';

CREATE TABLE ops.rollbacks (
    rollback_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    component text NOT NULL CHECK (component IN ('frequencies', 'pauses', 'rewards', 'complete')),
    incident_id bigint REFERENCES ops.incidents,
    actor text NOT NULL,
    reason text NOT NULL,
    run_id text,
    requested_at timestamptz NOT NULL,
    state text NOT NULL CHECK (state IN ('running', 'done', 'failed', 'undone')),
    finished_at timestamptz,
    undone_at timestamptz,
    details jsonb NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE ops.rollbacks IS 'Each rollback, by whom and why, and whether it was undone';
CREATE UNIQUE INDEX rollbacks_once_per_incident ON ops.rollbacks (incident_id) WHERE state IN ('running', 'done');

CREATE TABLE ops.alerts (
    alert_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fingerprint text NOT NULL,
    severity text NOT NULL CHECK (severity IN ('info', 'warning', 'critical')),
    title text NOT NULL,
    body text NOT NULL,
    context jsonb NOT NULL DEFAULT '{}',
    raised_at timestamptz NOT NULL,
    repeats integer NOT NULL DEFAULT 0,
    last_raised_at timestamptz NOT NULL
);
COMMENT ON TABLE ops.alerts IS 'What somebody must know; the same fingerprint within an hour counts as a repeat';
CREATE INDEX alerts_fingerprint ON ops.alerts (fingerprint, raised_at);

CREATE TABLE ops.alert_deliveries (
    alert_id bigint NOT NULL REFERENCES ops.alerts,
    channel text NOT NULL CHECK (channel IN ('slack', 'email', 'sms', 'pagerduty')),
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'parked')),
    attempts integer NOT NULL DEFAULT 0,
    not_before timestamptz NOT NULL DEFAULT '-infinity',
    delivered_at timestamptz,
    last_error text,
    PRIMARY KEY (alert_id, channel)
);
COMMENT ON TABLE ops.alert_deliveries IS 'Outbox: which channel still has to be told of which alert';
CREATE INDEX alert_deliveries_pending ON ops.alert_deliveries (not_before) WHERE state = 'pending';

CREATE TABLE ops.backups (
    backup_id text PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('daily', 'pre_deploy', 'manual', 'pre_restore')),
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    size_bytes bigint NOT NULL CHECK (size_bytes > 0),
    path text NOT NULL,
    manifest_sha256 text NOT NULL,
    server_version text NOT NULL,
    verified_at timestamptz,
    verification jsonb,
    offsite_at timestamptz,
    offsite_path text,
    pruned_at timestamptz
);
COMMENT ON TABLE ops.backups IS 'The backup catalog; a row outlives its files';
CREATE INDEX backups_started ON ops.backups (started_at);

CREATE TABLE ops.cursors (
    name text PRIMARY KEY,
    position jsonb NOT NULL,
    moved_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE ops.cursors IS 'How far a repeated reader has come';

CREATE FUNCTION ops.refuse_history_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ops.audit_log
FOR EACH STATEMENT EXECUTE FUNCTION ops.refuse_history_change();
