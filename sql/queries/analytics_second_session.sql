-- name: is_first_and_large(subscriptions)$
-- description: Whether nothing has been computed yet, for at least so many subscriptions, and what others commit can be seen.
SELECT
    current_setting('transaction_isolation') = 'read committed'
    AND NOT EXISTS (SELECT 1 FROM analytics.interval_progress) AND NOT EXISTS (SELECT 1 FROM analytics.snapshots)
    AND EXISTS (SELECT 1 FROM billing.subscriptions ORDER BY subscription_id LIMIT 1 OFFSET :subscriptions - 1) AS suits;

-- name: export_snapshot()$
-- description: What this transaction sees, for another session to see the same.
SELECT pg_export_snapshot() AS snapshot;

-- name: forget_staged()!
-- description: Empties the staged tables; also of what a killed refresh has left there.
TRUNCATE analytics.staged_intervals, analytics.staged_movements;

-- name: store_intervals()!
-- description: Stores the intervals that the second session has staged.
INSERT INTO analytics.run_rate_intervals SELECT * FROM analytics.staged_intervals;

-- name: stage_movements(days)!
-- description: The classed changes of these days as rows, where the first session reads them.
INSERT INTO analytics.staged_movements (day, customer_id, movement, currency, annualised_minor)
SELECT
    m.period,
    m.customer_id,
    m.movement,
    m.currency,
    m.amount
FROM metric_classed AS m
WHERE m.period = any(cast(:days AS date[]));

-- name: store_movements()!
-- description: Stores the staged movements.
INSERT INTO analytics.mrr_movements SELECT * FROM analytics.staged_movements;
