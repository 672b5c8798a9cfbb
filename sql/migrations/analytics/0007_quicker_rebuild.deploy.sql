-- What a rebuild can do without. Three indexes: the ledger, which is indexed by time, says of whom something changes on a day,
-- and movements are looked up by day. A second pass over all events to know since when a pause lasts. Most of what its two
-- sessions send to each other: one reads in a table what the other has written there.
-- depends_on: core
-- squawk-ignore-file require-concurrent-index-deletion
DROP INDEX analytics.run_rate_intervals_from;
DROP INDEX analytics.run_rate_intervals_paused;
DROP INDEX analytics.mrr_movements_customer;

CREATE AGGREGATE analytics.first_since(integer, text) (sfunc = pg_catalog.rpad, stype = text, initcond = '', parallel = safe);
COMMENT ON AGGREGATE analytics.first_since(integer, text) IS
'The first text since the last empty one: inputs are its length and the text, or 0 and any text to forget; null: neither';

CREATE UNLOGGED TABLE analytics.staged_intervals (LIKE analytics.run_rate_intervals INCLUDING COMMENTS);
COMMENT ON TABLE analytics.staged_intervals IS 'Empty but during the first refresh: intervals that its second session hands over';
CREATE UNLOGGED TABLE analytics.staged_movements (LIKE analytics.mrr_movements INCLUDING COMMENTS);
COMMENT ON TABLE analytics.staged_movements IS 'Empty but during the first refresh: movements that its second session hands over';
