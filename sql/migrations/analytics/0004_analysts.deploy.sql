-- What analysts work with: stored balances, views that say what they show, and a role that may read them and nothing else.
-- Views read billing tables with the rights of whoever deployed them: the role needs no right of its own there.
ALTER TABLE IF EXISTS archive.rewards_liability SET SCHEMA analytics;
CREATE TABLE IF NOT EXISTS analytics.rewards_liability (
    day date NOT NULL,
    currency text NOT NULL,
    opening_minor bigint NOT NULL,
    earned_minor bigint NOT NULL,
    spent_minor bigint NOT NULL,
    expired_minor bigint NOT NULL,
    reversed_minor bigint NOT NULL,
    closing_minor bigint NOT NULL,
    customers bigint NOT NULL,
    overdue_minor bigint NOT NULL,
    within_30_days_minor bigint NOT NULL,
    within_90_days_minor bigint NOT NULL,
    within_365_days_minor bigint NOT NULL,
    later_minor bigint NOT NULL,
    never_minor bigint NOT NULL,
    computed_at timestamptz NOT NULL,
    PRIMARY KEY (day, currency)
);
COMMENT ON TABLE analytics.rewards_liability IS
'Reward credit that customers could still spend at the end of each day; opening + earned - spent - expired - reversed = closing';
COMMENT ON COLUMN analytics.rewards_liability.day IS 'UTC day';
COMMENT ON COLUMN analytics.rewards_liability.currency IS 'The currency of the customers';
COMMENT ON COLUMN analytics.rewards_liability.opening_minor IS 'Credit left at the end of the day before, minor units';
COMMENT ON COLUMN analytics.rewards_liability.earned_minor IS 'Credit given on the day';
COMMENT ON COLUMN analytics.rewards_liability.spent_minor IS 'Credit spent on the day';
COMMENT ON COLUMN analytics.rewards_liability.expired_minor IS 'Credit that ran out and was written off on the day';
COMMENT ON COLUMN analytics.rewards_liability.reversed_minor IS 'Credit taken back on the day';
COMMENT ON COLUMN analytics.rewards_liability.closing_minor IS 'Credit left at the end of the day';
COMMENT ON COLUMN analytics.rewards_liability.customers IS 'Customers who have credit left';
COMMENT ON COLUMN analytics.rewards_liability.overdue_minor IS 'Of the closing: has run out, and is not written off yet';
COMMENT ON COLUMN analytics.rewards_liability.within_30_days_minor IS 'Of the closing: runs out within 30 days';
COMMENT ON COLUMN analytics.rewards_liability.within_90_days_minor IS 'Of the closing: runs out after 30 and within 90 days';
COMMENT ON COLUMN analytics.rewards_liability.within_365_days_minor IS 'Of the closing: runs out after 90 and within 365 days';
COMMENT ON COLUMN analytics.rewards_liability.later_minor IS 'Of the closing: runs out later';
COMMENT ON COLUMN analytics.rewards_liability.never_minor IS 'Of the closing: never runs out';
COMMENT ON COLUMN analytics.rewards_liability.computed_at IS 'When the row was last computed';

ALTER TABLE IF EXISTS archive.deferred_revenue SET SCHEMA analytics;
CREATE TABLE IF NOT EXISTS analytics.deferred_revenue (
    day date NOT NULL,
    currency text NOT NULL,
    opening_minor bigint NOT NULL,
    received_minor bigint NOT NULL,
    recognised_minor bigint NOT NULL,
    closing_minor bigint NOT NULL,
    closing_paused_minor bigint NOT NULL,
    computed_at timestamptz NOT NULL,
    PRIMARY KEY (day, currency)
);
COMMENT ON TABLE analytics.deferred_revenue IS
'Money received for days still to come, at the end of each day; opening + received - recognised = closing';
COMMENT ON COLUMN analytics.deferred_revenue.day IS 'UTC day';
COMMENT ON COLUMN analytics.deferred_revenue.currency IS 'The currency of the customers';
COMMENT ON COLUMN analytics.deferred_revenue.opening_minor IS 'Deferred at the end of the day before, minor units';
COMMENT ON COLUMN analytics.deferred_revenue.received_minor IS 'Collected on the day';
COMMENT ON COLUMN analytics.deferred_revenue.recognised_minor IS 'Earned on the day, straight-line by the day';
COMMENT ON COLUMN analytics.deferred_revenue.closing_minor IS 'Deferred at the end of the day';
COMMENT ON COLUMN analytics.deferred_revenue.closing_paused_minor IS
'Of the closing: of paused subscriptions, whose periods stand still';
COMMENT ON COLUMN analytics.deferred_revenue.computed_at IS 'When the row was last computed';

