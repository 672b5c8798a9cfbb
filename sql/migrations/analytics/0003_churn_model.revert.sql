-- What scored which day cannot be derived again: the table is set aside whole.
ALTER TABLE analytics.churn_models SET SCHEMA archive;
COMMENT ON COLUMN analytics.churn_risk.score IS '0 to 1; 0.7 and above is high';
