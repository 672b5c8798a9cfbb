-- Import of the data contract: the typed rows are compared with each other and with the database.

-- name: name_parties#
-- description: Every known customer and subscription that the files speak of, from the database first, then the files.
DROP TABLE IF EXISTS pg_temp.import_customers, pg_temp.import_subscriptions;

CREATE TEMPORARY TABLE import_customers ON COMMIT DROP AS
SELECT DISTINCT ON (customer_id)
    customer_id,
    CASE WHEN currency ~ '^[A-Z]{3}$' THEN currency END AS currency
FROM (
    SELECT
        c.customer_ref AS customer_id,
        c.currency,
        0 AS line
    FROM billing.customers AS c
    WHERE c.customer_ref IN (
        SELECT e.customer_id FROM staged_subscription_events AS e
        UNION
        SELECT r.customer_id FROM staged_rewards AS r
        UNION
        SELECT m.customer_id FROM staged_customers AS m
    )
    UNION ALL
    SELECT
        s.customer_id,
        s.currency,
        s.line
    FROM staged_customers AS s WHERE s.customer_id IS NOT NULL
) AS known
ORDER BY customer_id, line;

CREATE TEMPORARY TABLE import_subscriptions ON COMMIT DROP AS
SELECT DISTINCT ON (k.subscription_id)
    k.subscription_id,
    k.customer_id,
    coalesce(k.currency, c.currency) AS currency,
    k.line
FROM (
    SELECT
        s.subscription_ref AS subscription_id,
        o.customer_ref AS customer_id,
        o.currency,
        0 AS line
    FROM billing.subscriptions AS s
    INNER JOIN billing.customers AS o ON s.customer_id = o.customer_id
    WHERE s.subscription_ref IN (
        SELECT e.subscription_id FROM staged_subscription_events AS e
        UNION
        SELECT p.subscription_id FROM staged_payments AS p
        UNION
        SELECT b.subscription_id FROM staged_pauses AS b
    )
    UNION ALL
    SELECT
        e.subscription_id,
        e.customer_id,
        NULL AS currency,
        e.line
    FROM staged_subscription_events AS e
    WHERE e.subscription_id IS NOT NULL AND e.customer_id IS NOT NULL
) AS k
LEFT JOIN import_customers AS c ON k.customer_id = c.customer_id
ORDER BY k.subscription_id, k.line;

ANALYZE import_customers, import_subscriptions;

-- name: compare_plans()!
-- description: A plan that has another name already.
WITH known AS (
    SELECT
        p.plan,
        p.name,
        0 AS line,
        'the database' AS origin
    FROM billing.plans AS p
    UNION ALL
    SELECT
        f.plan,
        f.name,
        f.line,
        f.origin
    FROM (
        SELECT DISTINCT ON (plan)
            plan,
            coalesce(name, plan) AS name,
            line,
            'line ' || line AS origin
        FROM typed_plans ORDER BY plan, line
    ) AS f
)

INSERT INTO import_problems (file, line, "column", reason)
SELECT
    'plans.csv' AS file,
    t.line,
    'name' AS "column",
    pg_temp.quoted(t.name) || ' contradicts ' || pg_temp.quoted(k.name) || ', which ' || k.origin
        || ' has for this plan' AS reason
FROM typed_plans AS t
INNER JOIN known AS k ON t.plan = k.plan AND t.line > k.line
WHERE t.name <> k.name;

-- name: compare_customers()!
-- description: A customer of whom the database, or an earlier line, says something else.
WITH known AS (
    SELECT
        c.customer_ref AS customer_id,
        c.currency,
        c.country,
        c.email,
        c.time_zone,
        c.stripe_customer_id,
        0 AS line,
        'the database' AS origin
    FROM billing.customers AS c
    WHERE c.customer_ref IN (SELECT t.customer_id FROM typed_customers AS t)
    UNION ALL
    SELECT
        f.customer_id,
        f.currency,
        f.country,
        f.email,
        f.time_zone,
        f.stripe_customer_id,
        f.line,
        f.origin
    FROM (
        SELECT DISTINCT ON (customer_id)
            customer_id,
            currency,
            country,
            email,
            coalesce(time_zone, 'UTC') AS time_zone,
            stripe_customer_id,
            line,
            'line ' || line AS origin
        FROM typed_customers ORDER BY customer_id, line
    ) AS f
)

