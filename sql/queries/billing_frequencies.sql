-- Changes of plan and payment frequency.

-- name: plan_known(plan)$
-- Whether there is such a plan.
SELECT count(*) > 0 AS known FROM billing.plans WHERE plan = :plan;

-- name: plan_price(plan, payment_frequency, currency)$
-- The price of one unit for one period, minor units; null where the plan is not sold so.
SELECT amount_minor FROM billing.plan_prices
WHERE plan = :plan AND payment_frequency = :payment_frequency AND currency = :currency;

-- name: paid_period(anchor, payment_frequency, at, zone)^
-- The period around an instant: its end, how much of it is left and how long it is, on the customer's own clock, where a day
-- has 24 hours also when the clock changes. The payment before the next one is the first after a little more than a period ago.
SELECT
    period.starts_at,
    period.ends_at,
    (extract(EPOCH FROM (period.ends_at AT TIME ZONE :zone) - (cast(:at AS timestamptz) AT TIME ZONE :zone)) * 1000000)::bigint
        AS left_us,
    (extract(EPOCH FROM (period.ends_at AT TIME ZONE :zone) - (period.starts_at AT TIME ZONE :zone)) * 1000000)::bigint
        AS period_us
FROM (
    SELECT
        upcoming.at AS ends_at,
        billing.next_payment_at(:anchor, :payment_frequency, upcoming.at - CASE :payment_frequency
            WHEN 'WEEKLY' THEN interval '10 days'
            WHEN 'BIWEEKLY' THEN interval '18 days'
            WHEN 'MONTHLY' THEN interval '33 days'
            WHEN 'QUARTERLY' THEN interval '100 days'
            ELSE interval '370 days'
        END, :zone) AS starts_at
    FROM (SELECT billing.next_payment_at(:anchor, :payment_frequency, :at, :zone) AS at) AS upcoming
) AS period;

-- name: date_is_kept(subscription_id, at, since)$
-- Whether Stripe keeps the date on which the running period (begun at since) ends: a pause, a mend, a rollback or a change taken
-- back has set it. Stripe does it by a trial, prorates nothing of that and bills no change before its end. A command that names
-- the date keeps it until then, where it is told later, until a moment after; one without may keep the end of its period.
-- (Stripe's periods begin up to three days before or after ours.)
SELECT
    s.billing_anchor > :at OR EXISTS (
        SELECT 1 FROM billing.stripe_commands AS c
        WHERE
            c.subscription_id = s.subscription_id AND c.state <> 'superseded'
            AND (c.parameters ->> 'next_payment_at' IS NOT NULL OR c.parameters ->> 'proration' = 'none')
            AND (
                c.delivered_at IS NULL
                OR CASE
                    WHEN c.parameters ->> 'next_payment_at' IS NULL
                        THEN c.delivered_at > cast(:since AS timestamptz) - interval '4 days'
                    ELSE greatest((c.parameters ->> 'next_payment_at')::timestamptz, c.delivered_at) + interval '1 hour' > :at
                END
            )
    ) AS kept
FROM billing.subscriptions AS s
WHERE s.subscription_id = :subscription_id;

-- name: payment_dates(anchor, payment_frequency, after, zone, number)
-- The first payments of a calendar after an instant.
WITH RECURSIVE dates (payment_at, n) AS (
    SELECT
        billing.next_payment_at(:anchor, :payment_frequency, cast(:after AS timestamptz), :zone),
        1
    UNION ALL
    SELECT
        billing.next_payment_at(:anchor, :payment_frequency, dates.payment_at, :zone),
        dates.n + 1
    FROM dates
    WHERE dates.n < :number
)

SELECT payment_at FROM dates ORDER BY n;

-- name: record_change(subscription_id, from_plan, to_plan, old, new, was, price, asked, at, credit, debit, currency, state)!
-- One row for each change, made or to be made; amounts in minor units.
INSERT INTO billing.frequency_changes (
    subscription_id, from_plan, to_plan, from_frequency, to_frequency, from_amount_minor, amount_minor, requested_at,
    effective_at, credit_minor, debit_minor, currency, state
)
VALUES (
    :subscription_id, :from_plan, :to_plan, :old, :new, :was, :price, :asked, :at, :credit, :debit, :currency, :state
);

-- name: scheduled_change(subscription_id)^
-- The change that waits for the end of the period.
SELECT
    f.frequency_change_id,
    s.subscription_ref,
    coalesce(f.from_plan, s.plan) AS from_plan,
    coalesce(f.to_plan, s.plan) AS to_plan,
    f.from_frequency,
    f.to_frequency,
    f.amount_minor,
    f.currency,
    f.effective_at
FROM billing.frequency_changes AS f
INNER JOIN billing.subscriptions AS s ON f.subscription_id = s.subscription_id
WHERE f.subscription_id = :subscription_id AND f.state = 'scheduled';

-- name: change_terms_now(subscription_id, version, plan, payment_frequency, amount_minor, anchor, next_payment_at, at, reason)!
-- New terms and the command that tells Stripe of them; only if the subscription is still as it was quoted.
WITH changed AS (
    UPDATE billing.subscriptions
    SET
        plan = :plan, payment_frequency = :payment_frequency, amount_minor = :amount_minor, billing_anchor = :anchor,
        next_payment_at = :next_payment_at, version = version + 1, changed_at = :at, change_reason = :reason
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
            'proration', 'create_prorations', 'proration_date', cast(:at AS timestamptz)
        ) AS parameters
    FROM changed
    WHERE stripe_subscription_id IS NOT NULL
)

