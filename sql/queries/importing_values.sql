-- Import of the data contract: the staged text is checked value by value and typed.
-- Staging tables (staged_*, all text, line numbers) are made by the engine; everything here happens in its one transaction.

-- name: make_checks#
-- description: The faults of single values, as functions of this session: null when there is none.
CREATE OR REPLACE FUNCTION pg_temp.quoted(value text) RETURNS text LANGUAGE sql STABLE
RETURN '''' || left(value, 40) || CASE WHEN length(value) > 40 THEN '…''' ELSE '''' END;

CREATE OR REPLACE FUNCTION pg_temp.bad_id(value text) RETURNS text LANGUAGE sql STABLE
RETURN CASE
    WHEN value IS NULL THEN 'is empty'
    WHEN value ~ '^\s|\s$' THEN pg_temp.quoted(value) || ' has white space at its start or end'
    WHEN length(value) > 200 THEN pg_temp.quoted(value) || ' is longer than 200 characters'
END;

CREATE OR REPLACE FUNCTION pg_temp.bad_text(value text) RETURNS text LANGUAGE sql STABLE
RETURN CASE
    WHEN value ~ '^\s|\s$' THEN pg_temp.quoted(value) || ' has white space at its start or end'
    WHEN length(value) > 500 THEN pg_temp.quoted(value) || ' is longer than 500 characters'
END;

CREATE OR REPLACE FUNCTION pg_temp.bad_date(value text) RETURNS text LANGUAGE sql STABLE
RETURN CASE
    WHEN value IS NULL THEN 'is empty'
    WHEN value ~ (
        '^(((19|2\d)\d\d-(((0[13578]|1[02])-(0[1-9]|[12]\d|3[01]))|((0[469]|11)-(0[1-9]|[12]\d|30))|(02-(0[1-9]|1\d|2[0-8]))))'
        || '|(((19|2\d)(0[48]|[2468][048]|[13579][26])|2[048]00)-02-29))$'
    ) THEN NULL
    WHEN value !~ '^\d{4}-\d\d-\d\d$' THEN pg_temp.quoted(value) || ' is not a date such as 2026-01-31'
    WHEN value !~ '^(19|2\d)' THEN pg_temp.quoted(value) || ' is not between the years 1900 and 2999'
    ELSE pg_temp.quoted(value) || ' is not a day of the calendar'
END;

CREATE OR REPLACE FUNCTION pg_temp.bad_instant(value text) RETURNS text LANGUAGE sql STABLE
RETURN CASE
    WHEN value IS NULL THEN NULL
    -- Nearly every value is of this kind; the rest is looked at more closely.
    WHEN value ~ '^2\d{3}-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])T([01]\d|2[0-3]):[0-5]\d:[0-5]\d(Z|[+-]0\d:00)$' THEN NULL
    WHEN value !~ '^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?' THEN
        pg_temp.quoted(value) || ' is not an ISO-8601 time such as 2026-01-31T09:00:00+00:00'
    WHEN value ~ '^.{10}.\d\d:\d\d(:\d\d(\.\d+)?)?$' THEN
        pg_temp.quoted(value) || ' has no offset from UTC: write it with +00:00 or Z at its end'
    WHEN pg_temp.bad_date(left(value, 10)) IS NOT NULL THEN pg_temp.bad_date(left(value, 10))
    WHEN value !~ '^.{11}([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d{1,6})?)?(Z|[+-](0\d|1[0-4])(:?[0-5]\d)?)$' THEN
        pg_temp.quoted(value) || ' is not an ISO-8601 time such as 2026-01-31T09:00:00+00:00'
END;

CREATE OR REPLACE FUNCTION pg_temp.bad_whole(value text, lowest bigint, highest bigint, example text) RETURNS text
LANGUAGE sql STABLE
RETURN CASE
    WHEN value IS NULL THEN 'is empty'
    WHEN value ~ '^-?\d+[.,]\d*$' THEN pg_temp.quoted(value) || ' has a decimal point; ' || example
    WHEN value !~ '^-?\d+$' THEN pg_temp.quoted(value) || ' is not a whole number; ' || example
    WHEN length(ltrim(value, '-0')) > 15 OR value::numeric > highest THEN
        pg_temp.quoted(value) || ' is too big: at most ' || highest
    WHEN value::numeric < lowest THEN pg_temp.quoted(value) || ' is too small: at least ' || lowest
END;

CREATE OR REPLACE FUNCTION pg_temp.bad_amount(value text, lowest bigint) RETURNS text LANGUAGE sql STABLE
RETURN CASE
    WHEN value ~ '^[1-9]\d{0,11}$' THEN NULL
    ELSE pg_temp.bad_whole(value, lowest, 1000000000000, 'amounts are whole minor units: 1999 means 19.99 EUR')
END;

CREATE OR REPLACE FUNCTION pg_temp.bad_rate(value text) RETURNS text LANGUAGE sql STABLE
RETURN CASE
    WHEN value IS NULL THEN 'is empty'
    WHEN value !~ '^\d{1,30}(\.\d{1,30})?([eE][+-]?\d{1,2})?$' THEN
        pg_temp.quoted(value) || ' is not a rate such as 0.9215'
    WHEN round(value::numeric, 10) <= 0 THEN pg_temp.quoted(value) || ' is too small: at least 0.0000000001'
    WHEN round(value::numeric, 10) >= 10000000000 THEN pg_temp.quoted(value) || ' is too big: below 10000000000'
END;

CREATE OR REPLACE FUNCTION pg_temp.bad_currency(value text) RETURNS text LANGUAGE sql STABLE
RETURN CASE
    WHEN value IS NULL THEN 'is empty'
    WHEN value !~ '^[A-Z]{3}$' THEN pg_temp.quoted(value) || ' is not an ISO-4217 currency such as EUR'
END;

CREATE OR REPLACE FUNCTION pg_temp.bad_word(value text, allowed text []) RETURNS text LANGUAGE sql STABLE
RETURN CASE
    WHEN value IS NULL THEN 'is empty'
    WHEN array_position(allowed, value) IS NULL THEN pg_temp.quoted(value) || ' is none of ' || array_to_string(allowed, ', ')
END;

DROP TABLE IF EXISTS pg_temp.import_problems;
CREATE TEMPORARY TABLE import_problems (
    problem_id bigint GENERATED ALWAYS AS IDENTITY,
    file text NOT NULL,
    line integer NOT NULL,
    "column" text NOT NULL,
    reason text NOT NULL
) ON COMMIT DROP;

-- name: problem_count()$
-- description: How many faults were found.
SELECT count(*) FROM import_problems;

-- name: first_problems(files, most)
-- description: The first faults, in the order of the files and of their lines.
SELECT
    file,
    line,
    "column",
    reason
FROM import_problems
ORDER BY array_position(:files::text [], file), line, problem_id
LIMIT :most;

-- The checks of single values build an array of reasons for each row, in the order of the names beside it: a set of rows made
-- for each row costs ten times as much. MATERIALIZED keeps the planner from working the array out twice.

-- name: check_plans()!
-- description: Faults of single values in plans.csv.
WITH judged AS MATERIALIZED (
    SELECT
        s.line,
        ARRAY[
            pg_temp.bad_id(s.plan),
            pg_temp.bad_text(s.name)
        ] AS reasons
    FROM staged_plans AS s
)

INSERT INTO import_problems (file, line, "column", reason)
SELECT
    'plans.csv' AS file,
    s.line,
    v.name,
    v.reason
FROM judged AS s
CROSS JOIN LATERAL unnest(
    ARRAY['plan', 'name'],
    s.reasons
) AS v (name, reason)
WHERE num_nonnulls(VARIADIC s.reasons) > 0 AND v.reason IS NOT NULL;

-- name: check_customers()!
-- description: Faults of single values in customers.csv. An unknown time zone is found by comparing the distinct ones only.
WITH zones AS (
    SELECT d.time_zone FROM (SELECT DISTINCT time_zone FROM staged_customers WHERE time_zone IS NOT NULL) AS d
    WHERE d.time_zone NOT IN (SELECT name FROM pg_timezone_names)
),

judged AS MATERIALIZED (
    SELECT
        s.line,
        ARRAY[
            pg_temp.bad_id(s.customer_id),
            pg_temp.bad_currency(s.currency),
            CASE WHEN s.country !~ '^[A-Z]{2}$' THEN
            pg_temp.quoted(s.country) || ' is not an ISO-3166 country such as DE' END,
            pg_temp.bad_text(s.email),
            CASE WHEN z.time_zone IS NOT NULL THEN
            pg_temp.quoted(s.time_zone) || ' is not a time zone such as Europe/Berlin' END,
            pg_temp.bad_text(s.stripe_customer_id)
        ] AS reasons
    FROM staged_customers AS s
    LEFT JOIN zones AS z ON s.time_zone = z.time_zone
)

INSERT INTO import_problems (file, line, "column", reason)
SELECT
    'customers.csv' AS file,
    s.line,
    v.name,
    v.reason
FROM judged AS s
CROSS JOIN LATERAL unnest(
    ARRAY['customer_id', 'currency', 'country', 'email', 'time_zone', 'stripe_customer_id'],
    s.reasons
) AS v (name, reason)
WHERE num_nonnulls(VARIADIC s.reasons) > 0 AND v.reason IS NOT NULL;

-- name: check_subscription_events()!
-- description: Faults of single values in subscription_events.csv.
WITH judged AS MATERIALIZED (
    SELECT
        s.line,
        ARRAY[
            pg_temp.bad_id(s.subscription_id),
            pg_temp.bad_id(s.customer_id),
            CASE WHEN s.occurred_at IS NULL THEN 'is empty' ELSE pg_temp.bad_instant(s.occurred_at) END,
            pg_temp.bad_word(s.event, ARRAY[
            'started', 'trial_started', 'changed', 'paused', 'resumed', 'past_due', 'recovered', 'suspended', 'canceled']),
            pg_temp.bad_id(s.plan),
            pg_temp.bad_word(s.payment_frequency, ARRAY['WEEKLY', 'BIWEEKLY', 'MONTHLY', 'QUARTERLY', 'YEARLY']),
            pg_temp.bad_amount(s.amount_minor, 0),
            pg_temp.bad_whole(s.quantity, 1, 1000000, 'a quantity is 1 or more'),
            pg_temp.bad_currency(s.currency),
            pg_temp.bad_instant(s.recorded_at)
        ] AS reasons
    FROM staged_subscription_events AS s
)

INSERT INTO import_problems (file, line, "column", reason)
SELECT
    'subscription_events.csv' AS file,
    s.line,
    v.name,
    v.reason
FROM judged AS s
CROSS JOIN LATERAL unnest(
    ARRAY[
        'subscription_id', 'customer_id', 'occurred_at', 'event', 'plan', 'payment_frequency', 'amount_minor', 'quantity',
        'currency', 'recorded_at'
    ],
    s.reasons
) AS v (name, reason)
WHERE num_nonnulls(VARIADIC s.reasons) > 0 AND v.reason IS NOT NULL;

-- name: check_pauses()!
-- description: Faults of single values in pauses.csv.
WITH judged AS MATERIALIZED (
    SELECT
        s.line,
        ARRAY[
            pg_temp.bad_id(s.pause_id),
            pg_temp.bad_id(s.subscription_id),
            CASE WHEN s.starts_at IS NULL THEN 'is empty' ELSE pg_temp.bad_instant(s.starts_at) END,
            pg_temp.bad_instant(s.ends_at),
            pg_temp.bad_word(s.kind, ARRAY['customer', 'payment_failure', 'admin']),
            pg_temp.bad_text(s.reason),
            CASE WHEN s.state IS NOT NULL THEN
            pg_temp.bad_word(s.state, ARRAY['scheduled', 'active', 'completed', 'canceled']) END
        ] AS reasons
    FROM staged_pauses AS s
)

INSERT INTO import_problems (file, line, "column", reason)
SELECT
    'pauses.csv' AS file,
    s.line,
    v.name,
    v.reason
FROM judged AS s
CROSS JOIN LATERAL unnest(
    ARRAY['pause_id', 'subscription_id', 'starts_at', 'ends_at', 'kind', 'reason', 'state'],
    s.reasons
) AS v (name, reason)
WHERE num_nonnulls(VARIADIC s.reasons) > 0 AND v.reason IS NOT NULL;

-- name: check_payments()!
-- description: Faults of single values in payments.csv.
WITH judged AS MATERIALIZED (
    SELECT
        s.line,
        ARRAY[
            pg_temp.bad_id(s.payment_id),
            pg_temp.bad_id(s.subscription_id),
            CASE WHEN s.occurred_at IS NULL THEN 'is empty' ELSE pg_temp.bad_instant(s.occurred_at) END,
            pg_temp.bad_amount(s.amount_minor, 0),
            pg_temp.bad_currency(s.currency),
            pg_temp.bad_word(s.outcome, ARRAY['succeeded', 'failed']),
            CASE WHEN s.failure_class IS NOT NULL THEN
            coalesce(CASE WHEN s.outcome = 'succeeded' THEN 'is given for a payment that succeeded' END,
                  pg_temp.bad_text(s.failure_class)) END,
            CASE WHEN s.failure_code IS NOT NULL THEN
            coalesce(CASE WHEN s.outcome = 'succeeded' THEN 'is given for a payment that succeeded' END,
                  pg_temp.bad_text(s.failure_code)) END,
            CASE WHEN s.attempt IS NOT NULL THEN
            pg_temp.bad_whole(s.attempt, 1, 1000000, 'the first attempt is 1') END
        ] AS reasons
    FROM staged_payments AS s
)

INSERT INTO import_problems (file, line, "column", reason)
SELECT
    'payments.csv' AS file,
    s.line,
    v.name,
    v.reason
FROM judged AS s
CROSS JOIN LATERAL unnest(
    ARRAY[
        'payment_id', 'subscription_id', 'occurred_at', 'amount_minor', 'currency', 'outcome', 'failure_class', 'failure_code',
        'attempt'
    ],
    s.reasons
) AS v (name, reason)
WHERE num_nonnulls(VARIADIC s.reasons) > 0 AND v.reason IS NOT NULL;

-- name: check_rewards()!
-- description: Faults of single values in rewards.csv.
WITH judged AS MATERIALIZED (
    SELECT
        s.line,
        ARRAY[
            pg_temp.bad_id(s.customer_id),
            CASE WHEN s.occurred_at IS NULL THEN 'is empty' ELSE pg_temp.bad_instant(s.occurred_at) END,
            pg_temp.bad_word(s.kind, ARRAY['earned', 'spent', 'expired', 'reversed']),
            pg_temp.bad_amount(s.amount_minor, 1),
            CASE WHEN s.expires_at IS NOT NULL THEN
            coalesce(CASE WHEN s.kind <> 'earned' THEN 'is given for credit that was not earned here' END,
                  pg_temp.bad_instant(s.expires_at)) END
        ] AS reasons
    FROM staged_rewards AS s
)

INSERT INTO import_problems (file, line, "column", reason)
SELECT
    'rewards.csv' AS file,
    s.line,
    v.name,
    v.reason
FROM judged AS s
CROSS JOIN LATERAL unnest(
    ARRAY['customer_id', 'occurred_at', 'kind', 'amount_minor', 'expires_at'],
    s.reasons
) AS v (name, reason)
WHERE num_nonnulls(VARIADIC s.reasons) > 0 AND v.reason IS NOT NULL;

-- name: check_fx_rates()!
-- description: Faults of single values in fx_rates.csv.
WITH judged AS MATERIALIZED (
    SELECT
        s.line,
        ARRAY[
            pg_temp.bad_date(s.date),
            pg_temp.bad_currency(s.currency),
            pg_temp.bad_currency(s.reporting_currency),
            pg_temp.bad_rate(s.rate)
        ] AS reasons
    FROM staged_fx_rates AS s
)

INSERT INTO import_problems (file, line, "column", reason)
SELECT
    'fx_rates.csv' AS file,
    s.line,
    v.name,
    v.reason
FROM judged AS s
CROSS JOIN LATERAL unnest(
    ARRAY['date', 'currency', 'reporting_currency', 'rate'],
    s.reasons
) AS v (name, reason)
WHERE num_nonnulls(VARIADIC s.reasons) > 0 AND v.reason IS NOT NULL;

-- name: type_rows#
-- description: The rows without a fault so far, typed. An id that only a faulty row brings is still known to the checks.
DROP TABLE IF EXISTS pg_temp.typed_plans, pg_temp.typed_customers, pg_temp.typed_subscription_events, pg_temp.typed_pauses,
pg_temp.typed_payments, pg_temp.typed_rewards, pg_temp.typed_fx_rates, pg_temp.import_touched, pg_temp.import_projection;

CREATE TEMPORARY TABLE typed_plans ON COMMIT DROP AS
SELECT
    s.line,
    s.plan,
    s.name
FROM staged_plans AS s
WHERE NOT EXISTS (SELECT 1 FROM import_problems AS p WHERE p.file = 'plans.csv' AND p.line = s.line);

CREATE TEMPORARY TABLE typed_customers ON COMMIT DROP AS
SELECT
    s.line,
    s.customer_id,
    s.currency,
    s.country,
    s.email,
    s.time_zone,
    s.stripe_customer_id
FROM staged_customers AS s
WHERE NOT EXISTS (SELECT 1 FROM import_problems AS p WHERE p.file = 'customers.csv' AND p.line = s.line);

CREATE TEMPORARY TABLE typed_subscription_events ON COMMIT DROP AS
SELECT
    s.line,
    s.subscription_id,
    s.customer_id,
    s.occurred_at::timestamptz AS occurred_at,
    s.event,
    s.plan,
    s.payment_frequency,
    s.amount_minor::bigint AS amount_minor,
    s.quantity::integer AS quantity,
    s.currency,
    s.recorded_at::timestamptz AS recorded_at
FROM staged_subscription_events AS s
WHERE NOT EXISTS (SELECT 1 FROM import_problems AS p WHERE p.file = 'subscription_events.csv' AND p.line = s.line);

CREATE TEMPORARY TABLE typed_pauses ON COMMIT DROP AS
SELECT
    s.line,
    s.pause_id,
    s.subscription_id,
    s.starts_at::timestamptz AS starts_at,
    s.ends_at::timestamptz AS ends_at,
    s.kind,
    s.reason,
    s.state
FROM staged_pauses AS s
WHERE NOT EXISTS (SELECT 1 FROM import_problems AS p WHERE p.file = 'pauses.csv' AND p.line = s.line);

CREATE TEMPORARY TABLE typed_payments ON COMMIT DROP AS
SELECT
    s.line,
    s.payment_id,
    s.subscription_id,
    s.occurred_at::timestamptz AS occurred_at,
    s.amount_minor::bigint AS amount_minor,
    s.currency,
    s.outcome,
    s.failure_class,
    s.failure_code,
    s.attempt::integer AS attempt
FROM staged_payments AS s
WHERE NOT EXISTS (SELECT 1 FROM import_problems AS p WHERE p.file = 'payments.csv' AND p.line = s.line);

CREATE TEMPORARY TABLE typed_rewards ON COMMIT DROP AS
SELECT
    s.line,
    s.customer_id,
    s.occurred_at::timestamptz AS occurred_at,
    s.kind,
    s.amount_minor::bigint AS amount_minor,
    s.expires_at::timestamptz AS expires_at
FROM staged_rewards AS s
WHERE NOT EXISTS (SELECT 1 FROM import_problems AS p WHERE p.file = 'rewards.csv' AND p.line = s.line);

CREATE TEMPORARY TABLE typed_fx_rates ON COMMIT DROP AS
SELECT
    s.line,
    s.date::date AS date,
    s.currency,
    s.reporting_currency,
    round(s.rate::numeric, 10) AS rate
FROM staged_fx_rates AS s
WHERE NOT EXISTS (SELECT 1 FROM import_problems AS p WHERE p.file = 'fx_rates.csv' AND p.line = s.line);

ANALYZE typed_plans, typed_customers, typed_subscription_events, typed_pauses, typed_payments, typed_rewards, typed_fx_rates;