ALTER TABLE IF EXISTS archive.paused_revenue SET SCHEMA analytics;
CREATE TABLE IF NOT EXISTS analytics.paused_revenue (
    day date NOT NULL,
    currency text NOT NULL,
    subscriptions bigint NOT NULL,
    annualised_minor bigint NOT NULL,
    up_to_30_days_minor bigint NOT NULL,
    up_to_90_days_minor bigint NOT NULL,
    longer_minor bigint NOT NULL,
    computed_at timestamptz NOT NULL,
    PRIMARY KEY (day, currency)
);
COMMENT ON TABLE analytics.paused_revenue IS 'Run rate that is paused at the end of each day, by how long it has been';
COMMENT ON COLUMN analytics.paused_revenue.day IS 'UTC day';
COMMENT ON COLUMN analytics.paused_revenue.currency IS 'The currency of the customers';
COMMENT ON COLUMN analytics.paused_revenue.subscriptions IS 'Paused subscriptions, however long';
COMMENT ON COLUMN analytics.paused_revenue.annualised_minor IS 'Their annualised run rate, minor units; MRR is a twelfth';
COMMENT ON COLUMN analytics.paused_revenue.up_to_30_days_minor IS 'Of it: paused for up to 30 days';
COMMENT ON COLUMN analytics.paused_revenue.up_to_90_days_minor IS 'Of it: paused for more than 30 and up to 90 days';
COMMENT ON COLUMN analytics.paused_revenue.longer_minor IS 'Of it: paused for more than 90 days';
COMMENT ON COLUMN analytics.paused_revenue.computed_at IS 'When the row was last computed';

ALTER TABLE IF EXISTS archive.balance_days SET SCHEMA analytics;
CREATE TABLE IF NOT EXISTS analytics.balance_days (
    day date PRIMARY KEY,
    computed_at timestamptz NOT NULL
);
COMMENT ON TABLE analytics.balance_days IS
'The days whose balances are stored: a day without a row in a balance table is one on which nothing stood';
COMMENT ON COLUMN analytics.balance_days.day IS 'UTC day';
COMMENT ON COLUMN analytics.balance_days.computed_at IS 'When its balances were last computed';

CREATE VIEW analytics.customers AS
SELECT customer_id, customer_ref, currency, country, created_at FROM billing.customers;
COMMENT ON VIEW analytics.customers IS 'Customers by the id that the outside world uses; no address, no name';
COMMENT ON COLUMN analytics.customers.customer_id IS 'As in the other tables of this schema';
COMMENT ON COLUMN analytics.customers.customer_ref IS 'The id that the outside world uses; customer_id in exports';
COMMENT ON COLUMN analytics.customers.currency IS 'What the customer pays in, ISO 4217';
COMMENT ON COLUMN analytics.customers.country IS 'ISO 3166; null: unknown';
COMMENT ON COLUMN analytics.customers.created_at IS 'When we first knew of the customer';

CREATE VIEW analytics.current_subscriptions AS
SELECT
    i.subscription_id,
    s.subscription_ref,
    i.customer_id,
    c.customer_ref,
    i.status,
    i.paused_since,
    i.plan,
    i.payment_frequency,
    i.currency,
    c.country,
    i.annualised_minor,
    round(i.annualised_minor / 12.0, 4) AS mrr,
    i.status IN ('active', 'past_due') AS counts,
    i.valid_from AS since
