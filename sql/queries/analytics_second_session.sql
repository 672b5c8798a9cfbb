-- name: is_first_and_large(subscriptions)$
-- description: Whether nothing has been computed yet, for at least so many subscriptions, and what others commit can be seen.
SELECT
    current_setting('transaction_isolation') = 'read committed' AND
    NOT EXISTS (SELECT 1 FROM analytics.interval_progress) AND NOT EXISTS (SELECT 1 FROM analytics.snapshots)
    AND EXISTS (SELECT 1 FROM billing.subscriptions ORDER BY subscription_id LIMIT 1 OFFSET :subscriptions - 1) AS suits;

-- name: export_snapshot()$
-- description: What this transaction sees, for another session to see the same.
SELECT pg_export_snapshot() AS snapshot;

-- name: forget_staged()!
-- description: Empties staged_intervals; also what a killed refresh has left there.
TRUNCATE analytics.staged_intervals;

-- name: store_staged()!
-- description: The intervals that the second session has computed, stored.
INSERT INTO analytics.run_rate_intervals SELECT * FROM analytics.staged_intervals;
