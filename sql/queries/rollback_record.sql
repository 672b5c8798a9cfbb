-- name: archived_counts(rollback_id)
-- What a rollback has changed so far, and what an undo has settled.
SELECT
    component,
    subject,
    before ->> 'state' AS state,
    outcome,
    left_because,
    count(*) AS entries,
    count(after ->> 'command') AS commands,
    count(*) FILTER (WHERE (after ->> 'derived')::boolean) AS derived
FROM archive.rollback_entries
WHERE rollback_id = :rollback_id
GROUP BY component, subject, before ->> 'state', outcome, left_because
ORDER BY component, subject, before ->> 'state', outcome, left_because;

-- name: derived_prices(rollback_id)
-- Prices that had to be derived because the plan has no monthly one.
SELECT
    before ->> 'plan' AS plan,
    before ->> 'currency' AS currency,
    before ->> 'payment_frequency' AS payment_frequency,
    (before ->> 'amount_minor')::bigint AS amount_minor,
    (after ->> 'amount_minor')::bigint AS monthly_minor,
    count(*) AS subscriptions
FROM archive.rollback_entries
WHERE rollback_id = :rollback_id AND (after ->> 'derived')::boolean
GROUP BY
    before ->> 'plan', before ->> 'currency', before ->> 'payment_frequency', before ->> 'amount_minor', after ->> 'amount_minor'
ORDER BY plan, currency, payment_frequency, amount_minor
LIMIT 50;

-- name: highest_archived()$
-- The highest rollback that the archive knows of.
SELECT coalesce(max(rollback_id), 0) FROM archive.rollback_entries;

-- name: rollback_by_id(rollback_id)^
-- One rollback.
SELECT
    rollback_id,
    component,
    incident_id,
    actor,
    reason,
    state,
    requested_at,
    finished_at,
    undone_at,
    details
FROM ops.rollbacks
WHERE rollback_id = :rollback_id;

-- name: rollback_to_resume(component, incident_id)^
-- The rollback that a call is about: of the incident, or, without one, one of the component that was never finished.
SELECT
    rollback_id,
    component,
    incident_id,
    actor,
    reason,
    state,
    requested_at,
    finished_at,
    undone_at,
    details
FROM ops.rollbacks
WHERE
    CASE
        WHEN :incident_id::bigint IS NULL THEN incident_id IS NULL AND component = :component AND state IN ('running', 'failed')
        ELSE incident_id = :incident_id AND state IN ('running', 'failed', 'done')
    END
ORDER BY rollback_id DESC
LIMIT 1;

-- name: incident_known(incident_id)$
-- Whether there is such an incident.
SELECT count(*) FROM ops.incidents WHERE incident_id = :incident_id;

-- name: raise_rollback_ids(floor)$
-- No number that the archive holds already is given again, also where the control database was made anew.
SELECT setval(pg_get_serial_sequence('ops.rollbacks', 'rollback_id'), :floor::bigint)
WHERE :floor > (SELECT coalesce(max(rollback_id), 0) FROM ops.rollbacks);

-- name: start_rollback(component, incident_id, actor, reason, run_id, now, details)$
-- A rollback begins.
INSERT INTO ops.rollbacks (component, incident_id, actor, reason, run_id, requested_at, state, details)
VALUES (:component, :incident_id::bigint, :actor, :reason, :run_id::text, :now, 'running', :details::jsonb)
RETURNING rollback_id;

-- name: resume_rollback(rollback_id, run_id, now)!
-- An unfinished rollback goes on.
UPDATE ops.rollbacks
SET
    state = 'running',
    run_id = coalesce(:run_id::text, run_id),
    details = details || jsonb_build_object(
        'attempts', coalesce((details ->> 'attempts')::integer, 1) + 1, 'attempt_started_at', :now::timestamptz
    )
WHERE rollback_id = :rollback_id AND state IN ('running', 'failed');

-- name: fail_rollback(rollback_id, problem)!
-- A rollback stopped: the next call goes on with it.
UPDATE ops.rollbacks SET state = 'failed', details = details || jsonb_build_object('problem', :problem::text)
WHERE rollback_id = :rollback_id AND state = 'running';

-- name: finish_rollback(rollback_id, now, details)!
-- A rollback is done, and so is the incident that it answers.
WITH done AS (
    UPDATE ops.rollbacks SET state = 'done', finished_at = :now, details = (details - 'problem') || :details::jsonb
    WHERE rollback_id = :rollback_id AND state = 'running'
    RETURNING incident_id
)

UPDATE ops.incidents AS i SET closed_at = :now
FROM done
WHERE i.incident_id = done.incident_id AND i.closed_at IS NULL;

-- name: mark_undone(rollback_id, now, details)!
-- A rollback was undone.
UPDATE ops.rollbacks SET state = 'undone', undone_at = :now, details = details || :details::jsonb
WHERE rollback_id = :rollback_id AND state = 'done';

-- name: later_rollback(rollback_id, components)^
-- A later rollback that is still in force and took back one of these components as well.
SELECT
    rollback_id,
    component
FROM ops.rollbacks
WHERE rollback_id > :rollback_id AND state IN ('running', 'failed', 'done') AND component = any(:components::text[])
ORDER BY rollback_id DESC
LIMIT 1;

-- name: newest_rollbacks(at_most)
-- The rollbacks, newest first.
SELECT
    rollback_id,
    component,
    state,
    actor,
    reason,
    requested_at,
    finished_at,
    undone_at
FROM ops.rollbacks
ORDER BY requested_at DESC, rollback_id DESC
LIMIT :at_most;
