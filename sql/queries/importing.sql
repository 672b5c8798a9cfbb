-- Import of the data contract: what is deployed, and loading what is new, in the engine's one transaction.
-- Before: importing_values.sql (staged text is checked and typed), importing_rows.sql (rows are compared).

-- name: has_core()$
-- description: Whether the tables that an import fills are there at all.
SELECT to_regclass('billing.subscription_events') IS NOT NULL AS deployed;

-- name: deployed_components()
-- description: Which of the components with columns or tables of their own are there, by what they brought.
SELECT 'frequencies' AS component FROM pg_attribute
WHERE attrelid = to_regclass('billing.subscriptions') AND attname = 'payment_frequency' AND NOT attisdropped
UNION ALL
SELECT 'pauses' AS component WHERE to_regclass('billing.subscription_pauses') IS NOT NULL
UNION ALL
SELECT 'rewards' AS component WHERE to_regclass('billing.reward_entries') IS NOT NULL;

-- name: pays_otherwise_than_monthly()$
-- description: Whether any event of the file needs the component frequencies.
SELECT count(*) > 0 AS needed FROM typed_subscription_events WHERE payment_frequency <> 'MONTHLY';

-- name: history_is_given()$
-- description: The setting by which the triggers leave history alone (import), or write it again (empty), in this transaction.
SELECT set_config('flexpay.ledger', 'import', TRUE);

-- name: history_is_written()$
-- description: The end of what history_is_given began.
SELECT set_config('flexpay.ledger', '', TRUE);

-- name: load_plans()!
-- description: New plans; a plan without a name is called by its id.
INSERT INTO billing.plans (plan, name)
SELECT
    plan,
    coalesce(name, plan) AS name
FROM typed_plans ORDER BY line
ON CONFLICT (plan) DO NOTHING;

-- name: load_customers(now)!
-- description: New customers, created when their first event happened, else now.
WITH firsts AS (
    SELECT
        customer_id,
        min(occurred_at) AS first_at
    FROM typed_subscription_events GROUP BY customer_id
)

INSERT INTO billing.customers (customer_ref, currency, country, email, time_zone, stripe_customer_id, created_at)
SELECT
    t.customer_id,
    t.currency,
    t.country,
    t.email,
    coalesce(t.time_zone, 'UTC') AS time_zone,
    t.stripe_customer_id,
    least(f.first_at, :now) AS created_at
FROM typed_customers AS t
LEFT JOIN firsts AS f ON t.customer_id = f.customer_id
ORDER BY t.line
ON CONFLICT (customer_ref) DO NOTHING;

-- name: load_plan_prices()!
-- description: The price of a plan by frequency and currency where none is known: that of the newest event of the import.
INSERT INTO billing.plan_prices (plan, payment_frequency, currency, amount_minor)
SELECT DISTINCT ON (plan, payment_frequency, currency)
    plan,
    payment_frequency,
    currency,
    amount_minor
FROM typed_subscription_events
ORDER BY plan ASC, payment_frequency ASC, currency ASC, occurred_at DESC, line DESC
ON CONFLICT (plan, payment_frequency, currency) DO NOTHING;

-- name: load_subscriptions()!
-- description: New subscriptions, by their first event; project_subscriptions says what has become of them.
INSERT INTO billing.subscriptions
    (subscription_ref, customer_id, plan, status, amount_minor, quantity, currency, started_at, billing_anchor, changed_at,
     change_reason)
SELECT
    f.subscription_id,
    c.customer_id,
    f.plan,
    'active' AS status,
    f.amount_minor,
    f.quantity,
    f.currency,
    f.occurred_at AS started_at,
    f.occurred_at AS billing_anchor,
    f.occurred_at AS changed_at,
    'import' AS change_reason
FROM (
    SELECT DISTINCT ON (subscription_id)
        line,
        subscription_id,
        customer_id,
        plan,
        amount_minor,
        quantity,
        currency,
        occurred_at
    FROM typed_subscription_events ORDER BY subscription_id, occurred_at, line
) AS f
INNER JOIN billing.customers AS c ON f.customer_id = c.customer_ref
ORDER BY f.line
ON CONFLICT (subscription_ref) DO NOTHING;

-- name: load_subscription_events(now)$
-- description: New events in the order of the file, and the subscriptions that they touch; the number of events.
WITH given AS (
    SELECT
        t.line,
        s.subscription_id,
        s.customer_id,
        t.event,
        t.occurred_at,
        t.recorded_at,
        t.plan,
        t.payment_frequency,
        t.amount_minor,
        t.quantity,
        t.currency,
        row_number() OVER (
            PARTITION BY s.subscription_id, t.occurred_at, t.event, t.plan, t.payment_frequency, t.amount_minor, t.quantity,
                t.recorded_at
            ORDER BY t.line
        ) AS occurrence,
        count(t.recorded_at) OVER (
            PARTITION BY s.subscription_id, t.occurred_at, t.event, t.plan, t.payment_frequency, t.amount_minor, t.quantity
        ) AS dated
    FROM typed_subscription_events AS t
    INNER JOIN billing.subscriptions AS s ON t.subscription_id = s.subscription_ref
),

