-- What a new day needs of the 30 before: how their changes move the windows to come, so that nobody is looked at again for it.
-- depends_on: core
CREATE TABLE analytics.churn_steps (
    known_day date NOT NULL,
    day date NOT NULL,
    currency text NOT NULL,
    customers_churned bigint NOT NULL,
    joined bigint NOT NULL,
    joined_churned bigint NOT NULL,
    new_minor bigint NOT NULL,
    reactivation_minor bigint NOT NULL,
    expansion_minor bigint NOT NULL,
    contraction_minor bigint NOT NULL,
    churn_minor bigint NOT NULL,
    lost_minor bigint NOT NULL,
    PRIMARY KEY (known_day, day, currency),
    CHECK (day >= known_day)
);
COMMENT ON TABLE analytics.churn_steps IS
'How churn_amounts change from one day to the next, by the day whose changes tell: a day is the day before it and its steps';
COMMENT ON COLUMN analytics.churn_steps.known_day IS
'UTC day on which customers changed; later changes of theirs add steps of their own. Each stored day has a row for itself';
COMMENT ON COLUMN analytics.churn_steps.day IS 'The day from which on windows differ: they begin to hold a change, or no longer do';
COMMENT ON COLUMN analytics.churn_steps.currency IS 'The currency of the customers';
COMMENT ON COLUMN analytics.churn_steps.customers_churned IS 'Change of churn_amounts.customers_churned';
COMMENT ON COLUMN analytics.churn_steps.joined IS 'Change of churn_amounts.joined';
COMMENT ON COLUMN analytics.churn_steps.joined_churned IS 'Change of churn_amounts.joined_churned';
COMMENT ON COLUMN analytics.churn_steps.new_minor IS 'Change of churn_amounts.new_minor';
COMMENT ON COLUMN analytics.churn_steps.reactivation_minor IS 'Change of churn_amounts.reactivation_minor';
COMMENT ON COLUMN analytics.churn_steps.expansion_minor IS 'Change of churn_amounts.expansion_minor';
COMMENT ON COLUMN analytics.churn_steps.contraction_minor IS 'Change of churn_amounts.contraction_minor';
COMMENT ON COLUMN analytics.churn_steps.churn_minor IS 'Change of churn_amounts.churn_minor';
COMMENT ON COLUMN analytics.churn_steps.lost_minor IS 'Change of churn_amounts.lost_minor';