FROM analytics.run_rate_intervals AS i
INNER JOIN billing.subscriptions AS s ON i.subscription_id = s.subscription_id
INNER JOIN billing.customers AS c ON i.customer_id = c.customer_id
WHERE i.valid_to IS NULL;
COMMENT ON VIEW analytics.current_subscriptions IS 'Every subscription as the newest event that analytics has seen left it';
COMMENT ON COLUMN analytics.current_subscriptions.subscription_id IS 'As in the other tables of this schema';
COMMENT ON COLUMN analytics.current_subscriptions.subscription_ref IS 'The id that the outside world uses';
COMMENT ON COLUMN analytics.current_subscriptions.customer_id IS 'As in the other tables of this schema';
COMMENT ON COLUMN analytics.current_subscriptions.customer_ref IS 'The id of the customer that the outside world uses';
COMMENT ON COLUMN analytics.current_subscriptions.status IS 'unstarted, trialing, active, past_due, paused, suspended or canceled';
COMMENT ON COLUMN analytics.current_subscriptions.paused_since IS 'When the pause began; null unless paused';
COMMENT ON COLUMN analytics.current_subscriptions.plan IS 'Plan';
COMMENT ON COLUMN analytics.current_subscriptions.payment_frequency IS 'How often the customer pays';
COMMENT ON COLUMN analytics.current_subscriptions.currency IS 'The currency of the customer';
COMMENT ON COLUMN analytics.current_subscriptions.country IS 'The country of the customer';
COMMENT ON COLUMN analytics.current_subscriptions.annualised_minor IS 'Run rate a year, minor units, whatever the status';
COMMENT ON COLUMN analytics.current_subscriptions.mrr IS 'A twelfth of it';
COMMENT ON COLUMN analytics.current_subscriptions.counts IS 'Whether the run rate counts: active or past due';
COMMENT ON COLUMN analytics.current_subscriptions.since IS 'Since when nothing has changed';

CREATE VIEW analytics.current_mrr AS
SELECT
    currency,
    plan,
    payment_frequency,
    country,
    count(*) AS subscriptions,
    count(DISTINCT customer_id) AS customers,
    sum(annualised_minor)::bigint AS annualised_minor,
    round(sum(annualised_minor) / 12, 4) AS mrr
FROM analytics.current_subscriptions
WHERE counts
GROUP BY currency, plan, payment_frequency, country;
COMMENT ON VIEW analytics.current_mrr IS 'MRR now: of what counts, by currency, plan, frequency and country; currencies are never added';
COMMENT ON COLUMN analytics.current_mrr.currency IS 'The currency of the customers';
COMMENT ON COLUMN analytics.current_mrr.plan IS 'Plan';
COMMENT ON COLUMN analytics.current_mrr.payment_frequency IS 'How often the customers pay';
COMMENT ON COLUMN analytics.current_mrr.country IS 'The country of the customers; null: unknown';
COMMENT ON COLUMN analytics.current_mrr.subscriptions IS 'Subscriptions that count';
COMMENT ON COLUMN analytics.current_mrr.customers IS 'Customers of these; one with several subscriptions may be in several rows';
COMMENT ON COLUMN analytics.current_mrr.annualised_minor IS 'Run rate a year, minor units';
COMMENT ON COLUMN analytics.current_mrr.mrr IS 'A twelfth of it';

CREATE VIEW analytics.payment_attempts AS
SELECT
    p.payment_id,
    p.subscription_id,
    s.customer_id,
    p.occurred_at,
    p.recorded_at,
    p.amount_minor,
    p.currency,
    p.outcome,
    p.failure_class,
    p.failure_code,
    p.attempt,
    t.plan,
    t.payment_frequency
