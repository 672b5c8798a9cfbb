-- name: is_first_and_large(subscriptions)$
-- description: Whether nothing has been computed yet, for at least so many subscriptions.
SELECT
    NOT EXISTS (SELECT 1 FROM analytics.interval_progress) AND NOT EXISTS (SELECT 1 FROM analytics.snapshots)
    AND EXISTS (SELECT 1 FROM billing.subscriptions ORDER BY subscription_id LIMIT 1 OFFSET :subscriptions - 1) AS suits;

-- name: export_snapshot()$
-- description: What this transaction sees, for another session to see the same.
SELECT pg_export_snapshot() AS snapshot;