SELECT subscription_id FROM changed;

-- name: tell_next_terms(subscription_id, plan, payment_frequency, amount_minor, crosses, recount)!
-- Tell Stripe the terms of the next payment: the price changes, nothing is billed. Where the interval changes with it, the date
-- is named, and Stripe counts from it; so do we (recount), where the present terms stay.
WITH raised AS (
    UPDATE billing.subscriptions
    SET
        version = version + 1,
        billing_anchor = CASE
            WHEN :recount AND :crosses AND stripe_subscription_id IS NOT NULL THEN coalesce(next_payment_at, billing_anchor)
            ELSE billing_anchor
        END
    WHERE subscription_id = :subscription_id
    RETURNING subscription_id, version, stripe_subscription_id, currency, next_payment_at
)

INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
SELECT
    subscription_id || ':change_price:' || version AS idempotency_key,
    subscription_id,
    'change_price' AS operation,
    jsonb_build_object(
        'plan', cast(:plan AS text), 'payment_frequency', cast(:payment_frequency AS text), 'currency', currency,
        'amount_minor', cast(:amount_minor AS bigint), 'proration', 'none'
    ) || CASE
        WHEN :crosses AND next_payment_at IS NOT NULL THEN jsonb_build_object('next_payment_at', next_payment_at)
        ELSE '{}'
    END AS parameters
FROM raised
WHERE stripe_subscription_id IS NOT NULL;

-- name: cancel_scheduled_change(frequency_change_id)!
-- A change that waits for the end of the period is taken back.
UPDATE billing.frequency_changes SET state = 'canceled' WHERE frequency_change_id = :frequency_change_id AND state = 'scheduled';

-- name: count_due_changes(up_to)$
-- How many changes were due by an instant and are not made; while a subscription is paused its change is not due.
SELECT count(*)
FROM billing.frequency_changes AS f
INNER JOIN billing.subscriptions AS s ON f.subscription_id = s.subscription_id
WHERE f.state = 'scheduled' AND f.effective_at <= :up_to AND s.status <> 'paused';

-- name: hold_due_changes(now, subscription_ids, batch_size)
-- Changes whose day has come (of these subscriptions; null: of all), locked with their subscriptions. A paused one
-- keeps its change, unless Stripe heard of the pause only when the period had turned.
SELECT f.frequency_change_id
FROM billing.frequency_changes AS f
INNER JOIN billing.subscriptions AS s ON f.subscription_id = s.subscription_id
WHERE
    f.state = 'scheduled' AND f.effective_at <= :now
    AND (cast(:subscription_ids AS bigint[]) IS NULL OR f.subscription_id = any(:subscription_ids))
    AND (
        s.status <> 'paused'
        OR (
            SELECT (array_agg(coalesce(c.delivered_at, 'infinity') ORDER BY c.command_id DESC))[1]
            FROM billing.stripe_commands AS c
            WHERE c.subscription_id = s.subscription_id AND c.operation = 'pause' AND c.state <> 'superseded'
        ) > f.effective_at
    )
