-- What a rebuild can do without. Three indexes: the ledger, which is indexed by time, says of whom something changes on a day,
-- and movements are looked up by day. A second pass over all events to know since when a pause lasts. Sending half of the intervals from one session to the other.
-- depends_on: core
-- squawk-ignore-file require-concurrent-index-deletion
DROP INDEX analytics.run_rate_intervals_from;
DROP INDEX analytics.run_rate_intervals_paused;
DROP INDEX analytics.mrr_movements_customer;

CREATE AGGREGATE analytics.first_since(integer, text) (sfunc = pg_catalog.rpad, stype = text, initcond = '', parallel = safe);
COMMENT ON AGGREGATE analytics.first_since(integer, text) IS
'The first text since the last empty one: inputs are its length and the text, or 0 and any text to forget; null: neither';

CREATE UNLOGGED TABLE analytics.staged_intervals (LIKE analytics.run_rate_intervals INCLUDING COMMENTS);
COMMENT ON TABLE analytics.staged_intervals IS 'Empty but during the first refresh: what its second session hands over to the first';
