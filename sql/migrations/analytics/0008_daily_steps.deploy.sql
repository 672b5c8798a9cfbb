-- What a new day need not look at again: the customers of the 30 days before, whose changes tell how the windows to come differ,
-- and the stored days of which no exchange rate has changed.
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

-- A column with a constant default is added without touching a row: the next refresh values all days once more.
ALTER TABLE analytics.known_rates ADD COLUMN valued boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN analytics.known_rates.valued IS 'Whether the stored rates of analytics.churn know that it came, and that it was corrected or removed';
CREATE OR REPLACE FUNCTION analytics.note_rates() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    IF tg_op <> 'INSERT' THEN
        UPDATE analytics.known_rates AS k SET known_until = clock_timestamp(), valued = false
        FROM gone AS g
        WHERE k.date = g.date AND k.currency = g.currency AND k.reporting_currency = g.reporting_currency
            AND k.known_until IS NULL;
    END IF;
    IF tg_op <> 'DELETE' THEN
        INSERT INTO analytics.known_rates (date, currency, reporting_currency, rate, known_from)
        SELECT
            c.date, c.currency, c.reporting_currency, c.rate,
            CASE WHEN EXISTS (
                SELECT 1 FROM analytics.known_rates AS k
                WHERE k.currency = c.currency AND k.reporting_currency = c.reporting_currency
            ) THEN clock_timestamp() END
        FROM came AS c;
    END IF;
    RETURN NULL;
END
$$;
