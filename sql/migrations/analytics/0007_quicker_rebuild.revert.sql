-- squawk-ignore-file require-concurrent-index-creation
DROP AGGREGATE analytics.first_since(integer, text);
CREATE INDEX run_rate_intervals_from ON analytics.run_rate_intervals (valid_from);
CREATE INDEX run_rate_intervals_paused ON analytics.run_rate_intervals (paused_since) WHERE status = 'paused';
