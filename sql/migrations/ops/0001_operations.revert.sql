-- The audit trail may not vanish: it is set aside under the day's name instead of dropped.
DO $$
BEGIN
    EXECUTE format('ALTER SCHEMA ops RENAME TO %I', 'ops_archived_' || to_char(clock_timestamp(), 'YYYYMMDD_HH24MISS'));
END
$$;
