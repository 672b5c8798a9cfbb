-- What analysts read: run rate intervals derived from the ledger, and the daily figures derived from them.
-- depends_on: core
-- No foreign key leads out of this schema: all of it can be derived again, and none of it may hold up billing.
CREATE SCHEMA IF NOT EXISTS analytics;
CREATE SCHEMA IF NOT EXISTS archive;
COMMENT ON SCHEMA analytics IS 'Recurring revenue and churn, derived from billing.subscription_events; docs/metrics.md defines each figure';

ALTER TABLE IF EXISTS archive.run_rate_intervals SET SCHEMA analytics;
CREATE TABLE IF NOT EXISTS analytics.run_rate_intervals (
    subscription_id bigint NOT NULL,
    valid_from timestamptz NOT NULL,
    valid_to timestamptz,
    customer_id bigint NOT NULL,
    status text NOT NULL CHECK (status IN ('unstarted', 'trialing', 'active', 'past_due', 'paused', 'suspended', 'canceled')),
    paused_since timestamptz,
    annualised_minor bigint NOT NULL CHECK (annualised_minor >= 0),
    plan text NOT NULL,
    payment_frequency text NOT NULL CHECK (payment_frequency IN ('WEEKLY', 'BIWEEKLY', 'MONTHLY', 'QUARTERLY', 'YEARLY')),
    currency text NOT NULL,
    country text,
    event_id bigint NOT NULL,
    PRIMARY KEY (subscription_id, valid_from),
    CHECK (valid_to > valid_from),
    CHECK ((status = 'paused') = (paused_since IS NOT NULL))
);
COMMENT ON TABLE analytics.run_rate_intervals IS 'Half-open intervals in which the state and the run rate of a subscription are constant';
COMMENT ON COLUMN analytics.run_rate_intervals.subscription_id IS 'billing.subscriptions.subscription_id';
COMMENT ON COLUMN analytics.run_rate_intervals.valid_from IS 'First instant of the interval';
COMMENT ON COLUMN analytics.run_rate_intervals.valid_to IS 'First instant after the interval; null while it lasts';
COMMENT ON COLUMN analytics.run_rate_intervals.customer_id IS 'billing.customers.customer_id';
COMMENT ON COLUMN analytics.run_rate_intervals.status IS 'State that the events up to valid_from amount to; unstarted: nothing has started it yet';
COMMENT ON COLUMN analytics.run_rate_intervals.paused_since IS 'When the pause began that the interval belongs to';
COMMENT ON COLUMN analytics.run_rate_intervals.annualised_minor IS
'Unit price x quantity x payments a year, minor units, whatever the status: the status says whether it counts';
COMMENT ON COLUMN analytics.run_rate_intervals.plan IS 'Plan';
COMMENT ON COLUMN analytics.run_rate_intervals.payment_frequency IS 'How often the customer pays';
COMMENT ON COLUMN analytics.run_rate_intervals.currency IS 'The currency of the customer, ISO 4217';
COMMENT ON COLUMN analytics.run_rate_intervals.country IS 'The country of the customer as last known, ISO 3166; null: unknown';
COMMENT ON COLUMN analytics.run_rate_intervals.event_id IS 'The event that opened the interval, in billing.subscription_events';
CREATE INDEX IF NOT EXISTS run_rate_intervals_customer ON analytics.run_rate_intervals (customer_id);
CREATE INDEX IF NOT EXISTS run_rate_intervals_from ON analytics.run_rate_intervals (valid_from);
CREATE INDEX IF NOT EXISTS run_rate_intervals_paused ON analytics.run_rate_intervals (paused_since) WHERE status = 'paused';