INSERT INTO import_problems (file, line, "column", reason)
SELECT
    'customers.csv' AS file,
    t.line,
    v.name,
    pg_temp.quoted(v.given) || ' contradicts ' || coalesce(pg_temp.quoted(v.known), 'an empty value') || ', which '
        || k.origin || ' has for this customer' AS reason
FROM typed_customers AS t
INNER JOIN known AS k ON t.customer_id = k.customer_id AND t.line > k.line
CROSS JOIN LATERAL (VALUES
    ('currency', t.currency, k.currency), ('country', t.country, k.country), ('email', t.email, k.email),
    ('time_zone', t.time_zone, k.time_zone), ('stripe_customer_id', t.stripe_customer_id, k.stripe_customer_id)
) AS v (name, given, known)
WHERE v.given <> v.known OR (v.given IS NOT NULL AND v.known IS NULL);

-- name: compare_stripe_customers()!
-- description: A Stripe customer that belongs to somebody else already.
WITH known AS (
    SELECT
        customer_ref AS customer_id,
        stripe_customer_id,
        0 AS line
    FROM billing.customers
    UNION ALL
    SELECT
        customer_id,
        stripe_customer_id,
        line
    FROM typed_customers
)

INSERT INTO import_problems (file, line, "column", reason)
SELECT
    'customers.csv' AS file,
    t.line,
    'stripe_customer_id' AS "column",
    pg_temp.quoted(t.stripe_customer_id) || ' belongs to customer ' || pg_temp.quoted(k.customer_id) || ' already' AS reason
FROM typed_customers AS t
INNER JOIN known AS k
    ON t.stripe_customer_id = k.stripe_customer_id AND t.customer_id <> k.customer_id AND t.line > k.line;

-- name: compare_subscription_events()!
-- description: Events whose customer or plan nobody knows, or whose currency or customer is not the one known.
WITH known_plans AS (
    SELECT plan FROM billing.plans
    UNION
    SELECT plan FROM staged_plans
)

INSERT INTO import_problems (file, line, "column", reason)
SELECT
    'subscription_events.csv' AS file,
    t.line,
    v.name,
    v.reason
FROM typed_subscription_events AS t
LEFT JOIN import_customers AS c ON t.customer_id = c.customer_id
LEFT JOIN import_subscriptions AS s ON t.subscription_id = s.subscription_id
LEFT JOIN known_plans AS p ON t.plan = p.plan
CROSS JOIN LATERAL (VALUES
    ('subscription_id', CASE WHEN s.customer_id <> t.customer_id THEN
        pg_temp.quoted(t.subscription_id) || ' belongs to customer ' || pg_temp.quoted(s.customer_id) || ' already' END),
    ('customer_id', CASE WHEN c.customer_id IS NULL THEN
        pg_temp.quoted(t.customer_id) || ' is unknown: neither customers.csv nor the database has it' END),
    ('plan', CASE WHEN p.plan IS NULL THEN
        pg_temp.quoted(t.plan) || ' is unknown: neither plans.csv nor the database has it' END),
    ('amount_minor', CASE WHEN t.amount_minor::numeric * t.quantity > 1000000000000000 THEN
        'amount times quantity is too big: at most 1000000000000000' END),
    ('currency', CASE WHEN c.currency <> t.currency THEN
        pg_temp.quoted(t.currency) || ' is not the currency of the customer, ' || c.currency END)
) AS v (name, reason)
WHERE v.reason IS NOT NULL;

-- name: place_pauses()!
-- description: Pauses of a subscription that nobody knows, and pauses that end before they start, or never where they must.
INSERT INTO import_problems (file, line, "column", reason)
SELECT
    'pauses.csv' AS file,
    t.line,
    v.name,
    v.reason
FROM typed_pauses AS t
LEFT JOIN import_subscriptions AS s ON t.subscription_id = s.subscription_id
CROSS JOIN LATERAL (VALUES
    ('subscription_id', CASE WHEN s.subscription_id IS NULL THEN
        pg_temp.quoted(t.subscription_id) || ' is unknown: neither subscription_events.csv nor the database has it' END),
    ('ends_at', CASE
        WHEN t.ends_at <= t.starts_at THEN 'is not after starts_at'
        WHEN t.kind = 'payment_failure' AND t.ends_at IS NULL THEN
            'is empty; a pause of kind payment_failure needs the end of its grace period'
    END)
) AS v (name, reason)
WHERE v.reason IS NOT NULL;