ORDER BY f.effective_at, f.frequency_change_id
LIMIT :batch_size
FOR NO KEY UPDATE OF f, s SKIP LOCKED;

-- name: postpone_moved_changes(change_ids, now)!
-- The period ends later than was thought: a pause has moved the payment (dates are counted from where it was moved to), or Stripe
-- heard of the change only when the old terms had been billed once more.
UPDATE billing.frequency_changes AS f
SET effective_at = later.effective_at
FROM (
    SELECT
        held.frequency_change_id,
        greatest(s.billing_anchor, CASE
            WHEN told.at >= held.effective_at
                THEN billing.next_payment_at(s.billing_anchor, held.from_frequency, told.at, c.time_zone)
        END) AS effective_at
    FROM billing.frequency_changes AS held
    INNER JOIN billing.subscriptions AS s ON held.subscription_id = s.subscription_id
    INNER JOIN billing.customers AS c ON s.customer_id = c.customer_id
    CROSS JOIN LATERAL (
        SELECT coalesce(
            (array_agg(coalesce(command.delivered_at, :now) ORDER BY command.command_id DESC))[1], '-infinity'
        ) AS at
        FROM billing.stripe_commands AS command
        WHERE
            command.subscription_id = s.subscription_id AND command.operation = 'change_price' AND command.state <> 'superseded'
    ) AS told
    WHERE held.frequency_change_id = any(cast(:change_ids AS bigint[])) AND s.status <> 'canceled'
) AS later
WHERE f.frequency_change_id = later.frequency_change_id AND f.state = 'scheduled' AND later.effective_at > f.effective_at;

-- name: postpone_paused_changes(change_ids)!
-- The payment at the end of the period fell into a pause and was left out: the change comes with the first payment after it.
-- Where the interval changes, Stripe has begun an unbilled period of the new length, and is told the date.
WITH later AS (
    SELECT
        held.frequency_change_id,
        held.subscription_id,
        held.from_frequency <> held.to_frequency AS crosses,
        billing.next_payment_at(
            s.billing_anchor, held.from_frequency, max(p.ends_at) - interval '1 microsecond', min(c.time_zone)
        ) AS effective_at
    FROM billing.frequency_changes AS held
    INNER JOIN billing.subscriptions AS s ON held.subscription_id = s.subscription_id
    INNER JOIN billing.customers AS c ON s.customer_id = c.customer_id
    INNER JOIN billing.subscription_pauses AS p
        ON
            held.subscription_id = p.subscription_id AND p.state = 'completed' AND p.kind <> 'payment_failure'
            AND held.effective_at >= p.starts_at AND held.effective_at < p.ends_at
    WHERE held.frequency_change_id = any(cast(:change_ids AS bigint[])) AND s.status <> 'canceled'
    GROUP BY held.frequency_change_id, s.subscription_id
),

postponed AS (
    UPDATE billing.frequency_changes AS f
    SET effective_at = later.effective_at
    FROM later
    WHERE f.frequency_change_id = later.frequency_change_id AND f.state = 'scheduled' AND later.effective_at > f.effective_at
    RETURNING later.subscription_id, later.effective_at, later.crosses
),

raised AS (
    UPDATE billing.subscriptions AS s
    SET version = s.version + 1
    FROM postponed
    WHERE s.subscription_id = postponed.subscription_id AND postponed.crosses AND s.stripe_subscription_id IS NOT NULL
    RETURNING s.subscription_id, s.version, postponed.effective_at
),

told AS (
    INSERT INTO billing.stripe_commands (idempotency_key, subscription_id, operation, parameters)
    SELECT
        subscription_id || ':move_payment:' || version AS idempotency_key,
        subscription_id,
        'move_payment' AS operation,
        jsonb_build_object('next_payment_at', effective_at) AS parameters
    FROM raised
)