FROM billing.payments AS p
INNER JOIN billing.subscriptions AS s ON p.subscription_id = s.subscription_id
LEFT JOIN LATERAL (
    SELECT e.plan, e.payment_frequency
    FROM billing.subscription_events AS e
    WHERE e.subscription_id = p.subscription_id AND e.occurred_at <= p.occurred_at
    ORDER BY e.occurred_at DESC, e.recorded_at DESC, e.event_id DESC
    LIMIT 1
) AS t ON true;
COMMENT ON VIEW analytics.payment_attempts IS 'Every attempt to collect a payment, with the terms of that instant';
COMMENT ON COLUMN analytics.payment_attempts.payment_id IS 'One for each attempt';
COMMENT ON COLUMN analytics.payment_attempts.subscription_id IS 'As in the other tables of this schema';
COMMENT ON COLUMN analytics.payment_attempts.customer_id IS 'As in the other tables of this schema';
COMMENT ON COLUMN analytics.payment_attempts.occurred_at IS 'When it was made';
COMMENT ON COLUMN analytics.payment_attempts.recorded_at IS 'When we knew of it';
COMMENT ON COLUMN analytics.payment_attempts.amount_minor IS 'What was asked for, minor units';
COMMENT ON COLUMN analytics.payment_attempts.currency IS 'ISO 4217';
COMMENT ON COLUMN analytics.payment_attempts.outcome IS 'succeeded or failed';
COMMENT ON COLUMN analytics.payment_attempts.failure_class IS
'issuer_decline, block, integration_error (ours), provider_error (Stripe''s) or another word';
COMMENT ON COLUMN analytics.payment_attempts.failure_code IS 'The reason in the words of the issuer or of Stripe';
COMMENT ON COLUMN analytics.payment_attempts.attempt IS '1 for the first attempt at a payment';
COMMENT ON COLUMN analytics.payment_attempts.plan IS 'The plan at that instant; null: before the first event';
COMMENT ON COLUMN analytics.payment_attempts.payment_frequency IS 'How often the customer paid at that instant';

CREATE VIEW analytics.dunning_episodes AS
WITH attempts AS (
    SELECT
        p.subscription_id,
        p.occurred_at,
        p.outcome,
        p.failure_class,
        lag(p.outcome) OVER in_time AS outcome_before,
        p.occurred_at - lag(p.occurred_at) OVER in_time > interval '60 days' AS after_silence,
        row_number() OVER in_time AS place
    FROM billing.payments AS p
    WINDOW in_time AS (PARTITION BY p.subscription_id ORDER BY p.occurred_at, p.outcome, p.attempt, p.payment_ref)
), numbered AS (
    SELECT
        a.*,
        count(*) FILTER (
            WHERE coalesce(a.after_silence, false) OR a.outcome_before IS DISTINCT FROM 'failed'
        ) OVER (PARTITION BY a.subscription_id ORDER BY a.place) AS episode
    FROM attempts AS a
)
SELECT
    n.subscription_id,
    s.customer_id,
    s.currency,
    min(n.occurred_at) AS began_at,
    min(n.occurred_at) FILTER (WHERE n.outcome = 'succeeded') AS recovered_at,
    count(*) FILTER (WHERE n.outcome = 'failed') AS failed_attempts,
    (array_agg(n.failure_class ORDER BY n.place))[1] AS failure_class,
    round(
        extract(EPOCH FROM min(n.occurred_at) FILTER (WHERE n.outcome = 'succeeded') - min(n.occurred_at)) / 86400, 6
    ) AS days_to_recovery
FROM numbered AS n
INNER JOIN billing.subscriptions AS s ON n.subscription_id = s.subscription_id
GROUP BY n.subscription_id, s.customer_id, s.currency, n.episode
HAVING (array_agg(n.outcome ORDER BY n.place))[1] = 'failed';
COMMENT ON VIEW analytics.dunning_episodes IS
'From a failed payment to the next that succeeds; 60 days without any attempt end an episode unrecovered';
COMMENT ON COLUMN analytics.dunning_episodes.subscription_id IS 'As in the other tables of this schema';
COMMENT ON COLUMN analytics.dunning_episodes.customer_id IS 'As in the other tables of this schema';
COMMENT ON COLUMN analytics.dunning_episodes.currency IS 'The currency of the customer';
COMMENT ON COLUMN analytics.dunning_episodes.began_at IS 'The first failed attempt';
COMMENT ON COLUMN analytics.dunning_episodes.recovered_at IS 'The attempt that succeeded; null: none has';
COMMENT ON COLUMN analytics.dunning_episodes.failed_attempts IS 'How many attempts failed';
COMMENT ON COLUMN analytics.dunning_episodes.failure_class IS 'Why the first one failed';
COMMENT ON COLUMN analytics.dunning_episodes.days_to_recovery IS 'From the first failure to the success, days of 24 hours';