loaded AS (
    INSERT INTO billing.subscription_events
        (subscription_id, customer_id, event, occurred_at, recorded_at, plan, payment_frequency, amount_minor, quantity, currency,
         source)
    SELECT
        g.subscription_id,
        g.customer_id,
        g.event,
        g.occurred_at,
        coalesce(g.recorded_at, :now) AS recorded_at,
        g.plan,
        g.payment_frequency,
        g.amount_minor,
        g.quantity,
        g.currency,
        'import' AS source
    FROM given AS g
    WHERE g.occurrence = 1 AND (g.recorded_at IS NOT NULL OR g.dated = 0)
        AND NOT EXISTS (
            SELECT 1 FROM billing.subscription_events AS e
            WHERE e.subscription_id = g.subscription_id AND e.occurred_at = g.occurred_at AND e.event = g.event
                AND e.plan = g.plan AND e.payment_frequency = g.payment_frequency AND e.amount_minor = g.amount_minor
                AND e.quantity = g.quantity AND e.currency = g.currency
                AND (g.recorded_at IS NULL OR e.recorded_at = g.recorded_at)
        )
    ORDER BY g.line
    RETURNING subscription_id
),

touched AS (
    INSERT INTO import_touched (subscription_id, events)
    SELECT
        subscription_id,
        count(*) AS events
    FROM loaded GROUP BY subscription_id
    RETURNING events
)

SELECT coalesce(sum(events), 0)::bigint FROM touched;

-- name: make_touched#
-- description: Where load_subscription_events notes the subscriptions that have new history.
DROP TABLE IF EXISTS pg_temp.import_touched;
CREATE TEMPORARY TABLE import_touched (subscription_id bigint PRIMARY KEY, events bigint NOT NULL) ON COMMIT DROP;

-- name: lock_touched()$
-- description: Wait for whoever is changing these subscriptions, so that the next statement sees what they wrote.
SELECT count(*) FROM (
    SELECT s.subscription_id FROM billing.subscriptions AS s
    INNER JOIN import_touched AS t ON s.subscription_id = t.subscription_id
    ORDER BY s.subscription_id
    FOR NO KEY UPDATE OF s
) AS locked;

-- name: make_projection#
-- description: What today's row of each touched subscription follows from its whole history. Rules: docs/data-contract.md.
CREATE TEMPORARY TABLE import_projection ON COMMIT DROP AS
WITH ledger AS (
    SELECT
        e.subscription_id,
        e.event,
        e.occurred_at,
        e.plan,
        e.payment_frequency,
        e.amount_minor,
        e.quantity,
        row_number() OVER (PARTITION BY e.subscription_id ORDER BY e.occurred_at, e.recorded_at, e.event_id) AS position
    FROM billing.subscription_events AS e
    INNER JOIN import_touched AS t ON e.subscription_id = t.subscription_id
),

marks AS (
    SELECT
        subscription_id,
        max(position) AS newest,
        coalesce(max(position) FILTER (WHERE event = 'started'), 0) AS started,
        coalesce(max(position) FILTER (WHERE event = 'trial_started'), 0) AS trial,
        coalesce(max(position) FILTER (WHERE event = 'canceled'), 0) AS canceled,
        coalesce(max(position) FILTER (WHERE event = 'suspended'), 0) AS suspended,
        coalesce(max(position) FILTER (WHERE event IN ('started', 'recovered')), 0) AS revived,
        coalesce(max(position) FILTER (
            WHERE event IN ('started', 'paused', 'resumed', 'past_due', 'recovered')
        ), 0) AS moved,
        min(occurred_at) AS first_at,
        min(occurred_at) FILTER (WHERE event = 'started') AS first_start_at
    FROM ledger GROUP BY subscription_id
),

ends AS (
    SELECT
        m.subscription_id,
        min(l.occurred_at) AS canceled_at
    FROM marks AS m
    INNER JOIN ledger AS l ON m.subscription_id = l.subscription_id AND l.event = 'canceled'
        AND l.position > greatest(m.started, m.trial)
    GROUP BY m.subscription_id
)

SELECT
    m.subscription_id,
    newest.plan,
    newest.payment_frequency,
    newest.amount_minor,
    newest.quantity,
    newest.occurred_at AS changed_at,
    coalesce(m.first_start_at, m.first_at) AS started_at,
    coalesce(started.occurred_at, m.first_at) AS billing_anchor,
    moved.occurred_at AS moved_at,
    CASE
        WHEN m.canceled > greatest(m.started, m.trial) THEN 'canceled'
        -- Not counted until started; a history that has no start yet is no more than a trial.
        WHEN m.trial > m.started OR m.started = 0 THEN 'trialing'
        WHEN m.suspended > m.revived THEN 'suspended'
        WHEN moved.event = 'paused' THEN 'paused'
        WHEN moved.event = 'past_due' THEN 'past_due'
        ELSE 'active'
    END AS status,
    ends.canceled_at
