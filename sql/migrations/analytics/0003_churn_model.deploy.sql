-- What scored each day's churn risk: the trained model or the rule, why, and how it was measured.
ALTER TABLE IF EXISTS archive.churn_models SET SCHEMA analytics;
CREATE TABLE IF NOT EXISTS analytics.churn_models (
    day date PRIMARY KEY,
    model text NOT NULL CHECK (model <> ''),
    trained_at timestamptz NOT NULL,
    reason text NOT NULL,
    scorecard jsonb NOT NULL,
    snapshots jsonb NOT NULL,
    evaluation jsonb NOT NULL,
    stability jsonb NOT NULL
);
COMMENT ON TABLE analytics.churn_models IS 'What scored the churn risk of each day, and how it was measured';
COMMENT ON COLUMN analytics.churn_models.day IS 'The day whose end was scored';
COMMENT ON COLUMN analytics.churn_models.model IS 'Its name, as in churn_risk.model';
COMMENT ON COLUMN analytics.churn_models.trained_at IS 'When it was trained and compared';
COMMENT ON COLUMN analytics.churn_models.reason IS 'Why this model, or why the rule';
COMMENT ON COLUMN analytics.churn_models.scorecard IS
'What the score is made of: intercept, weight of each term, what each group of terms adds on average; log-odds, or points of the rule';
COMMENT ON COLUMN analytics.churn_models.snapshots IS 'The days at whose end it was trained, calibrated and tested, with customers and churned';
COMMENT ON COLUMN analytics.churn_models.evaluation IS
'On the days of the test: Brier score, log loss, average precision and area under the curve of model, rule and base rate; deciles';
COMMENT ON COLUMN analytics.churn_models.stability IS 'Population stability index of the scores and of each term, this day against training';
COMMENT ON COLUMN analytics.churn_risk.score IS
'0 to 1; a trained model''s is the probability of not being with us 30 days later, the rule''s a sum of points; 0.7 and above is high';
