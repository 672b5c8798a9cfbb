-- squawk-ignore-file ban-drop-table
-- It can be derived again, and would be stale after days that the release before computes: nothing is set aside.
DROP TABLE analytics.churn_steps;
