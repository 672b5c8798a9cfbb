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

-- name: unvalued_rates()
-- description: The rates that came, were corrected or removed since days were last valued.
SELECT
    known_rate_id,
    date,
    known_until
FROM analytics.known_rates
WHERE NOT valued;

-- name: note_valued(rates, ended)!
-- description: Records that stored days are valued at these rates, unless one has been corrected or removed since.
UPDATE analytics.known_rates AS k
SET valued = TRUE
FROM unnest(cast(:rates AS bigint []), cast(:ended AS timestamptz [])) AS v (known_rate_id, known_until)
WHERE k.known_rate_id = v.known_rate_id AND k.known_until IS NOT DISTINCT FROM v.known_until;

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
