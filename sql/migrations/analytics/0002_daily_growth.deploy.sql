-- What lets a refresh cost what is new: the ledger's unsettled ids, customers who moved, and the amounts behind the rates.
-- depends_on: core
-- squawk-ignore-file constraint-missing-not-valid
CREATE AGGREGATE analytics.follow(text, text) (sfunc = pg_catalog.translate, stype = text, initcond = 'u', parallel = safe);
COMMENT ON AGGREGATE analytics.follow(text, text) IS
'A state machine: a state is a letter, an input tells what becomes of each letter; it begins as u, unstarted';

-- A column with a constant default is added without touching a row.
ALTER TABLE analytics.interval_progress
ADD COLUMN gaps int8multirange NOT NULL DEFAULT '{}',
ADD COLUMN writers text [] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN analytics.interval_progress.events IS 'Events up to the high-water mark that are included';
COMMENT ON COLUMN analytics.interval_progress.gaps IS
'Ids below the mark that nobody had committed: a transaction that was writing then may still commit them';
COMMENT ON COLUMN analytics.interval_progress.writers IS
'The transactions, by virtual id, that were writing then: when all have ended, the gaps stay empty';
-- What was committed below the mark since it was set makes the next refresh begin anew; what still may be is kept in mind.
DELETE FROM analytics.interval_progress AS p
WHERE p.events <> (SELECT count(*) FROM billing.subscription_events AS e WHERE e.event_id <= p.event_high_water);
UPDATE analytics.interval_progress AS p
SET
    gaps = coalesce((
        SELECT range_agg(int8range(e.previous_id + 1, e.event_id))
        FROM (
            SELECT event_id, lag(event_id, 1, 0::bigint) OVER (ORDER BY event_id) AS previous_id
            FROM billing.subscription_events
            WHERE event_id <= p.event_high_water
        ) AS e
        WHERE e.event_id > e.previous_id + 1
    ), '{}'),
    writers = (
        SELECT coalesce(array_agg(DISTINCT l.virtualtransaction), '{}')
        FROM pg_locks AS l
        WHERE l.relation = 'billing.subscription_events'::regclass AND l.mode = 'RowExclusiveLock'
    )
WHERE p.only_row;

-- A refresh rewrites the last interval of a subscription in place where there is room.
ALTER TABLE analytics.run_rate_intervals SET (fillfactor = 90);

CREATE TABLE analytics.moved_customers (
    move_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL
);
COMMENT ON TABLE analytics.moved_customers IS 'Customers whose country has changed since the last refresh';
COMMENT ON COLUMN analytics.moved_customers.move_id IS 'Order of arrival';
COMMENT ON COLUMN analytics.moved_customers.customer_id IS 'billing.customers.customer_id';
INSERT INTO analytics.moved_customers (customer_id)
SELECT DISTINCT c.customer_id
FROM analytics.run_rate_intervals AS i
INNER JOIN billing.customers AS c ON i.customer_id = c.customer_id
WHERE c.country IS DISTINCT FROM i.country;

-- By the rights of its owner: who may change a customer need not know of this schema.
CREATE FUNCTION analytics.note_moved_customer() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    INSERT INTO analytics.moved_customers (customer_id) VALUES (new.customer_id);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION analytics.note_moved_customer() IS 'Tells the next refresh of a customer whose country has changed';
CREATE TRIGGER customers_moved AFTER UPDATE OF country ON billing.customers
FOR EACH ROW WHEN (old.country IS DISTINCT FROM new.country)
EXECUTE FUNCTION analytics.note_moved_customer();

CREATE TABLE analytics.churn_amounts (
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
    PRIMARY KEY (day, currency)
);
COMMENT ON TABLE analytics.churn_amounts IS
'What analytics.churn was computed from: both ends of the 30 days that end with the day compared, annualised minor units';
COMMENT ON COLUMN analytics.churn_amounts.day IS 'UTC day, the last of the 30';
COMMENT ON COLUMN analytics.churn_amounts.currency IS 'The currency of the customers';
COMMENT ON COLUMN analytics.churn_amounts.customers_churned IS 'With us at the start, not at the end';
COMMENT ON COLUMN analytics.churn_amounts.joined IS 'Not with us at the start, but at the end of a day since';
COMMENT ON COLUMN analytics.churn_amounts.joined_churned IS 'Of these, not with us at the end';
COMMENT ON COLUMN analytics.churn_amounts.new_minor IS 'From customers who never had run rate at the end of a day up to the start';
COMMENT ON COLUMN analytics.churn_amounts.reactivation_minor IS 'From customers who had left by the start';
COMMENT ON COLUMN analytics.churn_amounts.expansion_minor IS 'Upwards, from customers who stayed';
COMMENT ON COLUMN analytics.churn_amounts.contraction_minor IS 'Downwards, from customers who stayed, without sign';
COMMENT ON COLUMN analytics.churn_amounts.churn_minor IS 'From customers who left, without sign';
COMMENT ON COLUMN analytics.churn_amounts.lost_minor IS 'By how much customers have less at the end than at the start';
