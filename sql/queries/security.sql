-- The audit trail in the control database, and what a search for card numbers has to read.

-- name: append_audit_entry(actor, action, subject, outcome, run_id, details)$
-- One line of the trail; the database's own clock says when.
INSERT INTO ops.audit_log (actor, action, subject, outcome, run_id, details)
VALUES (:actor, :action, :subject, :outcome, :run_id, :details)
RETURNING audit_id;

-- name: audit_entries(since, at_most, subject)
-- The trail since an instant, newest first; of one subject where one is given.
SELECT
    audit_id,
    occurred_at,
    actor,
    action,
    subject,
    outcome,
    run_id,
    details
FROM ops.audit_log
WHERE occurred_at >= :since AND (:subject::text IS NULL OR subject = :subject)
ORDER BY occurred_at DESC, audit_id DESC
LIMIT :at_most;

-- name: text_columns(schema)
-- The columns of a schema that can hold text: strings, JSON and arrays of them; a partition is read through its parent.
SELECT
    c.relname AS table_name,
    a.attname AS column_name
FROM pg_class AS c
INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
INNER JOIN pg_attribute AS a ON c.oid = a.attrelid AND a.attnum > 0 AND NOT a.attisdropped
INNER JOIN pg_type AS t ON a.atttypid = t.oid
LEFT JOIN pg_type AS e ON t.typelem = e.oid AND t.typcategory = 'A'
WHERE n.nspname = :schema
    AND c.relkind IN ('r', 'p', 'm')
    AND NOT c.relispartition
    AND (coalesce(e.typcategory, t.typcategory) = 'S' OR coalesce(e.typname, t.typname) IN ('json', 'jsonb'))
ORDER BY c.relname, a.attnum;
