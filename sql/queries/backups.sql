-- Backups: what a database holds, the catalog of its backups, and the swap of a restored database for the live one.
-- What does not stand here: statements over names of tables and databases, composed where they are used.

-- name: server_version()^
-- description: The version of the server, as text and as its major number.
SELECT
    current_setting('server_version') AS version,
    current_setting('server_version_num')::integer / 10000 AS major;

-- name: user_schemas()
-- description: The schemas that a backup holds.
SELECT nspname AS schema_name
FROM pg_namespace
WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
ORDER BY nspname;

-- name: user_tables()
-- description: The tables whose rows a backup holds: not those of extensions, and the leaves of partitioned tables only.
SELECT
n.nspname AS schema_name,
c.relname AS table_name
FROM pg_class AS c
INNER JOIN pg_namespace AS n ON c.relnamespace = n.oid
WHERE
    c.relkind = 'r' AND c.relpersistence <> 't'
    AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    AND NOT EXISTS (
        SELECT 1 FROM pg_depend AS d
        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
    )
ORDER BY n.nspname, c.relname;

-- name: exported_snapshot()$
-- description: The name under which other sessions see exactly what this transaction sees.
SELECT pg_export_snapshot() AS snapshot;

-- name: database_facts()^
-- description: Size, encoding and locale of the database of this connection.
SELECT
    d.datname AS name,
    pg_database_size(d.oid) AS bytes,
    pg_encoding_to_char(d.encoding) AS encoding,
    d.datcollate AS lc_collate,
    d.datctype AS lc_ctype,
    d.datlocprovider::text AS provider,
    coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale') AS locale
FROM pg_database AS d
WHERE d.datname = current_database();

-- name: roles_used()
-- description: The roles that own something in the database of this connection or were granted something in it.
SELECT DISTINCT r.rolname AS role_name
FROM pg_shdepend AS s
INNER JOIN pg_roles AS r ON s.refobjid = r.oid
WHERE
    s.refclassid = 'pg_authid'::regclass
    AND s.dbid = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
UNION
SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()
ORDER BY role_name;

-- name: create_analysts()!
-- description: The group of those who read analytics, as its migration makes it.
CREATE ROLE flexpay_analyst NOLOGIN;

-- name: missing_roles(roles)
-- description: Those of the given roles that this server does not have.
SELECT wanted.role_name
FROM unnest(:roles::text[]) AS wanted (role_name)
WHERE NOT EXISTS (SELECT 1 FROM pg_roles AS r WHERE r.rolname = wanted.role_name)
ORDER BY wanted.role_name;

-- name: record_backup(backup_id, kind, started_at, finished_at, size_bytes, path, manifest_sha256, server_version)!
-- description: Enter a finished backup into the catalog, once.
INSERT INTO ops.backups
    (backup_id, kind, started_at, finished_at, size_bytes, path, manifest_sha256, server_version)
VALUES
    (:backup_id, :kind, :started_at, :finished_at, :size_bytes, :path, :manifest_sha256, :server_version)
ON CONFLICT (backup_id) DO NOTHING;

-- name: known_backups()
-- description: The ids in the catalog, pruned ones included.
SELECT backup_id FROM ops.backups;

-- name: backup(backup_id)^
-- description: One backup of the catalog.
SELECT
    backup_id,
kind,
path,
size_bytes,
started_at,
finished_at,
manifest_sha256,
verified_at,
offsite_at,
offsite_path,
pruned_at
FROM ops.backups
WHERE backup_id = :backup_id;

-- name: newest_verified_backup()^
-- description: The newest backup whose last verification passed.
SELECT
    backup_id,
kind,
path,
size_bytes,
started_at,
finished_at,
manifest_sha256,
verified_at,
offsite_at,
offsite_path,
pruned_at
FROM ops.backups
WHERE verified_at IS NOT NULL AND pruned_at IS NULL
ORDER BY started_at DESC, backup_id DESC
LIMIT 1;

-- name: backups(with_pruned)
-- description: The catalog, newest first.
SELECT
    backup_id,
kind,
path,
size_bytes,
started_at,
finished_at,
manifest_sha256,
verified_at,
offsite_at,
offsite_path,
pruned_at
FROM ops.backups
WHERE :with_pruned OR pruned_at IS NULL
ORDER BY started_at DESC, backup_id DESC;