-- name: compare_pauses()!
-- description: Pauses that are known with other facts.
WITH known AS (
    -- What the sweep or a person has changed since is not compared: the database has moved on, the file has not.
    SELECT
        b.pause_ref AS pause_id,
        s.subscription_ref AS subscription_id,
        b.kind,
        CASE WHEN b.version = 1 THEN b.starts_at END AS starts_at,
        CASE WHEN b.version = 1 THEN coalesce(b.ends_at, 'infinity') END AS ends_at,
        0 AS line,
        'the database' AS origin
    FROM billing.subscription_pauses AS b
    INNER JOIN billing.subscriptions AS s ON b.subscription_id = s.subscription_id
    WHERE b.pause_ref IN (SELECT t.pause_id FROM typed_pauses AS t)
    UNION ALL
    SELECT
        f.pause_id,
        f.subscription_id,
        f.kind,
        f.starts_at,
        f.ends_at,
        f.line,
        f.origin
    FROM (
        SELECT DISTINCT ON (pause_id)
            pause_id,
            subscription_id,
            kind,
            starts_at,
            coalesce(ends_at, 'infinity') AS ends_at,
            line,
            'line ' || line AS origin
        FROM typed_pauses ORDER BY pause_id, line
    ) AS f
)

INSERT INTO import_problems (file, line, "column", reason)
SELECT
    'pauses.csv' AS file,
    t.line,
    v.name,
    'contradicts what ' || k.origin || ' has for this pause' AS reason
FROM typed_pauses AS t
INNER JOIN known AS k ON t.pause_id = k.pause_id AND t.line > k.line
CROSS JOIN LATERAL (VALUES
    ('subscription_id', k.subscription_id <> t.subscription_id), ('kind', k.kind <> t.kind),
    ('starts_at', k.starts_at <> t.starts_at), ('ends_at', k.ends_at <> coalesce(t.ends_at, 'infinity'))
) AS v (name, differs)
WHERE v.differs;

-- name: find_overlapping_pauses()!
-- description: Two pauses of one subscription at once, unless one was canceled. Rows that are known already are not judged again.
WITH all_pauses AS (
    SELECT
        f.subscription_id,
        f.pause_id,
        f.starts_at,
        f.ends_at,
        f.line
    FROM (
        SELECT DISTINCT ON (pause_id)
            subscription_id,
            pause_id,
            starts_at,
            coalesce(ends_at, 'infinity') AS ends_at,
            line,
            state
        FROM typed_pauses ORDER BY pause_id, line
    ) AS f
    WHERE f.state IS DISTINCT FROM 'canceled' AND f.starts_at < f.ends_at
        AND NOT EXISTS (SELECT 1 FROM billing.subscription_pauses AS b WHERE b.pause_ref = f.pause_id)
    UNION ALL
    SELECT
        s.subscription_ref,
        b.pause_ref,
        b.starts_at,
        coalesce(b.ends_at, 'infinity') AS ends_at,
        0 AS line
    FROM billing.subscription_pauses AS b
    INNER JOIN billing.subscriptions AS s ON b.subscription_id = s.subscription_id
    -- A grace period that was over early may keep the end that it was given.
    WHERE b.state <> 'canceled' AND NOT (b.kind = 'payment_failure' AND b.state = 'completed')
        AND s.subscription_ref IN (SELECT t.subscription_id FROM typed_pauses AS t)
),