ALTER TABLE IF EXISTS archive.interval_progress SET SCHEMA analytics;
CREATE TABLE IF NOT EXISTS analytics.interval_progress (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    event_high_water bigint NOT NULL,
    events bigint NOT NULL
);
COMMENT ON TABLE analytics.interval_progress IS 'How much of the ledger run_rate_intervals holds; one row';
COMMENT ON COLUMN analytics.interval_progress.only_row IS 'Always true';
COMMENT ON COLUMN analytics.interval_progress.event_high_water IS 'The largest event_id included';
COMMENT ON COLUMN analytics.interval_progress.events IS
'Events up to the high-water mark: when their number grows, one with a smaller id was committed late';

ALTER TABLE IF EXISTS archive.snapshots SET SCHEMA analytics;
CREATE TABLE IF NOT EXISTS analytics.snapshots (
    day date PRIMARY KEY,
    definition text NOT NULL,
    paused text NOT NULL CHECK (paused IN ('excluded', 'included')),
    paused_churn_days integer CHECK (paused_churn_days >= 0),
    reporting_currency text NOT NULL,
    computed_at timestamptz NOT NULL,
    restated_at timestamptz,
    event_high_water bigint NOT NULL
);
COMMENT ON TABLE analytics.snapshots IS 'The days whose figures are stored, and how they were computed';
COMMENT ON COLUMN analytics.snapshots.day IS 'UTC day';
COMMENT ON COLUMN analytics.snapshots.definition IS 'Name and version of the definitions, as in docs/metrics.md';
COMMENT ON COLUMN analytics.snapshots.paused IS 'Whether paused subscriptions count: excluded or included';
COMMENT ON COLUMN analytics.snapshots.paused_churn_days IS 'A pause longer than this is churn; null: never';
COMMENT ON COLUMN analytics.snapshots.reporting_currency IS 'The currency of the rates in analytics.churn, where exchange rates allow';
COMMENT ON COLUMN analytics.snapshots.computed_at IS 'When the figures of the day were last computed';
COMMENT ON COLUMN analytics.snapshots.restated_at IS 'When late events last changed a figure of the day after it was first stored';
COMMENT ON COLUMN analytics.snapshots.event_high_water IS 'The largest event_id known when they were computed';

ALTER TABLE IF EXISTS archive.mrr_movements SET SCHEMA analytics;
CREATE TABLE IF NOT EXISTS analytics.mrr_movements (
    day date NOT NULL,
    customer_id bigint NOT NULL,
    movement text NOT NULL CHECK (
        movement IN ('new', 'reactivation', 'expansion', 'contraction', 'churn', 'paused', 'resumed')
    ),
    currency text NOT NULL,
    annualised_minor bigint NOT NULL,
    PRIMARY KEY (day, customer_id, movement)
);
COMMENT ON TABLE analytics.mrr_movements IS 'Why run rate changed: a row for each movement of each customer on each day, also churn of 0';
COMMENT ON COLUMN analytics.mrr_movements.day IS 'UTC day';
COMMENT ON COLUMN analytics.mrr_movements.customer_id IS 'billing.customers.customer_id';
COMMENT ON COLUMN analytics.mrr_movements.movement IS 'The class of the movement';
COMMENT ON COLUMN analytics.mrr_movements.currency IS 'The currency of the customer';
COMMENT ON COLUMN analytics.mrr_movements.annualised_minor IS 'Change of annualised run rate, signed, minor units; MRR is a twelfth';
CREATE INDEX IF NOT EXISTS mrr_movements_customer ON analytics.mrr_movements (customer_id);

