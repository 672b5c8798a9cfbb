SELECT audit_id, occurred_at, actor, action, subject, outcome, run_id, details FROM ops.audit_log WHERE false;
SELECT deploy_id, release, deployed_at, run_id, actor, revisions FROM ops.deploys WHERE false;
SELECT incident_id, trigger, deploy_id, component, opened_at, detected_at, closed_at, evidence FROM ops.incidents WHERE false;
SELECT decision_id, trigger, deploy_id, tick_at, verdict, failures, attempts, evidence, decided_at FROM ops.decisions WHERE false;
SELECT rollback_id, component, incident_id, actor, reason, run_id, requested_at, state, finished_at, undone_at, details
FROM ops.rollbacks WHERE false;
SELECT alert_id, fingerprint, severity, title, body, context, raised_at, repeats, last_raised_at FROM ops.alerts WHERE false;
SELECT alert_id, channel, state, attempts, not_before, delivered_at, last_error FROM ops.alert_deliveries WHERE false;
SELECT backup_id, kind, started_at, finished_at, size_bytes, path, manifest_sha256, server_version, verified_at, verification,
       offsite_at, offsite_path, pruned_at
FROM ops.backups WHERE false;
SELECT name, position, moved_at FROM ops.cursors WHERE false;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM unnest(ARRAY[
        'audit_log_occurred', 'audit_log_subject', 'deploys_deployed', 'rollbacks_once_per_incident', 'alerts_fingerprint',
        'alert_deliveries_pending', 'backups_started'
    ]) AS wanted (name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_index WHERE indexrelid = to_regclass('ops.' || wanted.name) AND indisvalid AND indisready
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'ops: index missing or invalid: %', missing;
    END IF;
    IF NOT EXISTS (
        SELECT 1 FROM pg_trigger
        WHERE tgrelid = 'ops.audit_log'::regclass AND tgname = 'audit_log_append_only' AND tgenabled IN ('O', 'A')
    ) THEN
        RAISE EXCEPTION 'ops: the audit log can be changed';
    END IF;
END
$$;

DO $$
DECLARE
    missing text;
BEGIN
    SELECT string_agg(wanted.name, ', ') INTO missing
    FROM (VALUES
        ('ops.alert_deliveries', 'alert_deliveries_alert_id_fkey'),
        ('ops.alert_deliveries', 'alert_deliveries_channel_check'), ('ops.alert_deliveries', 'alert_deliveries_pkey'),
        ('ops.alert_deliveries', 'alert_deliveries_state_check'), ('ops.alerts', 'alerts_pkey'),
        ('ops.alerts', 'alerts_severity_check'), ('ops.audit_log', 'audit_log_outcome_check'),
        ('ops.audit_log', 'audit_log_pkey'), ('ops.backups', 'backups_kind_check'), ('ops.backups', 'backups_pkey'),
        ('ops.backups', 'backups_size_bytes_check'), ('ops.cursors', 'cursors_pkey'),
        ('ops.decisions', 'decisions_deploy_id_fkey'), ('ops.decisions', 'decisions_pkey'),
        ('ops.decisions', 'decisions_trigger_deploy_id_tick_at_key'), ('ops.decisions', 'decisions_verdict_check'),
        ('ops.deploys', 'deploys_pkey'), ('ops.incidents', 'incidents_deploy_id_fkey'),
        ('ops.incidents', 'incidents_deploy_id_trigger_key'), ('ops.incidents', 'incidents_pkey'),
        ('ops.rollbacks', 'rollbacks_component_check'), ('ops.rollbacks', 'rollbacks_incident_id_fkey'),
        ('ops.rollbacks', 'rollbacks_pkey'), ('ops.rollbacks', 'rollbacks_state_check')
    ) AS wanted (tab, name)
    WHERE NOT EXISTS (
        SELECT 1 FROM pg_constraint
        WHERE conrelid = to_regclass(wanted.tab) AND conname = wanted.name AND convalidated
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'ops: constraint missing or not validated: %', missing;
    END IF;
END
$$;
