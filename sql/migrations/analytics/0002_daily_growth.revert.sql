-- squawk-ignore-file ban-drop-table, ban-drop-column
-- All of it can be derived again, and the release before would leave it behind: nothing is set aside.
DROP TRIGGER customers_moved ON billing.customers;
DROP FUNCTION analytics.note_moved_customer();
DROP TABLE analytics.moved_customers;
DROP TABLE analytics.churn_amounts;
ALTER TABLE analytics.run_rate_intervals RESET (fillfactor);
ALTER TABLE analytics.interval_progress
DROP COLUMN gaps,
DROP COLUMN writers;
COMMENT ON COLUMN analytics.interval_progress.events IS
'Events up to the high-water mark: when their number grows, one with a smaller id was committed late';
DROP AGGREGATE analytics.follow(text, text);