FROM marks AS m
INNER JOIN ledger AS newest ON m.subscription_id = newest.subscription_id AND m.newest = newest.position
LEFT JOIN ledger AS started ON m.subscription_id = started.subscription_id AND m.started = started.position
LEFT JOIN ledger AS moved ON m.subscription_id = moved.subscription_id AND m.moved = moved.position
LEFT JOIN ends ON m.subscription_id = ends.subscription_id;

-- name: project_subscriptions(now)!
-- description: Today's rows, from the projection. Who is paused keeps the date that was next when the pause began.
UPDATE billing.subscriptions AS s
SET plan = p.plan, status = p.status, amount_minor = p.amount_minor, quantity = p.quantity, started_at = p.started_at,
    billing_anchor = p.billing_anchor, canceled_at = p.canceled_at, changed_at = p.changed_at, change_reason = 'import',
    version = s.version + 1,
    next_payment_at = CASE WHEN p.status NOT IN ('canceled', 'suspended') THEN billing.next_payment_at(
        p.billing_anchor, p.payment_frequency, CASE WHEN p.status = 'paused' THEN p.moved_at ELSE :now END, c.time_zone
    ) END
FROM import_projection AS p
INNER JOIN billing.subscriptions AS mine ON p.subscription_id = mine.subscription_id
INNER JOIN billing.customers AS c ON mine.customer_id = c.customer_id
WHERE s.subscription_id = p.subscription_id;

-- name: project_frequencies()!
-- description: The payment frequency of the projected rows, where the component is deployed.
UPDATE billing.subscriptions AS s
SET payment_frequency = p.payment_frequency, version = s.version + 1
FROM import_projection AS p
WHERE s.subscription_id = p.subscription_id AND s.payment_frequency <> p.payment_frequency;

-- name: load_pauses(now)!
-- description: New pauses. A pause without a state has the one that its times give it; the sweep does what is due by then.
INSERT INTO billing.subscription_pauses (pause_ref, subscription_id, starts_at, ends_at, kind, reason, state, changed_at)
SELECT
    p.pause_id,
    s.subscription_id,
    p.starts_at,
    p.ends_at,
    p.kind,
    p.reason,
    p.state,
    CASE p.state
        WHEN 'completed' THEN least(p.ends_at, :now)
        WHEN 'active' THEN least(p.starts_at, :now)
        ELSE :now
    END AS changed_at
FROM (
    SELECT DISTINCT ON (pause_id)
        pause_id,
        subscription_id,
        starts_at,
        ends_at,
        kind,
        reason,
        coalesce(state, CASE
            WHEN ends_at <= :now THEN 'completed' WHEN starts_at <= :now THEN 'active' ELSE 'scheduled'
        END) AS state
    FROM typed_pauses ORDER BY pause_id, line
) AS p
INNER JOIN billing.subscriptions AS s ON p.subscription_id = s.subscription_ref
ORDER BY s.subscription_id, p.starts_at
ON CONFLICT (pause_ref) DO NOTHING;

-- name: load_payments(now)!
-- description: New payments, known to us from now on.
INSERT INTO billing.payments
    (payment_ref, subscription_id, occurred_at, recorded_at, amount_minor, currency, outcome, failure_class, failure_code,
     attempt)
SELECT
    t.payment_id,
    s.subscription_id,
    t.occurred_at,
    :now AS recorded_at,
    t.amount_minor,
    t.currency,
    t.outcome,
    t.failure_class,
    t.failure_code,
    coalesce(t.attempt, 1) AS attempt
FROM typed_payments AS t
INNER JOIN billing.subscriptions AS s ON t.subscription_id = s.subscription_ref
ORDER BY t.line
ON CONFLICT (payment_ref) DO NOTHING;

-- name: load_rewards(now)!
-- description: New reward entries, known to us from now on.
INSERT INTO billing.reward_entries (customer_id, occurred_at, recorded_at, kind, amount_minor, expires_at)
SELECT
    c.customer_id,
    t.occurred_at,
    :now AS recorded_at,
    t.kind,
    t.amount_minor,
    t.expires_at
FROM import_rewards AS t
INNER JOIN billing.customers AS c ON t.customer_id = c.customer_ref
ORDER BY t.line;

-- name: load_fx_rates()!
-- description: New exchange rates, rounded to ten decimals.
INSERT INTO billing.fx_rates (date, currency, reporting_currency, rate)
SELECT
    date,
    currency,
    reporting_currency,
    rate
FROM typed_fx_rates ORDER BY line
ON CONFLICT (date, currency, reporting_currency) DO NOTHING;