-- name: record_verification(backup_id, verified_at, verification)!
-- description: How the last verification ended; one that failed takes the mark of an earlier one away.
UPDATE ops.backups
SET verified_at = :verified_at, verification = :verification::jsonb
WHERE backup_id = :backup_id AND pruned_at IS NULL;

-- name: record_offsite(backup_id, offsite_at, offsite_path)!
-- description: Where the copy of a backup lies.
UPDATE ops.backups
SET offsite_at = :offsite_at, offsite_path = :offsite_path
WHERE backup_id = :backup_id AND pruned_at IS NULL;

-- name: prunable_backups(before, keep)
-- description: Backups past their retention, without those that must be kept.
SELECT
backup_id,
path,
offsite_path
FROM ops.backups
WHERE pruned_at IS NULL AND finished_at < :before AND backup_id <> all(:keep::text[])
ORDER BY started_at, backup_id;

-- name: record_pruned(backup_id, pruned_at, before)!
-- description: Give a backup up before its files go, if it is still past its retention.
UPDATE ops.backups
SET pruned_at = :pruned_at
WHERE backup_id = :backup_id AND pruned_at IS NULL AND finished_at < :before;

-- name: pruned_backups()
-- description: Backups that were given up, with the places where files of theirs may still lie.
SELECT
backup_id,
path,
offsite_path
FROM ops.backups
WHERE pruned_at IS NOT NULL
ORDER BY started_at, backup_id;

-- name: database_identity()^
-- description: Which database this is, in the whole world.
SELECT
    d.oid::bigint AS database_oid,
    (SELECT c.system_identifier FROM pg_control_system() AS c) AS system_identifier
FROM pg_database AS d
WHERE d.datname = current_database();

-- name: data_directory()$
-- description: Where the server keeps its data, if this role may know.
SELECT setting FROM pg_settings WHERE name = 'data_directory';

-- name: database(name)^
-- description: What a database of this server is like; no row if it is not there.
SELECT
    d.oid::bigint AS oid,
    pg_get_userbyid(d.datdba) AS owner,
    pg_encoding_to_char(d.encoding) AS encoding,
    d.datcollate AS lc_collate,
    d.datctype AS lc_ctype,
    d.datlocprovider::text AS provider,
    coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale') AS locale,
    d.datconnlimit AS connection_limit,
    d.datacl IS NOT NULL AS has_grants,
    (SELECT s.system_identifier FROM pg_control_system() AS s) AS system_identifier
FROM pg_database AS d
WHERE d.datname = :name;

-- name: database_grants(name)
-- description: The privileges granted on a database; no grantee: everybody.
SELECT
    CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee) END AS grantee,
    a.privilege_type AS privilege,
    a.is_grantable AS grantable
FROM pg_database AS d
CROSS JOIN LATERAL aclexplode(d.datacl) AS a
WHERE d.datname = :name
ORDER BY grantee, privilege;

-- name: database_settings(name)
-- description: The settings bound to a database, for all roles (no role) or for one.
SELECT
    CASE WHEN s.setrole <> 0 THEN pg_get_userbyid(s.setrole) END AS role_name,
    split_part(c.entry, '=', 1) AS name,
    substr(c.entry, strpos(c.entry, '=') + 1) AS value
FROM pg_db_role_setting AS s
INNER JOIN pg_database AS d ON s.setdatabase = d.oid
CROSS JOIN LATERAL unnest(s.setconfig) AS c (entry)
WHERE d.datname = :name
ORDER BY role_name, name;

-- name: databases_named(prefix)
-- description: The databases of this server whose names begin so, newest name first.
SELECT datname AS name
FROM pg_database
WHERE starts_with(datname, :prefix)
ORDER BY datname DESC;

-- name: connections_to(name)$
-- description: How many sessions use a database.
SELECT count(*) AS sessions FROM pg_stat_activity WHERE datname = :name AND pid <> pg_backend_pid();

-- name: disconnect(name, wait_milliseconds)
-- description: End the sessions of one database and wait for each to be gone.
SELECT
pid,
pg_terminate_backend(pid, :wait_milliseconds) AS gone
FROM pg_stat_activity
WHERE datname = :name AND pid <> pg_backend_pid();