suspects AS (
    SELECT DISTINCT o.subscription_id
    FROM (
        SELECT
            subscription_id,
            starts_at,
            max(ends_at) OVER (
                PARTITION BY subscription_id ORDER BY starts_at, ends_at, pause_id
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS before
        FROM all_pauses
    ) AS o
    WHERE o.starts_at < o.before
)

INSERT INTO import_problems (file, line, "column", reason)
SELECT
    'pauses.csv' AS file,
    p.line,
    'starts_at' AS "column",
    'overlaps pause ' || pg_temp.quoted(min(o.pause_id)) || ' of this subscription' AS reason
FROM suspects AS s
INNER JOIN all_pauses AS p ON s.subscription_id = p.subscription_id
INNER JOIN all_pauses AS o
    ON s.subscription_id = o.subscription_id AND p.line > o.line AND p.ends_at > o.starts_at AND p.starts_at < o.ends_at
GROUP BY p.line;

-- name: compare_payments()!
-- description: Payments that are known with other facts.
WITH twice AS (
    SELECT
        payment_id,
        min(line) AS line
    FROM typed_payments GROUP BY payment_id HAVING count(*) > 1
),

known AS (
    SELECT
        p.payment_ref AS payment_id,
        s.subscription_ref AS subscription_id,
        p.occurred_at,
        p.amount_minor,
        p.currency,
        p.outcome,
        p.failure_class,
        p.failure_code,
        p.attempt,
        0 AS line,
        'the database' AS origin
    FROM billing.payments AS p
    INNER JOIN billing.subscriptions AS s ON p.subscription_id = s.subscription_id
    WHERE p.payment_ref IN (SELECT t.payment_id FROM typed_payments AS t)
    UNION ALL
    SELECT
        f.payment_id,
        f.subscription_id,
        f.occurred_at,
        f.amount_minor,
        f.currency,
        f.outcome,
        f.failure_class,
        f.failure_code,
        coalesce(f.attempt, 1) AS attempt,
        f.line,
        'line ' || f.line AS origin
    FROM typed_payments AS f
    INNER JOIN twice ON f.line = twice.line
)

INSERT INTO import_problems (file, line, "column", reason)
SELECT
    'payments.csv' AS file,
    t.line,
    v.name,
    'contradicts what ' || k.origin || ' has for this payment' AS reason
FROM typed_payments AS t
INNER JOIN known AS k ON t.payment_id = k.payment_id AND t.line > k.line
CROSS JOIN LATERAL (VALUES
    ('subscription_id', k.subscription_id <> t.subscription_id), ('occurred_at', k.occurred_at <> t.occurred_at),
    ('amount_minor', k.amount_minor <> t.amount_minor), ('currency', k.currency <> t.currency),
    ('outcome', k.outcome <> t.outcome),
    ('failure_class', t.failure_class IS NOT NULL AND k.failure_class IS DISTINCT FROM t.failure_class),
    ('failure_code', t.failure_code IS NOT NULL AND k.failure_code IS DISTINCT FROM t.failure_code),
    ('attempt', k.attempt <> t.attempt)
) AS v (name, differs)
WHERE v.differs;

-- name: place_payments()!
-- description: Payments of a subscription that nobody knows, or in a currency that its customer does not pay in.
INSERT INTO import_problems (file, line, "column", reason)
SELECT
    'payments.csv' AS file,
    t.line,
    CASE WHEN s.subscription_id IS NULL THEN 'subscription_id' ELSE 'currency' END AS "column",
    CASE
        WHEN s.subscription_id IS NULL
            THEN pg_temp.quoted(t.subscription_id) || ' is unknown: neither subscription_events.csv nor the database has it'
        ELSE pg_temp.quoted(t.currency) || ' is not the currency of the customer, ' || s.currency
    END AS reason
FROM typed_payments AS t
LEFT JOIN import_subscriptions AS s ON t.subscription_id = s.subscription_id
WHERE s.subscription_id IS NULL OR s.currency <> t.currency;

-- name: compare_rewards()!
-- description: Reward entries of nobody, or that expire before they are earned.
INSERT INTO import_problems (file, line, "column", reason)
SELECT
    'rewards.csv' AS file,
    t.line,
    v.name,
    v.reason
FROM typed_rewards AS t
LEFT JOIN import_customers AS c ON t.customer_id = c.customer_id
CROSS JOIN LATERAL (VALUES
    ('customer_id', CASE WHEN c.customer_id IS NULL THEN
        pg_temp.quoted(t.customer_id) || ' is unknown: neither customers.csv nor the database has it' END),
    ('expires_at', CASE WHEN t.expires_at <= t.occurred_at THEN 'is not after occurred_at' END)
) AS v (name, reason)
WHERE v.reason IS NOT NULL;

-- name: new_rewards#
-- description: The reward entries that are not known yet: the n-th of equal rows is known when the database has n of them.
DROP TABLE IF EXISTS pg_temp.import_rewards;

CREATE TEMPORARY TABLE import_rewards ON COMMIT DROP AS
WITH given AS (
    SELECT
        line,
        customer_id,
        occurred_at,
        kind,
        amount_minor,
        expires_at,
        row_number() OVER (PARTITION BY customer_id, occurred_at, kind, amount_minor, expires_at ORDER BY line) AS occurrence
    FROM typed_rewards
),

known AS (
    SELECT
        c.customer_ref,
        r.occurred_at,
        r.kind,
        r.amount_minor,
        r.expires_at,
        count(*) AS occurrences
    FROM billing.reward_entries AS r
    INNER JOIN billing.customers AS c ON r.customer_id = c.customer_id
    WHERE c.customer_ref IN (SELECT customer_id FROM typed_rewards)
    GROUP BY c.customer_ref, r.occurred_at, r.kind, r.amount_minor, r.expires_at
)

SELECT
    t.line,
    t.customer_id,
    t.occurred_at,
    t.kind,
    t.amount_minor,
    t.expires_at
FROM given AS t
LEFT JOIN known AS k
    ON t.customer_id = k.customer_ref AND t.occurred_at = k.occurred_at AND t.kind = k.kind
        AND t.amount_minor = k.amount_minor AND k.expires_at IS NOT DISTINCT FROM t.expires_at
WHERE t.occurrence > coalesce(k.occurrences, 0);

-- name: find_overdrawn_rewards()!
-- description: Customers whose balance would fall below zero at some instant; credits of an instant come before its debits.
WITH entries AS (
    SELECT
        t.customer_id,
        t.occurred_at,
        CASE WHEN t.kind = 'earned' THEN t.amount_minor ELSE -t.amount_minor END AS effect,
        t.line
    FROM import_rewards AS t
    UNION ALL
    SELECT
        c.customer_ref,
        r.occurred_at,
        r.effect_minor,
        0 AS line
    FROM billing.reward_entries AS r
    INNER JOIN billing.customers AS c ON r.customer_id = c.customer_id
    WHERE c.customer_ref IN (SELECT customer_id FROM import_rewards)
),

running AS (
    SELECT
        customer_id,
        line,
        effect,
        row_number() OVER w AS position,
        sum(effect) OVER w AS balance
    FROM entries
    WINDOW w AS (PARTITION BY customer_id ORDER BY occurred_at ASC, effect DESC, line ASC ROWS UNBOUNDED PRECEDING)
),

overdrawn AS (
    SELECT
        customer_id,
        min(position) AS position
    FROM running WHERE balance < 0 GROUP BY customer_id
)

INSERT INTO import_problems (file, line, "column", reason)
SELECT DISTINCT ON (o.customer_id)
    'rewards.csv' AS file,
    r.line,
    'amount_minor' AS "column",
    'the balance of customer ' || pg_temp.quoted(o.customer_id) || ' would fall below zero' AS reason
FROM overdrawn AS o
INNER JOIN running AS r ON o.customer_id = r.customer_id AND r.line > 0 AND r.effect < 0
-- With a faulty row among them the balance is not known.
WHERE NOT EXISTS (
    SELECT 1 FROM staged_rewards AS s
    INNER JOIN import_problems AS p ON s.line = p.line AND p.file = 'rewards.csv'
    WHERE s.customer_id = o.customer_id
)
ORDER BY o.customer_id ASC, r.position > o.position ASC, abs(r.position - o.position) ASC;

-- name: compare_fx_rates()!
-- description: Rates that are known with another value, and a currency that is not worth itself.
WITH known AS (
    SELECT
        date,
        currency,
        reporting_currency,
        rate,
        0 AS line,
        'the database' AS origin
    FROM billing.fx_rates
    UNION ALL
    SELECT
        f.date,
        f.currency,
        f.reporting_currency,
        f.rate,
        f.line,
        f.origin
    FROM (
        SELECT DISTINCT ON (date, currency, reporting_currency)
            date,
            currency,
            reporting_currency,
            rate,
            line,
            'line ' || line AS origin
        FROM typed_fx_rates ORDER BY date, currency, reporting_currency, line
    ) AS f
)

INSERT INTO import_problems (file, line, "column", reason)
SELECT
    'fx_rates.csv' AS file,
    t.line,
    'rate' AS "column",
    'contradicts ' || trim_scale(k.rate) || ', which ' || k.origin || ' has for this day' AS reason
FROM typed_fx_rates AS t
INNER JOIN known AS k
    ON t.date = k.date AND t.currency = k.currency AND t.reporting_currency = k.reporting_currency AND t.line > k.line
WHERE k.rate <> t.rate
UNION ALL
SELECT
    'fx_rates.csv' AS file,
    t.line,
    'rate' AS "column",
    'a currency is worth 1 of itself' AS reason
FROM typed_fx_rates AS t
WHERE t.currency = t.reporting_currency AND t.rate <> 1;
