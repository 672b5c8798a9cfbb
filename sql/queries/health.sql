-- What the health checks ask. A check returns a row for each thing that is wrong, and none where all is well.

-- name: server_time()$
-- The server's own clock.
SELECT clock_timestamp();

-- name: server_facts()^
-- What one connection can tell of its server and of what its role may do there.
SELECT
    current_setting('server_version_num')::int AS version_number,
    current_setting('server_version') AS version,
    pg_is_in_recovery() AS in_recovery,
    current_setting('transaction_read_only')::boolean AS read_only,
    pg_encoding_to_char(d.encoding) AS encoding,
    d.oid AS database_oid,
    d.datname AS database_name,
    current_user AS user_name,
    host(inet_server_addr()) AS address,
    inet_server_port() AS port,
    pg_postmaster_start_time() AS started_at,
    has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE') AS tells_identity,
    has_database_privilege(d.oid, 'CREATE') AS may_create,
    r.rolsuper OR (r.rolcreatedb AND pg_has_role(d.datdba, 'USAGE')) AS may_restore,
    (
        SELECT coalesce(array_agg(n.nspname::text ORDER BY n.nspname), '{}')
FROM pg_namespace AS n
        WHERE n.nspname IN ('billing', 'archive', 'analytics', 'ops') AND NOT pg_has_role(n.nspowner, 'USAGE')
    ) AS foreign_schemas
FROM pg_database AS d
INNER JOIN pg_roles AS r ON r.rolname = current_user
WHERE d.datname = current_database();

-- name: system_identifier()$
-- What makes a cluster itself; its replicas share it.
SELECT system_identifier FROM pg_control_system();

-- name: relation_exists(relation)$
-- Whether a table is there.
SELECT to_regclass(:relation) IS NOT NULL;

-- name: invalid_indexes()
-- Indexes that PostgreSQL does not use or keep up.
SELECT i.indexrelid::regclass::text AS what
FROM pg_index AS i
INNER JOIN pg_class AS c ON i.indexrelid = c.oid
INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
WHERE NOT (i.indisvalid AND i.indisready AND i.indislive) AND n.nspname IN ('billing', 'archive', 'analytics', 'ops')
ORDER BY what;

-- name: disabled_triggers()
-- Triggers that do not fire for an ordinary session; those of foreign keys included.
SELECT concat(t.tgname, ' on ', t.tgrelid::regclass) AS what
FROM pg_trigger AS t
INNER JOIN pg_class AS c ON t.tgrelid = c.oid
INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
WHERE t.tgenabled IN ('D', 'R') AND n.nspname IN ('billing', 'analytics', 'ops')
ORDER BY what;

-- name: unvalidated_constraints()
-- Constraints that were added NOT VALID and never checked against the rows that were there.
SELECT concat(k.conname, ' on ', k.conrelid::regclass) AS what
FROM pg_constraint AS k
INNER JOIN pg_namespace AS n ON k.connamespace = n.oid
WHERE NOT k.convalidated AND n.nspname IN ('billing', 'analytics', 'ops')
ORDER BY what;

-- name: idle_transactions(longest)
-- Sessions of this database that keep a transaction open and do nothing.
SELECT
    concat(
        'pid ', s.pid, ' (', s.usename, ', ', s.application_name, ') for ',
        date_trunc('second', clock_timestamp() - s.state_change)
    ) AS what
FROM pg_stat_activity AS s
WHERE s.datname = current_database()
    AND s.state IN ('idle in transaction', 'idle in transaction (aborted)')
    AND clock_timestamp() - s.state_change > :longest
ORDER BY s.state_change;

-- name: lagging_slots(most_bytes)
-- Replication slots that keep more WAL than they may, and those whose WAL is gone.
WITH slots AS (
    SELECT
        s.slot_name,
        s.wal_status,
        CASE WHEN NOT pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn) END AS bytes
    FROM pg_replication_slots AS s
)

SELECT concat(slot_name, ': ', coalesce(pg_size_pretty(bytes), 'no WAL'), ', ', wal_status) AS what
FROM slots
WHERE bytes > :most_bytes OR wal_status IN ('unreserved', 'lost')
ORDER BY slot_name;

-- name: bloated_tables(dead_rows, dead_ratio)
-- Tables with more dead rows than vacuum should leave.
SELECT concat(s.schemaname, '.', s.relname, ': ', s.n_dead_tup, ' dead, ', s.n_live_tup, ' live') AS what
FROM pg_stat_user_tables AS s
WHERE s.n_dead_tup > :dead_rows AND s.n_dead_tup > :dead_ratio::float8 * s.n_live_tup
ORDER BY s.n_dead_tup DESC;