ALTER TABLE IF EXISTS archive.mrr_summary SET SCHEMA analytics;
CREATE TABLE IF NOT EXISTS analytics.mrr_summary (
    day date NOT NULL,
    segment_kind text NOT NULL CHECK (segment_kind IN ('total', 'plan', 'payment_frequency', 'country', 'currency')),
    segment text NOT NULL,
    currency text NOT NULL,
    start_minor bigint NOT NULL,
    new_minor bigint NOT NULL,
    reactivation_minor bigint NOT NULL,
    expansion_minor bigint NOT NULL,
    contraction_minor bigint NOT NULL,
    churn_minor bigint NOT NULL,
    paused_minor bigint NOT NULL,
    resumed_minor bigint NOT NULL,
    transfer_minor bigint NOT NULL,
    end_minor bigint NOT NULL,
    customers bigint NOT NULL,
    paying_customers bigint NOT NULL,
    subscriptions bigint NOT NULL,
    paused_subscriptions bigint NOT NULL,
    PRIMARY KEY (day, segment_kind, segment, currency)
);
COMMENT ON TABLE analytics.mrr_summary IS
'Annualised run rate at the start and end of each day and what lies between, by segment, signed minor units of the currency';
COMMENT ON COLUMN analytics.mrr_summary.day IS 'UTC day';
COMMENT ON COLUMN analytics.mrr_summary.segment_kind IS 'What the segment is a value of';
COMMENT ON COLUMN analytics.mrr_summary.segment IS 'The value; total for all, unknown for a customer without a country';
COMMENT ON COLUMN analytics.mrr_summary.currency IS 'The currency of the customers; figures of two currencies are never added';
COMMENT ON COLUMN analytics.mrr_summary.start_minor IS 'Run rate at the end of the day before';
COMMENT ON COLUMN analytics.mrr_summary.new_minor IS 'From customers who never had run rate at the end of a day';
COMMENT ON COLUMN analytics.mrr_summary.reactivation_minor IS 'From customers who were with us once and had left';
COMMENT ON COLUMN analytics.mrr_summary.expansion_minor IS 'Upwards, from customers who stay';
COMMENT ON COLUMN analytics.mrr_summary.contraction_minor IS 'Downwards, from customers who stay';
COMMENT ON COLUMN analytics.mrr_summary.churn_minor IS 'From customers who left';
COMMENT ON COLUMN analytics.mrr_summary.paused_minor IS 'Of subscriptions that were paused';
COMMENT ON COLUMN analytics.mrr_summary.resumed_minor IS 'Of subscriptions that came back from a pause';
COMMENT ON COLUMN analytics.mrr_summary.transfer_minor IS 'Moved by customers from one segment to another; 0 over all segments';
COMMENT ON COLUMN analytics.mrr_summary.end_minor IS 'Run rate at the end of the day';
COMMENT ON COLUMN analytics.mrr_summary.customers IS 'Customers with counted or paused run rate at the end of the day';
COMMENT ON COLUMN analytics.mrr_summary.paying_customers IS 'Customers with counted run rate at the end of the day';
COMMENT ON COLUMN analytics.mrr_summary.subscriptions IS 'Counted subscriptions at the end of the day';
COMMENT ON COLUMN analytics.mrr_summary.paused_subscriptions IS 'Paused subscriptions at the end of the day, aged-out pauses left out';

ALTER TABLE IF EXISTS archive.churn SET SCHEMA analytics;
CREATE TABLE IF NOT EXISTS analytics.churn (
    day date NOT NULL,
    definition text NOT NULL,
    currency text,
    customers_start bigint NOT NULL,
    customers_churned bigint NOT NULL,
    customer_churn_rate numeric,
    gross_mrr_churn numeric,
    net_mrr_churn numeric,
    nrr numeric,
    grr numeric,
    quick_ratio numeric,
    arpa numeric,
    ltv numeric,
    pause_rate numeric,
    PRIMARY KEY (day, definition)
);
COMMENT ON TABLE analytics.churn IS 'Rates over the 30 days that end with the day; null where a denominator is 0 or an exchange rate is missing';
COMMENT ON COLUMN analytics.churn.day IS 'UTC day, the last of the 30';
COMMENT ON COLUMN analytics.churn.definition IS 'Which definition the rates follow; docs/metrics.md';
COMMENT ON COLUMN analytics.churn.currency IS 'The currency of arpa and ltv, and the one that amounts were added in; null: exchange rates are missing';
COMMENT ON COLUMN analytics.churn.customers_start IS 'Customers with us at the start (definition stripe: and those who joined since)';
COMMENT ON COLUMN analytics.churn.customers_churned IS 'Of these, customers not with us at the end';
COMMENT ON COLUMN analytics.churn.customer_churn_rate IS 'customers_churned / customers_start';
COMMENT ON COLUMN analytics.churn.gross_mrr_churn IS '(churn + contraction) / MRR at the start';
COMMENT ON COLUMN analytics.churn.net_mrr_churn IS '(churn + contraction - expansion - reactivation) / MRR at the start';
COMMENT ON COLUMN analytics.churn.nrr IS '(start + expansion - contraction - churn) / start';
COMMENT ON COLUMN analytics.churn.grr IS 'Sum over customers of the smaller of start and end / start';
COMMENT ON COLUMN analytics.churn.quick_ratio IS '(new + expansion + reactivation) / (contraction + churn)';
COMMENT ON COLUMN analytics.churn.arpa IS 'MRR / paying customers at the end, minor units a month';
COMMENT ON COLUMN analytics.churn.ltv IS 'arpa / customer_churn_rate, minor units';
COMMENT ON COLUMN analytics.churn.pause_rate IS 'Paused subscriptions / (counted + paused) at the end';