SELECT subscription_id FROM postponed;

-- name: apply_changes(change_ids, now)^
-- New terms where the period has ended. Stripe knows them; nothing is told. Where the interval changes, dates are counted from
-- the change, and the payment at it is still to come unless it was made, or credit left nothing to pay. A canceled subscription
-- loses its change.
WITH free AS MATERIALIZED (
    -- Events are found by their time alone: read once for all changes, from the oldest on. (Stripe has dates in whole seconds.)
    SELECT
        f.frequency_change_id,
        max(to_timestamp((e.object ->> 'created')::bigint)) AS billed_at
    FROM billing.frequency_changes AS f
    INNER JOIN billing.subscriptions AS s ON f.subscription_id = s.subscription_id
    INNER JOIN billing.stripe_events AS e ON s.stripe_subscription_id = e.object ->> 'subscription'
    WHERE
        f.frequency_change_id = any(cast(:change_ids AS bigint[]))
        AND e.created >= (
            SELECT date_trunc('second', min(oldest.effective_at)) FROM billing.frequency_changes AS oldest
            WHERE oldest.frequency_change_id = any(cast(:change_ids AS bigint[]))
        )
        AND e.type = 'invoice.paid' AND (e.object ->> 'amount_due')::bigint = 0
        AND e.object ->> 'billing_reason' = 'subscription_cycle'
        AND to_timestamp((e.object ->> 'created')::bigint) >= date_trunc('second', f.effective_at)
    GROUP BY f.frequency_change_id
),

due AS MATERIALIZED (
    SELECT
        f.frequency_change_id,
        f.subscription_id,
        f.from_frequency,
        f.to_frequency,
        f.to_plan,
        f.amount_minor,
        f.effective_at,
        s.status,
        c.time_zone,
        greatest(
            free.billed_at,
            (
                SELECT max(p.occurred_at) FROM billing.payments AS p
                WHERE
                    p.subscription_id = f.subscription_id AND p.outcome = 'succeeded'
                    AND p.occurred_at >= date_trunc('second', f.effective_at)
            )
        ) AS paid_at
    FROM billing.frequency_changes AS f
    INNER JOIN billing.subscriptions AS s ON f.subscription_id = s.subscription_id
    INNER JOIN billing.customers AS c ON s.customer_id = c.customer_id
    LEFT JOIN free ON f.frequency_change_id = free.frequency_change_id
    WHERE
        f.frequency_change_id = any(cast(:change_ids AS bigint[]))
        AND f.state = 'scheduled' AND (f.effective_at <= :now OR s.status = 'canceled')
),

changed AS (
    UPDATE billing.subscriptions AS s
    SET
        plan = coalesce(due.to_plan, s.plan), payment_frequency = due.to_frequency, amount_minor = due.amount_minor,
        billing_anchor = CASE WHEN due.from_frequency = due.to_frequency THEN s.billing_anchor ELSE due.effective_at END,
        next_payment_at = CASE
            WHEN due.from_frequency = due.to_frequency THEN s.next_payment_at
            WHEN due.paid_at IS NULL THEN due.effective_at
            ELSE billing.next_payment_at(
                due.effective_at, due.to_frequency, greatest(due.paid_at, due.effective_at), due.time_zone
            )
        END,
        version = s.version + 1, changed_at = greatest(due.effective_at, s.changed_at),
        change_reason = 'changed at the end of the period'
    FROM due
    WHERE s.subscription_id = due.subscription_id AND s.status <> 'canceled'
    RETURNING s.subscription_id
),

marked AS (
    UPDATE billing.frequency_changes AS f
    SET state = CASE WHEN due.status = 'canceled' THEN 'canceled' ELSE 'applied' END
    FROM due
    WHERE f.frequency_change_id = due.frequency_change_id AND f.state = 'scheduled'
)

SELECT
    (SELECT count(*) FROM changed) AS applied,
    (SELECT count(*) FROM due) - (SELECT count(*) FROM changed) AS dropped;