-- name: old_transaction_ids(most)
-- Databases of the server whose oldest unfrozen transaction is too long ago.
SELECT concat(d.datname, ': ', age(d.datfrozenxid), ' transactions') AS what
FROM pg_database AS d
WHERE age(d.datfrozenxid) > :most
ORDER BY age(d.datfrozenxid) DESC;

-- name: waiting_commands(now, oldest)
-- The Stripe outbox, where its oldest command has waited too long.
SELECT concat(count(*), ' waiting, the oldest since ', date_trunc('second', min(c.created_at))) AS what
FROM billing.stripe_commands AS c
WHERE c.state = 'pending'
HAVING min(c.created_at) < :now::timestamptz - :oldest::interval;

-- name: parked_commands()
-- Stripe commands that were given up, by operation.
SELECT concat(c.operation, ': ', count(*), ', such as "', left(min(c.last_error), 200), '"') AS what
FROM billing.stripe_commands AS c
WHERE c.state = 'parked'
GROUP BY c.operation
ORDER BY c.operation;

-- name: late_pauses(now, longest)
-- Pauses whose start or end is long past and not yet made true.
WITH late AS (
    SELECT
        'start' AS step,
        s.starts_at AS due_at
    FROM billing.subscription_pauses AS s
    WHERE s.state = 'scheduled' AND s.starts_at < :now::timestamptz - :longest::interval
    UNION ALL
    SELECT
        'end' AS step,
        a.ends_at AS due_at
    FROM billing.subscription_pauses AS a
    WHERE a.state = 'active' AND a.ends_at < :now::timestamptz - :longest::interval
)

SELECT concat(count(*), ' to ', late.step, ', the oldest due at ', date_trunc('second', min(late.due_at))) AS what
FROM late
GROUP BY late.step
ORDER BY late.step DESC;

-- name: waiting_alerts(now, oldest)
-- Channels whose oldest undelivered alert has waited too long.
SELECT concat(count(*), ' for ', d.channel, ', the oldest since ', date_trunc('second', min(a.raised_at))) AS what
FROM ops.alert_deliveries AS d
INNER JOIN ops.alerts AS a ON d.alert_id = a.alert_id
WHERE d.state = 'pending'
GROUP BY d.channel
HAVING min(a.raised_at) < :now::timestamptz - :oldest::interval
ORDER BY d.channel;

-- name: parked_alerts()
-- Deliveries that were given up, by channel.
SELECT concat(count(*), ' for ', d.channel, ', such as "', left(min(d.last_error), 200), '"') AS what
FROM ops.alert_deliveries AS d
WHERE d.state = 'parked'
GROUP BY d.channel
ORDER BY d.channel;

-- name: stale_backups(now, oldest)
-- The newest backup that is still there, where it is too old; never having made one counts.
SELECT coalesce('the newest is of ' || date_trunc('second', max(b.finished_at)), 'there is none') AS what
FROM ops.backups AS b
WHERE b.pruned_at IS NULL AND b.kind IN ('daily', 'pre_deploy', 'manual')
HAVING max(b.finished_at) IS NULL OR max(b.finished_at) < :now::timestamptz - :oldest::interval;

-- name: unverified_backups(now, oldest)
-- The newest backup that was proven, where it is too old; never having proven one counts.
SELECT coalesce('the newest proven is of ' || date_trunc('second', max(b.finished_at)), 'none was proven') AS what
FROM ops.backups AS b
WHERE b.pruned_at IS NULL AND b.verified_at IS NOT NULL
HAVING max(b.finished_at) IS NULL OR max(b.finished_at) < :now::timestamptz - :oldest::interval;

-- name: remove_old_decisions(before, batch_size)!
-- Ticks that found nothing; a tick that led to an incident or an alert is evidence and stays.
DELETE FROM ops.decisions
WHERE decision_id IN (
    SELECT d.decision_id
    FROM ops.decisions AS d
    WHERE d.verdict IN ('healthy', 'watching') AND d.decided_at < :before
    ORDER BY d.decision_id
    LIMIT :batch_size
)
AND verdict IN ('healthy', 'watching');

-- name: remove_old_deliveries(before, batch_size)!
-- Deliveries that were made; the alert itself stays.
DELETE FROM ops.alert_deliveries
WHERE (alert_id, channel) IN (
    SELECT
        a.alert_id,
        a.channel
    FROM ops.alert_deliveries AS a
    WHERE a.state = 'delivered' AND a.delivered_at < :before
    ORDER BY a.alert_id, a.channel
    LIMIT :batch_size
)
AND state = 'delivered';
