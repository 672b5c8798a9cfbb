-- What stood before and why it changed: restatements with their causes, exchange rates and countries as they were known.
-- depends_on: core
-- squawk-ignore-file constraint-missing-not-valid
ALTER TABLE IF EXISTS archive.restatements SET SCHEMA analytics;
CREATE TABLE IF NOT EXISTS analytics.restatements (
    restatement_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    restated_at timestamptz NOT NULL,
    days date [] NOT NULL CHECK (cardinality(days) > 0),
    time_zone text NOT NULL,
    events bigint CHECK (events >= 0),
    moved_customers bigint NOT NULL CHECK (moved_customers >= 0)
);
COMMENT ON TABLE analytics.restatements IS 'Refreshes after which days that were stored already had other figures';
COMMENT ON COLUMN analytics.restatements.restatement_id IS 'Order of the refreshes';
COMMENT ON COLUMN analytics.restatements.restated_at IS 'When the refresh was made, as in snapshots.restated_at';
COMMENT ON COLUMN analytics.restatements.days IS 'The days that have other figures since';
COMMENT ON COLUMN analytics.restatements.time_zone IS 'The time zone of the days, as in snapshots.time_zone';
COMMENT ON COLUMN analytics.restatements.events IS
'Events up to the last of these days that arrived since the refresh before; null: the whole ledger was read anew';
COMMENT ON COLUMN analytics.restatements.moved_customers IS
'Customers whose country had changed since: their history moves to the new segment';

ALTER TABLE IF EXISTS archive.restated_figures SET SCHEMA analytics;
CREATE TABLE IF NOT EXISTS analytics.restated_figures (
    restatement_id bigint NOT NULL,
    day date NOT NULL,
    segment_kind text NOT NULL,
    segment text NOT NULL,
    currency text NOT NULL,
    figure text NOT NULL,
    before_amount bigint NOT NULL,
    after_amount bigint NOT NULL,
    PRIMARY KEY (restatement_id, day, segment_kind, segment, currency, figure),
    CHECK (before_amount <> after_amount)
);
COMMENT ON TABLE analytics.restated_figures IS 'Every figure of mrr_summary and mrr_movements that a restatement changed, before and after';
COMMENT ON COLUMN analytics.restated_figures.restatement_id IS 'restatements.restatement_id';
COMMENT ON COLUMN analytics.restated_figures.day IS 'The day whose figure changed';
COMMENT ON COLUMN analytics.restated_figures.segment_kind IS 'As in mrr_summary; customer: a movement of one customer';
COMMENT ON COLUMN analytics.restated_figures.segment IS 'As in mrr_summary; of segment_kind customer the customer_id';
COMMENT ON COLUMN analytics.restated_figures.currency IS 'The currency of the customers';
COMMENT ON COLUMN analytics.restated_figures.figure IS
'start, the movements, transfer, end (annualised minor units); customers, paying_customers, subscriptions, paused_subscriptions (counts)';
COMMENT ON COLUMN analytics.restated_figures.before_amount IS 'What stood before; 0 where there was no row';
COMMENT ON COLUMN analytics.restated_figures.after_amount IS 'What stands since; 0 where there is no row any more';
CREATE INDEX IF NOT EXISTS restated_figures_day ON analytics.restated_figures (day);

ALTER TABLE IF EXISTS archive.restatement_causes SET SCHEMA analytics;
CREATE TABLE IF NOT EXISTS analytics.restatement_causes (
    restatement_id bigint NOT NULL,
    cause_no bigint NOT NULL,
    cause text NOT NULL CHECK (cause IN ('event', 'country')),
    customer_id bigint NOT NULL,
    subscription_id bigint,
    event_id bigint,
    event text,
    occurred_at timestamptz,
    recorded_at timestamptz,
    PRIMARY KEY (restatement_id, cause_no),
    CHECK ((cause = 'event') = (event_id IS NOT NULL))
);
COMMENT ON TABLE analytics.restatement_causes IS
'What was new to a refresh that restated days: a day is changed by events that occurred on it or before, and by moves to another country';
COMMENT ON COLUMN analytics.restatement_causes.restatement_id IS 'restatements.restatement_id';
COMMENT ON COLUMN analytics.restatement_causes.cause_no IS 'Order in which they occurred';
COMMENT ON COLUMN analytics.restatement_causes.cause IS 'event: it arrived late; country: the customer has another one';
COMMENT ON COLUMN analytics.restatement_causes.customer_id IS 'billing.customers.customer_id';
COMMENT ON COLUMN analytics.restatement_causes.subscription_id IS 'billing.subscriptions.subscription_id; null for a country';
COMMENT ON COLUMN analytics.restatement_causes.event_id IS 'billing.subscription_events.event_id; null for a country';
COMMENT ON COLUMN analytics.restatement_causes.event IS 'What happened; null for a country';
COMMENT ON COLUMN analytics.restatement_causes.occurred_at IS 'When it was true; null for a country';
COMMENT ON COLUMN analytics.restatement_causes.recorded_at IS 'When it became known; null for a country';

