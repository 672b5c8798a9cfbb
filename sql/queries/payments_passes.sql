-- Passes of the reconciliation, and the differences that are open.

-- name: one_at_a_time(name)$
-- Wait until no other transaction holds this lock; it is held until the transaction ends.
SELECT pg_advisory_xact_lock(hashtextextended(:name, 0)) IS NULL AS held;

-- name: differences_by_kind()$
-- How many differences of each kind were found, as a JSON object.
SELECT coalesce(jsonb_object_agg(kind, number), '{}') AS by_kind
FROM (
    SELECT
        kind,
        count(*) AS number
    FROM differences_found
    GROUP BY kind
) AS counted;

-- name: found_differences(at_most)
-- The first of the differences found.
SELECT
    subscription_ref,
    kind,
    in_database,
    in_stripe,
    mend,
    parked
FROM differences_found
ORDER BY kind, subscription_ref
LIMIT :at_most;

-- name: record_pass(scope, started_at, read_at, compared, in_flight, by_kind)$
-- That a pass was made, and what it counted; its id.
INSERT INTO billing.reconciliations (scope, started_at, read_at, compared, in_flight, differences)
VALUES (:scope, :started_at, :read_at, :compared, :in_flight, :by_kind)
RETURNING reconciliation_id;

-- name: keep_differences(reconciliation_id)!
-- What the pass found is open. A difference that is another than before, though of the same kind, begins anew.
INSERT INTO billing.reconciliation_differences AS d
(subscription_ref, kind, in_database, in_stripe, mend, parked, subscription_id, stripe_id, first_seen, last_seen)
SELECT
    subscription_ref,
    kind,
    in_database,
    in_stripe,
    mend,
    parked,
    subscription_id,
    stripe_id,
    :reconciliation_id AS first_seen,
    :reconciliation_id AS last_seen
FROM differences_found
ON CONFLICT (subscription_ref, kind) DO UPDATE SET
    in_database = excluded.in_database,
    in_stripe = excluded.in_stripe,
    mend = excluded.mend,
    parked = excluded.parked,
    subscription_id = excluded.subscription_id,
    stripe_id = excluded.stripe_id,
    last_seen = greatest(d.last_seen, excluded.last_seen),
    first_seen = CASE
        WHEN (d.mend, d.in_database) IS DISTINCT FROM (excluded.mend, excluded.in_database) THEN excluded.first_seen
        ELSE d.first_seen
    END,
    alerted_at = CASE
        WHEN (d.mend, d.in_database) IS NOT DISTINCT FROM (excluded.mend, excluded.in_database) THEN d.alerted_at
    END;

-- name: forget_differences(reconciliation_id)!
-- What a pass found no more is settled: every pass looks at all that is open.
DELETE FROM billing.reconciliation_differences WHERE last_seen < :reconciliation_id;

-- name: open_differences(kinds, at_most)
-- Differences that are open, by kind and reference.
SELECT
    d.subscription_ref,
    d.kind,
    d.in_database,
    d.in_stripe,
    d.mend,
    d.parked
FROM billing.reconciliation_differences AS d
WHERE cast(:kinds AS text []) IS NULL OR d.kind = any(cast(:kinds AS text []))
ORDER BY d.kind, d.subscription_ref
LIMIT :at_most;

-- name: persistent_differences(reconciliation_id)
-- Differences that this pass found and one before it, of which nobody was told, by kind.
SELECT
    kind,
    count(*) AS number,
    max(first_seen) AS newest,
    min(subscription_ref) AS example
FROM billing.reconciliation_differences
WHERE last_seen = :reconciliation_id AND first_seen < :reconciliation_id AND alerted_at IS NULL
GROUP BY kind
ORDER BY kind;

-- name: mark_alerted(reconciliation_id, now)!
-- Somebody was told of these.
UPDATE billing.reconciliation_differences
SET alerted_at = :now
WHERE last_seen = :reconciliation_id AND first_seen < :reconciliation_id AND alerted_at IS NULL;
