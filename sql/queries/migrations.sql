-- What the migration engine remembers in schema migrations of each database, and what a schema looks like.

-- name: prepare_ledger#
-- Makes the schema in which the engine keeps its memory; Alembic adds its own version table.
CREATE SCHEMA IF NOT EXISTS migrations;
COMMENT ON SCHEMA migrations IS 'What the migration engine has done to this database';

CREATE TABLE IF NOT EXISTS migrations.applied (
    component text NOT NULL,
    revision text NOT NULL,
    name text NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (component, revision)
);
COMMENT ON TABLE migrations.applied IS 'The revisions that are deployed, with the SHA-256 of the file that deployed them';

CREATE TABLE IF NOT EXISTS migrations.steps (
    step_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    component text NOT NULL,
    revision text NOT NULL,
    name text NOT NULL,
    direction text NOT NULL CHECK (direction IN ('deploy', 'revert')),
    file text NOT NULL,
    sha256 text NOT NULL,
    statements integer NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    recorded_at timestamptz
);
COMMENT ON TABLE migrations.steps IS 'Each step ever done; recorded_at is set when the audit log has it';

CREATE TABLE IF NOT EXISTS migrations.objects (
    kind text NOT NULL,
    name text NOT NULL,
    parent text,
    component text NOT NULL,
    definition text NOT NULL,
    PRIMARY KEY (kind, name)
);
COMMENT ON TABLE migrations.objects IS 'What the migrations made, object by object, and which component made it';

-- name: ledger_exists()$
-- Whether a deploy ever ran here.
SELECT to_regclass('migrations.applied') IS NOT NULL AND to_regclass('migrations.alembic_version') IS NOT NULL;

-- name: applied()$
-- The deployed revisions, oldest first within each component, as one JSON array.
SELECT
    coalesce(
        jsonb_agg(
            jsonb_build_object('component', component, 'revision', revision, 'name', name, 'sha256', sha256)
            ORDER BY component, revision
        ), '[]'
    ) AS revisions
FROM migrations.applied;

-- name: version_heads()$
-- The effective heads that Alembic keeps, as one JSON array.
SELECT coalesce(jsonb_agg(version_num ORDER BY version_num), '[]') AS heads FROM migrations.alembic_version;

-- name: add_applied(component, revision, name, sha256)!
-- A revision is deployed.
INSERT INTO migrations.applied (component, revision, name, sha256) VALUES (:component, :revision, :name, :sha256);

-- name: remove_applied(component, revision)!
-- A revision is reverted.
DELETE FROM migrations.applied WHERE component = :component AND revision = :revision;

-- name: add_step(component, revision, name, direction, file, sha256, statements)!
-- Notes a step in the transaction that does it; the audit log is told afterwards.
INSERT INTO migrations.steps (component, revision, name, direction, file, sha256, statements)
VALUES (:component, :revision, :name, :direction, :file, :sha256, :statements);

-- name: unrecorded_steps()$
-- The steps that the audit log has not been told of, oldest first, as one JSON array.
SELECT
    coalesce(
        jsonb_agg(
            jsonb_build_object(
                'step_id', step_id, 'component', component, 'revision', revision, 'name', name, 'direction', direction,
                'file', file, 'sha256', sha256, 'statements', statements
            ) ORDER BY step_id
        ), '[]'
    ) AS steps
FROM migrations.steps
WHERE recorded_at IS NULL;

-- name: mark_recorded(step_id)!
-- The audit log has this step.
UPDATE migrations.steps SET recorded_at = clock_timestamp() WHERE step_id = :step_id AND recorded_at IS NULL;

-- name: begin_step(lock_timeout)^
-- Settings of the transaction that does a step: give up a lock early, and let no name depend on the search path.
SELECT
    set_config('lock_timeout', :lock_timeout, TRUE) AS lock_timeout,
    set_config('search_path', 'pg_catalog', TRUE) AS search_path;

-- name: begin_session(lock_timeout)^
-- Settings of the session: give up a lock early, and stop working when the process that asked for it is gone.
SELECT
    set_config('lock_timeout', :lock_timeout, FALSE) AS lock_timeout,
    set_config('client_connection_check_interval', '1s', FALSE) AS client_check;

-- name: blockers()$
-- The sessions that have had a transaction open for longest: the suspects behind a lock that was not granted.
SELECT
    coalesce(
        jsonb_agg(
            jsonb_build_object('pid', pid, 'application_name', application_name, 'state', state) ORDER BY xact_start
        ), '[]'
    ) AS suspects
FROM (
    SELECT
        pid,
        application_name,
        state,
        xact_start
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL AND backend_type = 'client backend'
    ORDER BY xact_start
    LIMIT 3
) AS oldest;

-- name: qualify_names()^
-- Makes every definition that PostgreSQL writes out name its schemas.
SELECT set_config('search_path', 'pg_catalog', TRUE) AS search_path;