-- A column with a constant default is added without touching a row; what is stored from now on says its own zone.
ALTER TABLE analytics.snapshots ADD COLUMN time_zone text NOT NULL DEFAULT 'UTC';
ALTER TABLE analytics.snapshots ALTER COLUMN time_zone SET DEFAULT current_setting('TimeZone');
COMMENT ON COLUMN analytics.snapshots.time_zone IS 'The time zone whose midnights part the days, IANA name';
ALTER TABLE analytics.balance_days ADD COLUMN time_zone text NOT NULL DEFAULT 'UTC';
ALTER TABLE analytics.balance_days ALTER COLUMN time_zone SET DEFAULT current_setting('TimeZone');
COMMENT ON COLUMN analytics.balance_days.time_zone IS 'The time zone whose midnights part the days, IANA name';
COMMENT ON COLUMN analytics.snapshots.day IS 'The day, in time_zone';

-- What the rates were at any time. A rate counts as known from its date on where its pair had no rate before: that is how
-- a history is loaded. Any later arrival is known from then on.
ALTER TABLE IF EXISTS archive.known_rates SET SCHEMA analytics;
CREATE TABLE IF NOT EXISTS analytics.known_rates (
    known_rate_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    date date NOT NULL,
    currency text NOT NULL,
    reporting_currency text NOT NULL,
    rate numeric NOT NULL,
    known_from timestamptz,
    known_until timestamptz
);
COMMENT ON TABLE analytics.known_rates IS 'Exchange rates of billing.fx_rates and since when, until when each was known';
COMMENT ON COLUMN analytics.known_rates.known_rate_id IS 'Order of arrival';
COMMENT ON COLUMN analytics.known_rates.date IS 'The day of the rate';
COMMENT ON COLUMN analytics.known_rates.currency IS 'Converted from, ISO 4217';
COMMENT ON COLUMN analytics.known_rates.reporting_currency IS 'Converted to, ISO 4217';
COMMENT ON COLUMN analytics.known_rates.rate IS 'Units of the reporting currency for one unit of the currency';
COMMENT ON COLUMN analytics.known_rates.known_from IS 'When it arrived; null: with the first of its pair, known from its date on';
COMMENT ON COLUMN analytics.known_rates.known_until IS 'When it was corrected or removed; null: it holds';
CREATE INDEX IF NOT EXISTS known_rates_pair ON analytics.known_rates (currency, reporting_currency, date);

-- What was loaded while the component was away is known from its date on.
UPDATE analytics.known_rates AS k
SET known_until = now()
WHERE k.known_until IS NULL AND NOT EXISTS (
        SELECT 1 FROM billing.fx_rates AS f
        WHERE f.date = k.date AND f.currency = k.currency AND f.reporting_currency = k.reporting_currency AND f.rate = k.rate
    );
INSERT INTO analytics.known_rates (date, currency, reporting_currency, rate)
SELECT f.date, f.currency, f.reporting_currency, f.rate
FROM billing.fx_rates AS f
WHERE NOT EXISTS (
        SELECT 1 FROM analytics.known_rates AS k
        WHERE k.date = f.date AND k.currency = f.currency AND k.reporting_currency = f.reporting_currency AND k.known_until IS NULL
    );

-- By the rights of its owner: who may write a rate or a customer need not know of this schema.
CREATE FUNCTION analytics.note_rates() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    IF tg_op <> 'INSERT' THEN
        UPDATE analytics.known_rates AS k SET known_until = clock_timestamp()
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
COMMENT ON FUNCTION analytics.note_rates() IS 'Keeps in known_rates when an exchange rate arrived, was corrected or removed';
CREATE TRIGGER rates_came AFTER INSERT ON billing.fx_rates REFERENCING NEW TABLE AS came
FOR EACH STATEMENT EXECUTE FUNCTION analytics.note_rates();
CREATE TRIGGER rates_corrected AFTER UPDATE ON billing.fx_rates REFERENCING OLD TABLE AS gone NEW TABLE AS came
FOR EACH STATEMENT EXECUTE FUNCTION analytics.note_rates();
CREATE TRIGGER rates_removed AFTER DELETE ON billing.fx_rates REFERENCING OLD TABLE AS gone
FOR EACH STATEMENT EXECUTE FUNCTION analytics.note_rates();

ALTER TABLE IF EXISTS archive.former_countries SET SCHEMA analytics;
CREATE TABLE IF NOT EXISTS analytics.former_countries (
    move_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL,
    country text,
    known_until timestamptz NOT NULL
);
COMMENT ON TABLE analytics.former_countries IS 'Countries that customers had before, for figures as they were known then';
COMMENT ON COLUMN analytics.former_countries.move_id IS 'Order of the changes';
COMMENT ON COLUMN analytics.former_countries.customer_id IS 'billing.customers.customer_id';
COMMENT ON COLUMN analytics.former_countries.country IS 'The country until then, ISO 3166; null: none was known';
COMMENT ON COLUMN analytics.former_countries.known_until IS 'When another one was written';
CREATE INDEX IF NOT EXISTS former_countries_until ON analytics.former_countries (known_until);
CREATE FUNCTION analytics.note_former_country() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    INSERT INTO analytics.former_countries (customer_id, country, known_until)
    VALUES (old.customer_id, old.country, clock_timestamp());
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION analytics.note_former_country() IS 'Keeps the country that a customer had';
CREATE TRIGGER customers_former_country AFTER UPDATE OF country ON billing.customers
FOR EACH ROW WHEN (old.country IS DISTINCT FROM new.country)
EXECUTE FUNCTION analytics.note_former_country();
