-- What a rebuild can do without: two indexes, since the ledger, which is indexed by time, says of whom something changes on a
-- day; and a second pass over all events to know since when a pause lasts.
-- depends_on: core
-- squawk-ignore-file require-concurrent-index-deletion
DROP INDEX analytics.run_rate_intervals_from;
DROP INDEX analytics.run_rate_intervals_paused;

CREATE AGGREGATE analytics.first_since(integer, text) (sfunc = pg_catalog.rpad, stype = text, initcond = '', parallel = safe);
COMMENT ON AGGREGATE analytics.first_since(integer, text) IS
'The first text since the last empty one: inputs are its length and the text, or 0 and any text to forget; null: neither';