CREATE VIEW analytics.mrr_by_day AS
SELECT
    day,
    segment_kind,
    segment,
    currency,
    round(start_minor / 12.0, 4) AS start_mrr,
    round(new_minor / 12.0, 4) AS new_mrr,
    round(reactivation_minor / 12.0, 4) AS reactivation_mrr,
    round(expansion_minor / 12.0, 4) AS expansion_mrr,
    round(contraction_minor / 12.0, 4) AS contraction_mrr,
    round(churn_minor / 12.0, 4) AS churn_mrr,
    round(paused_minor / 12.0, 4) AS paused_mrr,
    round(resumed_minor / 12.0, 4) AS resumed_mrr,
    round(transfer_minor / 12.0, 4) AS transfer_mrr,
    round(end_minor / 12.0, 4) AS end_mrr,
    customers,
    paying_customers,
    subscriptions,
    paused_subscriptions
FROM analytics.mrr_summary;
COMMENT ON VIEW analytics.mrr_by_day IS
'analytics.mrr_summary as MRR, for showing: minor units a month, four decimals; sums are exact in mrr_summary only';
COMMENT ON COLUMN analytics.mrr_by_day.day IS 'UTC day';
COMMENT ON COLUMN analytics.mrr_by_day.segment_kind IS 'What the segment is a value of: total, plan, payment_frequency, country, currency';
COMMENT ON COLUMN analytics.mrr_by_day.segment IS 'The value';
COMMENT ON COLUMN analytics.mrr_by_day.currency IS 'The currency of the customers';
COMMENT ON COLUMN analytics.mrr_by_day.start_mrr IS 'At the end of the day before';
COMMENT ON COLUMN analytics.mrr_by_day.new_mrr IS 'From customers who never had run rate';
COMMENT ON COLUMN analytics.mrr_by_day.reactivation_mrr IS 'From customers who had left and came back';
COMMENT ON COLUMN analytics.mrr_by_day.expansion_mrr IS 'Upwards, from customers who stay';
COMMENT ON COLUMN analytics.mrr_by_day.contraction_mrr IS 'Downwards, from customers who stay';
COMMENT ON COLUMN analytics.mrr_by_day.churn_mrr IS 'From customers who left';
COMMENT ON COLUMN analytics.mrr_by_day.paused_mrr IS 'Of subscriptions that were paused';
COMMENT ON COLUMN analytics.mrr_by_day.resumed_mrr IS 'Of subscriptions that came back from a pause';
COMMENT ON COLUMN analytics.mrr_by_day.transfer_mrr IS 'Moved by customers from one segment to another; 0 over all segments';
COMMENT ON COLUMN analytics.mrr_by_day.end_mrr IS 'At the end of the day';
COMMENT ON COLUMN analytics.mrr_by_day.customers IS 'Customers with counted or paused run rate';
COMMENT ON COLUMN analytics.mrr_by_day.paying_customers IS 'Customers with counted run rate';
COMMENT ON COLUMN analytics.mrr_by_day.subscriptions IS 'Counted subscriptions';
COMMENT ON COLUMN analytics.mrr_by_day.paused_subscriptions IS 'Paused subscriptions, aged-out pauses left out';

-- Roles belong to the cluster, not to this database: the role may be there already, and whoever deploys may not make one.
CREATE FUNCTION analytics.admit_analysts() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'flexpay_analyst') THEN
        BEGIN
            CREATE ROLE flexpay_analyst NOLOGIN;
        EXCEPTION
            WHEN insufficient_privilege THEN
                RETURN format(
                    '%I may not create roles: create the role flexpay_analyst (NOLOGIN); the next daily analytics lets it in.',
                    current_user
                );
            WHEN duplicate_object OR unique_violation THEN
                NULL;  -- somebody else has just made it
        END;
    END IF;
    GRANT USAGE ON SCHEMA analytics TO flexpay_analyst;
    GRANT SELECT ON ALL TABLES IN SCHEMA analytics TO flexpay_analyst;
    ALTER DEFAULT PRIVILEGES IN SCHEMA analytics GRANT SELECT ON TABLES TO flexpay_analyst;
    RETURN 'flexpay_analyst may read schema analytics.';
END
$$;
COMMENT ON FUNCTION analytics.admit_analysts() IS
'Let the role flexpay_analyst read this schema, now and in future; make the role where it is missing. Says in one sentence how it went';
DO $$
BEGIN
    RAISE NOTICE '%', analytics.admit_analysts();
END
$$;
