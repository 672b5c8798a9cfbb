-- Views hold no data. The role stays: it belongs to the cluster, and people and other databases may use it.
DO $$
BEGIN
    IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'flexpay_analyst') THEN
        ALTER DEFAULT PRIVILEGES IN SCHEMA analytics REVOKE SELECT ON TABLES FROM flexpay_analyst;
        REVOKE SELECT ON ALL TABLES IN SCHEMA analytics FROM flexpay_analyst;
        REVOKE USAGE ON SCHEMA analytics FROM flexpay_analyst;
    END IF;
END
$$;
DROP FUNCTION analytics.admit_analysts();
DROP VIEW analytics.mrr_by_day;
DROP VIEW analytics.dunning_episodes;
DROP VIEW analytics.payment_attempts;
DROP VIEW analytics.current_mrr;
DROP VIEW analytics.current_subscriptions;
DROP VIEW analytics.customers;
ALTER TABLE analytics.rewards_liability SET SCHEMA archive;
ALTER TABLE analytics.deferred_revenue SET SCHEMA archive;
ALTER TABLE analytics.paused_revenue SET SCHEMA archive;
ALTER TABLE analytics.balance_days SET SCHEMA archive;
