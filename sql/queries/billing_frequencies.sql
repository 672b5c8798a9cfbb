-- Changes of payment frequency.

-- name: plan_price(plan, payment_frequency, currency)$
-- The price of one unit for one period, minor units; null where the plan is not sold so.
SELECT amount_minor FROM billing.plan_prices
WHERE plan = :plan AND payment_frequency = :payment_frequency AND currency = :currency;

-- name: paid_period(anchor, payment_frequency, at, zone)^
-- The period around an instant: its end, how much of it is left and how long it is, on the customer's own clock, where a day
-- has 24 hours also when the clock changes. The payment before the next one is the first after a little more than a period ago.
SELECT
    period.ends_at,
    (extract(EPOCH FROM (period.ends_at AT TIME ZONE :zone) - (cast(:at AS timestamptz) AT TIME ZONE :zone)) * 1000000)::bigint
        AS left_us,
    (extract(EPOCH FROM (period.ends_at AT TIME ZONE :zone) - (period.starts_at AT TIME ZONE :zone)) * 1000000)::bigint
        AS period_us
FROM (
    SELECT
        upcoming.at AS ends_at,
        CASE
            WHEN upcoming.at = :anchor THEN billing.payment_at(:anchor, :payment_frequency, -1, :zone)
            ELSE billing.next_payment_at(:anchor, :payment_frequency, upcoming.at - CASE :payment_frequency
                WHEN 'WEEKLY' THEN interval '10 days'
                WHEN 'BIWEEKLY' THEN interval '18 days'
                WHEN 'MONTHLY' THEN interval '33 days'
                WHEN 'QUARTERLY' THEN interval '100 days'
                ELSE interval '370 days'
            END, :zone)
        END AS starts_at
    FROM (SELECT billing.next_payment_at(:anchor, :payment_frequency, :at, :zone) AS at) AS upcoming
) AS period;

-- name: payment_dates(anchor, payment_frequency, first, last, zone)
-- The payments from the first to the last number after an anchor.
SELECT billing.payment_at(:anchor, :payment_frequency, n, :zone) AS payment_at
FROM generate_series(cast(:first AS integer), cast(:last AS integer)) AS n
ORDER BY n;

-- name: record_frequency_change(subscription_id, old, new, price, asked_at, at, credit, debit, currency, state)!
-- One row for each change of a frequency, made or to be made; amounts in minor units.
INSERT INTO billing.frequency_changes (
    subscription_id, from_frequency, to_frequency, amount_minor, requested_at, effective_at, credit_minor, debit_minor,
    currency, state
)
VALUES (:subscription_id, :old, :new, :price, :asked_at, :at, :credit, :debit, :currency, :state);

-- name: scheduled_frequency_change(subscription_id)$
-- When a change that is already scheduled will be made; null where there is none.
SELECT effective_at FROM billing.frequency_changes WHERE subscription_id = :subscription_id AND state = 'scheduled';

-- name: change_frequency_now(subscription_id, version, to_frequency, amount_minor, anchor, next_payment_at, at)!
-- New terms and the command that tells Stripe of them; only if the subscription is still as it was quoted.
WITH changed AS (
    UPDATE billing.subscriptions
    SET
        payment_frequency = :to_frequency, amount_minor = :amount_minor, billing_anchor = :anchor,
        next_payment_at = :next_payment_at, version = version + 1, changed_at = :at,
        change_reason = 'payment frequency changed'
    WHERE subscription_id = :subscription_id AND version = :version AND status IN ('active', 'trialing')
    RETURNING subscription_id, version, stripe_subscription_id, plan, currency, payment_frequency, amount_minor
),

told AS (
    INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
    SELECT
        subscription_id || ':change_price:' || version AS idempotency_key,
        subscription_id,
        'change_price' AS operation,
        jsonb_build_object(
            'plan', plan, 'payment_frequency', payment_frequency, 'currency', currency, 'amount_minor', amount_minor,
            'proration', 'create_prorations'
        ) AS parameters
    FROM changed
    WHERE stripe_subscription_id IS NOT NULL
)

SELECT subscription_id FROM changed;

-- name: apply_due_frequency_changes(now)$
-- Changes whose period has ended, on subscriptions that are active; a paused or unpaid one keeps its change for later, a canceled
-- one loses it. The payment at the change itself is at the new price, unless it has been made already.
WITH due AS MATERIALIZED (
    SELECT
        f.frequency_change_id,
        f.subscription_id,
        f.to_frequency,
        f.amount_minor,
        f.effective_at,
        s.status,
        c.time_zone
    FROM billing.frequency_changes AS f
    INNER JOIN billing.subscriptions AS s ON f.subscription_id = s.subscription_id
    INNER JOIN billing.customers AS c ON s.customer_id = c.customer_id
    WHERE
        f.state = 'scheduled' AND f.effective_at <= :now AND s.status IN ('active', 'trialing', 'canceled')
        AND EXISTS (SELECT 1 FROM billing.feature_flags AS flag WHERE flag.feature = 'frequencies' AND flag.enabled)
    ORDER BY f.effective_at, f.frequency_change_id
    FOR NO KEY UPDATE OF f, s SKIP LOCKED
),

changed AS (
    UPDATE billing.subscriptions AS s
    SET
        payment_frequency = due.to_frequency, amount_minor = due.amount_minor, billing_anchor = due.effective_at,
        next_payment_at = CASE
            WHEN s.next_payment_at > due.effective_at
                THEN billing.next_payment_at(due.effective_at, due.to_frequency, due.effective_at, due.time_zone)
            ELSE due.effective_at
        END,
        version = s.version + 1, changed_at = greatest(due.effective_at, s.changed_at),
        change_reason = 'payment frequency changed at the end of the period'
    FROM due
    WHERE s.subscription_id = due.subscription_id AND s.status IN ('active', 'trialing')
    RETURNING s.subscription_id, s.version, s.stripe_subscription_id, s.plan, s.currency, s.payment_frequency, s.amount_minor
),

marked AS (
    UPDATE billing.frequency_changes AS f
    SET state = CASE WHEN due.status = 'canceled' THEN 'canceled' ELSE 'applied' END
    FROM due
    WHERE f.frequency_change_id = due.frequency_change_id AND f.state = 'scheduled'
),

told AS (
    INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
    SELECT
        subscription_id || ':change_price:' || version AS idempotency_key,
        subscription_id,
        'change_price' AS operation,
        jsonb_build_object(
            'plan', plan, 'payment_frequency', payment_frequency, 'currency', currency, 'amount_minor', amount_minor,
            'proration', 'none'
        ) AS parameters
    FROM changed
    WHERE stripe_subscription_id IS NOT NULL
)

SELECT count(*) AS applied FROM changed;