-- name: schema_objects(schemas)$
-- Every object of the schemas with its definition as PostgreSQL writes it, as one JSON array, without numbers or owners.
WITH
relations AS (
    SELECT
        c.*,
        n.nspname || '.' || c.relname AS name,
        n.nspname::text AS parent
    FROM pg_catalog.pg_class AS c
    INNER JOIN pg_catalog.pg_namespace AS n ON c.relnamespace = n.oid
    WHERE n.nspname = any(:schemas::text [])
),

objects (kind, name, parent, definition) AS (
    SELECT
        'schema',
        nspname::text,
        NULL,
        ''
    FROM pg_catalog.pg_namespace
    WHERE nspname = any(:schemas::text [])
    UNION ALL
    SELECT
        CASE relkind WHEN 'p' THEN 'partitioned table' WHEN 'f' THEN 'foreign table' ELSE 'table' END,
        name,
        parent,
        concat_ws(
            ', ', CASE relpersistence WHEN 'u' THEN 'unlogged' ELSE 'logged' END,
            CASE WHEN relrowsecurity THEN 'row security' END, CASE WHEN relforcerowsecurity THEN 'row security forced' END,
            pg_catalog.pg_get_partkeydef(oid), pg_catalog.pg_get_expr(relpartbound, oid),
            (SELECT string_agg(o.option, ', ' ORDER BY o.option) FROM unnest(reloptions) AS o (option))
        )
    FROM relations
    WHERE relkind IN ('r', 'p', 'f')
    UNION ALL
    SELECT
        CASE relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END,
        name,
        parent,
        concat_ws(
            ', ', pg_catalog.pg_get_viewdef(oid),
            (SELECT string_agg(o.option, ', ' ORDER BY o.option) FROM unnest(reloptions) AS o (option))
        )
    FROM relations
    WHERE relkind IN ('v', 'm')
    UNION ALL
    SELECT
        'sequence',
        r.name,
        r.parent,
        concat_ws(
            ' ', pg_catalog.format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle
        )
    FROM relations AS r
    INNER JOIN pg_catalog.pg_sequence AS s ON r.oid = s.seqrelid
    UNION ALL
    SELECT
        'column',
        r.name || '.' || a.attname,
        r.name,
        concat_ws(
            ' ', pg_catalog.format_type(a.atttypid, a.atttypmod),
            CASE WHEN a.attcollation <> t.typcollation THEN 'COLLATE ' || a.attcollation::regcollation END,
            CASE WHEN a.attnotnull THEN 'NOT NULL' END,
            CASE a.attidentity WHEN 'a' THEN 'IDENTITY ALWAYS' WHEN 'd' THEN 'IDENTITY BY DEFAULT' END,
            CASE a.attgenerated WHEN 's' THEN 'GENERATED STORED' WHEN 'v' THEN 'GENERATED VIRTUAL' END,
            'DEFAULT ' || pg_catalog.pg_get_expr(d.adbin, d.adrelid)
        )
    FROM relations AS r
    INNER JOIN pg_catalog.pg_attribute AS a ON r.oid = a.attrelid
    INNER JOIN pg_catalog.pg_type AS t ON a.atttypid = t.oid
    LEFT JOIN pg_catalog.pg_attrdef AS d ON a.attrelid = d.adrelid AND a.attnum = d.adnum
    WHERE r.relkind IN ('r', 'p', 'f', 'c') AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    -- NOT NULL stands with the column: only PostgreSQL 18 and later make a constraint of it.
    SELECT
        'constraint',
        c.conname || ' on ' || r.name,
        r.name,
        pg_catalog.pg_get_constraintdef(c.oid) || CASE WHEN coalesce(i.indisvalid, TRUE) THEN '' ELSE ' (index invalid)' END
    FROM relations AS r
    INNER JOIN pg_catalog.pg_constraint AS c ON r.oid = c.conrelid
    LEFT JOIN pg_catalog.pg_index AS i ON c.conindid = i.indexrelid AND c.contype IN ('p', 'u', 'x')
    WHERE c.contype IN ('c', 'f', 'p', 'u', 'x')
    UNION ALL
    -- An index behind a constraint stands with the constraint.
    SELECT
        'index',
        x.name AS index_name,
        r.name,
        pg_catalog.pg_get_indexdef(i.indexrelid) || CASE WHEN i.indisvalid AND i.indisready THEN '' ELSE ' (invalid)' END
    FROM relations AS x
    INNER JOIN pg_catalog.pg_index AS i ON x.oid = i.indexrelid
    INNER JOIN relations AS r ON i.indrelid = r.oid
    WHERE
        NOT EXISTS (
            SELECT 1 FROM pg_catalog.pg_constraint AS c WHERE c.conindid = i.indexrelid AND c.contype IN ('p', 'u', 'x')
        )
    UNION ALL
    SELECT
        'trigger',
        t.tgname || ' on ' || r.name,
        r.name,
        pg_catalog.pg_get_triggerdef(t.oid)
        || CASE t.tgenabled WHEN 'O' THEN '' WHEN 'D' THEN ' (disabled)' WHEN 'R' THEN ' (on replicas)' ELSE ' (always)' END
    FROM relations AS r
    INNER JOIN pg_catalog.pg_trigger AS t ON r.oid = t.tgrelid
    WHERE NOT t.tgisinternal
    UNION ALL
    SELECT
        'rule',
        w.rulename || ' on ' || r.name,
        r.name,
        pg_catalog.pg_get_ruledef(w.oid)
    FROM relations AS r
    INNER JOIN pg_catalog.pg_rewrite AS w ON r.oid = w.ev_class
    WHERE w.rulename <> '_RETURN'
    UNION ALL
    SELECT
        'policy',
        p.polname || ' on ' || r.name,
        r.name,
        concat_ws(
            ' ', p.polcmd, p.polpermissive, pg_catalog.pg_get_expr(p.polqual, p.polrelid),
            pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid)
        )
    FROM relations AS r
    INNER JOIN pg_catalog.pg_policy AS p ON r.oid = p.polrelid
    UNION ALL
    SELECT
        CASE p.prokind WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' ELSE 'function' END,
        p.oid::regprocedure::text,
        n.nspname::text,
        CASE WHEN p.prokind = 'a' THEN '' ELSE pg_catalog.pg_get_functiondef(p.oid) END
    FROM pg_catalog.pg_proc AS p
    INNER JOIN pg_catalog.pg_namespace AS n ON p.pronamespace = n.oid
    WHERE n.nspname = any(:schemas::text [])
    UNION ALL
    SELECT
        CASE t.typtype WHEN 'e' THEN 'enum' WHEN 'd' THEN 'domain' ELSE 'composite type' END,
        t.oid::regtype::text,
        n.nspname::text,
        CASE t.typtype
            WHEN 'e' THEN (
                SELECT string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder)
                FROM pg_catalog.pg_enum AS e
                WHERE e.enumtypid = t.oid
            )
            WHEN 'd' THEN concat_ws(
                ' ', pg_catalog.format_type(t.typbasetype, t.typtypmod), CASE WHEN t.typnotnull THEN 'NOT NULL' END, t.typdefault,
                (
                    SELECT string_agg(pg_catalog.pg_get_constraintdef(k.oid), ' ' ORDER BY k.conname)
                    FROM pg_catalog.pg_constraint AS k
                    WHERE k.contypid = t.oid AND k.contype = 'c'
                )
            )
            ELSE ''
        END
    FROM pg_catalog.pg_type AS t
    INNER JOIN pg_catalog.pg_namespace AS n ON t.typnamespace = n.oid
    LEFT JOIN pg_catalog.pg_class AS c ON t.typrelid = c.oid
    WHERE n.nspname = any(:schemas::text []) AND (t.typtype IN ('e', 'd') OR (t.typtype = 'c' AND c.relkind = 'c'))
)

