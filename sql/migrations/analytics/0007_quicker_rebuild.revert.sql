-- squawk-ignore-file require-concurrent-index-creation, ban-drop-table
-- Nothing is set aside: between two refreshes these are empty.
DROP TABLE analytics.staged_movements, analytics.staged_intervals;
DROP AGGREGATE analytics.first_since(integer, text);
CREATE INDEX run_rate_intervals_from ON analytics.run_rate_intervals (valid_from);
CREATE INDEX run_rate_intervals_paused ON analytics.run_rate_intervals (paused_since) WHERE status = 'paused';
CREATE INDEX mrr_movements_customer ON analytics.mrr_movements (customer_id);