ALTER TABLE IF EXISTS archive.cohorts SET SCHEMA analytics;
CREATE TABLE IF NOT EXISTS analytics.cohorts (
    cohort date NOT NULL,
    period date NOT NULL,
    currency text NOT NULL,
    customers_start bigint NOT NULL,
    customers bigint NOT NULL,
    paying_customers bigint NOT NULL,
    start_minor bigint NOT NULL,
    end_minor bigint NOT NULL,
    PRIMARY KEY (period, cohort, currency)
);
COMMENT ON TABLE analytics.cohorts IS 'Customers by the month in which they were new, and what is left of them at each month end';
COMMENT ON COLUMN analytics.cohorts.cohort IS 'First day of the month in which the customers were new';
COMMENT ON COLUMN analytics.cohorts.period IS 'First day of the month whose end is shown';
COMMENT ON COLUMN analytics.cohorts.currency IS 'The currency of the customers';
COMMENT ON COLUMN analytics.cohorts.customers_start IS 'Customers of the cohort';
COMMENT ON COLUMN analytics.cohorts.customers IS 'Of these, with us at the end of the period';
COMMENT ON COLUMN analytics.cohorts.paying_customers IS 'Of these, with counted run rate at the end of the period';
COMMENT ON COLUMN analytics.cohorts.start_minor IS 'Annualised run rate at the end of the cohort month, minor units';
COMMENT ON COLUMN analytics.cohorts.end_minor IS 'Annualised run rate at the end of the period, minor units';

ALTER TABLE IF EXISTS archive.churn_risk SET SCHEMA analytics;
CREATE TABLE IF NOT EXISTS analytics.churn_risk (
    day date NOT NULL,
    customer_id bigint NOT NULL,
    score numeric(4, 3) NOT NULL CHECK (score BETWEEN 0 AND 1),
    reasons text [] NOT NULL,
    model text NOT NULL,
    computed_at timestamptz NOT NULL,
    PRIMARY KEY (day, customer_id)
);
COMMENT ON TABLE analytics.churn_risk IS 'How likely each customer who is with us is to leave, and what raises it';
COMMENT ON COLUMN analytics.churn_risk.day IS 'UTC day at whose end the customer is judged';
COMMENT ON COLUMN analytics.churn_risk.customer_id IS 'billing.customers.customer_id';
COMMENT ON COLUMN analytics.churn_risk.score IS '0 to 1; 0.7 and above is high';
COMMENT ON COLUMN analytics.churn_risk.reasons IS 'What raises the score, strongest first';
COMMENT ON COLUMN analytics.churn_risk.model IS 'What scored it: the documented rule, or a trained model';
COMMENT ON COLUMN analytics.churn_risk.computed_at IS 'When it was scored';
CREATE INDEX IF NOT EXISTS churn_risk_high ON analytics.churn_risk (day, score DESC) WHERE score >= 0.7;