SELECT
    coalesce(
        jsonb_agg(
            jsonb_build_object('kind', kind, 'name', name, 'parent', parent, 'definition', definition)
            ORDER BY kind COLLATE "C", name COLLATE "C"
        ), '[]'
    ) AS listing
FROM objects;

-- name: recorded_objects()$
-- What the migrations made, as one JSON array.
SELECT
    coalesce(
        jsonb_agg(
            jsonb_build_object(
                'kind', kind, 'name', name, 'parent', parent, 'definition', definition, 'component', component
            ) ORDER BY kind COLLATE "C", name COLLATE "C"
        ), '[]'
    ) AS listing
FROM migrations.objects;

-- name: record_objects(component, before, after)!
-- Notes what one step made, changed and removed; what differed before the step stays a difference. The maker stays the maker.
WITH
before AS (SELECT b.* FROM jsonb_to_recordset(:before::jsonb) AS b (kind text, name text, parent text, definition text)),

after AS (SELECT a.* FROM jsonb_to_recordset(:after::jsonb) AS a (kind text, name text, parent text, definition text)),

removed AS (
    DELETE FROM migrations.objects AS o
    USING before AS b
    WHERE o.kind = b.kind AND o.name = b.name
        AND NOT EXISTS (SELECT 1 FROM after AS a WHERE a.kind = o.kind AND a.name = o.name)
)

INSERT INTO migrations.objects (kind, name, parent, component, definition)
SELECT
    a.kind,
    a.name,
    a.parent,
    :component,
    a.definition
FROM after AS a
LEFT JOIN before AS b ON a.kind = b.kind AND a.name = b.name
WHERE b.kind IS NULL OR b.definition <> a.definition
ON CONFLICT (kind, name) DO UPDATE SET parent = excluded.parent, definition = excluded.definition;
