-- What was known when: exchange rates and countries. Events and payments tell it themselves (recorded_at).

-- name: create_rates()!
-- description: The rates that are known now.
CREATE TEMP VIEW metric_fx_rates AS
SELECT
    date,
    currency,
    reporting_currency,
    rate
FROM billing.fx_rates;

-- name: create_known_rates(known_at)!
-- description: The rates that were known at an instant.
CREATE TEMP VIEW metric_fx_rates AS
SELECT
    date,
    currency,
    reporting_currency,
    rate
FROM analytics.known_rates
WHERE coalesce(known_from, cast(date AS timestamptz)) <= :known_at
    AND (known_until IS NULL OR known_until > :known_at);

-- name: restore_countries(known_at)!
-- description: The countries that customers had at an instant: those of the first change since.
UPDATE metric_intervals AS i
SET country = f.country
FROM (
    SELECT DISTINCT ON (customer_id)
        customer_id,
        country
    FROM analytics.former_countries
    WHERE known_until > :known_at
    ORDER BY customer_id, known_until, move_id
) AS f
WHERE i.customer_id = f.customer_id AND i.country IS DISTINCT FROM f.country;
