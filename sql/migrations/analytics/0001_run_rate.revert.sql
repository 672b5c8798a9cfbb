-- All of it can be derived again but the scores and the record of restatements: the tables are set aside whole.
ALTER TABLE analytics.run_rate_intervals SET SCHEMA archive;
ALTER TABLE analytics.interval_progress SET SCHEMA archive;
ALTER TABLE analytics.snapshots SET SCHEMA archive;
ALTER TABLE analytics.mrr_movements SET SCHEMA archive;
ALTER TABLE analytics.mrr_summary SET SCHEMA archive;
ALTER TABLE analytics.churn SET SCHEMA archive;
ALTER TABLE analytics.cohorts SET SCHEMA archive;
ALTER TABLE analytics.churn_risk SET SCHEMA archive;
-- squawk-ignore ban-drop-schema
DROP SCHEMA analytics;
